// The tables below the map, and the curve of loss against size.
const COLUMNS = [
  { title: "tensor", value: (place) => MODULES[place].name, text: (value) => value },
  { title: "kind", value: (place) => MODULES[place].kind, text: (value) => value },
  { title: "bits", value: (place) => chosen(place).bits, text: String },
  { title: "bits as it is", value: (place) => MODULES[place].bits, text: String },
  { title: "pinned", value: (place) => state.pins.get(MODULES[place].name) ?? 0, text: (value) => (value ? `${value} bits` : "") },
  { title: "bytes", value: (place) => chosen(place).bytes, text: (value) => value.toLocaleString("en") },
  { title: "relative error", value: (place) => chosen(place).relative_error, text: formatError },
  { title: LOSS_NAME, value: (place) => chosen(place).loss, text: (_, place) => lossText(chosen(place)) },
  { title: "time", value: (place) => chosen(place).ns, text: formatTime },
];
const sorting = { column: COLUMNS.length - 1, down: true };
const rowOf = new Map(); // place -> tr

function beginTensors() {
  const table = $("tensors"), head = make("tr");
  COLUMNS.forEach((column, index) => {
    const cell = make("th", null, { scope: "col" });
    const button = make("button", column.title, { type: "button" });
    button.addEventListener("click", () => {
      sorting.down = sorting.column === index ? !sorting.down : index > 1;
      sorting.column = index;
      drawTensors();
    });
    cell.append(button);
    head.append(cell);
  });
  const header = make("thead"), body = make("tbody");
  header.append(head);
  MODULES.forEach((module, place) => {
    const row = make("tr");
    COLUMNS.forEach((_, index) => row.append(index === 0 ? make("td") : make("td", "")));
    const name = make("button", module.name, { type: "button" });
    name.addEventListener("click", () => select(place, false));
    row.firstChild.append(name);
    rowOf.set(place, row);
    body.append(row);
  });
  table.replaceChildren(header, body);
  $("filter").addEventListener("input", drawTensors);
}

function drawTensors() {
  const wanted = $("filter").value.trim().toLowerCase();
  const { value } = COLUMNS[sorting.column], sign = sorting.down ? -1 : 1;
  const order = MODULES.map((_, place) => place).sort((a, b) => {
    const x = value(a), y = value(b);
    return x === y ? a - b : sign * (x < y ? -1 : 1);
  });
  let count = 0;
  for (const place of order) {
    const row = rowOf.get(place);
    row.hidden = !MODULES[place].name.toLowerCase().includes(wanted);
    if (!row.hidden) ++count;
    COLUMNS.forEach((column, index) => index > 0 && (row.children[index].textContent = column.text(column.value(place), place)));
    if (chosen(place).bits !== MODULES[place].bits) row.lastChild.prepend("≈ ");
  }
  const focused = document.activeElement;
  $("tensors").tBodies[0].append(...order.map((place) => rowOf.get(place)));
  if (focused !== document.activeElement) focused.focus();
  [...$("tensors").tHead.rows[0].children].forEach((cell, index) =>
    index === sorting.column ? cell.setAttribute("aria-sort", sorting.down ? "descending" : "ascending") : cell.removeAttribute("aria-sort"));
  $("shown").textContent = `${count} of ${MODULES.length}`;
  markTensor();
}

function markTensor() {
  for (const [place, row] of rowOf) row.setAttribute("aria-selected", String(place === state.selected));
}

