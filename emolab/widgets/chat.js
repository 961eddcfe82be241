// Turns come as HTML that Python has escaped. A click, or Enter, on a token tells Python which one; arrows go along.
export default {
  render({ model, el }) {
    el.dataset.lmSuppressShortcuts = "true";
    // The copy in the same output, which stands for this one without a kernel, is hidden while this one lives.
    const hide = document.createElement("style");
    hide.textContent = "[data-emolab-live] .emolab-copy { display: none }";
    const output = () => el.closest(".jp-OutputArea, .output_wrapper, .output");
    requestAnimationFrame(() => output()?.setAttribute("data-emolab-live", ""));
    const turns = document.createElement("div");
    turns.setAttribute("role", "log");
    el.append(hide, turns);
    const draw = () => {
      const pages = model.get("pages");
      while (turns.children.length > pages.length) turns.lastChild.remove();
      pages.forEach((page, i) => {
        const turn = turns.children[i] ?? turns.appendChild(document.createElement("div"));
        if (turn.page === page) return;
        const at = turn.contains(document.activeElement) ? document.activeElement.dataset.at : null;
        turn.innerHTML = turn.page = page;
        if (at) turn.querySelector(`[data-at="${at}"]`)?.focus();
      });
    };
    let picks = 0;
    const pick = (token) => {
      model.set("picked", `${token.dataset.at}.${++picks}`);
      model.save_changes();
    };
    turns.addEventListener("click", (event) => {
      const token = event.target.closest("[data-at]");
      if (token) pick(token);
    });
    turns.addEventListener("keydown", (event) => {
      const token = event.target.closest("[data-at]");
      if (!token) return;
      const next = { ArrowRight: token.nextElementSibling, ArrowLeft: token.previousElementSibling }[event.key];
      if (event.key === "Enter" || event.key === " ") pick(token);
      else if (!next) return;
      else next.focus();
      event.preventDefault();
    });
    model.on("change:pages", draw);
    draw();
    return () => {
      output()?.removeAttribute("data-emolab-live");
      model.off("change:pages", draw);
    };
  },
};
