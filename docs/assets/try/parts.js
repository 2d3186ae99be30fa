// The few parts both figures are made of.

let count = 0;
export const unique = (name) => `try-${name}-${++count}`;

// element("p", { class: "note" }, "text", child)
export function element(tag, attributes = {}, ...children) {
  return fill(document.createElement(tag), attributes, children);
}

export function drawing(tag, attributes = {}, ...children) {
  return fill(document.createElementNS("http://www.w3.org/2000/svg", tag), attributes, children);
}

function fill(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children);
  return node;
}

// The inverse of `encoded` in docs/figures/interactive.py.
export function decode(text) {
  const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
  return new Float32Array(bytes.buffer);
}

export async function load(url) {
  const response = await fetch(url);
  if (!response.ok) throw new Error(`${url} answered ${response.status}`);
  return response.json();
}

// A slider with its value beside it.
export function slider(name, label, { min, max, value }, change) {
  const input = element("input", { type: "range", min, max, step: 0.01, value, id: unique(name), name });
  const output = element("output", { for: input.id });
  const show = () => (output.value = Number(input.value).toFixed(2));
  input.addEventListener("input", () => (show(), change(Number(input.value))));
  show();
  return element("div", { class: "try-slider" }, element("label", { for: input.id }, label), input, output);
}

// One of several, as native radio buttons.
export function choice(name, legend, labels, chosen, change) {
  const group = unique(name);
  const options = labels.map((label, k) => {
    const input = element("input", { type: "radio", name: group, value: k });
    input.checked = k === chosen;
    input.addEventListener("change", () => change(k));
    return element("label", {}, input, label);
  });
  return element("fieldset", { class: "try-choice" }, element("legend", {}, legend), ...options);
}

export function button(label, press) {
  const node = element("button", { type: "button", class: "try-button" }, label);
  node.addEventListener("click", press);
  return node;
}

// One of `nodes` takes part in the order of tabs; `step(key, index)` says which one an arrow key leads to.
export function rove(nodes, step, arrive = () => {}) {
  const enter = (index) => nodes.forEach((node, k) => node.setAttribute("tabindex", k === index ? 0 : -1));
  nodes.forEach((node, index) => {
    node.addEventListener("focus", () => enter(index));
    node.addEventListener("keydown", (event) => {
      const next = step(event.key, index);
      if (next === undefined) return;
      event.preventDefault();
      nodes[next].focus();
      arrive(next);
    });
  });
  enter(0);
  return enter;
}
