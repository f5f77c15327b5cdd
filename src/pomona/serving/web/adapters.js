// The Adapters page: what is known and in memory, and changes to it while requests run.
import { getJson } from "./api.js";
import { $, button, formatBytes, make, showError } from "./dom.js";
import "./site.js";

const EVERY = 2000; // milliseconds
let known = new Set();
let shown = ""; // what the list was drawn from

const address = (name, rest = "") => `/v1/adapters/${encodeURIComponent(name)}${rest}`;

async function refresh() {
  draw(await getJson("/v1/adapters"));
}

function draw(state) {
  const text = JSON.stringify(state);
  if (text === shown) return;
  shown = text;
  known = new Set(state.data.map((adapter) => adapter.id));
  const part = state.budget_bytes > 0 ? state.used_bytes / state.budget_bytes : 0;
  $("memory").value = Math.min(part, 1);
  $("memory-text").textContent =
    `${formatBytes(state.used_bytes)} of ${formatBytes(state.budget_bytes)} (${(100 * part).toFixed(0)}%)`;
  const focus = document.activeElement?.dataset?.action;
  const rows = state.data.map(row);
  if (rows.length === 0) {
    const empty = make("tr");
    empty.append(make("td", "The model has no adapters.", { colspan: "8", class: "empty" }));
    rows.push(empty);
  }
  $("list").replaceChildren(...rows);
  // Drawing again must not take the focus away from who works with the keyboard.
  if (focus !== undefined) [...$("list").querySelectorAll("button")].find((one) => one.dataset.action === focus)?.focus();
}

function row(adapter) {
  const name = adapter.id, line = make("tr");
  const state = [adapter.resident ? "in memory" : "on disk"];
  if (adapter.pinned) state.push("pinned");
  if (adapter.default) state.push("default");
  line.append(
    make("th", name, { scope: "row" }), make("td", adapter.task ?? "–"), make("td", String(adapter.version)),
    make("td", state.join(", ")), make("td", adapter.bytes > 0 ? formatBytes(adapter.bytes) : "–", { class: "number" }),
    make("td", String(adapter.hits), { class: "number" }), make("td", String(adapter.misses), { class: "number" }),
  );
  const act = (label, action, work) => {
    const control = button(label, () => change(work), { class: "small", "aria-label": `${label} ${name}` });
    control.dataset.action = `${action} ${name}`;
    return control;
  };
  const cell = make("td"), buttons = make("div", null, { class: "row" });
  buttons.append(
    act(adapter.pinned ? "Unpin" : "Pin", "pin", async () => {
      await getJson(address(name, "/pin"), { method: "POST", body: { pinned: !adapter.pinned } });
      return `${name} is ${adapter.pinned ? "free to give way" : "pinned"}.`;
    }),
    act("Read again", "replace", async () => {
      const { version } = await getJson(address(name), { method: "PUT", body: {} });
      return `${name} was read again: version ${version}.`;
    }),
    act("Unload", "unload", async () => {
      await getJson(address(name), { method: "DELETE" });
      return `${name} was unloaded.`;
    }),
    act("Forget", "forget", async () => {
      await getJson(address(name, "?forget=true"), { method: "DELETE" });
      return `${name} is forgotten: no request can name it.`;
    }),
  );
  cell.append(buttons);
  line.append(cell);
  return line;
}

// Does it, says what it did or why it did not, and shows the new state.
async function change(work) {
  showError($("error"), null);
  $("status").textContent = "";
  try {
    const told = await work();
    await refresh();
    $("status").textContent = told;
  } catch (error) {
    showError($("error"), error);
  }
}

function load() {
  const name = $("name").value.trim(), path = $("path").value.trim();
  if (name === "") {
    showError($("error"), "Give a name.");
    return $("name").focus();
  }
  return change(async () => {
    const from = path === "" ? {} : { path };
    if (known.has(name)) await getJson(address(name), { method: "PUT", body: from });
    else await getJson("/v1/adapters", { method: "POST", body: { name, ...from } });
    return `${name} is there.`;
  });
}

$("refresh").addEventListener("click", () => change(async () => { shown = ""; await refresh(); return "Up to date."; }));
$("load").addEventListener("click", load);
for (const field of [$("name"), $("path")]) field.addEventListener("keydown", (event) => event.key === "Enter" && load());

// Looks again while the page is looked at; after a failure it waits to be asked.
async function follow() {
  if ($("live").checked && !document.hidden) {
    try {
      await refresh();
    } catch (error) {
      $("live").checked = false;
      showError($("error"), error);
    }
  }
  setTimeout(follow, EVERY);
}
follow();
