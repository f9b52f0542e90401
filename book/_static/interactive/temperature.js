// Three logits divided by a temperature: their softmax as bars, and as a point of the simplex.
Interactive.define("temperature", (figure) => {
  const { color, entropy, format, range, softmax, sum } = Interactive;
  const { words, logits } = figure.data;
  const T = figure.slider({
    name: "T", label: "Temperature T", min: -1.5, max: 1.5, step: 0.01, value: 0, map: (v) => 10 ** v,
  });
  const z = words.map((word, i) => figure.slider({
    name: `z${i}`, label: `Logit of “${word}”`, min: 0, max: 20, step: 0.01,
    value: Math.round(100 * (logits[i] - logits[2] + 8)) / 100,
  }));
  const bars = figure.chart({ label: "" });
  const triangle = figure.chart({ label: "" });
  const said = figure.said();

  figure.draw(() => {
    const scores = z.map((slider) => slider.value);
    const at = (t) => softmax(scores.map((s) => s / t));
    const p = at(T.value);
    const mean = sum(p.map((pk, k) => pk * scores[k]));
    const variance = sum(p.map((pk, k) => pk * (scores[k] - mean) ** 2));
    const H = entropy(p), slope = variance / T.value ** 3;
    bars.bars(words.map((name, k) => ({ name, value: p[k], fill: color(k) })), { title: "probability", row: 44 });
    bars.say(`Probabilities: ${words.map((w, k) => `${w} ${format(p[k], 3)}`).join(", ")}`);

    // The corners of the simplex: all the probability on one word.
    const side = Math.min(triangle.box.clientWidth - 90, 250), high = side * Math.sqrt(3) / 2;
    triangle.clear(high + 50);
    const left = (triangle.width - side) / 2;
    const corners = [[left, high + 24], [left + side, high + 24], [left + side / 2, 24]];
    const place = (q) => [0, 1].map((axis) => sum(q.map((qk, k) => qk * corners[k][axis])));
    triangle.add("path", { class: "axis", d: `M${corners.map((c) => c.join(" ")).join("L")}Z` });
    corners.forEach(([x, y], k) => triangle.letters(x, k < 2 ? y + 17 : y - 8, words[k], { anchor: "middle", fill: color(k), kind: "strong" }));
    const path = range(121, (i) => place(at(10 ** (-2 + i / 30))).map((v) => v.toFixed(1)).join(" "));
    triangle.add("path", { d: `M${path.join("L")}` }, { stroke: color(3), width: 2, dashed: true });
    const [x, y] = place(p);
    triangle.add("circle", { cx: x, cy: y, r: 6 }, { fill: color(3) });
    triangle.say("The triangle of all distributions over three words, the path of the temperature, and the present point.");
    said(`Entropy ${format(H, 3)} of at most ${format(Math.log(3), 3)} nats. It rises by ${format(slope, 3)} nats per unit of temperature.`);
    return { p, H, slope, scores, T: T.value };
  });
});
