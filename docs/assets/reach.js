// What the theme leaves to do: a name for the search, tables that scroll by keys, and places where long names may break.
const LONG = 34; // characters of a name that may break at any width; shorter ones break on a phone alone
const WORD = 24; // characters of a word of code that stay in one piece in running text: they fit a phone
const SENTENCE = 18; // characters of a cell that needs some width, for otherwise a row is as high as the screen

document$.subscribe(() => {
  document.querySelector(".md-search").setAttribute("aria-label", "Search");
  for (const code of document.querySelectorAll("article table:not([class]) :is(td, th) code")) allowBreaks(code);
  for (const code of document.querySelectorAll("article :is(p, li, dd) code")) if (!code.closest("pre, table")) keepWords(code);
  for (const block of document.querySelectorAll("article :is(p, li, dd, td)")) keepUnits(block);
  // The theme wraps tables in this same turn.
  setTimeout(() => {
    for (const wrap of document.querySelectorAll(".md-typeset__scrollwrap")) wrap.tabIndex = 0;
    for (const table of document.querySelectorAll("article table:not([class])")) {
      const wrap = table.closest(".md-typeset__scrollwrap");
      wrap?.classList.toggle("many", table.rows[0].cells.length > 4 || wrap.scrollWidth > wrap.clientWidth);
      for (const cell of table.querySelectorAll("td")) cell.classList.toggle("sentence", cell.textContent.length > SENTENCE);
    }
  });
});

// A number stays with its unit and its sign.
function keepUnits(block) {
  const between = /(?<=[±≤≥]) | (?=%)|(?<=\d) (?=(?:s|ms|µs|MB|GB)\b)/g;
  for (const node of block.childNodes) if (node.nodeType === 3) node.data = node.data.replace(between, "\u00a0");
}

// An option is not cut after its dashes, nor a path after its dot; a name too long for a phone breaks at its marks.
function keepWords(code) {
  if (code.childElementCount > 0) return;
  const words = code.textContent.split(/(?<= )/);
  code.replaceChildren(...words.flatMap((word) => (word.trim().length > WORD ? broken(word) : piece(word))));
  code.classList.toggle("long", words.some((word) => word.length > 3 * WORD));
}

function allowBreaks(code) {
  if (code.childElementCount > 0) return;
  code.replaceChildren(...broken(code.textContent));
  code.classList.toggle("long", code.textContent.length > LONG);
}

// After a mark between words, and before the capital letter of the next word; not in a number, nor after the dashes of an option.
function broken(text) {
  const parts = text.split(/(?<=[_./,=|])(?=\w)(?<![.=](?=\d))|(?<=\w-)(?=\w)|(?<=[a-z])(?<!Re)(?=[A-Z])/);
  return parts.flatMap((part, k) => [...(k ? [document.createElement("wbr")] : []), ...part.split(/(?<= )/).map(whole)]);
}

function whole(word) {
  return word.startsWith("-") || word.startsWith("'") ? piece(word) : word;
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
