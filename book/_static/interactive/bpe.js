// Byte-pair encoding of a text that the reader types, with the merges that the run has learned.
Interactive.define("bpe", (figure) => {
  const { format, make } = Interactive;
  // Tokens are strings with one sign for each byte. A merge names two tokens by their ids.
  const tokens = Array.from({ length: 256 }, (_, byte) => String.fromCharCode(byte));
  const ranks = new Map();
  figure.data.merges.forEach(([left, right], rank) => {
    ranks.set(`${tokens[left]}\u{10000}${tokens[right]}`, rank);
    tokens.push(tokens[left] + tokens[right]);
  });
  // The cuts of GPT-2: a word with its leading space, a number, a run of signs, white space.
  const cut = /'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+/gu;

  const entry = figure.entry({ name: "text", label: "Your text", value: figure.data.text, length: 160 });
  const merges = figure.slider({
    name: "k", label: "Merges learned so far", min: 0, max: figure.data.merges.length, step: 1, value: 0, show: String,
  });
  const next = figure.button("Next merge in this text", () => {
    const before = encode(entry.value, merges.value).length;
    const most = figure.data.merges.length;
    let k = merges.value + 1;
    while (k < most && encode(entry.value, k).length === before) { k += 1; }
    merges.set(Math.min(k, most));
  });
  figure.button("Start again", () => merges.set(0));
  const row = figure.pieces("The tokens of the text");
  const chart = figure.chart({ label: "", wide: true });
  const said = figure.said();

  function encodePiece(piece, k) {
    const parts = Array.from(new TextEncoder().encode(piece), (byte) => String.fromCharCode(byte));
    for (;;) {
      let best = k, at = -1;
      for (let i = 0; i + 1 < parts.length; i++) {
        const rank = ranks.get(`${parts[i]}\u{10000}${parts[i + 1]}`);
        if (rank !== undefined && rank < best) { [best, at] = [rank, i]; }
      }
      if (at < 0) { return parts; }
      const [left, right] = [parts[at], parts[at + 1]];
      for (let i = 0; i + 1 < parts.length; i++) {
        if (parts[i] === left && parts[i + 1] === right) { parts.splice(i, 2, left + right); }
      }
    }
  }
  const encode = (text, k) => (text.match(cut) || []).flatMap((piece) => encodePiece(piece, k));

  // Bytes as they are read: a space is shown, and what is no whole letter in hexadecimal.
  function shown(token) {
    const bytes = Uint8Array.from(token, (sign) => sign.charCodeAt(0));
    try {
      return new TextDecoder("utf-8", { fatal: true }).decode(bytes).replaceAll(" ", "␣");
    } catch {
      return [...bytes].map((byte) => byte.toString(16).padStart(2, "0")).join(" ");
    }
  }

  let counts = { text: null, points: [] };
  figure.draw(() => {
    const found = encode(entry.value, merges.value);
    const bytes = new TextEncoder().encode(entry.value).length;
    const last = merges.value ? tokens[255 + merges.value] : "";
    row.replaceChildren(...found.map((token) => make("span", token === last ? { class: "new" } : {}, shown(token))));
    if (counts.text !== entry.value) {
      const points = [];
      for (let k = 0; k <= ranks.size; k += 10) { points.push([k, encode(entry.value, k).length]); }
      counts = { text: entry.value, points };
    }
    chart.axes({ x: [0, ranks.size], y: [0, Math.max(bytes, 1)], xLabel: "merges", yLabel: "tokens of the text", height: 150 });
    chart.line(counts.points);
    chart.dot(merges.value, found.length);
    chart.say(`The number of tokens against the number of merges, from ${bytes} down to ${counts.points.at(-1)[1]}.`);
    next.disabled = merges.value >= figure.data.merges.length;
    said(`${bytes} bytes, ${found.length} tokens: ${format(found.length ? bytes / found.length : 0)} bytes a token.`
      + (last ? ` The last merge made “${shown(last)}”.` : " No merge yet: each byte is a token."));
    return { tokens: found };
  });
});
