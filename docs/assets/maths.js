// KaTeX 0.19.1 lies beside this file as npm ships it, fonts as woff2 only. `document$` fires at every page change.
const SMALLEST = 0.6; // of the size of a formula; below it nobody can read it
const ROOMY = 1.25; // widths of the pane that unbroken brackets may take, before the formula is made smaller

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
    keepBrackets(element);
    if (excess() > ROOMY) element.replaceChildren(...statements(formula).map(line));
  }
  if (excess() > 1) element.style.fontSize = `${Math.max(SMALLEST, 0.97 / excess())}em`;
  element.querySelector(".katex-display")?.setAttribute("tabindex", 0); // one that is wider still scrolls by keys, too
}

// A line does not break between brackets: what stands there moves into the box of the opening bracket.
function keepBrackets(element) {
  for (const formula of element.querySelectorAll(".katex-html")) {
    let depth = 0;
    let box;
    for (const base of [...formula.children]) {
      if (depth > 0) box.append(base);
      else box = base;
      depth += base.querySelectorAll(":scope .mopen").length - base.querySelectorAll(":scope .mclose").length;
    }
  }
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
