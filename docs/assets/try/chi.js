// The figure of CHI: move the threshold and see which semantic tokens share a hyperedge.
import { cosines, incidenceOf, statistics } from "./incidence.js";
import { choice, decode, drawing, element, load, rove, slider } from "./parts.js";

const [WIDTH, HEIGHT, MARGIN] = [400, 400, 32];

export async function build(folder) {
  const content = await load(new URL("chi.json", folder));
  const samples = content.samples.map((sample) => {
    const numbers = decode(sample.nodes);
    const nodes = sample.places.map((_, i) => numbers.subarray(i * content.dim, (i + 1) * content.dim));
    return { ...sample, similarities: cosines(nodes) };
  });
  const state = { sample: samples[0], threshold: content.threshold, present: content.modalities.map(() => true), node: 0 };
  return figure(content, samples, state, folder);
}

function figure(content, samples, state, folder) {
  const modalityOf = (i) => Math.floor(i / content.tokens);
  const names = state.sample.places.map((_, i) => `${content.modalities[modalityOf(i)]} ${(i % content.tokens) + 1}`);
  const plane = planeOf(names, modalityOf, choose);
  const matrix = matrixOf(names);
  const pictures = element("div", { class: "try-pictures" });
  const spot = element("span", { class: "try-spot" });
  const note = element("p", { class: "try-note", "aria-live": "polite" });
  const verdict = element("p", { class: "try-verdict", "aria-live": "polite" });
  const numbers = element("dl", { class: "try-numbers" });

  function choose(i) {
    if (state.node === i) return;
    state.node = i;
    update();
  }
  function update() {
    const present = names.map((_, i) => state.present[modalityOf(i)]);
    const incidence = incidenceOf(state.sample.similarities, state.threshold, present);
    const found = statistics(incidence, modalityOf);
    plane.show(state.sample.places, incidence, present, state.node);
    matrix.show(incidence, state.node);
    const members = names.filter((_, i) => incidence[i][state.node]);
    const patch = showPatch(modalityOf(state.node), state.sample.patches[state.node]);
    note.textContent = members.length
      ? `Hyperedge of ${names[state.node]}: ${members.join(", ")}. STR read ${patch} most into ${names[state.node]}.`
      : `${names[state.node]} is absent, and its hyperedge empty.`;
    verdict.textContent = judge(found, present.filter(Boolean).length);
    numbers.replaceChildren(
      ...pairOf("mean nodes in a hyperedge", found.size.toFixed(2)),
      ...pairOf("share of isolated nodes", found.isolated.toFixed(2)),
      ...pairOf("share of hyperedges across modalities", found.crossModal.toFixed(2)),
    );
  }
  // Moves the frame to a patch of the image of a modality, and says where it is.
  function showPatch(modality, patch) {
    const [rows, columns] = content.grid;
    const [row, column] = [Math.floor(patch / columns), patch % columns];
    const [top, left] = [(100 * row) / rows, (100 * column) / columns];
    spot.style = `top: ${top}%; left: ${left}%; height: ${100 / rows}%; width: ${100 / columns}%`;
    pictures.children[modality].append(spot);
    return `row ${row + 1}, column ${column + 1} of the ${content.modalities[modality]} image`;
  }
  function showSample(k) {
    state.sample = samples[k];
    pictures.replaceChildren(
      ...samples[k].files.map((file, m) =>
        element("span", {},
          element("img", { src: new URL(file, folder), alt: `${content.modalities[m]} image of this sample`, width: 64, height: 64 })),
      ),
    );
    update();
  }

  const node = element(
    "div",
    { class: "try", role: "group", "aria-label": "Interactive figure of CHI" },
    element(
      "div",
      { class: "try-controls" },
      choice("sample", "Sample", samples.map((_, k) => `${k + 1}`), 0, showSample),
      modalitiesOf(content.modalities, state, update),
      slider("threshold", "τ, least cosine", { min: -1, max: 1, value: state.threshold }, (value) => {
        state.threshold = value;
        update();
      }),
      pictures,
    ),
    element(
      "div",
      { class: "try-panels" },
      element("figure", { class: "try-panel" }, captionOf("Semantic tokens", "Point at one, or use the arrow keys."), plane.node),
      element("figure", { class: "try-panel" }, captionOf("Incidence", "Nodes in rows, hyperedges in columns."), matrix.node),
    ),
    note,
    verdict,
    numbers,
  );
  showSample(0);
  return node;
}

function judge({ size }, nodes) {
  if (nodes === 0) return "No modality is present: there is no hypergraph.";
  if (size === 1) return "The identity: every node is alone in its hyperedge, and nothing is exchanged.";
  if (size === nodes) return "Everything: each hyperedge holds all nodes, and each node receives the same mean.";
  return "Between the extremes: some nodes meet, others do not.";
}

