// The weights that ALiBi gives to keys of equal scores, head by head.
Interactive.define("alibi", (figure) => {
  const { color, format, range, softmax } = Interactive;
  const power = figure.slider({
    name: "H", label: "Number of heads H", min: 1, max: 4, step: 1, value: 3, map: (v) => 2 ** v, show: String,
  });
  const head = figure.slider({ name: "h", label: "Head h", min: 1, max: 8, step: 1, value: 3, show: String });
  const reader = figure.slider({ name: "i", label: "Position i of the reader", min: 0, max: 127, step: 1, value: 63, show: String });
  power.input.addEventListener("input", () => { head.limit(power.value); figure.redraw(); });
  const chart = figure.chart({ label: "", wide: true });
  const said = figure.said();

  figure.draw(() => {
    const i = reader.value, H = power.value;
    const slopes = range(H, (h) => 2 ** (-8 * (h + 1) / H));
    const weights = (slope) => softmax(range(i + 1, (j) => -slope * (i - j)));
    const slope = slopes[head.value - 1], A = weights(slope);
    const top = Math.max(...A) * 1.05;
    chart.axes({ x: [0, 127], y: [0, top], xLabel: "position j that is read", yLabel: "attention weight" });
    for (const other of slopes) {
      chart.line(weights(other).map((w, j) => [j, w]), { stroke: color(0), width: 1, opacity: 0.45 });
    }
    chart.line(A.map((w, j) => [j, w]), { stroke: color(1), width: 3 });
    chart.dot(i, A[i], { fill: color(1) });
    chart.line([[i, 0], [i, top]], { stroke: color(3), width: 1, dashed: true });
    chart.say(`Weights of head ${head.value}, which rise toward the reader at ${i}; thin lines are the other heads.`);
    said(`Slope ${format(slope, 4)}: a key loses half of its weight every ${format(Math.log(2) / slope, 1)} tokens. The reader itself gets ${format(A[i], 4)}.`);
    return { slope, A };
  });
});
