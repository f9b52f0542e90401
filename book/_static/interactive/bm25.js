// What the occurrences of a word count in BM25, in documents of three lengths.
Interactive.define("bm25", (figure) => {
  const { color, format, range } = Interactive;
  const k1 = figure.slider({ name: "k1", label: "k₁: how late it saturates", min: 0, max: 40, step: 1, value: 15, map: (v) => v / 10, show: (v) => format(v, 1) });
  const b = figure.slider({ name: "b", label: "b: how much length matters", min: 0, max: 20, step: 1, value: 15, map: (v) => v / 20, show: (v) => format(v, 2) });
  const curves = figure.chart({ label: "", wide: true });
  const said = figure.said();
  const lengths = [0.5, 1, 3];
  const names = ["half the mean length", "mean length", "three times"];

  function weight(f, length) {
    const below = f + k1.value * (1 - b.value + b.value * length);
    return below === 0 ? 0 : ((k1.value + 1) * f) / below;
  }

  figure.draw(() => {
    const top = Math.max(1.2, k1.value + 1);
    curves.axes({ x: [0, 12], y: [0, top * 1.05], xLabel: "occurrences f", yLabel: "what they count" });
    curves.line([[0, k1.value + 1], [12, k1.value + 1]], { stroke: "gray", dashed: true });
    const counts = range(13);
    const table = lengths.map((length) => counts.map((f) => weight(f, length)));
    lengths.forEach((length, i) => {
      curves.line(range(121, (j) => [j / 10, weight(j / 10, length)]), { stroke: color(i) });
    });
    counts.slice(1).forEach((f) => curves.dot(f, table[1][f], { fill: color(1), r: 3 }));
    curves.say("Three rising curves that level off below a dashed line, the shortest document's highest.");
    said(`One occurrence counts ${lengths.map((_, i) => `${format(table[i][1], 2)} (${names[i]})`).join(", ")}. No number of them counts more than ${format(k1.value + 1, 1)}.`);
    return { k1: k1.value, b: b.value, lengths, table };
  });
});
