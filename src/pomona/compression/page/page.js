// The state of the page, and what follows from it. Names and numbers of the report are data: they reach the
// document as text, never as markup.
const DATA = JSON.parse(document.getElementById("data").textContent);
const MODULES = DATA.modules;
const BY_NAME = new Map(MODULES.map((module, place) => [module.name, place]));
const HAS_KL = DATA.loss === "kl";
const LOSS_NAME = HAS_KL ? "KL" : "squared relative error";
const WEIGHTS = MODULES.map((module) => module.shape[0] * module.shape[1]);
const CHOOSABLE = sumOf((module, place) => (module.fixed ? 0 : WEIGHTS[place])); // weights that a budget is about
const FIXED_BYTES = sumOf((module) => (module.fixed ? module.bytes : 0));
const budgetBits = (bytes) => (CHOOSABLE > 0 ? (8 * (bytes - FIXED_BYTES)) / CHOOSABLE : 0);
const RANGE = byteRange(MODULES, new Map());
const AS_IS = MODULES.map((module) => module.choices.findIndex((choice) => choice.bits === module.bits));
const STEPS = 1000;

function sumOf(value) {
  return MODULES.reduce((sum, module, place) => sum + value(module, place), 0);
}

const state = {
  pins: new Map(MODULES.filter((module) => module.pinned).map((module) => [module.name, module.bits])),
  budget: 0, // bytes of all modules
  picks: AS_IS,
  asIs: true,
  exact: true,
  selected: null,
  colour: "bits",
};

const $ = (id) => document.getElementById(id);
function make(tag, text, attributes = {}) {
  const element = document.createElement(tag);
  if (text !== undefined && text !== null) element.textContent = text;
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  return element;
}

function formatBytes(count) {
  const units = ["B", "kB", "MB", "GB"];
  let size = count, unit = 0;
  while (size >= 999.5 && unit < units.length - 1) size /= 1000, ++unit;
  return unit === 0 ? `${size} B` : `${size.toPrecision(3)} ${units[unit]}`;
}
const formatLoss = (value) => (value === 0 ? "0" : value >= 0.001 ? value.toPrecision(3) : value.toExponential(1));
const lossText = (choice) => (HAS_KL && choice.kl === null ? "–" : formatLoss(choice.loss));
const formatTime = (ns) => (ns >= 1e6 ? `${(ns / 1e6).toPrecision(3)} ms` : `${(ns / 1e3).toPrecision(3)} µs`);
const formatError = (value) => `${(100 * value).toPrecision(3)}%`;
const chosen = (place) => MODULES[place].choices[state.picks[place]];

// Totals of an allocation: bytes of modules and file, loss, nanoseconds, bits per weight.
function totals(picks) {
  let bytes = 0, loss = 0, ns = DATA.time.fixed_ns, projectionBytes = 0, projectionWeights = 0, weights = 0;
  picks.forEach((pick, place) => {
    const choice = MODULES[place].choices[pick];
    bytes += choice.bytes;
    loss += choice.loss;
    ns += choice.ns;
    weights += WEIGHTS[place];
    if (MODULES[place].layer === null) return;
    projectionBytes += choice.bytes;
    projectionWeights += WEIGHTS[place];
  });
  return {
    bytes, loss, ns,
    fileBytes: bytes + DATA.other_bytes,
    bits: (8 * bytes) / weights,
    projectionBits: projectionWeights > 0 ? (8 * projectionBytes) / projectionWeights : 0,
    speed: ns > 0 ? 1e9 / ns : 0,
  };
}

function setBudget(bytes) {
  state.budget = Math.min(Math.max(bytes, RANGE.least), RANGE.most);
  state.asIs = false;
  resolve();
}

function resolve() {
  const least = byteRange(MODULES, state.pins).least;
  const feasible = least <= state.budget;
  const found = solve(MODULES, Math.max(state.budget, least), state.pins);
  state.picks = found.picks;
  state.exact = found.exact;
  const notice = $("infeasible");
  notice.hidden = feasible;
  notice.textContent = feasible ? "" :
    `The pins alone need ${formatBytes(least + DATA.other_bytes)}, more than this budget; shown is the smallest model that they allow.`;
  draw();
}

