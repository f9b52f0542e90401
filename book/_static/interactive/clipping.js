// The clipped objective of one token against the ratio of new to old probability.
Interactive.define("clipping", (figure) => {
  const { color, format, range } = Interactive;
  const A = figure.slider({ name: "A", label: "Advantage of the token", min: -2, max: 2, step: 0.05, value: -1 });
  const rho = figure.slider({ name: "rho", label: "Ratio ρ of new to old probability", min: 0.02, max: 5, step: 0.02, value: 1.5 });
  const eps = figure.slider({ name: "eps", label: "Clip ε", min: 0, max: 0.8, step: 0.01, value: 0.2 });
  const dual = figure.slider({
    name: "c", label: "Bound c for bad tokens", min: 1.1, max: 5.1, step: 0.1, value: 5.1,
    map: (v) => (v > 5.05 ? Infinity : v), show: (v) => (v === Infinity ? "none" : format(v, 1)),
  });
  const chart = figure.chart({ label: "", wide: true });
  const said = figure.said();

  // The objective, and its slope along the logarithm of the probability.
  function objective(ratio, advantage, e, c) {
    const clipped = Math.min(Math.max(ratio, 1 - e), 1 + e);
    const plain = ratio * advantage, held = clipped * advantage;
    let value = Math.min(plain, held), slope = plain <= held ? plain : 0;
    if (advantage < 0 && value < c * advantage) [value, slope] = [c * advantage, 0];
    return { value, slope };
  }

  figure.draw(() => {
    const now = objective(rho.value, A.value, eps.value, dual.value);
    const height = Math.max(0.5, 5 * Math.abs(A.value));
    const y = A.value < 0 ? [-1.05 * height, 0.1 * height] : [-0.05 * height, 1.05 * height];
    chart.axes({ x: [0, 5], y, xLabel: "ratio ρ", yLabel: "objective of the token" });
    const along = (e, c) => range(251, (i) => [i / 50, objective(i / 50, A.value, e, c).value]);
    chart.line(range(2, (i) => [5 * i, 5 * i * A.value]), { stroke: color(1), dashed: true });
    chart.line(along(eps.value, dual.value), { stroke: color(0), width: 2.5 });
    chart.dot(rho.value, now.value, { fill: color(3), r: 6 });
    chart.say(`The objective against the ratio, with an advantage of ${format(A.value, 2)}; without clipping it is a line through 0.`);
    said(`Objective ${format(now.value, 3)}, pull on the log-probability ${format(now.slope, 3)}. `
      + (now.slope === 0 ? "No gradient: this token has had its say." : now.slope > 0 ? "The token becomes likelier." : "The token becomes less likely."));
    return { ...now, rho: rho.value, A: A.value };
  });
});
