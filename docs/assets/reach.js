// What the theme leaves to do: a name for the search, tables that scroll by keys, and places where long names may break.
const LONG = 34; // characters of a name that may break at any width; shorter ones break on a phone alone

document$.subscribe(() => {
  document.querySelector(".md-search").setAttribute("aria-label", "Search");
  for (const code of document.querySelectorAll("article table:not([class]) :is(td, th) code")) allowBreaks(code);
  // The theme wraps tables in this same turn.
  setTimeout(() => {
    for (const wrap of document.querySelectorAll(".md-typeset__scrollwrap")) wrap.tabIndex = 0;
  });
});

// After a mark between words, and before the capital letter of the next word; not after the dashes of an option.
function allowBreaks(code) {
  if (code.childElementCount > 0) return;
  const parts = code.textContent.split(/(?<=[_./,=|])(?=\w)|(?<=\w-)(?=\w)|(?<=[a-z])(?=[A-Z])/);
  code.replaceChildren(...parts.flatMap((part, k) => [...(k ? [document.createElement("wbr")] : []), whole(part)]));
  code.classList.toggle("long", code.textContent.length > LONG);
}

function whole(part) {
  if (!part.startsWith("--") || part.includes(" ")) return part;
  const node = document.createElement("span");
  node.className = "whole";
  node.textContent = part;
  return node;
}
