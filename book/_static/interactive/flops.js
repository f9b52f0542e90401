// Where the operations of a Transformer layer go, by the length of the text.
Interactive.define("flops", (figure) => {
  const { color, format, range, scientific } = Interactive;
  const length = figure.slider({
    name: "n", label: "Length n of the text", min: 4, max: 20, step: 0.25, value: 11, map: (v) => Math.round(2 ** v), show: String,
  });
  const width = figure.slider({ name: "d", label: "Width d", min: 7, max: 14, step: 1, value: 10, map: (v) => 2 ** v, show: String });
  const shared = figure.slider({
    name: "share", label: "Query heads to each key head", min: 0, max: 3, step: 1, value: 0, map: (v) => 2 ** v, show: String,
  });
  const gated = figure.check({ name: "gated", label: "gated feed-forward (three matrices)" });
  const chart = figure.chart({ label: "", wide: true });
  const bars = figure.chart({ label: "", wide: true });
  const said = figure.said();

  figure.draw(() => {
    const d = width.value, n = length.value, matrices = gated.value ? 3 : 2;
    // Heads of width 64 fill the width d; the feed-forward layer is 4d wide.
    const cost = (m) => ({
      projections: 2 * m * d * 64 * 2 * (d / 64 + Math.max(1, d / 64 / shared.value)),
      attention: 4 * m * m * d,
      feedForward: 2 * m * matrices * d * 4 * d,
    });
    const now = cost(n), total = now.projections + now.attention + now.feedForward;
    const crossover = (n * (now.projections + now.feedForward)) / now.attention;
    const share = (m) => {
      const c = cost(m);
      return c.attention / (c.projections + c.attention + c.feedForward);
    };
    chart.axes({ x: [16, 2 ** 20], y: [0, 1], xLog: true, xLabel: "length n", yLabel: "share of the pairs, QKᵀ and AV",
      xTicks: [16, 128, 1024, 8192, 65536, 524288], xFormat: (v) => (v < 1024 ? String(v) : `${v / 1024}K`) });
    chart.line(range(129, (i) => 2 ** (4 + i / 8)).map((m) => [m, share(m)]));
    chart.line([[crossover, 0], [crossover, 1]], { stroke: color(2), dashed: true, width: 1.5 });
    const late = crossover > 8192;
    chart.text(crossover, 0.92, `one half at ${Math.round(crossover)}`, { dx: late ? -6 : 6, anchor: late ? "end" : "start", fill: color(2) });
    chart.dot(n, share(n), { r: 6 });
    chart.say(`The share of attention's pairs rises from 0 to 1 with the length; it is one half at ${Math.round(crossover)}, and ${format(share(n), 3)} at ${n}.`);
    bars.bars([
      { name: "projections", value: now.projections / total, fill: color(3) },
      { name: "pairs", value: now.attention / total },
      { name: "feed-forward", value: now.feedForward / total, fill: color(2) },
    ], { title: `share of the operations at n = ${n}` });
    bars.say("The shares of the three parts.");
    said(`One layer, one text of ${n} tokens: ${scientific(total, 2)} operations, ${scientific(total / n, 2)} for each token.`);
    return { ...now, crossover };
  });
});
