// The online softmax: a query reads its keys one after the other and carries three numbers.
Interactive.define("online", (figure) => {
  const { color, format, softmax, range, scientific, sum } = Interactive;
  const { scores, values } = figure.data;
  const read = figure.slider({ name: "t", label: "Keys read", min: 1, max: scores.length, step: 1, value: 1, show: String });
  const shift = figure.slider({ name: "shift", label: "Added to every score", min: 0, max: 120, step: 1, value: 0, show: String });
  figure.player(read, { every: 900 });
  const chart = figure.chart({ label: "" });
  const bars = figure.chart({ label: "" });
  const said = figure.said();

  figure.draw(() => {
    const s = scores.map((x) => x + shift.value), t = read.value;
    let m = s[0], ell = 1, o = values[0], before = s[0];
    for (let j = 1; j < t; j++) {
      before = m;
      const top = Math.max(m, s[j]);
      const old = Math.exp(m - top) * ell, fresh = Math.exp(s[j] - top);
      o = (old * o + fresh * values[j]) / (old + fresh);
      [m, ell] = [top, old + fresh];
    }
    const weights = softmax(s.slice(0, t));
    // What a program in float32 would get that sums the exponentials as they are.
    const naive = s.slice(0, t).reduce((total, x) => Math.fround(total + Math.fround(Math.exp(x))), 0);

    const low = Math.floor(Math.min(...s)) - 1, high = Math.ceil(Math.max(...s)) + 1;
    chart.axes({ x: [0, s.length], y: [low, high], xLabel: "key", yLabel: "score", xFormat: () => "", height: 240 });
    s.forEach((x, j) => chart.rect(j + 0.15, low, j + 0.85, x, {
      fill: j === t - 1 ? color(1) : color(0), opacity: j < t ? 1 : 0.2,
    }));
    chart.line([[0, m], [s.length, m]], { stroke: color(3), dashed: true });
    chart.text(s.length, m, `m = ${format(m)}`, { anchor: "end", dy: -6, fill: color(3) });
    chart.say(`The scores of the keys; ${t} of ${s.length} are read, and the largest so far is ${format(m)}.`);
    bars.bars(range(s.length, (j) => ({ name: String(j + 1), value: weights[j] || 0, fill: j === t - 1 ? color(1) : color(0) })), {
      title: "share of each key so far", row: 18,
    });
    bars.say("The shares that the keys read so far have in the mean.");
    const grew = t > 1 && m > before ? ` The maximum rose, so the old sum was scaled by ${format(Math.exp(before - m), 3)}.` : "";
    said(`m = ${format(m)}, ℓ = ${format(ell, 4)}, o = ${format(o, 4)}.${grew} `
      + `Without m, float32 would hold the sum ${Number.isFinite(naive) ? scientific(naive, 2) : "∞, and lose everything"}.`);
    return { m, ell, o, weights, naive: String(naive), direct: sum(weights.map((w, j) => w * values[j])) };
  });
});
