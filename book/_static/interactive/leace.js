// Two classes of points in the plane, and what four erasers do to them.
Interactive.define("leace", (figure) => {
  const { color, format, sum } = Interactive;
  const noise = figure.data; // pairs of numbers, first those of one class and then of the other
  const half = noise.length / 2;
  const KINDS = ["nothing", "orthogonal projection", "LEACE", "oracle"];
  const kind = figure.choice({ name: "kind", label: "Eraser", options: KINDS, value: 2 });
  const stretch = figure.slider({ name: "stretch", label: "How long the cloud is", min: 1, max: 4, step: 0.05, value: 2.5 });
  const angle = figure.slider({ name: "angle", label: "Angle of the cloud", min: 0, max: 180, step: 1, value: 35, show: (v) => `${v}°` });
  const chart = figure.chart({ label: "" });
  const rows = figure.chart({ label: "" });
  const said = figure.said();

  const mean = (points) => [0, 1].map((axis) => sum(points.map((p) => p[axis])) / points.length);
  const dot = (u, v) => u[0] * v[0] + u[1] * v[1];

  figure.draw(() => {
    const turn = (angle.value * Math.PI) / 180, [c, s] = [Math.cos(turn), Math.sin(turn)];
    const x = noise.map(([a, b], i) => {
      const long = 0.5 * stretch.value * a, short = 0.5 * b;
      return [c * long - s * short + (i < half ? -1 : 1), s * long + c * short];
    });
    const z = noise.map((_, i) => (i < half ? 0 : 1));
    const mu = mean(x);
    const moved = x.map((p) => [p[0] - mu[0], p[1] - mu[1]]);
    const S = [[0, 0], [0, 0]], sigma = [0, 0];
    moved.forEach((p, i) => {
      for (const j of [0, 1]) {
        sigma[j] += (p[j] * (z[i] - 0.5)) / x.length;
        for (const k of [0, 1]) S[j][k] += (p[j] * p[k]) / x.length;
      }
    });
    const det = S[0][0] * S[1][1] - S[0][1] ** 2;
    const solved = [(S[1][1] * sigma[0] - S[0][1] * sigma[1]) / det, (S[0][0] * sigma[1] - S[0][1] * sigma[0]) / det];
    const read = kind.value === 1 ? sigma : solved;
    const after = x.map((p, i) => {
      if (kind.value === 0) return p;
      const share = kind.value === 3 ? (z[i] - 0.5) / 0.25 : dot(moved[i], read) / dot(read, sigma);
      return [p[0] - share * sigma[0], p[1] - share * sigma[1]];
    });
    const costOf = (points) => sum(points.map((p, i) => (p[0] - x[i][0]) ** 2 + (p[1] - x[i][1]) ** 2)) / x.length;
    const square = dot(sigma, sigma);
    const leace = square / dot(sigma, solved);
    const orthogonal = (sigma[0] * (S[0][0] * sigma[0] + S[0][1] * sigma[1]) + sigma[1] * (S[0][1] * sigma[0] + S[1][1] * sigma[1])) / square;
    const costs = [0, orthogonal, leace, 4 * square];
    const means = [after.slice(0, half), after.slice(half)].map(mean);
    const apart = Math.hypot(means[0][0] - means[1][0], means[0][1] - means[1][1]);

    chart.axes({ x: [-4.5, 4.5], y: [-4.5, 4.5], xLabel: "first coordinate", yLabel: "second coordinate", square: true });
    x.forEach((p, i) => chart.line([p, after[i]], { stroke: color(z[i]), width: 0.8, opacity: 0.5 }));
    after.forEach((p, i) => chart.dot(p[0], p[1], { r: 3, fill: color(z[i]), opacity: 0.8 }));
    means.forEach(([a, b]) => chart.add("path", { d: `M${chart.x(a) - 6} ${chart.y(b)}h12M${chart.x(a)} ${chart.y(b) - 6}v12` }, { stroke: color(3), width: 3 }));
    chart.say(`Points of two classes after ${KINDS[kind.value]}; crosses are the class means, ${format(apart, 2)} apart.`);
    rows.bars(KINDS.map((name, k) => ({ name, value: costs[k], fill: color(k === kind.value ? 1 : 0) })), { max: Math.max(...costs), title: "mean squared change", row: 44 });
    rows.say(`Mean squared changes: ${KINDS.map((name, k) => `${name} ${format(costs[k], 3)}`).join(", ")}`);
    said(`${kind.value ? `Moved by ${format(costOf(after), 3)} in the mean square` : "Nothing is moved"}. The class means are ${format(apart, 3)} apart.`);
    return { x, after, cost: costOf(after), costs, apart };
  });
});
