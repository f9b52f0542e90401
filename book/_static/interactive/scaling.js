// The loss of a model by its parameters and tokens, and the best split of a budget.
Interactive.define("scaling", (figure) => {
  const { color, format, range, scientific } = Interactive;
  const laws = figure.data.laws;
  const which = figure.choice({ name: "law", label: "Law", options: laws.map(({ name }) => name) });
  const budget = figure.slider({
    name: "C", label: "Budget of operations", min: 0, max: 1, step: 0.01, value: 0.5,
    map: (v) => { const [a, b] = laws[which.value].C; return a * (b / a) ** v; }, show: (v) => scientific(v),
  });
  const split = figure.slider({
    name: "split", label: "Parameters, as a multiple of the best", min: -1.5, max: 1.5, step: 0.01, value: 0.7,
    map: (v) => 10 ** v, show: (v) => format(v),
  });
  which.input.addEventListener("change", () => { budget.set(budget.position); figure.redraw(); });
  figure.button("Best split", () => split.set(0));
  const surface = figure.chart({ label: "" });
  const valley = figure.chart({ label: "" });
  const said = figure.said();

  figure.draw(() => {
    const law = laws[which.value], { E, A, B, alpha, beta } = law, C = budget.value;
    const loss = (N, D) => E + A / N ** alpha + B / D ** beta;
    const G = ((alpha * A) / (beta * B)) ** (1 / (alpha + beta));
    const best = (c) => [G * (c / 6) ** (beta / (alpha + beta)), (c / 6) ** (alpha / (alpha + beta)) / G];
    const [bestN, bestD] = best(C), lowest = loss(bestN, bestD);
    const N = bestN * split.value, D = C / 6 / N, now = loss(N, D);

    const [from, to] = law.C.map(best);
    const x = [from[0] / 30, to[0] * 30], y = [from[1] / 30, to[1] * 30];
    surface.axes({ x, y, xLog: true, yLog: true, square: true, xLabel: "parameters N", yLabel: "tokens D" });
    const grid = range(121, (i) => x[0] * (x[1] / x[0]) ** (i / 120));
    for (const share of range(9, (i) => i / 8)) {
      // Lines of one loss, between the best of the smallest and of the largest budget.
      const level = E + (loss(...from) - E) * ((loss(...to) - E) / (loss(...from) - E)) ** share;
      surface.line(grid.map((m) => [m, (B / (level - E - A / m ** alpha)) ** (1 / beta)]).filter(([m]) => level - E - A / m ** alpha > 0), { stroke: "var(--pst-color-text-muted)", width: 1 });
    }
    surface.line(law.C.map(best), { stroke: color(2), width: 2 });
    surface.line([[x[0], C / 6 / x[0]], [x[1], C / 6 / x[1]]], { stroke: color(0), width: 2 });
    surface.dot(N, D, { r: 6 });
    surface.say("Lines of equal loss over parameters and tokens, the line of one budget, and the line of best splits.");

    const along = range(121, (i) => 10 ** (-1.5 + i / 40)).map((m) => [m, loss(bestN * m, C / 6 / (bestN * m))]);
    const worst = Math.max(along[0][1], along.at(-1)[1]);
    valley.axes({ x: [10 ** -1.5, 10 ** 1.5], y: [lowest - 0.08 * (worst - lowest), worst], xLog: true, xTicks: [0.1, 1, 10], xFormat: String,
      xLabel: "parameters, as a multiple of the best", yLabel: `loss at this budget (${law.unit})`, height: 250,
      yFormat: (v) => format(v, worst - lowest < 0.5 ? 2 : 1) });
    valley.line(along, { stroke: color(0) });
    valley.dot(1, lowest, { fill: color(2), r: 4 });
    valley.dot(split.value, now, { r: 6 });
    valley.say(`The loss along the budget has its minimum ${format(lowest, 3)} at the best split and is ${format(now, 3)} at yours.`);
    said(`${scientific(N)} parameters, ${scientific(D)} tokens (${format(D / N, 1)} for each parameter): loss ${format(now, 4)} ${law.unit}. `
      + `The best split has ${scientific(bestN)} and ${scientific(bestD)}, and reaches ${format(lowest, 4)}.`);
    return { law: law.name, C, N, D, loss: now, best: [bestN, bestD], lowest };
  });
});
