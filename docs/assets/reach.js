// What the theme leaves to do for keyboards and screen readers: a name for the search, and tables that scroll by keys.
document$.subscribe(() => {
  document.querySelector(".md-search").setAttribute("aria-label", "Search");
  // The theme wraps tables in this same turn.
  setTimeout(() => {
    for (const wrap of document.querySelectorAll(".md-typeset__scrollwrap")) wrap.tabIndex = 0;
  });
});
