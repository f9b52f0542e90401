// The ledger's filter: by words, chapter, kind of check, and source of the formula. Without this
// script the page shows all equations.
(function () {
  const tables = [...document.querySelectorAll("table.ledger")];
  const summary = document.querySelector(".ledger-summary");
  if (!tables.length || !summary) {
    return;
  }
  const groups = tables.map((table) => {
    const box = table.closest(".pst-scrollable-table-container") || table;
    let title = box.previousElementSibling;
    while (title && !title.classList.contains("rubric")) {
      title = title.previousElementSibling;
    }
    const rows = [...table.querySelectorAll("tbody tr")].map((row) => ({
      row,
      text: row.textContent.toLowerCase(),
      kinds: row.cells[3].textContent.trim().split(", "),
      source: row.cells[4].textContent.trim(),
    }));
    return { box, title, name: title ? title.textContent.replace("#", "").trim() : "", rows };
  });
  const form = document.createElement("form");
  form.className = "ledger-filter";
  form.setAttribute("role", "search");
  form.setAttribute("aria-label", "Filter the ledger");
  const controls = {};
  function add(name, label, control) {
    const box = document.createElement("label");
    box.append(label, " ", control);
    for (const event of ["input", "change"]) {
      control.addEventListener(event, show);
    }
    form.append(box);
    controls[name] = control;
  }
  function choice(values) {
    const control = document.createElement("select");
    for (const [value, text] of [["", "all"], ...values]) {
      control.append(new Option(text, value));
    }
    return control;
  }
  const words = document.createElement("input");
  words.type = "search";
  add("words", "Contains", words);
  add("chapter", "Chapter", choice(groups.map((group) => [group.name, group.name])));
  const every = groups.flatMap((group) => group.rows);
  const kinds = [...new Set(every.flatMap((entry) => entry.kinds))].sort();
  add("kind", "Check", choice(kinds.map((kind) => [kind, kind])));
  add("source", "Formula", choice([["read", "read from the page"], ["compared", "compared"]]));
  const told = document.createElement("output");
  form.append(told);
  form.addEventListener("submit", (event) => event.preventDefault());
  summary.after(form);
  function show() {
    const wanted = controls.words.value.trim().toLowerCase();
    let count = 0;
    for (const group of groups) {
      let shown = 0;
      for (const entry of group.rows) {
        const fits =
          (!controls.chapter.value || controls.chapter.value === group.name) &&
          (!controls.kind.value || entry.kinds.includes(controls.kind.value)) &&
          (!controls.source.value || controls.source.value === entry.source) &&
          (!wanted || entry.text.includes(wanted));
        entry.row.hidden = !fits;
        shown += fits;
      }
      group.box.hidden = !shown;
      if (group.title) {
        group.title.hidden = !shown;
      }
      count += shown;
    }
    told.textContent = `${count} of ${every.length} shown`;
  }
  show();
})();
