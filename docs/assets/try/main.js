// Put an interactive figure in the place of its still picture. `document$` fires at every page change.
const figures = { "try-sfm": "./sfm.js", "try-chi": "./chi.js" };

document$.subscribe(async () => {
  for (const [id, file] of Object.entries(figures)) {
    const still = document.querySelector(`img#${id}`);
    if (!still) continue;
    const { build } = await import(file);
    const figure = await build(new URL(".", import.meta.url));
    figure.id = id;
    still.closest("p").replaceWith(figure);
  }
});
