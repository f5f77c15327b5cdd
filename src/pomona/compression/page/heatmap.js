// Layers by kinds of projection: one cell a module, coloured by what it has, costs or loses.
const KIND_ORDER = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"];
const BIT_COLOURS = { 8: "#0b3c5d", 4: "#2a7f9e", 3: "#8cc5b8", 2: "#f2d16b" };
const SCALE = ["#e8f1f2", "#a9d0d6", "#4b96ab", "#1f5f87", "#132a4c"];
let cells = []; // [row][column]: place of a module or null
let cellOf = new Map(); // place -> td

const kindsOfLayers = () => {
  const kinds = [...new Set(MODULES.filter((module) => module.layer !== null).map((module) => module.kind))];
  const rank = (kind) => (KIND_ORDER.includes(kind) ? KIND_ORDER.indexOf(kind) : KIND_ORDER.length);
  return kinds.sort((a, b) => rank(a) - rank(b) || (a < b ? -1 : 1));
};

function beginMap() {
  const map = $("map"), kinds = kindsOfLayers();
  const head = make("tr", null, { role: "row" });
  head.append(make("th", "layer", { scope: "col", role: "columnheader" }));
  for (const kind of kinds) head.append(make("th", kind.replace(/_proj$/, ""), { scope: "col", role: "columnheader", title: kind }));
  const body = make("tbody", null, { role: "rowgroup" });
  const addRow = (label, places, span) => {
    const row = make("tr", null, { role: "row" });
    row.append(make("th", label, { scope: "row", role: "rowheader" }));
    for (const place of places) {
      const cell = make("td", null, { role: "gridcell", tabindex: "-1" });
      if (span) cell.setAttribute("colspan", Math.max(kinds.length, 1));
      if (place === null) cell.className = "none";
      else {
        cell.dataset.place = place;
        cellOf.set(place, cell);
      }
      row.append(cell);
    }
    cells.push(places);
    body.append(row);
  };
  MODULES.forEach((module, place) => module.layer === null && addRow(shortName(module), [place], true));
  const layers = new Map();
  MODULES.forEach((module, place) => {
    if (module.layer === null) return;
    if (!layers.has(module.layer)) layers.set(module.layer, kinds.map(() => null));
    layers.get(module.layer)[kinds.indexOf(module.kind)] = place;
  });
  for (const layer of [...layers.keys()].sort((a, b) => a - b)) addRow(String(layer), layers.get(layer), false);
  const header = make("thead", null, { role: "rowgroup" });
  header.append(head);
  map.replaceChildren(header, body);
  map.addEventListener("click", (event) => {
    const cell = event.target.closest("td[data-place]");
    if (cell) select(Number(cell.dataset.place), true);
  });
  map.addEventListener("keydown", mapKey);
  const first = cells.flat().find((place) => place !== null);
  if (first !== undefined) cellOf.get(first).tabIndex = 0;
  for (const radio of document.querySelectorAll('input[name="colour"]'))
    radio.addEventListener("change", () => { state.colour = radio.value; drawMap(); });
}

const shortName = (module) => module.name.split(".").pop().replace("embed_tokens", "embed").replace("lm_head", "head");

function mapKey(event) {
  const cell = event.target.closest("td[data-place]");
  if (!cell || event.ctrlKey || event.metaKey || event.altKey) return;
  const place = Number(cell.dataset.place);
  const row = cells.findIndex((line) => line.includes(place)), column = cells[row].indexOf(place);
  const move = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[event.key];
  if (move) {
    for (let r = row + move[0], c = column + move[1]; cells[r] !== undefined; r += move[0], c += move[1]) {
      const line = cells[r], there = line.length === 1 && move[0] !== 0 ? line[0] : line[c];
      if (there === undefined) break;
      if (there !== null) { select(there, true); break; }
    }
  } else if (event.key === "Home" || event.key === "End") {
    const line = cells[row].filter((other) => other !== null);
    select(event.key === "Home" ? line[0] : line[line.length - 1], true);
  } else if (/^[1-9]$/.test(event.key)) pin(place, Number(event.key));
  else if (event.key === "0" || event.key === "Delete" || event.key === "Backspace") pin(place, null);
  else if (event.key === "Enter" || event.key === " ") select(place, true);
  else return;
  event.preventDefault();
}

function select(place, focus) {
  for (const cell of cellOf.values()) cell.tabIndex = -1;
  state.selected = place;
  const cell = cellOf.get(place);
  cell.tabIndex = 0;
  if (focus) cell.focus();
  drawMap();
  drawDetail();
  markTensor();
}

function mix(a, b, t) {
  const part = (colour, at) => parseInt(colour.slice(at, at + 2), 16);
  const hex = (at) => Math.round(part(a, at) + t * (part(b, at) - part(a, at))).toString(16).padStart(2, "0");
  return `#${hex(1)}${hex(3)}${hex(5)}`;
}
function scaleColour(t) {
  const at = Math.min(Math.max(t, 0), 1) * (SCALE.length - 1), i = Math.min(Math.floor(at), SCALE.length - 2);
  return mix(SCALE[i], SCALE[i + 1], at - i);
}
const bitsColour = (bits) => BIT_COLOURS[bits] ?? scaleColour(Math.log2(bits) / 4);
function inkOn(colour) {
  const [r, g, b] = [1, 3, 5].map((at) => parseInt(colour.slice(at, at + 2), 16) / 255)
    .map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4));
  return 0.2126 * r + 0.7152 * g + 0.0722 * b > 0.22 ? "#101418" : "#ffffff";
}

