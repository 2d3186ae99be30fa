// KaTeX 0.19.1 lies beside this file as npm ships it, fonts as woff2 only. `document$` fires at every page change.
document$.subscribe(() => {
  for (const element of document.querySelectorAll(".arithmatex:not([data-rendered])")) {
    const formula = element.textContent.trim();
    const displayMode = formula.startsWith("\\[");
    katex.render(formula.slice(2, -2), element, { displayMode, throwOnError: false });
    if (displayMode) element.querySelector(".katex-display")?.setAttribute("tabindex", 0); // a wide one scrolls by keys, too
    element.dataset.rendered = "";
  }
});
