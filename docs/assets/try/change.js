// Difference of two rows of attention over the patches: orange where the second has more, blue where it has less.
import { element } from "./parts.js";

const points = (share) => `${share < 0 ? "\u2212" : "+"}${(100 * Math.abs(share)).toFixed(1)}`;

// `nameOf(token)` names a token; token 0 is the class token and has no patch.
export function changeMap([rows, columns], nameOf) {
  const patches = Array.from({ length: rows * columns }, () => element("span"));
  const grid = element("div", { class: "try-grid try-change", role: "img" }, ...patches);
  grid.style.gridTemplateColumns = `repeat(${columns}, 1fr)`;
  grid.style.aspectRatio = `${columns} / ${rows}`;
  const extremes = element("p", { class: "try-extremes" });
  return { grid, extremes, show };

  function show([plain, modulated]) {
    const changes = patches.map((_, k) => modulated[k + 1] - plain[k + 1]);
    const largest = Math.max(...changes.map(Math.abs)) || 1; // all 0 where the maps are equal
    patches.forEach((patch, k) => {
      patch.style.setProperty("--change", Math.abs(changes[k]) / largest);
      patch.className = changes[k] < 0 ? "try-less" : "try-more";
      patch.title = `${nameOf(k + 1)}: ${points(changes[k])} points`;
    });
    const at = (value) => `${points(value)} points at ${nameOf(changes.indexOf(value) + 1)}`;
    const [least, most] = [Math.min(...changes), Math.max(...changes)];
    extremes.textContent =
      Math.max(most, -least) < 0.0005 ? "Both maps are equal." : `Most: ${at(most)}. Least: ${at(least)}.`;
    grid.setAttribute("aria-label", `Change of the attention of every patch. ${extremes.textContent}`);
  }
}
