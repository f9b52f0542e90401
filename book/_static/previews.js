// Shows what a link means before it is followed: an equation, a figure, a work, a term, a function.
// Pointing at the link or reaching it by keyboard is enough, a finger taps once to see and again to go.
// Escape closes. What is shown comes from a script beside the pages, loaded on first use.
(function () {
  const root = new URL(document.documentElement.dataset.content_root || "./", location.href);
  const known = new Map(); // page -> promise of its pieces
  const waiting = new Map(); // page -> what ends the wait
  window.bookPreviews = { add: (page, pieces) => waiting.get(page)(pieces) };

  let box = null; // the preview in view
  let shownFor = null; // and its link
  let wanted = null; // the link that is pointed at or in focus
  let timer = 0;

  function target(link) {
    const address = new URL(link.href, location.href);
    if (!address.hash || address.protocol !== root.protocol || !address.pathname.startsWith(root.pathname)) {
      return null;
    }
    const page = address.pathname.slice(root.pathname.length).replace(/\.html$/, "");
    return { page: decodeURIComponent(page), anchor: decodeURIComponent(address.hash.slice(1)) };
  }

  function pieces(page) {
    if (!known.has(page)) {
      known.set(page, new Promise((resolve) => {
        waiting.set(page, resolve);
        const script = document.createElement("script");
        script.src = new URL(`_static/previews/${page}.js`, root);
        script.charset = "utf-8";
        script.onerror = () => resolve({});
        document.head.append(script);
      }));
    }
    return known.get(page);
  }

  function hide() {
    clearTimeout(timer);
    wanted = null;
    if (box) {
      if (window.MathJax && MathJax.typesetClear) {
        MathJax.typesetClear([box]);
      }
      box.remove();
      shownFor.removeAttribute("aria-describedby");
      box = shownFor = null;
    }
  }

  function place(link) {
    const at = link.getClientRects()[0] || link.getBoundingClientRect();
    const width = document.documentElement.clientWidth;
    const left = Math.max(8, Math.min(at.left, width - box.offsetWidth - 8));
    const below = at.bottom + 6;
    const above = at.top - 6 - box.offsetHeight;
    const fits = below + box.offsetHeight <= innerHeight || above < 0;
    box.style.left = `${left + scrollX}px`;
    box.style.top = `${(fits ? below : above) + scrollY}px`;
  }

  // The drawing of a figure of this page, which previews do not carry: it would be most of their weight.
  function drawn(link) {
    const place = link.pathname === location.pathname ? document.getElementById(target(link).anchor) : null;
    const figure = place && place.closest("figure");
    return figure && figure.querySelector(".drawing");
  }

  async function show(link, finger) {
    const aim = target(link);
    if (!aim || shownFor === link) {
      return;
    }
    wanted = link;
    const html = (await pieces(aim.page))[aim.anchor];
    const math = window.MathJax && MathJax.typesetPromise;
    if (wanted !== link || !html || (html.includes('class="math') && !math)) {
      return;
    }
    hide();
    wanted = shownFor = link;
    const mine = document.createElement("div");
    box = mine;
    mine.id = "book-preview";
    mine.className = "book-preview";
    mine.setAttribute("role", "tooltip");
    mine.innerHTML = html.replaceAll("{root}", root.href);
    const figure = mine.querySelector("figure");
    const drawing = figure && drawn(link);
    if (drawing) {
      figure.prepend(drawing.cloneNode(true));
    }
    if (finger) {
      const hint = document.createElement("p");
      hint.className = "preview-hint";
      hint.textContent = "Tap the link again to go there.";
      mine.append(hint);
    }
    mine.addEventListener("pointerleave", leave);
    mine.addEventListener("pointerenter", () => clearTimeout(timer));
    mine.style.visibility = "hidden";
    document.body.append(mine);
    if (math) {
      await MathJax.typesetPromise([mine]).catch(() => {});
    }
    if (box === mine) {
      place(link);
      mine.style.visibility = "";
      link.setAttribute("aria-describedby", mine.id);
    }
  }

  function leave() {
    clearTimeout(timer);
    timer = setTimeout(hide, 250); // long enough to move onto the preview
  }

  function linkOf(event) {
    const link = event.target.closest ? event.target.closest("a[href*='#']") : null;
    const useful = link && link.closest(".bd-article") && link.matches(".internal, .reference");
    return useful && !link.matches(".headerlink, .check") ? link : null;
  }

  // The lists of where an equation is used close like a menu.
  function fold(inside) {
    for (const list of document.querySelectorAll("details.used-in[open]")) {
      if (!list.contains(inside)) {
        list.open = false;
      }
    }
  }

  let finger = false;
  document.addEventListener("pointerdown", (event) => { finger = event.pointerType !== "mouse"; }, true);
  document.addEventListener("pointerover", (event) => {
    const link = event.pointerType === "mouse" ? linkOf(event) : null;
    if (link && link !== wanted) {
      clearTimeout(timer);
      timer = setTimeout(() => show(link, false), 200);
    } else if (link) {
      clearTimeout(timer);
    }
  });
  document.addEventListener("pointerout", (event) => {
    if (event.pointerType === "mouse" && linkOf(event)) {
      leave();
    }
  });
  document.addEventListener("focusin", (event) => {
    const link = linkOf(event);
    if (link && link.matches(":focus-visible")) {
      show(link, false);
    }
  });
  document.addEventListener("focusout", (event) => {
    if (event.target === shownFor || event.target === wanted) {
      hide();
    }
  });
  document.addEventListener("click", (event) => {
    const link = linkOf(event);
    fold(event.target);
    if (!link) {
      if (box && !box.contains(event.target)) {
        hide();
      }
    } else if (finger && shownFor !== link && target(link)) {
      // A finger cannot point without touching: the first tap shows, if there is something to show.
      event.preventDefault();
      show(link, true).then(() => {
        if (shownFor !== link) {
          location.assign(link.href);
        }
      });
    } else {
      hide();
    }
  }, true);
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape") {
      hide();
      fold(null);
    }
  });
})();