function pin(place, bits) {
  const module = MODULES[place];
  if (module.fixed) return say(`${module.name} has one form; no budget and no pin changes it.`);
  if (bits === null) state.pins.delete(module.name);
  else if (module.choices.some((choice) => choice.bits === bits)) state.pins.set(module.name, bits);
  else return say(`${module.name} has no choice of ${bits} bits.`);
  state.asIs = false;
  curvePins = null;
  say(bits === null ? `${module.name} is free.` : `${module.name} is pinned to ${bits} bits.`);
  resolve();
}

function backToModel() {
  state.pins = new Map(MODULES.filter((module) => module.pinned).map((module) => [module.name, module.bits]));
  state.picks = AS_IS;
  state.asIs = true;
  state.exact = true;
  state.budget = totals(AS_IS).bytes;
  curvePins = null;
  $("infeasible").hidden = true;
  draw();
}

let message = "";
function say(text) {
  message = text;
  drawPins();
}
function drawPins() {
  const count = state.pins.size;
  $("pins").textContent = `${count} pinned. ${message}`;
  $("unpin").disabled = count === 0;
}

function figure(id, value, shown, asIs) {
  const place = $(id);
  place.textContent = shown;
  place.dataset.value = String(value);
  $(`${id}-now`).textContent = asIs;
}

function drawFigures() {
  const here = totals(state.picks), model = totals(AS_IS);
  const now = (text) => (state.asIs ? "the model as it is" : `as it is: ${text}`);
  figure("size", here.fileBytes, formatBytes(here.fileBytes), now(formatBytes(model.fileBytes)));
  figure("speed", here.speed, `${here.speed.toPrecision(3)} tokens/s`, state.asIs ? `measured${DATA.time.disturbed ? " on a busy machine" : ""}` : now(model.speed.toPrecision(3)));
  const measured = DATA.measured_kl === null ? "" : `; measured on held-out text: ${formatLoss(DATA.measured_kl)}`;
  figure("loss", here.loss, formatLoss(here.loss), now(formatLoss(model.loss)) + measured);
  figure("bits", here.projectionBits, here.projectionBits.toFixed(2), now(model.projectionBits.toFixed(2)));
  const slider = $("budget"), span = RANGE.most - RANGE.least;
  slider.value = span > 0 ? Math.round((STEPS * (state.budget - RANGE.least)) / span) : 0;
  const bits = budgetBits(state.budget);
  $("budget-value").textContent = bits.toFixed(2);
  slider.setAttribute("aria-valuetext", `${bits.toFixed(2)} bits per weight, ${formatBytes(here.fileBytes)}, ` +
    `${here.speed.toPrecision(3)} tokens per second, ${LOSS_NAME} ${formatLoss(here.loss)}`);
  $("summary").textContent = `${formatBytes(here.fileBytes)} · ${here.speed.toPrecision(3)} tokens/s · ${HAS_KL ? "KL" : "loss"} ${formatLoss(here.loss)}`;
  drawPins();
}

function constraints(kind) {
  const pins = kind === "all"
    ? MODULES.flatMap((module, place) => (module.fixed ? [] : [[module.name, chosen(place).bits]]))
    : MODULES.filter((module) => state.pins.has(module.name)).map((module) => [module.name, state.pins.get(module.name)]);
  return `${JSON.stringify({ version: 1, pins: Object.fromEntries(pins) }, null, 2)}\n`;
}
const exportKind = () => document.querySelector('input[name="export"]:checked').value;

function download() {
  const url = URL.createObjectURL(new Blob([constraints(exportKind())], { type: "application/json" }));
  const link = make("a", null, { href: url, download: "constraints.json" });
  document.body.append(link);
  link.click();
  link.remove();
  setTimeout(() => URL.revokeObjectURL(url), 1000);
}

function drawCommand() {
  // With every module pinned no budget is left to give, and none is measured; a size would have to leave room
  // for the header that `compress` reckons with.
  const size = Math.max(state.budget, byteRange(MODULES, state.pins).least) + DATA.other_bytes;
  const budget = exportKind() === "all" ? "" : ` --size ${Math.ceil(size)}`;
  const pins = exportKind() === "all" || state.pins.size > 0 ? " --constraints constraints.json" : "";
  $("command").textContent = `pomona compress SOURCE${budget}${pins}`;
}

function draw() {
  drawFigures();
  drawCurve();
  drawMap();
  drawDetail();
  drawKinds();
  drawTensors();
  drawCommand();
}