function modalitiesOf(names, state, update) {
  const boxes = names.map((name, m) => {
    const input = element("input", { type: "checkbox", value: m });
    input.checked = true;
    input.addEventListener("change", () => {
      state.present[m] = input.checked;
      update();
    });
    return element("label", {}, input, name);
  });
  return element("fieldset", { class: "try-choice" }, element("legend", {}, "Present"), ...boxes);
}

const captionOf = (title, note) =>
  element("figcaption", {}, element("strong", {}, title), element("span", {}, note));
const pairOf = (name, value) => [element("dt", {}, name), element("dd", {}, value)];

// Modalities differ in shape as well as in colour.
const SHAPES = [
  () => drawing("circle", { r: 8 }),
  () => drawing("rect", { x: -7, y: -7, width: 14, height: 14 }),
  () => drawing("path", { d: "M0 -9 L9 7 L-9 7 Z" }),
];

function planeOf(names, modalityOf, choose) {
  const lines = drawing("g", { class: "try-lines" });
  const nodes = names.map((name, i) =>
    drawing("g", { role: "radio", class: `try-node try-modality-${modalityOf(i) % SHAPES.length}` },
      drawing("circle", { r: 15, class: "try-ring" }), SHAPES[modalityOf(i) % SHAPES.length]()),
  );
  const step = (key, i) => {
    if (key === "ArrowRight" || key === "ArrowDown") return (i + 1) % names.length;
    if (key === "ArrowLeft" || key === "ArrowUp") return (i + names.length - 1) % names.length;
  };
  rove(nodes, step, choose);
  nodes.forEach((node, i) => {
    // Moves alone: a page that scrolls under a resting pointer makes it enter a node, too.
    for (const event of ["pointermove", "click", "focus"]) node.addEventListener(event, () => choose(i));
  });
  const legend = drawing("g", { class: "try-legend" });
  const count = modalityOf(names.length - 1) + 1;
  Array.from({ length: count }, (_, m) => m).forEach((m) => {
    const name = names.find((_, i) => modalityOf(i) === m).replace(/ \d+$/, "");
    const shape = SHAPES[m % SHAPES.length]();
    legend.append(
      drawing("g", { transform: `translate(${WIDTH - 75 * (count - m)}, 18)`, class: `try-modality-${m % SHAPES.length}` },
        shape, drawing("text", { x: 14, y: 5 }, name)),
    );
  });
  const group = drawing("g", { role: "radiogroup", "aria-label": "Semantic tokens: choose one to see its hyperedge" }, ...nodes);
  const node = drawing("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, class: "try-plane" }, lines, group, legend);
  return { node, show };

  function show(places, incidence, present, chosen) {
    const points = fitted(places);
    const pairs = incidence.flatMap((row, i) => row.flatMap((is, j) => (is && i < j ? [[i, j]] : [])));
    lines.replaceChildren(
      ...pairs.map(([i, j]) =>
        drawing("line", {
          x1: points[i][0], y1: points[i][1], x2: points[j][0], y2: points[j][1],
          class: i === chosen || j === chosen ? "try-own" : "",
        }),
      ),
    );
    nodes.forEach((one, i) => {
      one.setAttribute("transform", `translate(${points[i]})`);
      one.setAttribute("aria-checked", i === chosen);
      const size = incidence.filter((row) => row[i]).length;
      one.setAttribute("aria-label", `${names[i]}, ${present[i] ? `hyperedge of ${size}` : "absent"}`);
      one.classList.toggle("try-absent", !present[i]);
      one.classList.toggle("try-member", incidence[i][chosen]);
    });
  }
}

// From the places of the export to the drawing, each axis over its whole length.
function fitted(places) {
  const [xs, ys] = [0, 1].map((axis) => places.map((place) => place[axis]));
  const onto = (value, all, from, to) => from + ((value - Math.min(...all)) / (Math.max(...all) - Math.min(...all))) * (to - from);
  return places.map(([x, y]) => [
    Math.round(onto(x, xs, MARGIN, WIDTH - MARGIN)),
    Math.round(onto(y, ys, HEIGHT - MARGIN, 2 * MARGIN)),
  ]);
}

function matrixOf(names) {
  const size = names.length;
  const left = 4.6;
  const cells = drawing("g");
  const labels = names.map((name, i) => drawing("text", { x: left - 0.3, y: i + 0.75, "text-anchor": "end" }, name));
  const column = drawing("rect", { y: 0, width: 1, height: size, class: "try-column" });
  const node = drawing("svg", { viewBox: `0 -0.2 ${left + size + 0.2} ${size + 0.4}`, class: "try-matrix", role: "img" }, ...labels, cells, column);
  return { node, show };

  function show(incidence, chosen) {
    cells.replaceChildren(
      ...incidence.flatMap((row, i) =>
        row.map((is, j) => drawing("rect", { x: left + j, y: i, width: 0.92, height: 0.92, class: is ? "try-in" : "try-out" })),
      ),
    );
    column.setAttribute("x", left + chosen - 0.04);
    const filled = incidence.flat().filter(Boolean).length;
    node.setAttribute("aria-label", `Incidence matrix, ${size} by ${size}: ${filled} entries are true`);
  }
}
