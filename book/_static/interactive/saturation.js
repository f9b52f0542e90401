// Scores of random queries and keys, divided by the square root of their width or not.
Interactive.define("saturation", (figure) => {
  const { color, entropy, format, range, softmax, sum } = Interactive;
  const normals = figure.data.scores;
  const width = figure.slider({
    name: "d", label: "Width d of queries and keys", min: 0, max: 10, step: 1, value: 6,
    map: (v) => 2 ** v, show: (v) => String(v),
  });
  const scaled = figure.check({ name: "scaled", label: "divide the scores by √d", value: true });
  const columns = figure.chart({ label: "" });
  const curve = figure.chart({ label: "" });
  const said = figure.said();

  // The scores have the standard deviation √d; divided by it, 1.
  function weights(d, divided) {
    return softmax(normals.map((z) => z * (divided ? 1 : Math.sqrt(d))));
  }
  const slope = (a) => 1 - sum(a.map((w) => w * w));

  figure.draw(() => {
    const a = weights(width.value, scaled.value);
    const H = entropy(a), bound = slope(a);
    columns.axes({ x: [0, a.length], y: [0, 1], xLabel: "key", yLabel: "attention weight", xFormat: () => "" });
    a.forEach((w, j) => columns.rect(j + 0.12, 0, j + 0.88, w));
    columns.say(`The weights of ${a.length} keys, the largest ${format(Math.max(...a), 3)}.`);

    curve.axes({
      x: [1, 1024], y: [0, 1], xLog: true, xTicks: [1, 4, 16, 64, 256, 1024], xFormat: String,
      xLabel: "width d", yLabel: "trace of the Jacobian, 1 − ‖a‖²",
    });
    const along = (divided) => range(101, (i) => 2 ** (i / 10)).map((d) => [d, slope(weights(d, divided))]);
    curve.line(along(true), { stroke: color(2) });
    curve.line(along(false), { stroke: color(1) });
    curve.text(1.3, slope(weights(1, true)), "divided", { dy: -8, fill: color(2) });
    curve.text(12, slope(weights(12, false)), "not divided", { dx: 8, dy: -2, fill: color(1) });
    curve.dot(width.value, bound, { fill: scaled.value ? color(2) : color(1), r: 6 });
    curve.say("The trace of the softmax's Jacobian against the width: level where scores are divided, falling to zero where not.");
    said(`Entropy ${format(H, 3)} of at most ${format(Math.log(a.length), 3)} nats. The Jacobian's largest eigenvalue is at most ${format(Math.min(0.5, bound), 4)}.`);
    return { d: width.value, a, H, trace: bound };
  });
});
