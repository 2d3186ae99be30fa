// A picture under a grid of patches that pointer, touch and arrow keys reach.
import { element, rove } from "./parts.js";

// `attributes(index)` are those of a patch; `arrive` is called when an arrow key leads to one.
export function patchGrid(label, role, [rows, columns], { itemRole, arrive }) {
  const patches = Array.from({ length: rows * columns }, (_, k) =>
    element("button", { type: "button", role: itemRole, "data-patch": k, class: "try-patch" }),
  );
  const enter = rove(patches, (key, k) => neighbour(key, k, rows, columns), arrive);
  const grid = element("div", { class: "try-grid", role, "aria-label": label }, ...patches);
  grid.style.gridTemplateColumns = `repeat(${columns}, 1fr)`;
  grid.style.aspectRatio = `${columns} / ${rows}`;
  return { grid, patches, enter };
}

function neighbour(key, k, rows, columns) {
  const [row, column] = [Math.floor(k / columns), k % columns];
  const at = (r, c) => (r < 0 || r >= rows || c < 0 || c >= columns ? undefined : r * columns + c);
  switch (key) {
    case "ArrowLeft": return at(row, column - 1);
    case "ArrowRight": return at(row, column + 1);
    case "ArrowUp": return at(row - 1, column);
    case "ArrowDown": return at(row + 1, column);
    case "Home": return at(row, 0);
    case "End": return at(row, columns - 1);
  }
}

// Press a patch to turn it over, and draw on to give the others the same value; the space bar turns over the one in focus.
export function paintable({ grid, patches }, valueOf, set) {
  let brush;
  const under = (event) => {
    const node = document.elementFromPoint(event.clientX, event.clientY);
    return node && grid.contains(node) && node.dataset.patch !== undefined ? Number(node.dataset.patch) : undefined;
  };
  grid.addEventListener("pointerdown", (event) => {
    const k = under(event);
    if (k === undefined) return;
    event.preventDefault(); // a click would turn it over again
    patches[k].focus();
    grid.setPointerCapture(event.pointerId);
    brush = !valueOf(k);
    set(k, brush);
  });
  grid.addEventListener("pointermove", (event) => {
    const k = brush === undefined ? undefined : under(event);
    if (k !== undefined && valueOf(k) !== brush) set(k, brush);
  });
  for (const name of ["pointerup", "pointercancel"]) grid.addEventListener(name, () => (brush = undefined));
  // A click without a pointer: the space bar, the enter key, or a screen reader.
  patches.forEach((patch, k) => patch.addEventListener("click", (event) => event.detail || set(k, !valueOf(k))));
}
