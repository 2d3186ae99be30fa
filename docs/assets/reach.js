// What the theme leaves to do: a name for the search, tables that scroll by keys, and places where long names may break.
const LONG = 34; // characters of a name that may break at any width; shorter ones break on a phone alone
const WORD = 24; // characters of a word of code that stay in one piece in running text: they fit a phone
const SENTENCE = 24; // characters of a cell that needs some width, for otherwise a row is as high as the screen

document$.subscribe(() => {
  document.querySelector(".md-search").setAttribute("aria-label", "Search");
  for (const code of document.querySelectorAll("article table:not([class]) :is(td, th) code")) allowBreaks(code);
  for (const code of document.querySelectorAll("article :is(p, li, dd) code")) if (!code.closest("pre, table")) keepWords(code);
  // The theme wraps tables in this same turn.
  setTimeout(() => {
    for (const wrap of document.querySelectorAll(".md-typeset__scrollwrap")) wrap.tabIndex = 0;
    for (const table of document.querySelectorAll("article table:not([class])")) {
      table.closest(".md-typeset__scrollwrap")?.classList.toggle("many", table.rows[0].cells.length > 4);
      for (const cell of table.querySelectorAll("td")) {
        cell.classList.toggle("sentence", cell.textContent.length > SENTENCE);
        for (const node of cell.childNodes) if (node.nodeType === 3) node.data = node.data.replace(/(?<=[±≤≥]) | (?=%)/g, "\u00a0");
      }
    }
  });
});

// An option is not cut after its dashes, nor a path after its dot.
function keepWords(code) {
  if (code.childElementCount > 0) return;
  const words = code.textContent.split(/(?<= )/);
  code.replaceChildren(...words.map((word) => (word.trim().length > WORD ? word : piece(word))));
}

// After a mark between words, and before the capital letter of the next word; not after the dashes of an option.
function allowBreaks(code) {
  if (code.childElementCount > 0) return;
  const parts = code.textContent.split(/(?<=[_./,=|])(?=\w)|(?<=\w-)(?=\w)|(?<=[a-z])(?<!Re)(?=[A-Z])/);
  code.replaceChildren(...parts.flatMap((part, k) => [...(k ? [document.createElement("wbr")] : []), whole(part)]));
  code.classList.toggle("long", code.textContent.length > LONG);
}

function whole(part) {
  return part.startsWith("--") && !part.includes(" ") ? piece(part) : part;
}

function piece(text) {
  const [, word, space] = text.match(/^(.*?)( *)$/s);
  const node = document.createElement("span");
  node.className = "whole";
  node.textContent = word;
  const both = document.createDocumentFragment();
  both.append(node, space);
  return both;
}
