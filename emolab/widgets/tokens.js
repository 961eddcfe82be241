// Brings token views to life: layer and emotion selectors, arrow keys, the number of the token under mouse or focus.
// Everything is set as text or as a style, never as HTML.
for (const root of document.querySelectorAll(".emolab-tokens:not([data-live])")) {
  root.dataset.live = "true";
  const data = JSON.parse(root.dataset.emolab);
  const values = Int8Array.from(atob(data.values), (c) => c.charCodeAt(0)); // [emotion, layer, token]
  const tokens = [...root.querySelectorAll(".emolab-text > span")];
  const list = root.querySelector(".emolab-text");
  const where = root.querySelector(".emolab-where");
  const n = tokens.length;
  let emotion = data.emotion, layer = data.layer, at = 0;

  const value = (i) => values[(emotion * data.layers.length + layer) * n + i] * data.step;
  const none = (x) => x === -128 * data.step;
  const format = (x) => {
    if (none(x)) return "position 0";
    const text = Math.abs(x).toFixed(data.digits);
    return Number(text) ? (x < 0 ? "−" : "+") + text : text;
  };
  const shade = (x) => {
    if (none(x)) return "";
    const share = Math.max(-1, Math.min(1, x / data.limit));
    const { above, below, deepest } = data.shades;
    return `rgba(${share > 0 ? above : below},${(deepest * Math.abs(share)).toFixed(2)})`;
  };
  const create = (tag, more = {}, style = "") => Object.assign(document.createElement(tag), more, { style });

  const bar = create("div", {}, "display:flex;flex-wrap:wrap;gap:0.4em 1.2em;align-items:center;margin:0.2em 0");
  const emotions = create("select", {}, "font:inherit");
  data.emotions.forEach((name, i) => emotions.add(new Option(name, i)));
  const range = create("input", { type: "range", min: 0, max: data.layers.length - 1, step: 1 }, "width:11em");
  const number = create("output", {}, "min-width:2em;font-variant-numeric:tabular-nums");
  const readout = create("output", {}, "font-variant-numeric:tabular-nums;min-height:1.4em;white-space:pre-wrap");
  for (const [text, ...parts] of [["emotion", emotions], ["layer", range, number]]) {
    const label = create("label", {}, "display:inline-flex;gap:0.5em;align-items:center");
    label.append(text, ...parts);
    bar.append(label);
  }
  bar.append(readout);
  where.replaceWith(bar);
  root.querySelector(".emolab-hint")?.remove();

  const say = (i) => {
    readout.textContent = `“${tokens[i].textContent.trim()}” ${format(value(i))}`;
  };
  const draw = () => {
    emotions.value = emotion;
    range.value = layer;
    number.textContent = data.layers[layer];
    range.setAttribute("aria-valuetext", `layer ${data.layers[layer]}`);
    tokens.forEach((token, i) => {
      token.style.backgroundColor = shade(value(i));
      token.title = format(value(i));
      token.setAttribute("aria-label", `${token.textContent.trim() || "blank"} ${format(value(i))}`);
    });
    say(at);
  };
  const go = (i, focus) => {
    tokens[at].tabIndex = -1;
    tokens[at].style.outline = "none";
    at = Math.max(0, Math.min(n - 1, i));
    tokens[at].tabIndex = 0;
    tokens[at].style.outline = "2px solid currentColor";
    if (focus) tokens[at].focus({ preventScroll: true });
    say(at);
  };
  const toLayer = (i) => {
    layer = Math.max(0, Math.min(data.layers.length - 1, i));
    draw();
  };

  list.setAttribute("role", "listbox");
  list.setAttribute("aria-label", "tokens; arrow left and right: next token, up and down: next layer");
  tokens.forEach((token, i) => {
    token.setAttribute("role", "option");
    token.style.borderRadius = "2px";
    token.tabIndex = i ? -1 : 0;
    token.addEventListener("mouseenter", () => say(i));
    token.addEventListener("mouseleave", () => say(at));
    token.addEventListener("click", () => go(i, true));
    token.addEventListener("focus", () => i !== at && go(i, false));
  });
  list.addEventListener("keydown", (event) => {
    const steps = {
      ArrowRight: () => go(at + 1, true), ArrowLeft: () => go(at - 1, true),
      Home: () => go(0, true), End: () => go(n - 1, true),
      ArrowUp: () => toLayer(layer + 1), ArrowDown: () => toLayer(layer - 1),
    };
    if (!steps[event.key]) return;
    event.preventDefault();
    steps[event.key]();
  });
  range.addEventListener("input", () => toLayer(Number(range.value)));
  emotions.addEventListener("change", () => {
    emotion = Number(emotions.value);
    draw();
  });
  root.addEventListener("keydown", (event) => event.stopPropagation()); // keys here are no shortcuts of the notebook
  readout.setAttribute("aria-live", "polite");
  draw();
}
