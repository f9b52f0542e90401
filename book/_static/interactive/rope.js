// Queries and keys turned by their positions: clock hands, and the score by the distance.
Interactive.define("rope", (figure) => {
  const { color, format, range, sum } = Interactive;
  const pairs = 32, faces = [0, 4, 8, 16];
  const m = figure.slider({ name: "m", label: "Position m of the query", min: 0, max: 200, step: 1, value: 24, show: String });
  const n = figure.slider({ name: "n", label: "Position n of the key", min: 0, max: 200, step: 1, value: 9, show: String });
  const base = figure.slider({
    name: "base", label: "Base of the frequencies", min: 2, max: 6, step: 0.5, value: 4,
    map: (v) => 10 ** v, show: (v) => String(Math.round(v)),
  });
  figure.button("Move both by 1", () => {
    if (Math.max(m.position, n.position) < 200) {
      m.set(m.position + 1);
      n.set(n.position + 1);
    }
  });
  const clocks = figure.chart({ label: "", wide: true });
  const curve = figure.chart({ label: "", wide: true });
  const said = figure.said();

  figure.draw(() => {
    const omega = range(pairs, (i) => base.value ** (-i / pairs));
    const score = (distance) => sum(omega.map((w) => Math.cos(distance * w))) / pairs;
    const s = score(m.value - n.value);

    const across = clocks.box.clientWidth / 4, r = Math.min(across / 2 - 8, 62);
    clocks.clear(2 * r + 46);
    faces.forEach((i, j) => {
      const [x, y] = [across * (j + 0.5), r + 24];
      clocks.letters(x, 12, `pair ${i + 1}`, { anchor: "middle", kind: "name" });
      clocks.add("circle", { cx: x, cy: y, r, class: "axis" });
      for (const [place, hue, short] of [[m.value, color(0), 1], [n.value, color(1), 0.8]]) {
        const turn = place * omega[i];
        clocks.add("path", { d: `M${x} ${y}L${x + short * r * Math.cos(turn)} ${y - short * r * Math.sin(turn)}` }, { stroke: hue, width: 3 });
      }
      clocks.letters(x, 2 * r + 40, `cos ${format(Math.cos((m.value - n.value) * omega[i]), 2)}`, { anchor: "middle", kind: "tick" });
    });
    clocks.say("Four clocks, each with a long hand for the query and a shorter one for the key; the first turns fastest.");

    curve.axes({ x: [-200, 200], y: [-0.5, 1], xLabel: "distance m − n", yLabel: "score, as a share of the largest", height: 200 });
    curve.line(range(801, (i) => [i / 2 - 200, score(i / 2 - 200)]), { stroke: color(2), width: 1.5 });
    curve.dot(m.value - n.value, s, { fill: color(3), r: 6 });
    curve.say(`The score against the distance: a peak at zero, then waves. At distance ${m.value - n.value} it is ${format(s, 3)}.`);
    said(`Query (long hand) at ${m.value}, key (short hand) at ${n.value}: distance ${format(m.value - n.value, 0)}, score ${format(s, 4)}.`);
    return { omega, score: s };
  });
});
