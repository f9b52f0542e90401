// "a is to b as c is to ?": arithmetic of word vectors, on some words of GloVe's.
Interactive.define("analogy", (figure) => {
  const { bytes, color, format, range, sum } = Interactive;
  const { words, dim } = figure.data;
  // Each vector was scaled into the bytes from -127 to 127; only directions count here.
  const packed = new Int8Array(bytes(figure.data.vectors).buffer);
  const dot = (u, v) => sum(u.map((x, i) => x * v[i]));
  const unit = (u) => u.map((x) => x / Math.sqrt(dot(u, u)));
  const vectors = words.map((_, i) => unit(range(dim, (c) => packed[i * dim + c])));

  const [a, b, c] = ["a", "b", "c"].map((name, i) => figure.choice({
    name, label: [`from`, `to`, `and from`][i], options: words, value: words.indexOf(figure.data.start[i]),
  }));
  const excluded = figure.check({ name: "excluded", label: "rule out the three words", value: true });
  const plane = figure.chart({ label: "" });
  const bars = figure.chart({ label: "" });
  const said = figure.said();

  figure.draw(() => {
    const asked = [a.value, b.value, c.value];
    const [va, vb, vc] = asked.map((i) => vectors[i]);
    const target = vb.map((x, i) => x - va[i] + vc[i]);
    const goal = unit(target);
    const answers = range(words.length, (i) => ({ i, cosine: dot(goal, vectors[i]) }))
      .filter(({ i }) => !(excluded.value && asked.includes(i)))
      .sort((one, other) => other.cosine - one.cosine);
    const best = answers[0];

    // The plane through the first three words: one axis along b - a, the other at a right angle.
    const along = vb.map((x, i) => x - va[i]), away = vc.map((x, i) => x - va[i]);
    const length = Math.sqrt(dot(along, along)) || 1;
    const first = along.map((x) => x / length);
    const rest = away.map((x, i) => x - dot(away, first) * first[i]);
    const high = Math.sqrt(dot(rest, rest)) || 1;
    const second = rest.map((x) => x / high);
    const flat = (v) => [first, second].map((axis) => dot(v.map((x, i) => x - va[i]), axis));
    const points = { a: [0, 0], b: flat(vb), c: flat(vc), goal: flat(target), best: flat(vectors[best.i]) };
    const all = Object.values(points);
    const bounds = [0, 1].map((axis) => [Math.min(...all.map((p) => p[axis])) - 0.25, Math.max(...all.map((p) => p[axis])) + 0.25]);
    plane.axes({ x: bounds[0], y: bounds[1], xLabel: `along “${words[b.value]}” − “${words[a.value]}”`, yLabel: "at a right angle", height: 260 });
    plane.arrow(...points.a, ...points.b);
    plane.arrow(...points.c, ...points.goal);
    for (const [point, name, hue] of [[points.a, words[a.value], color(0)], [points.b, words[b.value], color(0)], [points.c, words[c.value], color(0)], [points.best, words[best.i], color(1)]]) {
      plane.dot(...point, { fill: hue, r: 4 });
      plane.text(...point, name, { anchor: "middle", dy: 18, fill: hue, kind: "strong" });
    }
    plane.say(`The words ${asked.map((i) => words[i]).join(", ")} and the answer ${words[best.i]}, in the plane of the first three.`);
    bars.bars(answers.slice(0, 8).map(({ i, cosine }, rank) => ({
      name: words[i], value: cosine, strong: rank === 0, fill: rank === 0 ? color(1) : color(0),
    })), { title: "cosine with the end of the arrow", row: 28 });
    bars.say(`The nearest words: ${answers.slice(0, 5).map(({ i, cosine }) => `${words[i]} ${format(cosine)}`).join(", ")}.`);
    said(`${words[b.value]} − ${words[a.value]} + ${words[c.value]} is nearest to “${words[best.i]}”, cosine ${format(best.cosine, 3)}.`);
    return { answers: answers.map(({ i, cosine }) => [words[i], cosine]) };
  });
});
