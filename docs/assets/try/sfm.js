// The figure of SFM: paint a mask, choose a query, and compare plain with modulated attention.
import { meanOfRows, weightsOfQuery } from "./attention.js";
import { changeMap } from "./change.js";
import { button, choice, decode, element, load, slider } from "./parts.js";
import { paintable, patchGrid } from "./patches.js";

const CLASS = 0; // the class token; patch k is token k + 1
const percent = (share) => `${(100 * share).toFixed(1)} %`;

export async function build(folder) {
  const content = await load(new URL("sfm.json", folder));
  const images = content.images.map((image) => ({
    ...image,
    query: decode(image.query),
    key: decode(image.key),
    given: [...image.foreground].map((token) => token === "1"),
  }));
  const [rows, columns] = content.grid;
  const state = {
    image: images[0],
    head: 0, // 0 is the mean of all
    query: 1 + Math.floor(rows / 2) * columns + Math.floor(columns / 2) - 1,
    alpha: content.alpha[0],
    beta: content.beta[0],
    foreground: [...images[0].given],
  };
  return figure(content, images, state, folder);
}

function figure(content, images, state, folder) {
  const mask = patchGrid("Mask: patches of the image", "group", content.grid, { itemRole: "button" });
  const plain = queryPanel("Plain attention: choose the query", content.grid, state, update);
  const modulated = queryPanel("Modulated attention: choose the query", content.grid, state, update);
  const change = changeMap(content.grid, (token) => nameOf(token, content.grid));
  const note = element("p", { class: "try-note", "aria-live": "polite" });
  const shares = element("tbody");
  const weights = element("tbody");

  function update() {
    const { query, key, file } = state.image;
    const head = { query, key, heads: content.heads, tokens: state.foreground.length, width: content.head_dim };
    const row = (alpha, beta) => {
      const ofHeads = weightsOfQuery(head, state.query, state.foreground, alpha, beta);
      return state.head ? ofHeads[state.head - 1] : meanOfRows(ofHeads);
    };
    const pair = [row(0, 0), row(state.alpha, state.beta)];
    const most = Math.max(...pair.flatMap((weight) => weight.slice(1)));
    for (const panel of [mask, plain, modulated]) {
      panel.grid.style.setProperty("--image", `url("${new URL(file, folder)}")`);
    }
    showMask(mask, state, content.grid);
    plain.show(pair[0], most);
    modulated.show(pair[1], most);
    change.show(pair);
    describe(pair, state, content.grid, { note, shares, weights });
  }

  paintable(
    mask,
    (k) => state.foreground[k + 1],
    (k, value) => ((state.foreground[k + 1] = value), update()),
  );
  const setMask = (foreground) => ((state.foreground = foreground), update());
  const everywhere = (value) => state.foreground.map((_, token) => token === CLASS || value);
  const panels = [
    panel("Mask", mask.grid, "Press or draw; arrow keys and the space bar. Dark is background."),
    panel("Plain attention", plain.grid, "Press a patch, or use the arrow keys, to make it the query.", plain.token),
    panel("Modulated attention", modulated.grid, "The same query with the mask and the strengths.", modulated.token),
    panel("Modulated minus plain", change.grid, "Orange patches gain attention, blue ones lose it.", change.extremes),
  ];
  const node = element(
    "div",
    { class: "try", role: "group", "aria-label": "Interactive figure of SFM" },
    element(
      "div",
      { class: "try-controls" },
      choice("image", "Image", images.map((one) => one.modality), 0, (k) => {
        state.image = images[k];
        update();
      }),
      choice("head", "Head", ["mean", ...Array.from({ length: content.heads }, (_, k) => `${k + 1}`)], 0, (k) => {
        state.head = k;
        update();
      }),
      strength("alpha", "α, among foreground", state, update),
      strength("beta", "β, all other pairs", state, update),
      element(
        "div",
        { class: "try-buttons" },
        button("Mask as given", () => setMask([...state.image.given])),
        button("All foreground", () => setMask(everywhere(true))),
        button("All background", () => setMask(everywhere(false))),
      ),
    ),
    element("div", { class: "try-panels" }, ...panels),
    note,
    table("Share of the attention of the query", ["on", "plain", "modulated"], shares),
    element(
      "details",
      { class: "try-details" },
      element("summary", {}, "The whole row of weights"),
      table("Weights of the query", ["token", "mask", "plain", "modulated"], weights),
    ),
  );
  update();
  return node;
}

