// The Chat page: turns over /v1/chat/completions, streamed; the conversation lives in this module and nowhere else.
import { events } from "./api.js";
import { $, button, copy, make, option, showError, stopped } from "./dom.js";
import { models } from "./site.js";

let turns = []; // {role, content, element, words}: what has been said, answers that were stopped among them
let running = null; // AbortController

const NUMBERS = ["temperature", "top_p", "seed", "max_tokens"];

// The settings that were given; a field that is empty or out of range says so and stops the request.
function settings() {
  const given = {};
  for (const name of NUMBERS) {
    const field = $(name);
    if (!field.checkValidity()) {
      $("settings").open = true;
      field.focus();
      throw new Error(`${field.labels[0].textContent.trim()}: ${field.validationMessage}`);
    }
    if (field.value !== "") given[name === "max_tokens" ? "max_completion_tokens" : name] = Number(field.value);
  }
  return given;
}

function requestBody() {
  const system = $("system").value.trim();
  const messages = turns.filter((turn) => turn.content !== "").map(({ role, content }) => ({ role, content }));
  if (system !== "") messages.unshift({ role: "system", content: system });
  return { model: $("model").value, messages, stream: true, stream_options: { include_usage: true }, ...settings() };
}

function setRunning(controller) {
  running = controller;
  const busy = controller !== null;
  $("send").disabled = $("clear").disabled = busy;
  $("stop").disabled = !busy;
  $("talk").setAttribute("aria-busy", String(busy)); // a reader hears the whole answer, not every piece
  drawControls();
}

function drawControls() {
  const busy = running !== null;
  $("clear").disabled = busy || turns.length === 0;
  $("copy-all").disabled = turns.length === 0;
  $("again").disabled = busy || !turns.some((turn) => turn.role === "user");
}

function addTurn(role, content) {
  const turn = { role, content };
  turn.element = make("article", null, { class: `turn ${role}` });
  turn.words = make("div", content, { class: "text" });
  turn.element.append(make("h2", role === "user" ? "You" : $("model").value), turn.words);
  if (turns.length === 0) $("talk").replaceChildren();
  $("talk").append(turn.element);
  turns.push(turn);
  scrollDown(true);
  return turn;
}

// Follows the answer, unless the reader has gone back to read.
function scrollDown(always) {
  const box = $("talk");
  if (always || box.scrollHeight - box.scrollTop - box.clientHeight < 80) box.scrollTop = box.scrollHeight;
}

function finishTurn(turn, note) {
  const control = button("Copy", () => copy(turn.content, control), { class: "small", "aria-label": "Copy this answer" });
  const foot = make("p", null, { class: "quiet row" });
  foot.append(control, make("span", note));
  turn.element.append(foot);
}

async function send() {
  const text = $("prompt").value;
  if (running !== null || text.trim() === "") return $("prompt").focus();
  try {
    settings();
  } catch (error) {
    return showError($("error"), error);
  }
  addTurn("user", text);
  $("prompt").value = "";
  await answer();
}

async function answer() {
  showError($("error"), null);
  let body;
  try {
    body = requestBody();
  } catch (error) {
    return showError($("error"), error);
  }
  const turn = addTurn("assistant", "");
  setRunning(new AbortController());
  const started = performance.now();
  let first = 0, usage = null, timings = null, reason = null;
  $("status").textContent = "Waiting for the model…";
  try {
    for await (const { data } of events("/v1/chat/completions", { body, signal: running.signal })) {
      usage = data.usage ?? usage;
      timings = data.timings ?? timings;
      const choice = data.choices?.[0];
      reason = choice?.finish_reason ?? reason;
      const piece = choice?.delta?.content;
      if (!piece) continue;
      first ||= performance.now();
      turn.content += piece;
      turn.words.textContent = turn.content;
      $("status").textContent = "Writing…";
      scrollDown(false);
    }
    $("status").textContent = "Done.";
    finishTurn(turn, told(usage, timings, reason, first - started, performance.now() - first));
  } catch (error) {
    if (stopped(error)) {
      $("status").textContent = "Stopped.";
      finishTurn(turn, "stopped");
    } else {
      $("status").textContent = "";
      showError($("error"), error);
      if (turn.content === "") dropLast();
      else finishTurn(turn, "broken off");
    }
  } finally {
    setRunning(null);
  }
}

// What the answer took, by the server's account where it gives one.
function told(usage, timings, reason, wait, writing) {
  const parts = [];
  const tokens = usage?.completion_tokens;
  if (tokens !== undefined) parts.push(`${tokens} tokens`);
  const speed = timings?.decode_tokens_per_second ?? timings?.tokens_per_second ?? (tokens > 1 && writing > 0 ? (1000 * (tokens - 1)) / writing : null);
  if (speed) parts.push(`${speed.toFixed(1)} tokens/s`);
  if (wait > 0) parts.push(`first after ${Math.round(wait)} ms`);
  if (reason === "length") parts.push("cut off at the longest answer");
  return parts.join(" · ");
}

function dropLast() {
  turns.pop().element.remove();
}

// The last message once more: what was answered to it goes.
function again() {
  while (turns.length > 0 && turns[turns.length - 1].role === "assistant") dropLast();
  answer();
}

function clear() {
  turns = [];
  $("talk").replaceChildren(make("p", "Nothing yet. Ask something.", { class: "empty" }));
  $("status").textContent = "Cleared.";
  showError($("error"), null);
  drawControls();
  $("prompt").focus();
}

function transcript() {
  return turns.map((turn) => `${turn.role === "user" ? "You" : "Model"}: ${turn.content}`).join("\n\n");
}

$("send").addEventListener("click", send);
$("stop").addEventListener("click", () => running?.abort());
$("again").addEventListener("click", again);
$("clear").addEventListener("click", clear);
$("copy-all").addEventListener("click", () => copy(transcript(), $("copy-all")));
$("prompt").addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  send();
});
document.addEventListener("keydown", (event) => event.key === "Escape" && running?.abort());
try {
  $("model").append(...(await models()).map((id) => option(id)));
} catch (error) {
  showError($("error"), error);
}
