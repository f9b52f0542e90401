// Attention of all heads of two models on texts that the run has read, and norms of what is moved.
Interactive.define("explorer", (figure) => {
  const { bytes, color, format, make, range } = Interactive;
  const models = figure.data.models.map((m) => ({
    ...m, maps: [["weights", m.weights], ["norms of values", m.norms]].filter(([, b]) => b).map(([name, b]) => ({ name, bytes: bytes(b) })),
  }));
  const layers = Math.max(...models.map((m) => m.layers)), heads = Math.max(...models.map((m) => m.heads));
  const model = figure.choice({ name: "model", label: "Model", options: models.map((m) => m.name) });
  const kind = figure.choice({ name: "kind", label: "Shown", options: ["weights", "norms of values"] });
  const layer = figure.slider({ name: "layer", label: "Layer", min: 1, max: layers, step: 1, value: 6, show: String });
  const head = figure.slider({ name: "head", label: "Head", min: 1, max: heads, step: 1, value: 7, show: String });
  const row = figure.pieces("The token that reads");
  const map = figure.chart({ label: "" });
  const bars = figure.chart({ label: "" });
  const said = figure.said();
  let reader = 0, kept = -1;

  figure.draw(() => {
    const m = models[model.value], tokens = m.tokens, n = tokens.length;
    if (kept !== model.value) {
      kept = model.value;
      reader = n - 2;
      row.replaceChildren(...tokens.map((token, i) => {
        const button = make("button", { type: "button" }, token);
        button.addEventListener("click", () => { reader = i; figure.redraw(); });
        return button;
      }));
    }
    [...row.children].forEach((button, i) => button.setAttribute("aria-pressed", String(i === reader)));
    // What a model lacks is shown by the nearest that it has.
    const l = Math.min(layer.value, m.layers), h = Math.min(head.value, m.heads);
    const shown = m.maps[Math.min(kind.value, m.maps.length - 1)];
    const size = m.causal ? (n * (n + 1)) / 2 : n * n;
    const first = ((l - 1) * m.heads + h - 1) * size;
    const at = (i, j) => (m.causal ? (j > i ? 0 : shown.bytes[first + (i * (i + 1)) / 2 + j]) : shown.bytes[first + i * n + j]) / 255;
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
    map.say(`${m.name}, layer ${l}, head ${h}, ${shown.name}: rows read, columns are read.`);
    const best = A[reader].indexOf(Math.max(...A[reader]));
    bars.bars(tokens.map((name, j) => ({ name, value: A[reader][j], strong: j === best, fill: j === best ? color(1) : color(0) })), {
      title: `${shown.name} of “${tokens[reader]}”`, digits: 2, row: 20,
    });
    bars.say(`“${tokens[reader]}”: the largest of its ${shown.name} is at “${tokens[best]}”, ${format(A[reader][best])}.`);
    said(`${m.name}, layer ${l} of ${m.layers}, head ${h} of ${m.heads}: the largest of the ${shown.name} of “${tokens[reader]}” is at “${tokens[best]}”, ${format(A[reader][best])}.`);
    return { A, reader, layer: l, head: h };
  });
});
