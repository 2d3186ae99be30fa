// KaTeX 0.19.1 lies beside this file as npm ships it, fonts as woff2 only. `document$` fires at every page change.
const SMALLEST = 0.6; // of the size of a formula; below it nobody can read it

function render(element) {
  const formula = element.dataset.formula;
  const displayMode = formula.startsWith("\\[");
  element.classList.remove("broken");
  element.style.fontSize = "";
  katex.render(formula.slice(2, -2), element, { displayMode, throwOnError: false });
  if (displayMode) fit(element, formula.slice(2, -2));
}

// A formula that is too wide is broken into lines (one in rows cannot), then made smaller.
function fit(element, formula) {
  const excess = () => {
    const box = element.querySelector(".katex-display");
    const widths = [...element.querySelectorAll(".katex-base")].map((base) => base.offsetWidth);
    return (box ? box.scrollWidth : Math.max(...widths)) / element.clientWidth;
  };
  if (excess() > 1.15 && !formula.includes("\\begin")) {
    element.replaceChildren(...statements(formula).map(line));
    element.classList.add("broken");
  }
  if (excess() > 1) element.style.fontSize = `${Math.max(SMALLEST, 0.97 / excess())}em`;
  element.querySelector(".katex-display")?.setAttribute("tabindex", 0); // one that is wider still scrolls by keys, too
}

// Formulas that a wide space sets apart get a line each.
const statements = (formula) => formula.split(/(?<=,)\s*\\quad(?![a-z])|\\qquad(?![a-z])/).filter((part) => part.trim());

// Set as in running text, a formula breaks at = and + where it is too wide.
function line(formula) {
  const element = document.createElement("div");
  katex.render(`\\displaystyle ${formula}`, element, { throwOnError: false });
  return element;
}

const displayed = () => document.querySelectorAll(".arithmatex[data-formula^='\\\\[']");

document$.subscribe(() => {
  for (const element of document.querySelectorAll(".arithmatex:not([data-formula])")) {
    element.dataset.formula = element.textContent.trim();
    render(element);
  }
  document.fonts.ready.then(() => displayed().forEach(render)); // fonts that come late have other widths
});

// Another width of the window, a phone that is turned: formulas are set anew.
let before = innerWidth;
addEventListener("resize", () => {
  if (innerWidth === before) return;
  before = innerWidth;
  displayed().forEach(render);
});
