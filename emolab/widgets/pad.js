// A square to drag a point in: valence from left to right, arousal from below. Arrow keys move it, too.
export default {
  render({ model, el }) {
    el.dataset.lmSuppressShortcuts = "true";
    const size = 120, [across, up] = model.get("names");
    const pad = document.createElement("div"), dot = document.createElement("div");
    pad.tabIndex = 0;
    pad.setAttribute("role", "application");
    pad.style.cssText = `position:relative;width:${size}px;height:${size}px;border:1px solid rgba(128,128,128,.6);` +
      "background:linear-gradient(currentColor,currentColor) center/1px 100% no-repeat," +
      "linear-gradient(currentColor,currentColor) center/100% 1px no-repeat;opacity:.85;touch-action:none";
    dot.style.cssText = "position:absolute;width:12px;height:12px;margin:-6px;border-radius:50%;background:#D55E00";
    const words = document.createElement("div");
    words.style.cssText = "font-size:.85em";
    pad.append(dot);
    el.append(pad, words);
    const draw = () => {
      const [x, y, top] = [model.get("x"), model.get("y"), model.get("top")];
      dot.style.left = `${(size * (x / top + 1)) / 2}px`;
      dot.style.top = `${(size * (1 - y / top)) / 2}px`;
      words.textContent = `${across} → ${x.toFixed(2)}, ${up} ↑ ${y.toFixed(2)}`;
      pad.setAttribute("aria-label", words.textContent);
    };
    const put = (x, y) => {
      const top = model.get("top"), within = (v) => Math.max(-top, Math.min(top, Math.round(v * 20) / 20));
      model.set({ x: within(x), y: within(y) });
      model.save_changes();
    };
    const to = (event) => {
      const box = pad.getBoundingClientRect(), top = model.get("top");
      put(((event.clientX - box.left) / size * 2 - 1) * top, (1 - (event.clientY - box.top) / size * 2) * top);
    };
    pad.addEventListener("pointerdown", (event) => { pad.setPointerCapture(event.pointerId); to(event); });
    pad.addEventListener("pointermove", (event) => { if (pad.hasPointerCapture(event.pointerId)) to(event); });
    pad.addEventListener("keydown", (event) => {
      const step = { ArrowRight: [1, 0], ArrowLeft: [-1, 0], ArrowUp: [0, 1], ArrowDown: [0, -1] }[event.key];
      if (!step) return;
      event.preventDefault();
      put(model.get("x") + step[0] * model.get("top") / 20, model.get("y") + step[1] * model.get("top") / 20);
    });
    model.on("change", draw);
    draw();
    return () => model.off("change", draw);
  },
};
