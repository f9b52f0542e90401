// Cross-entropy against the gap between the true logit and the others, with smoothed labels.
Interactive.define("smoothing", (figure) => {
  const { color, format, logsumexp, range } = Interactive;
  const eps = figure.slider({ name: "eps", label: "Smoothing ε", min: 0, max: 0.5, step: 0.01, value: 0.1 });
  const classes = figure.slider({
    name: "K", label: "Number of classes K", min: 1, max: 16, step: 1, value: 3,
    map: (v) => (v === 3 ? 10 : 2 ** v), show: String, // powers of two, with the ten digits for 8
  });
  const gap = figure.slider({ name: "gap", label: "Gap between the logits", min: -4, max: 20, step: 0.05, value: 2 });
  const chart = figure.chart({ label: "", wide: true });
  const said = figure.said();

  // One logit is `distance` above K - 1 equal ones.
  function loss(distance, e, K) {
    const lse = logsumexp([distance, Math.log(K - 1)]);
    const p = Math.exp(distance - lse), target = 1 - e + e / K;
    return { loss: lse - target * distance, slope: p - target, p };
  }

  figure.draw(() => {
    const K = classes.value, e = eps.value;
    const now = loss(gap.value, e, K);
    const rest = Math.log(1 + (K * (1 - e)) / e), lowest = e > 0 ? loss(rest, e, K).loss : 0;
    const top = Math.max(loss(-4, e, K).loss, loss(20, e, K).loss) * 1.05;
    chart.axes({ x: [-4, 20], y: [0, top], xLabel: "logit of the true class, above the others", yLabel: "cross-entropy (nats)" });
    const along = (share) => range(241, (i) => [i / 10 - 4, loss(i / 10 - 4, share, K).loss]);
    chart.line(along(0), { stroke: color(1), dashed: true });
    chart.line(along(e), { stroke: color(0), width: 2.5 });
    if (e > 0) {
      chart.dot(rest, lowest, { fill: color(2), r: 5 });
      chart.text(rest, lowest, "at rest", { dy: 18, anchor: "middle", fill: color(2) });
    }
    // The pull: a step against the slope.
    chart.arrow(gap.value, now.loss, gap.value - 5 * now.slope, now.loss, { stroke: color(3) });
    chart.dot(gap.value, now.loss, { fill: color(3), r: 6 });
    chart.say(`The loss against the gap: with hard labels it falls forever, with ε = ${format(e)} it has a minimum at ${format(rest, 2)}.`);
    said(`Probability of the true class ${format(now.p, 3)}, loss ${format(now.loss, 3)}, slope ${format(now.slope, 3)}. `
      + (e > 0 ? `The spring rests at a gap of ${format(rest, 2)}.` : "With ε = 0 there is no place to rest."));
    return { ...now, rest };
  });
});
