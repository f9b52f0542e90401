// One answer, votes, and a verifier: how often the answer is right that is taken from n.
Interactive.define("verifier", (figure) => {
  const { color, format, range } = Interactive;
  const percent = (v) => `${Math.round(100 * v)} %`;
  const p = figure.slider({ name: "p", label: "One answer is right", min: 0.05, max: 0.95, step: 0.01, value: 0.3, show: percent });
  const t = figure.slider({ name: "t", label: "A right one passes", min: 0, max: 1, step: 0.01, value: 0.9, show: percent });
  const f = figure.slider({ name: "f", label: "A wrong one passes", min: 0, max: 1, step: 0.01, value: 0.2, show: percent });
  const n = figure.slider({ name: "n", label: "Answers", min: 1, max: 64, step: 1, value: 8, show: String });
  figure.player(n, { every: 150 });
  const chart = figure.chart({ label: "" });
  const said = figure.said();

  const pass = (k, x) => 1 - (1 - x) ** k;
  const best = (k, x, a, b) => {
    const accepted = x * a + (1 - x) * b;
    const some = accepted > 0 ? (1 - (1 - accepted) ** k) / accepted : k;
    return some * x * a + (k > 1 ? (1 - accepted) ** (k - 1) : 1) * x * (1 - a);
  };
  const majority = (k, x) => {
    let term = (1 - x) ** k, total = 0;
    for (let j = 0; j <= k; j++) {
      if (2 * j > k) total += term;
      if (2 * j === k) total += term / 2;
      term *= ((k - j) / (j + 1)) * (x / (1 - x));
    }
    return total;
  };

  figure.draw(() => {
    const [x, a, b, k] = [p.value, t.value, f.value, n.value];
    const accepted = x * a + (1 - x) * b;
    const ceiling = accepted > 0 ? (x * a) / accepted : x;
    chart.axes({ x: [1, 64], y: [0, 1], xLabel: "answers n", yLabel: "right", height: 300 });
    const curves = [["one of n is right", (m) => pass(m, x)], ["majority of two", (m) => majority(m, x)], ["verifier", (m) => best(m, x, a, b)]];
    curves.forEach(([, value], i) => chart.line(range(64, (m) => [m + 1, value(m + 1)]), { stroke: color(i), width: 2 }));
    chart.line([[1, ceiling], [64, ceiling]], { stroke: color(2), dashed: true });
    curves.forEach(([name, value], i) => {
      chart.dot(k, value(k), { r: 4, fill: color(i) });
      chart.text(64, value(64), name, { anchor: "end", dy: i === 1 ? 14 : -6, fill: color(i) });
    });
    const shown = { pass: pass(k, x), majority: majority(k, x), best: best(k, x, a, b), ceiling };
    chart.say(`Of ${k} answers one at least is right with probability ${format(shown.pass, 3)}; the verifier's choice is right with ${format(shown.best, 3)}.`);
    said(`With ${k} answers: one at least right ${format(shown.pass, 3)}, majority ${format(shown.majority, 3)}, `
      + `verifier ${format(shown.best, 3)} and never beyond ${format(ceiling, 3)}.`);
    return shown;
  });
});