function explain() {
  const time = DATA.time, fit = DATA.fit, lines = [];
  lines.push(`Time is measured: medians over ${time.tokens < time.decoded ? `the fastest ${time.tokens} of ${time.decoded.toLocaleString("en")}` : time.tokens} decoded tokens with ${time.threads} threads (${time.isa}); of a module, the mean over the threads. A token took ${formatTime(time.token_ns)}: ${formatTime(time.modules_ns)} in the modules, ${formatTime(time.attention_ns)} in attention, and ${formatTime(time.remainder_ns)} for the rest (norms, rounding of activations, waiting for other threads, sampling, the call from Python).`);
  if (time.disturbed) lines.push(`The fastest token took ${formatTime(time.fastest_ns)}: other programs used the cores while this was measured. Measure again on a quiet machine before trusting the speed.`);
  lines.push(`Speed at other bits is predicted: the measured time of each module is scaled by a fit through all measured modules, ${formatTime(fit.fixed_ns)} + ${(1e3 * fit.ns_per_byte).toPrecision(3)} ns per kB + ${(1e3 * fit.ns_per_weight).toPrecision(3)} ns per thousand weights (median deviation ${formatError(fit.median_deviation)}). It rests on the widths that this model has: ${fit.widths.join(", ")} bits. Attention and the rest stay as they are.`);
  lines.push(HAS_KL
    ? "Loss is the mean KL divergence to the 16-bit model in nats per token, measured for each module alone and added up; modules together may lose more or less than the sum."
    : "No sensitivity was measured for this model: the loss shown is the sum of squared relative errors, which treats all modules alike. Compress with --allocation kl for KL.");
  if (DATA.predicted_kl !== null) lines.push(`The compression predicted ${formatLoss(DATA.predicted_kl)}` + (DATA.measured_kl === null ? "." : ` and measured ${formatLoss(DATA.measured_kl)} for the finished model.`));
  if (RANGE.most <= RANGE.least) lines.push("The report has one choice for each module, so that there is nothing to allocate: compress with a fraction such as --bits 3.5, or with --size, to have others measured.");
  lines.push("Bits of the budget count tables and scales. It covers every module that can have other bits; everything else in the file comes on top and is counted in the size. The allocation is solved on this page, exactly unless it says otherwise. No figure leaves it.");
  $("how").replaceChildren(...lines.map((line) => make("li", line)));
}

function begin() {
  document.title = `${DATA.model}: where the bits go`;
  $("model").textContent = DATA.model;
  const { source, tokens } = DATA.calibration;
  const calibration = [source, typeof tokens === "number" ? `${tokens.toLocaleString("en")} tokens` : null]
    .filter((part) => part !== undefined && part !== null);
  $("facts").textContent = [`fingerprint ${DATA.fingerprint}`, `${MODULES.length} modules`, formatBytes(DATA.file_bytes),
    `before compression ${formatBytes(DATA.source_bytes)}`, ...(calibration.length ? [`calibration: ${calibration.join(", ")}`] : [])].join(" · ");
  $("loss-name").textContent = HAS_KL ? "Loss (KL, nats per token)" : "Loss (squared relative errors)";
  $("colour-loss").textContent = LOSS_NAME;
  $("budget-least").textContent = `${budgetBits(RANGE.least).toFixed(2)} bits, ${formatBytes(RANGE.least + DATA.other_bytes)}`;
  $("budget-most").textContent = `${budgetBits(RANGE.most).toFixed(2)} bits, ${formatBytes(RANGE.most + DATA.other_bytes)}`;
  $("budget").disabled = RANGE.most <= RANGE.least;
  $("budget").addEventListener("input", (event) =>
    setBudget(RANGE.least + Math.round(((RANGE.most - RANGE.least) * Number(event.target.value)) / STEPS)));
  $("as-is").addEventListener("click", () => { message = ""; backToModel(); });
  $("unpin").addEventListener("click", () => { state.pins.clear(); state.asIs = false; curvePins = null; message = ""; resolve(); });
  $("export").addEventListener("click", download);
  for (const radio of document.querySelectorAll('input[name="export"]')) radio.addEventListener("change", drawCommand);
  beginMap();
  beginTensors();
  explain();
  backToModel();
}
