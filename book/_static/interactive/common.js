// The frame of the book's interactive figures: controls with labels, and drawings with axes.
//
// A figure is one file that calls Interactive.define(name, build). `build` gets a Figure, adds its
// controls and drawings once, and hands a function to figure.draw, which draws everything anew
// whenever a control or the width changes. What that function returns is kept as `figure.shown`:
// the numbers behind the picture, at full precision, which the tests hold against the library.
//
// No library, no request: the data of a figure stand in the page, and lengths are in pixels, so that
// letters have the same size on a phone. Colors are those of common.css, "var(--int-1)" to 5.
(function () {
  "use strict";
  const SVG = "http://www.w3.org/2000/svg";
  const calm = window.matchMedia("(prefers-reduced-motion: reduce)");

  function color(number) {
    return `var(--int-${(number % 5) + 1})`;
  }

  function make(name, attributes = {}, ...children) {
    const made = document.createElement(name);
    for (const [key, value] of Object.entries(attributes)) {
      made.setAttribute(key, value);
    }
    made.append(...children);
    return made;
  }

  // A number as text, with the sign that mathematics uses for minus.
  function format(number, digits = 2) {
    if (!Number.isFinite(number)) {
      return number > 0 ? "∞" : number < 0 ? "−∞" : "–";
    }
    return number.toFixed(digits).replace(/^-(?=[\d.]*[1-9])/, "−").replace(/^-/, "");
  }

  // A large or a small number, as 2.5 × 10⁹.
  function scientific(number, digits = 1) {
    const [front, power] = number.toExponential(digits).split("e");
    const raised = String(Number(power)).replace("-", "⁻").replace(/\d/g, (d) => "⁰¹²³⁴⁵⁶⁷⁸⁹"[d]);
    return `${front} × 10${raised}`;
  }

  function range(count, f = (i) => i) {
    return Array.from({ length: count }, (_, i) => f(i));
  }

  function sum(numbers) {
    return numbers.reduce((total, x) => total + x, 0);
  }

  function logsumexp(z) {
    const top = Math.max(...z);
    return top + Math.log(sum(z.map((x) => Math.exp(x - top))));
  }

  function softmax(z) {
    const lse = logsumexp(z);
    return z.map((x) => Math.exp(x - lse));
  }

  function entropy(p) {
    return -sum(p.map((x) => (x > 0 ? x * Math.log(x) : 0)));
  }

  // Bytes that a cell has written in base 64.
  function bytes(text) {
    return Uint8Array.from(atob(text), (sign) => sign.charCodeAt(0));
  }

  // About `count` round numbers between two bounds.
  function ticks([low, high], count) {
    const rough = (high - low) / Math.max(count, 1);
    const power = 10 ** Math.floor(Math.log10(rough));
    const step = [1, 2, 5, 10].map((m) => m * power).find((s) => s >= rough * 0.999);
    const first = Math.ceil(low / step - 1e-9);
    return range(Math.floor(high / step + 1e-9) - first + 1, (i) => (first + i) * step);
  }

  function powers([low, high]) {
    const first = Math.ceil(Math.log10(low) - 1e-9);
    const all = range(Math.floor(Math.log10(high) + 1e-9) - first + 1, (i) => 10 ** (first + i));
    return all.filter((_, i) => i % Math.ceil(all.length / 7) === 0);
  }

  // One drawing. `axes` clears it and sets the scales of all that is drawn afterwards.
  class Chart {
    constructor(figure, { label, wide = false }) {
      this.figure = figure;
      this.svg = document.createElementNS(SVG, "svg");
      this.svg.setAttribute("role", "img");
      this.svg.setAttribute("aria-label", label);
      this.box = make("div", { class: wide ? "interactive-panel wide" : "interactive-panel" });
      this.box.append(this.svg);
      figure.panels.append(this.box);
    }

    add(name, attributes, { fill = "none", stroke, dashed, width = 1.5, opacity, title } = {}) {
      const made = document.createElementNS(SVG, name);
      for (const [key, value] of Object.entries(attributes)) {
        made.setAttribute(key, value);
      }
      if (!attributes.class) {
        made.style.fill = fill;
        if (stroke) {
          made.style.stroke = stroke;
          made.style.strokeWidth = width;
        }
        if (dashed) {
          made.style.strokeDasharray = "5 4";
        }
        if (opacity !== undefined) {
          made.style.opacity = opacity;
        }
      }
      if (title) {
        const told = document.createElementNS(SVG, "title");
        told.textContent = title;
        made.append(told);
      }
      this.svg.append(made);
      return made;
    }

    // An empty drawing of a height in pixels, with the margins [top, right, bottom, left].
    clear(height, [top, right, bottom, left] = [4, 4, 4, 4]) {
      this.width = Math.max(this.box.clientWidth, 120);
      this.svg.replaceChildren();
      this.svg.setAttribute("height", height);
      this.svg.setAttribute("viewBox", `0 0 ${this.width} ${height}`);
      this.area = { left, top, right: this.width - right, bottom: height - bottom };
    }

    axes({ x, y, height = 230, xLabel = "", yLabel = "", xLog = false, yLog = false, square = false,
      xTicks, yTicks, xFormat, yFormat }) {
      const wide = this.box.clientWidth;
      this.clear(square ? Math.min(wide, 340) : height, [22, 12, 40, 46]);
      const area = this.area;
      const scale = (log) => (log ? Math.log10 : (v) => v);
      const place = ([low, high], log, from, to) => {
        const f = scale(log);
        return (v) => from + ((f(v) - f(low)) / (f(high) - f(low))) * (to - from);
      };
      this.x = place(x, xLog, area.left, area.right);
      this.y = place(y, yLog, area.bottom, area.top);
      const shown = (log) => (log
        ? (v) => scientific(v, 0).replace("1 × ", "")
        : (v) => String(Number(v.toPrecision(6))).replace("-", "−"));
      for (const v of xTicks || (xLog ? powers(x) : ticks(x, (area.right - area.left) / 70))) {
        this.add("path", { class: "grid", d: `M${this.x(v)} ${area.top}V${area.bottom}` });
        this.letters(this.x(v), area.bottom + 15, (xFormat || shown(xLog))(v), { anchor: "middle", kind: "tick" });
      }
      for (const v of yTicks || (yLog ? powers(y) : ticks(y, (area.bottom - area.top) / 45))) {
        this.add("path", { class: "grid", d: `M${area.left} ${this.y(v)}H${area.right}` });
        this.letters(area.left - 6, this.y(v) + 4, (yFormat || shown(yLog))(v), { anchor: "end", kind: "tick" });
      }
      this.add("path", { class: "axis", d: `M${area.left} ${area.top}V${area.bottom}H${area.right}` });
      this.letters((area.left + area.right) / 2, area.bottom + 33, xLabel, { anchor: "middle", kind: "name" });
      this.letters(4, 12, yLabel, { kind: "name" });
    }

    // Text at a place in pixels.
    letters(x, y, text, { anchor = "start", kind = "", fill, turned = 0 } = {}) {
      const made = this.add("text", { x, y, "text-anchor": anchor, class: kind || "letters" });
      made.textContent = text;
      if (fill) {
        made.style.fill = fill;
      }
      if (turned) {
        made.setAttribute("transform", `rotate(${turned} ${x} ${y})`);
      }
      return made;
    }

    // Text beside a point of the axes.
    text(x, y, text, { dx = 0, dy = 0, ...rest } = {}) {
      return this.letters(this.x(x) + dx, this.y(y) + dy, text, rest);
    }

    // A line through points; it stops where a coordinate is no finite number or out of reach.
    line(points, { stroke = color(0), width = 2, ...rest } = {}) {
      const far = 4 * (this.width + this.area.bottom);
      let pen = "M", path = "";
      for (const point of points) {
        const [x, y] = [this.x(point[0]), this.y(point[1])];
        if (Math.abs(x) < far && Math.abs(y) < far) {
          path += `${pen}${x.toFixed(2)} ${y.toFixed(2)}`;
          pen = "L";
        } else {
          pen = "M";
        }
      }
      return this.add("path", { d: path, "clip-path": this.clip() }, { stroke, width, ...rest });
    }

    // Nothing is drawn outside of the axes.
    clip() {
      const name = `${this.figure.root.id}-clip-${this.figure.charts.indexOf(this)}`;
      if (!this.svg.querySelector(`#${name}`)) {
        const path = this.add("clipPath", { id: name, class: "clip" });
        const { left, top, right, bottom } = this.area;
        const box = document.createElementNS(SVG, "rect");
        for (const [key, value] of Object.entries({ x: left, y: top - 3, width: right - left + 3, height: bottom - top + 6 })) {
          box.setAttribute(key, value);
        }
        path.append(box);
      }
      return `url(#${name})`;
    }

    rect(x0, y0, x1, y1, { fill = color(0), ...rest } = {}) {
      const [left, right] = [this.x(x0), this.x(x1)].sort((a, b) => a - b);
      const [top, bottom] = [this.y(y0), this.y(y1)].sort((a, b) => a - b);
      const box = { x: left, y: top, width: right - left, height: Math.max(bottom - top, 0) };
      return this.add("rect", box, { fill, ...rest });
    }

    dot(x, y, { r = 5, fill = color(1), ...rest } = {}) {
      return this.add("circle", { cx: this.x(x), cy: this.y(y), r }, { fill, ...rest });
    }

    arrow(x0, y0, x1, y1, { stroke = color(0), width = 2.5 } = {}) {
      const [a, b, c, d] = [this.x(x0), this.y(y0), this.x(x1), this.y(y1)];
      const turn = Math.atan2(d - b, c - a);
      const wing = (side) => `${c - 9 * Math.cos(turn + side)} ${d - 9 * Math.sin(turn + side)}`;
      this.add("path", { d: `M${a} ${b}L${c} ${d}M${wing(0.45)}L${c} ${d}L${wing(-0.45)}` }, { stroke, width });
    }

    // Lying bars with a name on the left and the number on the right.
    bars(rows, { max = 1, digits = 3, title = "", row = 24 } = {}) {
      const longest = Math.max(...rows.map(({ name }) => name.length));
      const left = Math.min(12 + 7.2 * longest, 0.4 * this.box.clientWidth);
      this.clear(rows.length * row + (title ? 24 : 4), [title ? 22 : 2, 58, 2, left]);
      if (title) {
        this.letters(2, 12, title, { kind: "name" });
      }
      const { top, right } = this.area;
      rows.forEach(({ name, value, fill = color(0), strong = false }, i) => {
        const y = top + i * row;
        const long = (Math.min(Math.max(value / max, 0), 1) || 0) * (right - left);
        this.letters(left - 6, y + row / 2 + 4, name, { anchor: "end", kind: strong ? "strong" : "" });
        this.add("rect", { x: left, y: y + 3, width: long, height: row - 6 }, { fill });
        this.letters(left + long + 5, y + row / 2 + 4, format(value, digits), { kind: strong ? "strong" : "" });
      });
    }

    say(label) {
      this.svg.setAttribute("aria-label", label);
    }
  }

  class Figure {
    constructor(root) {
      this.root = root;
      this.stage = root.querySelector(".interactive-stage");
      this.data = JSON.parse(root.querySelector('script[type="application/json"]').textContent);
      this.charts = [];
      this.stage.replaceChildren();
      this.controls = make("div", { class: "interactive-controls" });
      this.panels = make("div", { class: "interactive-panels" });
      this.stage.append(this.controls, this.panels);
    }

    labeled(label, input, shown, wide) {
      const named = make("span", { class: "named" }, make("span", {}, label));
      if (shown) {
        named.append(shown);
      }
      this.controls.append(make("label", wide ? { class: "wide" } : {}, named, input));
      return input;
    }

    // A slider. `map` makes the quantity of its position, as (v) => 10 ** v for one of many sizes.
    slider({ name, label, min, max, step, value, map = (v) => v, show = (v) => format(v, 2) }) {
      const input = make("input", { type: "range", min, max, step, value, name });
      const shown = make("span", { class: "value", "aria-hidden": "true" });
      this.labeled(label, input, shown);
      const control = {
        input,
        get position() { return Number(input.value); },
        get value() { return map(Number(input.value)); },
        set(position) { input.value = position; update(); },
        limit(most) { input.max = most; update(); },
      };
      function update() {
        shown.textContent = show(control.value);
        input.setAttribute("aria-valuetext", shown.textContent);
      }
      update();
      input.addEventListener("input", () => { update(); this.redraw(); });
      return control;
    }

    // One of several; the value is the index.
    choice({ name, label, options, value = 0 }) {
      const input = make("select", { name });
      options.forEach((text, i) => input.append(make("option", { value: i }, text)));
      input.value = value;
      this.labeled(label, input);
      input.addEventListener("change", () => this.redraw());
      return { input, get value() { return Number(input.value); } };
    }

    check({ name, label, value = false }) {
      const input = make("input", { type: "checkbox", name });
      input.checked = value;
      this.controls.append(make("label", { class: "interactive-check" }, input, make("span", {}, label)));
      input.addEventListener("change", () => this.redraw());
      return { input, get value() { return input.checked; } };
    }

    entry({ name, label, value, length = 120 }) {
      const input = make("input", { type: "text", name, value, maxlength: length, autocomplete: "off", spellcheck: "false" });
      this.labeled(label, input, null, true);
      input.addEventListener("input", () => this.redraw());
      return { input, get value() { return input.value; } };
    }

    button(label, act) {
      if (!this.buttons) {
        this.buttons = make("div", { class: "interactive-buttons" });
        this.controls.append(this.buttons);
      }
      const made = make("button", { type: "button" }, label);
      made.addEventListener("click", () => { act(made); this.redraw(); });
      this.buttons.append(made);
      return made;
    }

    // Buttons that move a slider one step on, or on and on: the latter only where motion is welcome.
    player(slider, { every = 600 } = {}) {
      const { input } = slider;
      let timer = 0;
      const forward = () => {
        const next = slider.position + Number(input.step);
        slider.set(next > Number(input.max) + 1e-9 ? Number(input.min) : next);
        this.redraw();
      };
      this.button("Step", forward);
      if (!calm.matches) {
        const stop = () => { clearInterval(timer); timer = 0; play.textContent = "Play"; };
        const play = this.button("Play", () => {
          if (timer) {
            stop();
            return;
          }
          play.textContent = "Pause";
          timer = setInterval(() => {
            forward();
            if (slider.position >= Number(input.max)) { stop(); }
          }, every);
        });
      }
    }

    chart(options) {
      const made = new Chart(this, options);
      this.charts.push(made);
      return made;
    }

    // A line of text under the drawings that says the numbers; screen readers hear it change.
    said() {
      const made = make("output", { class: "interactive-said", "aria-live": "polite" });
      this.stage.append(made);
      return (text) => { if (made.textContent !== text) { made.textContent = text; } };
    }

    // A row of pieces of text, above the drawings.
    pieces(label) {
      const made = make("div", { class: "interactive-pieces", role: "group", "aria-label": label });
      this.panels.before(made);
      return made;
    }

    redraw() {
      if (this.drawing) {
        this.shown = this.drawing();
      }
    }

    draw(drawing) {
      this.drawing = drawing;
      this.redraw();
      let width = this.stage.clientWidth;
      new ResizeObserver(() => {
        if (this.stage.clientWidth !== width) {
          width = this.stage.clientWidth;
          this.redraw();
        }
      }).observe(this.stage);
    }
  }

  function define(name, build) {
    for (const root of document.querySelectorAll(`figure.interactive[data-figure="${name}"]`)) {
      const kept = [...root.querySelector(".interactive-stage").childNodes];
      const figure = new Figure(root);
      root.figure = figure;
      try {
        build(figure);
      } catch (error) {
        figure.stage.replaceChildren(...kept);
        throw error;
      }
    }
  }

  window.Interactive = {
    define, make, color, format, scientific, range, sum, logsumexp, softmax, entropy, bytes,
  };
})();
