// The attention of all heads on texts that the run has read: who reads whom, and how much.
// A text has the map of each head as bytes: its weights, and norms of what is moved where it has them.
Interactive.define("heads", (figure) => {
  const { bytes, color, format, make, range } = Interactive;
  const texts = figure.data.texts.map((text) => ({
    ...text,
    maps: ["weights", "norms"].filter((kind) => text[kind]).map((kind) => bytes(text[kind])),
  }));
  const layers = Math.max(...texts.map((text) => text.layers)), heads = Math.max(...texts.map((text) => text.heads));
  const KINDS = ["weights", "norms of values"];
  const chosen = figure.choice({ name: "text", label: figure.data.label, options: texts.map((text) => text.name) });
  const kind = texts.some((text) => text.norms) ? figure.choice({ name: "kind", label: "Shown", options: KINDS }) : { value: 0 };
  const layer = figure.slider({ name: "layer", label: "Layer", min: 1, max: layers, step: 1, value: figure.data.layer, show: String });
  const head = figure.slider({ name: "head", label: "Head", min: 1, max: heads, step: 1, value: figure.data.head, show: String });
  figure.player(head, { every: 1200 });
  const row = figure.pieces("The token that reads");
  const map = figure.chart({ label: "" });
  const bars = figure.chart({ label: "" });
  const said = figure.said();
  let reader = figure.data.reader, kept = -1;

  figure.draw(() => {
    const text = texts[chosen.value], tokens = text.tokens, n = tokens.length;
    if (kept !== chosen.value) {
      kept = chosen.value;
      reader = Math.min(reader, n - 1);
      row.replaceChildren(...tokens.map((token, i) => {
        const button = make("button", { type: "button" }, token);
        button.addEventListener("click", () => { reader = i; figure.redraw(); });
        return button;
      }));
    }
    [...row.children].forEach((button, i) => button.setAttribute("aria-pressed", String(i === reader)));
    // What a text lacks is shown by the nearest that it has.
    const l = Math.min(layer.value, text.layers), h = Math.min(head.value, text.heads);
    const shown = Math.min(kind.value, text.maps.length - 1), what = KINDS[shown], held = text.maps[shown];
    // Of a causal map only the triangle is kept. A byte is a weight in steps of 1/255.
    const first = ((l - 1) * text.heads + h - 1) * (text.causal ? (n * (n + 1)) / 2 : n * n);
    const at = (i, j) => (text.causal ? (j > i ? 0 : held[first + (i * (i + 1)) / 2 + j]) : held[first + i * n + j]) / 255;
    const A = range(n, (i) => range(n, (j) => at(i, j)));

    const wide = Math.min(map.box.clientWidth, 360), left = 74, cell = (wide - left - 4) / n;
    map.clear(left + n * cell + 4);
    tokens.forEach((token, i) => {
      const middle = left + (i + 0.5) * cell;
      map.letters(left - 5, middle + 4, token, { anchor: "end", kind: i === reader ? "strong" : "tick" });
      map.letters(middle + 4, left - 5, token, { kind: "tick", turned: -90 });
      A[i].forEach((w, j) => map.add("rect", {
        x: left + j * cell, y: left + i * cell, width: cell - 1, height: cell - 1,
      }, { fill: color(0), opacity: 0.05 + 0.95 * w, title: `${token} reads ${tokens[j]}: ${format(w)}` }));
    });
    map.add("rect", { x: left - 1, y: left + reader * cell - 1, width: n * cell + 1, height: cell + 1 }, { stroke: color(1), width: 2 });
    map.say(`${text.name}, layer ${l}, head ${h}, ${what}: rows read, columns are read.`);
    const best = A[reader].indexOf(Math.max(...A[reader]));
    bars.bars(tokens.map((name, j) => ({ name, value: A[reader][j], strong: j === best, fill: j === best ? color(1) : color(0) })), {
      title: `${what} of “${tokens[reader]}”`, digits: 2, row: 20,
    });
    bars.say(`“${tokens[reader]}”: the largest of its ${what} is at “${tokens[best]}”, ${format(A[reader][best])}.`);
    said(`Layer ${l} of ${text.layers}, head ${h} of ${text.heads}: the largest of the ${what} of “${tokens[reader]}” is at “${tokens[best]}”, ${format(A[reader][best])}.`);
    return { A, reader, layer: l, head: h };
  });
});