// What a cell shows in the present colouring: a short text, and the unit that the legend names.
const SHORT = {
  loss: { text: (value) => short(1e3 * value), unit: () => `${LOSS_NAME}, thousandths` },
  ns: { text: (value) => short(value / 1e3), unit: () => "µs per token" },
  relative_error: { text: (value) => short(100 * value), unit: () => "relative error, %" },
};
function short(value) {
  if (value === 0) return "0";
  return value >= 99.5 ? value.toFixed(0) : value >= 0.995 ? value.toPrecision(2) : value >= 0.005 ? value.toFixed(2) : "<.01";
}

const lossCell = (choice) => (HAS_KL && choice.kl === null ? "–" : SHORT.loss.text(choice.loss));

function drawMap() {
  const kind = state.colour;
  const values = MODULES.map((_, place) => (kind === "bits" ? chosen(place).bits : chosen(place)[kind]));
  const positive = values.filter((value) => value > 0).sort((a, b) => a - b);
  const low = positive.length ? positive[0] : 1, high = positive.length ? positive[positive.length - 1] : 1;
  const at = (value) => (value <= 0 ? 0 : high > low ? Math.log(value / low) / Math.log(high / low) : 0.5);
  for (const [place, cell] of cellOf) {
    const module = MODULES[place], choice = chosen(place), value = values[place];
    const colour = kind === "bits" ? bitsColour(value) : scaleColour(at(value));
    cell.style.background = colour;
    cell.style.color = inkOn(colour);
    cell.textContent = kind === "bits" ? String(value) : kind === "loss" ? lossCell(choice) : SHORT[kind].text(value);
    cell.classList.toggle("pinned", state.pins.has(module.name));
    cell.classList.toggle("changed", choice.bits !== module.bits);
    cell.setAttribute("aria-selected", String(state.selected === place));
    cell.setAttribute("aria-label", `${module.name}: ${choice.bits} bits, ${formatBytes(choice.bytes)}, ${LOSS_NAME} ` +
      `${lossText(choice)}, ${formatTime(choice.ns)}` + (state.pins.has(module.name) ? ", pinned" : "") +
      (choice.bits !== module.bits ? `, in the model ${module.bits} bits` : ""));
    cell.title = cell.getAttribute("aria-label");
  }
  drawLegend(kind, low, high);
}

function drawLegend(kind, low, high) {
  const item = (colour, text) => {
    const span = make("span"), patch = make("i");
    patch.style.background = colour;
    span.append(patch, text);
    return span;
  };
  const legend = $("legend");
  if (kind === "bits") {
    const widths = [...new Set(MODULES.flatMap((module) => module.choices.map((choice) => choice.bits)))].sort((a, b) => b - a);
    legend.replaceChildren(...widths.map((bits) => item(bitsColour(bits), `${bits} bits`)));
    return;
  }
  const marks = [0, 0.25, 0.5, 0.75, 1].map((t) => item(scaleColour(t), SHORT[kind].text(low * (high / low) ** t)));
  legend.replaceChildren(make("span", SHORT[kind].unit()), ...marks);
}

function drawDetail() {
  const place = state.selected, box = $("detail");
  if (place === null) {
    $("detail-name").textContent = "No module chosen";
    return box.replaceChildren(make("p", "Choose a cell of the map, or a name in the table below.", { class: "quiet" }));
  }
  const module = MODULES[place], focused = document.activeElement?.dataset?.bits;
  $("detail-name").textContent = module.name;
  const table = make("table"), head = make("tr");
  for (const name of ["bits", "bytes", "error", HAS_KL ? "KL" : "sq. error", "time"]) head.append(make("th", name, { scope: "col" }));
  table.append(head);
  for (const choice of module.choices) {
    const row = make("tr");
    const mark = choice === chosen(place) ? " ◂" : "";
    for (const text of [`${choice.bits}${mark}`, formatBytes(choice.bytes), formatError(choice.relative_error), lossText(choice),
      `${choice.bits === module.bits ? "" : "≈ "}${formatTime(choice.ns)}`]) row.append(make("td", text));
    table.append(row);
  }
  const row = make("div", null, { class: "pinrow", role: "group", "aria-label": "Pin this module" });
  const pinned = state.pins.get(module.name);
  const add = (label, bits) => {
    const button = make("button", label, { type: "button", "aria-pressed": String(pinned === bits), "data-bits": String(bits ?? 0) });
    button.addEventListener("click", () => pin(place, bits ?? null));
    row.append(button);
  };
  if (!module.fixed) {
    add("free", undefined);
    for (const choice of module.choices) add(`${choice.bits} bits`, choice.bits);
  }
  const note = `${module.shape.join(" × ")}, in the model ${module.bits} bits` + (module.fixed ? "; nothing to choose" : "");
  box.replaceChildren(make("p", note, { class: "quiet" }), row, table);
  if (focused !== undefined) [...row.children].find((button) => button.dataset.bits === focused)?.focus();
}