function drawKinds() {
  const kinds = new Map();
  MODULES.forEach((module, place) => {
    const sum = kinds.get(module.kind) ?? { modules: 0, weights: 0, bytes: 0, loss: 0, ns: 0 };
    const choice = chosen(place);
    kinds.set(module.kind, {
      modules: sum.modules + 1, weights: sum.weights + WEIGHTS[place], bytes: sum.bytes + choice.bytes,
      loss: sum.loss + choice.loss, ns: sum.ns + choice.ns, text: lossText(choice),
    });
  });
  const all = totals(state.picks), share = (ns) => (all.ns > 0 ? formatError(ns / all.ns) : "");
  const line = (texts, tag = "td") => {
    const row = make("tr");
    texts.forEach((text) => row.append(make(tag, text, tag === "th" ? { scope: "col" } : {})));
    return row;
  };
  const head = make("thead"), body = make("tbody"), foot = make("tfoot");
  head.append(line(["kind", "modules", "bits per weight", "bytes", LOSS_NAME, "time per token", "of the token"], "th"));
  for (const [kind, sum] of [...kinds].sort((a, b) => b[1].ns - a[1].ns))
    body.append(line([kind, String(sum.modules), ((8 * sum.bytes) / sum.weights).toFixed(2), sum.bytes.toLocaleString("en"),
      sum.modules === 1 ? sum.text : formatLoss(sum.loss), formatTime(sum.ns), share(sum.ns)]));
  const rest = DATA.time.fixed_ns - DATA.time.attention_ns;
  body.append(line(["attention", "", "", "", "", formatTime(DATA.time.attention_ns), share(DATA.time.attention_ns)]));
  body.append(line(["the rest: norms, rounding, waiting, sampling", "", "", DATA.other_bytes.toLocaleString("en"), "", formatTime(rest), share(rest)]));
  foot.append(line(["all", String(MODULES.length), all.bits.toFixed(2), all.fileBytes.toLocaleString("en"), formatLoss(all.loss),
    formatTime(all.ns), "100%"]));
  $("kinds").replaceChildren(head, body, foot);
}

const CURVE_POINTS = 48;
let curvePins = null; // the points, until the pins change

function drawCurve() {
  if (curvePins === null) {
    const { least, most } = byteRange(MODULES, state.pins);
    curvePins = [];
    for (let i = 0; i <= CURVE_POINTS; ++i) {
      const budget = least + Math.floor(((most - least) * i) / CURVE_POINTS);
      const found = solve(MODULES, budget, state.pins);
      curvePins.push({ ...totals(found.picks), budget });
      if (most === least) break;
    }
  }
  const here = totals(state.picks), model = totals(AS_IS), all = [...curvePins, here, model];
  const x0 = 60, x1 = 1100, y0 = 190, y1 = 12;
  const sizes = all.map((point) => point.fileBytes), losses = all.map((point) => point.loss).filter((loss) => loss > 0);
  const minX = Math.min(...sizes), maxX = Math.max(...sizes, minX + 1);
  const minY = Math.min(...losses, 1e300), maxY = Math.max(...losses, minY * 1.01);
  const x = (bytes) => x0 + ((x1 - x0) * (bytes - minX)) / (maxX - minX);
  const y = (loss) => y0 + ((y1 - y0) * Math.log(Math.max(loss, minY) / minY)) / Math.log(maxY / minY);
  const svg = $("curve"), shape = (tag, attributes, text) => {
    const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
    for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
    if (text !== undefined) element.textContent = text;
    return element;
  };
  const parts = [shape("line", { class: "axis", x1: x0, x2: x1, y1: y0, y2: y0 }), shape("line", { class: "axis", x1: x0, x2: x0, y1: y0, y2: y1 })];
  for (let i = 0; i <= 4; ++i) {
    const bytes = minX + ((maxX - minX) * i) / 4, loss = minY * (maxY / minY) ** (i / 4);
    parts.push(shape("text", { x: x(bytes), y: y0 + 16, "text-anchor": i === 4 ? "end" : i === 0 ? "start" : "middle" }, formatBytes(bytes)));
    parts.push(shape("text", { x: x0 - 6, y: y(loss) + 4, "text-anchor": "end" }, formatLoss(loss)));
  }
  const points = curvePins.map((point) => `${x(point.fileBytes).toFixed(1)},${y(point.loss).toFixed(1)}`).join(" ");
  parts.push(shape("polyline", { class: "line", points }));
  parts.push(shape("circle", { class: "model", cx: x(model.fileBytes), cy: y(model.loss), r: 5 }));
  parts.push(shape("circle", { class: "here", cx: x(here.fileBytes), cy: y(here.loss), r: 6 }));
  svg.replaceChildren(...parts);
  $("curve-caption").textContent = `Least ${LOSS_NAME} for every size of the file, with the present pins (logarithmic). ` +
    "Filled: the allocation shown; hollow: the model as it is." + (state.exact ? "" : " The allocation shown is nearly, not provably, the best.");
}
