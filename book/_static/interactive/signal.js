// Signals and gradients in thirty random layers: as the run measured them, and as the theory says.
Interactive.define("signal", (figure) => {
  const { color, format, range, scientific, sum } = Interactive;
  const { sizes, gains, measured } = figure.data;
  const layers = sizes.length - 1;
  const which = figure.choice({ name: "activation", label: "Activation and rule", options: ["ReLU, He", "tanh, Xavier"] });
  const gain = figure.slider({
    name: "gain", label: "All weights, times", min: 0, max: gains.length - 1, step: 1, value: gains.indexOf(1),
    map: (i) => gains[i], show: (v) => format(v, 1),
  });
  const forward = figure.chart({ label: "" });
  const backward = figure.chart({ label: "" });
  const said = figure.said();

  // The mean of f over a standard normal number, by the trapezoidal rule, which is exact enough here.
  const nodes = range(1601, (i) => -8 + i / 100);
  const masses = nodes.map((z) => Math.exp((-z * z) / 2) / Math.sqrt(2 * Math.PI) / 100);
  const mean = (f) => sum(nodes.map((z, i) => masses[i] * f(z)));

  function theory({ forward: q0, backward: gL }) {
    const relu = which.value === 0;
    const variance = range(layers, (l) => (gain.value ** 2 * 2) / (relu ? sizes[l] : sizes[l] + sizes[l + 1]));
    const square = (q) => (relu ? q / 2 : mean((z) => Math.tanh(Math.sqrt(q) * z) ** 2));
    const slope = (q) => (relu ? 1 / 2 : mean((z) => (1 - Math.tanh(Math.sqrt(q) * z) ** 2) ** 2));
    const q = [q0[0]], g = [];
    for (let l = 1; l < layers; l++) {
      q.push(sizes[l] * variance[l] * square(q[l - 1]));
    }
    g[layers - 1] = gL[layers - 1];
    for (let l = layers - 2; l >= 0; l--) {
      g[l] = sizes[l + 2] * variance[l + 1] * slope(q[l]) * g[l + 1];
    }
    return { q, g };
  }

  figure.draw(() => {
    const seen = measured[which.value][gain.position], { q, g } = theory(seen);
    for (const [chart, points, line, name] of [
      [forward, seen.forward, q, "signal, forward"], [backward, seen.backward, g, "gradient, backward"],
    ]) {
      chart.axes({ x: [1, layers], y: [1e-12, 1e12], yLog: true, xLabel: "layer", yLabel: `mean square: ${name}`, height: 240 });
      chart.line(line.map((v, l) => [l + 1, v]), { stroke: color(3), dashed: true });
      points.forEach((v, l) => chart.dot(l + 1, Math.min(Math.max(v, 1e-12), 1e12), { fill: color(0), r: 3 }));
      chart.say(`Mean square of the ${name}: from ${scientific(points[0])} in the first layer to ${scientific(points.at(-1))} in the last.`);
    }
    const change = seen.backward[0] / seen.backward.at(-1);
    said(`From the last layer back to the first the mean square of the gradient changes by a factor ${scientific(change)}; the theory says ${scientific(g[0] / g.at(-1))}.`);
    return { q, g, gain: gain.value };
  });
});
