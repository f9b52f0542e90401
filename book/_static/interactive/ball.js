// The step of a ball along which a linear function rises most, for three norms.
Interactive.define("ball", (figure) => {
  const { color, format, range } = Interactive;
  const turn = figure.slider({ name: "angle", label: "Direction of the gradient (degrees)", min: 0, max: 360, step: 1, value: 25, show: String });
  const kind = figure.choice({
    name: "p", label: "Norm that bounds the change",
    options: ["largest coordinate (p = ∞)", "length (p = 2)", "sum of sizes (p = 1)"], value: 0,
  });
  const chart = figure.chart({ label: "" });
  const said = figure.said();
  const balls = [
    [[1, 1], [-1, 1], [-1, -1], [1, -1], [1, 1]],
    range(121, (i) => [Math.cos(Math.PI * i / 60), Math.sin(Math.PI * i / 60)]),
    [[1, 0], [0, 1], [-1, 0], [0, -1], [1, 0]],
  ];

  figure.draw(() => {
    const angle = turn.value * Math.PI / 180, p = kind.value;
    const clean = (v) => (Math.abs(v) < 1e-12 ? 0 : v);
    const g = [clean(Math.cos(angle)), clean(Math.sin(angle))];
    const first = Math.abs(g[0]) >= Math.abs(g[1]);
    const step = [
      [Math.sign(g[0]), Math.sign(g[1])],
      g,
      [first ? Math.sign(g[0]) : 0, first ? 0 : Math.sign(g[1])],
    ][p];
    const gain = g[0] * step[0] + g[1] * step[1];
    chart.axes({ x: [-1.6, 1.6], y: [-1.6, 1.6], height: 300, square: true, xLabel: "change of the first coordinate", yLabel: "change of the second" });
    chart.line(balls[p], { stroke: color(0), width: 2 });
    // Where the linear function has the value that the step attains: it touches the ball.
    chart.line([[gain * g[0] - 2 * g[1], gain * g[1] + 2 * g[0]], [gain * g[0] + 2 * g[1], gain * g[1] - 2 * g[0]]], { stroke: color(2), dashed: true, width: 1.5 });
    chart.arrow(0, 0, 1.4 * g[0], 1.4 * g[1], { stroke: color(3), width: 1.5 });
    chart.arrow(0, 0, step[0], step[1], { stroke: color(1), width: 3 });
    chart.say(`The ball, the gradient at ${turn.value} degrees, and the best step (${format(step[0])}, ${format(step[1])}).`);
    said(`Best step (${format(step[0], 2)}, ${format(step[1], 2)}); gain ${format(gain, 3)}, the ${["sum of sizes", "length", "largest size"][p]} of the gradient. The dashed line holds all changes with that gain.`);
    return { g, step, gain };
  });
});
