// The attention of MiniLM's heads on sentences that the run has read: who reads whom, and how much.
Interactive.define("heads", (figure) => {
  const { bytes, color, format, make, range } = Interactive;
  const sentences = figure.data.sentences.map(({ tokens, weights }) => ({ tokens, weights: bytes(weights) }));
  const { layers, heads } = figure.data;
  const sentence = figure.choice({
    name: "sentence", label: "Sentence", options: sentences.map(({ tokens }) => tokens.slice(1, -1).join(" ").replaceAll(" ##", "")),
  });
  const layer = figure.slider({ name: "layer", label: "Layer", min: 1, max: layers, step: 1, value: 1, show: String });
  const head = figure.slider({ name: "head", label: "Head", min: 1, max: heads, step: 1, value: 3, show: String });
  figure.player(head, { every: 1200 });
  const row = figure.pieces("The token that reads");
  const map = figure.chart({ label: "" });
  const bars = figure.chart({ label: "" });
  const said = figure.said();
  let reader = figure.data.reader, kept = -1;

  figure.draw(() => {
    const { tokens, weights } = sentences[sentence.value], n = tokens.length;
    if (kept !== sentence.value) {
      kept = sentence.value;
      reader = Math.min(reader, n - 1);
      row.replaceChildren(...tokens.map((token, i) => {
        const button = make("button", { type: "button" }, token);
        button.addEventListener("click", () => { reader = i; figure.redraw(); });
        return button;
      }));
    }
    [...row.children].forEach((button, i) => button.setAttribute("aria-pressed", String(i === reader)));
    // A byte is a weight in steps of 1/255.
    const first = ((layer.value - 1) * heads + head.value - 1) * n * n;
    const A = range(n, (i) => range(n, (j) => weights[first + i * n + j] / 255));

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
    map.say(`Weights of layer ${layer.value}, head ${head.value}: rows read, columns are read.`);
    const best = A[reader].indexOf(Math.max(...A[reader]));
    bars.bars(tokens.map((name, j) => ({ name, value: A[reader][j], strong: j === best, fill: j === best ? color(1) : color(0) })), {
      title: `what “${tokens[reader]}” reads`, digits: 2, row: 20,
    });
    bars.say(`“${tokens[reader]}” reads “${tokens[best]}” most, with ${format(A[reader][best])}.`);
    said(`Layer ${layer.value}, head ${head.value}: “${tokens[reader]}” reads “${tokens[best]}” most, ${format(A[reader][best])} of its weight.`);
    return { A, reader };
  });
});