function strength(name, label, state, update) {
  return slider(name, label, { min: 0, max: 1, value: state[name].toFixed(2) }, (value) => {
    state[name] = value;
    update();
  });
}

function panel(title, grid, note, ...more) {
  const caption = element("figcaption", {}, element("strong", {}, title), element("span", {}, note));
  return element("figure", { class: "try-panel" }, caption, grid, ...more);
}

// A heat map whose patches, and the class token below it, are the choices for the query.
function queryPanel(label, size, state, update) {
  const choose = (token) => ((state.query = token), update());
  const { grid, patches, enter } = patchGrid(label, "radiogroup", size, { itemRole: "radio", arrive: (k) => choose(k + 1) });
  grid.classList.add("try-heat");
  patches.forEach((patch, k) => patch.addEventListener("click", () => choose(k + 1)));
  const token = button("", () => choose(CLASS));
  token.classList.add("try-token");
  const show = (weights, most) => {
    patches.forEach((patch, k) => {
      patch.style.setProperty("--heat", weights[k + 1] / most);
      patch.setAttribute("aria-checked", state.query === k + 1);
      patch.setAttribute("aria-label", `${nameOf(k + 1, size)}, weight ${percent(weights[k + 1])}`);
    });
    if (state.query !== CLASS) enter(state.query - 1);
    token.textContent = `Class token, weight ${percent(weights[CLASS])}`;
    token.setAttribute("aria-pressed", state.query === CLASS);
  };
  return { grid, token, show };
}

function showMask({ patches }, state, size) {
  patches.forEach((patch, k) => {
    patch.setAttribute("aria-pressed", state.foreground[k + 1]);
    patch.setAttribute("aria-label", `${nameOf(k + 1, size)}, foreground`);
  });
}

function describe(pair, state, size, { note, shares, weights }) {
  const share = (of) => pair.map((row) => row.reduce((sum, weight, token) => sum + (of(token) ? weight : 0), 0));
  const parts = {
    "foreground patches": share((token) => token !== CLASS && state.foreground[token]),
    "background patches": share((token) => !state.foreground[token]),
    "the class token": share((token) => token === CLASS),
  };
  shares.replaceChildren(...Object.entries(parts).map(([name, values]) => line(name, values.map(percent))));
  const [before, after] = parts["foreground patches"].map(percent);
  const kind = state.query === CLASS ? "" : state.foreground[state.query] ? ", foreground" : ", background";
  note.textContent =
    `Query: ${nameOf(state.query, size)}${kind}. ` +
    `Attention on foreground patches: ${before} plain, ${after} modulated.`;
  weights.replaceChildren(
    ...state.foreground.map((is, token) =>
      line(nameOf(token, size), [is ? "foreground" : "background", ...pair.map((row) => row[token].toFixed(6))]),
    ),
  );
}

function nameOf(token, [, columns]) {
  if (token === CLASS) return "class token";
  return `row ${Math.floor((token - 1) / columns) + 1}, column ${((token - 1) % columns) + 1}`;
}

function line(name, values) {
  return element("tr", {}, element("th", { scope: "row" }, name), ...values.map((value) => element("td", {}, value)));
}

function table(caption, names, body) {
  const head = element("tr", {}, ...names.map((name) => element("th", { scope: "col" }, name)));
  return element("table", { class: "try-table" }, element("caption", {}, caption), element("thead", {}, head), body);
}
