// Four optimizers on one valley, L = (x² + κ y²) / 2: their paths, and the loss by step.
Interactive.define("optimizer", (figure) => {
  const { color, format, range, scientific } = Interactive;
  const start = [-4, 1.5], most = 80;
  const method = figure.choice({
    name: "method", label: "Optimizer", value: 1, options: ["gradient descent", "momentum", "Nesterov", "Adam"],
  });
  const kappa = figure.slider({ name: "kappa", label: "Condition number κ", min: 1, max: 60, step: 1, value: 20, show: String });
  const rate = figure.slider({ name: "lr", label: "Learning rate η, times κ", min: 0.05, max: 4, step: 0.01, value: 1.2 });
  const momentum = figure.slider({ name: "mu", label: "Momentum μ (Adam’s β₁)", min: 0, max: 0.99, step: 0.01, value: 0.6 });
  const steps = figure.slider({ name: "steps", label: "Steps", min: 0, max: most, step: 1, value: most, show: String });
  figure.button("Best rate and momentum", () => {
    const k = Math.sqrt(kappa.value);
    method.input.value = 1;
    rate.set(kappa.value * (2 / (k + 1)) ** 2);
    momentum.set(((k - 1) / (k + 1)) ** 2);
  });
  figure.player(steps, { every: 120 });
  const map = figure.chart({ label: "", wide: true });
  const curve = figure.chart({ label: "", wide: true });
  const said = figure.said();

  function run(lr, mu, k) {
    let theta = [...start], u = [0, 0], v = [0, 0];
    const path = [theta];
    for (let t = 1; t <= most; t++) {
      const g = [theta[0], k * theta[1]];
      u = u.map((old, c) => (method.value === 3 ? mu * old + (1 - mu) * g[c] : method.value === 0 ? g[c] : mu * old + g[c]));
      v = v.map((old, c) => 0.999 * old + 0.001 * g[c] ** 2);
      theta = theta.map((x, c) => {
        if (method.value === 3) {
          return x - (lr * (u[c] / (1 - mu ** t))) / (Math.sqrt(v[c] / (1 - 0.999 ** t)) + 1e-8);
        }
        return x - lr * (method.value === 2 ? g[c] + mu * u[c] : u[c]);
      });
      path.push(theta);
    }
    return path;
  }

  figure.draw(() => {
    const k = kappa.value, lr = rate.value / k;
    const loss = ([x, y]) => (x * x + k * y * y) / 2;
    const path = run(lr, momentum.value, k), now = path[steps.value];
    map.axes({ x: [-5, 5], y: [-2, 2], xLabel: "x, curvature 1", yLabel: "y, curvature κ", height: 250 });
    for (const level of [0.1, 0.5, 2, 6, 14, 28, 60]) {
      const [a, b] = [Math.sqrt(2 * level), Math.sqrt((2 * level) / k)];
      map.line(range(97, (i) => [a * Math.cos((i * Math.PI) / 48), b * Math.sin((i * Math.PI) / 48)]), { stroke: "var(--pst-color-text-muted)", width: 0.8, opacity: 0.7 });
    }
    map.line(path.slice(0, steps.value + 1), { stroke: color(1), width: 2 });
    for (const [x, y] of path.slice(0, steps.value + 1)) {
      if (Math.abs(x) <= 5 && Math.abs(y) <= 2) { map.dot(x, y, { r: 2.5 }); }
    }
    map.text(0, 0, "✕", { anchor: "middle", dy: 4, fill: color(2) });
    map.say(`The path of the iterates in a valley, from the upper left to ${format(now[0])}, ${format(now[1])}; the minimum is in the middle.`);

    curve.axes({ x: [0, most], y: [1e-8, 1e4], yLog: true, xLabel: "step", yLabel: "loss", height: 180 });
    curve.line(path.map((theta, t) => [t, Math.max(loss(theta), 1e-9)]), { stroke: color(0) });
    curve.dot(steps.value, Math.min(Math.max(loss(now), 1e-8), 1e4), { fill: color(1) });
    curve.say(`The loss by step, now ${scientific(loss(now))}.`);
    said(`η = ${format(lr, 4)}. After ${steps.value} steps the loss is ${scientific(loss(now))}, from ${format(loss(start), 1)}.`);
    return { path, lr, loss: loss(now) };
  });
});
