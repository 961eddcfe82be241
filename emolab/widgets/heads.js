// Brings maps of heads to life: an emotion selector, and the numbers of the head that is clicked or walked to by arrow keys.
// Everything is set as text or as a style, never as HTML.
for (const root of document.querySelectorAll(".emolab-heads:not([data-live])")) {
  root.dataset.live = "true";
  const data = JSON.parse(root.dataset.emolab);
  const rows = [...root.querySelector(".emolab-map").rows].slice(0, -1).reverse(); // by head, the lowest first
  const cells = data.layers.map((_, i) => rows.map((row) => row.cells[i + 1]));
  const details = [...root.querySelector(".emolab-details").rows].slice(1);
  const title = root.querySelector(".emolab-head");
  const where = root.querySelector(".emolab-where");
  const names = Object.keys(data.numbers);
  const numbers = {};
  for (const [name, { step, steps }] of Object.entries(data.numbers)) {
    const view = new DataView(Uint8Array.from(atob(steps), (c) => c.charCodeAt(0)).buffer);
    numbers[name] = Array.from({ length: view.byteLength / 2 }, (_, i) => view.getInt16(2 * i, true))
      .map((x) => (x === -32768 ? null : x * step));
  }
  let emotion = data.emotion, [layer, head] = data.start;

  const number = (name, e, i, j) => numbers[name][(e * data.layers.length + i) * data.heads.length + j];
  const format = (x) => (x === null ? "–" : String(Number(x.toPrecision(3))).replace("-", "−"));
  const colour = (x) => {
    if (x === null) return "#8a8a8a";
    const share = Math.max(0, Math.min(1, (x - data.low) / (data.high - data.low || 1)));
    return data.palette[Math.round(share * (data.palette.length - 1))];
  };
  const light = (hex) => [1, 3, 5].reduce((sum, i, k) => sum + [0.3, 0.59, 0.11][k] * parseInt(hex.slice(i, i + 2), 16), 0) > 120;

  const select = Object.assign(document.createElement("select"), { style: "font:inherit" });
  data.emotions.forEach((name, i) => select.add(new Option(name, i)));
  select.value = emotion;
  const label = Object.assign(document.createElement("label"), { style: "display:flex;gap:0.5em;margin:0.2em 0" });
  label.append("emotion", select);
  where.replaceWith(label);
  root.querySelector(".emolab-hint")?.remove();

  const draw = () => {
    cells.forEach((row, i) => row.forEach((cell, j) => {
      const x = number(data.value, emotion, i, j);
      cell.style.backgroundColor = colour(x);
      cell.style.color = light(colour(x)) ? "#333333" : "#ffffff";
      const dot = data.dots && number("q", emotion, i, j) !== null && number("q", emotion, i, j) < 0.05;
      cell.textContent = dot ? "•" : "";
      const text = `layer ${data.layers[i]}, head ${data.heads[j]}: ${format(x)}${dot ? ", q below 0.05" : ""}`;
      cell.title = text;
      cell.setAttribute("aria-label", text);
    }));
    details.forEach((row, e) => {
      row.style.fontWeight = e === emotion ? "bold" : "normal";
      names.forEach((name, k) => (row.cells[k + 1].textContent = format(number(name, e, layer, head))));
    });
  };
  const choose = (i, j, focus) => {
    cells[layer][head].tabIndex = -1;
    Object.assign(cells[layer][head].style, { outline: "none", boxShadow: "none", position: "" });
    layer = Math.max(0, Math.min(cells.length - 1, i));
    head = Math.max(0, Math.min(cells[0].length - 1, j));
    const cell = cells[layer][head];
    cell.tabIndex = 0;
    Object.assign(cell.style, { outline: "2px solid #333333", boxShadow: "0 0 0 4px #ffffff", position: "relative" });
    if (focus) cell.focus({ preventScroll: true });
    title.textContent = `layer ${data.layers[layer]}, head ${data.heads[head]}`;
    draw();
  };
  root.querySelector(".emolab-map").setAttribute("role", "grid");
  root.querySelector(".emolab-map").setAttribute("aria-label", "heads; arrow keys walk from head to head");
  cells.forEach((row, i) => row.forEach((cell, j) => {
    cell.setAttribute("role", "gridcell");
    cell.tabIndex = -1;
    Object.assign(cell.style, { cursor: "pointer", textAlign: "center", padding: "0" });
    cell.addEventListener("click", () => choose(i, j, true));
  }));
  root.querySelector(".emolab-map").addEventListener("keydown", (event) => {
    const steps = { ArrowRight: [1, 0], ArrowLeft: [-1, 0], ArrowUp: [0, 1], ArrowDown: [0, -1] };
    const step = steps[event.key];
    if (!step) return;
    event.preventDefault();
    choose(layer + step[0], head + step[1], true);
  });
  select.addEventListener("change", () => {
    emotion = Number(select.value);
    draw();
  });
  root.addEventListener("keydown", (event) => event.stopPropagation()); // keys here are no shortcuts of the notebook
  title.setAttribute("aria-live", "polite");
  choose(layer, head, false);
}
