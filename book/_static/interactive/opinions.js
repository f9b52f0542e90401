// A blank between two words: what each neighbor expects there, and a product of powers of both.
Interactive.define("opinions", (figure) => {
  const { color, format, range, softmax } = Interactive;
  const blanks = figure.data.blanks;
  const blank = figure.choice({ name: "blank", label: "Blank", options: blanks.map(({ left, right }) => `${left} ____ ${right}`) });
  const powers = [["prior", "Power of the prior P(w)", -1], ["left", "Power of the left, P(w | l)", 1], ["right", "Power of the right, P(w | r)", 1]]
    .map(([name, label, value]) => figure.slider({ name, label, min: -1.5, max: 1.5, step: 0.05, value }));
  const preset = (label, values) => figure.button(label, () => values.forEach((value, i) => powers[i].set(value)));
  preset("Left alone", [0, 1, 0]);
  preset("Right alone", [0, 0, 1]);
  preset("Both, by Bayes", [-1, 1, 1]);
  const bars = figure.chart({ label: "", wide: true });
  const said = figure.said();

  figure.draw(() => {
    const { words, logs, left, right } = blanks[blank.value];
    const p = softmax(words.map((_, i) => powers.reduce((total, power, k) => total + power.value * logs[k][i], 0)));
    const order = range(words.length).sort((i, j) => p[j] - p[i]);
    bars.bars(order.slice(0, 12).map((i, rank) => ({ name: words[i], value: p[i], strong: rank === 0, fill: rank === 0 ? color(1) : color(0) })), {
      title: `share among ${words.length} words`, row: 22,
    });
    bars.say(`The likeliest words: ${order.slice(0, 4).map((i) => `${words[i]} ${format(p[i])}`).join(", ")}.`);
    said(`“… ${left} ${words[order[0]]} ${right} …” comes first, with ${format(p[order[0]], 3)}; then ${words[order[1]]} and ${words[order[2]]}.`);
    return { p, powers: powers.map(({ value }) => value) };
  });
});
