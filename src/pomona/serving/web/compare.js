// The Compare page. The server shuffles the sides and keeps the names until the vote: here nothing is to be peeked at.
import { events, getJson, request } from "./api.js";
import { ConfigurationForm, described } from "./configuration.js";
import { $, download, option, showError, stopped } from "./dom.js";
import { drawShares } from "./shares.js";
import { adapterNames } from "./site.js";

let forms = null; // {a, b}
let session = null;
let pair = null; // the one that waits for a vote, or was voted on last
let queue = []; // prompts that come after it
let running = null;
let voting = false;

const counted = (votes) => (votes === 1 ? "1 vote" : `${votes} votes`);
const told = (seconds, tokens) => `${tokens} tokens in ${seconds.toFixed(1)} s`;

async function listSessions(chosen) {
  const { data } = await getJson("/v1/compare/sessions");
  const items = data.map((one) => option(one.id, `${one.name || new Date(1000 * one.created).toLocaleString()} (${counted(one.votes)})`));
  $("sessions").replaceChildren(option("", data.length === 0 ? "none yet" : "choose one"), ...items);
  $("sessions").value = chosen ?? "";
  $("new").open = data.length === 0;
  $("delete").disabled = $("sessions").value === "";
}

async function openSession(id) {
  running?.abort();
  queue = [];
  pair = null;
  $("pair").hidden = true;
  $("session").hidden = id === "";
  $("delete").disabled = id === "";
  session = null;
  if (id === "") return;
  await readSession(id);
  const [waiting] = session.waiting; // one that was made and never voted on
  if (waiting !== undefined) showPair(waiting);
}

async function readSession(id) {
  session = await getJson(`/v1/compare/sessions/${id}`);
  $("configurations").textContent = `${session.model}. A: ${described(session.a)}. B: ${described(session.b)}.`;
  drawShares($("results"), session.results);
  const open = session.results.open;
  $("results-note").textContent = `${counted(session.results.votes)}${open > 0 ? `, ${open} pairs without one` : ""}. Intervals: Wilson's, of 95%.`;
}

async function begin() {
  const made = await getJson("/v1/compare/sessions", {
    method: "POST", body: { name: $("name").value, a: forms.a.value, b: forms.b.value },
  });
  await listSessions(made.id);
  $("new").open = false;
  await openSession(made.id);
  $("prompts").focus();
}

function takePrompts() {
  const text = $("prompts").value;
  const prompts = $("lines").checked ? text.split("\n").map((line) => line.trim()).filter((line) => line !== "") : [text];
  if (prompts.every((prompt) => prompt.trim() === "")) {
    $("prompts").focus();
    throw new Error("Write a prompt first.");
  }
  return prompts;
}

async function ask() {
  if (running !== null) return;
  queue = takePrompts();
  await nextPair();
}

async function nextPair() {
  const prompt = queue.shift();
  if (prompt === undefined) return;
  running = new AbortController();
  $("pair").hidden = true;
  $("ask").disabled = true;
  $("stop").disabled = false;
  $("progress").hidden = false;
  $("progress").value = 0;
  $("status").textContent = "Both sides are answering…";
  try {
    for await (const { event, data } of events(`/v1/compare/sessions/${session.id}/pairs`, { body: { prompt }, signal: running.signal })) {
      if (event === "progress") $("progress").value = data.pieces / data.most;
      else if (event === "pair") showPair(data);
    }
    $("status").textContent = queue.length > 0 ? `${queue.length} more prompts wait.` : "";
  } catch (error) {
    if (!stopped(error)) throw error;
    queue = [];
    $("status").textContent = "Stopped.";
  } finally {
    running = null;
    $("ask").disabled = false;
    $("stop").disabled = true;
    $("progress").hidden = true;
  }
}

function showPair(found) {
  pair = found;
  $("pair").hidden = false;
  $("pair-prompt").textContent = found.prompt;
  $("pair-title").textContent = found.left.text === found.right.text ? "Which is better? (The answers are the same.)" : "Which is better?";
  for (const side of ["left", "right"]) {
    $(side).textContent = found[side].text;
    $(`${side}-name`).textContent = side === "left" ? "Left" : "Right";
    $(`${side}-facts`).textContent = "";
  }
  for (const control of voteButtons()) {
    control.disabled = false;
    control.setAttribute("aria-pressed", "false");
  }
  $("next").hidden = true;
  $("pair-title").focus();
}

const voteButtons = () => [...$("votes").querySelectorAll("button")];

async function vote(choice) {
  if (pair === null || pair.verdict !== undefined || voting) return;
  voting = true;
  try {
    pair = await getJson(`/v1/compare/pairs/${pair.id}/vote`, { method: "POST", body: { vote: choice } });
  } finally {
    voting = false;
  }
  for (const control of voteButtons()) {
    control.disabled = true;
    control.setAttribute("aria-pressed", String(control.dataset.vote === choice));
  }
  const winner = { a: "A wins.", b: "B wins.", tie: "A tie." }[pair.verdict];
  for (const side of ["left", "right"]) {
    const answer = pair[side], name = answer.side.toUpperCase();
    $(`${side}-name`).textContent = `${side === "left" ? "Left" : "Right"} was ${name}: ${described(session[answer.side])}`;
    $(`${side}-facts`).textContent = told(answer.seconds, answer.tokens) + (answer.finish_reason === "length" ? ", cut off" : "");
  }
  $("pair-title").textContent = winner;
  await readSession(session.id);
  await listSessions(session.id);
  $("next").hidden = queue.length === 0;
  (queue.length > 0 ? $("next") : $("prompts")).focus();
}

async function save(rows) {
  const response = await request(`/v1/compare/sessions/${session.id}/export?rows=${rows}`);
  download(`compare-${session.id}-${rows}.jsonl`, await response.text(), "application/jsonl");
}

async function forget() {
  const id = $("sessions").value;
  if (id === "" || !confirm("Delete this comparison with all its answers and votes?")) return;
  await getJson(`/v1/compare/sessions/${id}`, { method: "DELETE" });
  await listSessions();
  await openSession("");
}

// Runs a step and shows its error.
const guarded = (work) => async (...given) => {
  showError($("error"), null);
  try {
    await work(...given);
  } catch (error) {
    showError($("error"), error);
  }
};

$("begin").addEventListener("click", guarded(begin));
$("ask").addEventListener("click", guarded(ask));
$("next").addEventListener("click", guarded(nextPair));
$("stop").addEventListener("click", () => running?.abort());
$("delete").addEventListener("click", guarded(forget));
$("sessions").addEventListener("change", guarded(() => openSession($("sessions").value)));
$("export-preferences").addEventListener("click", guarded(() => save("preferences")));
$("export-votes").addEventListener("click", guarded(() => save("votes")));
for (const control of voteButtons()) control.addEventListener("click", guarded(() => vote(control.dataset.vote)));
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape") return running?.abort();
  if (event.ctrlKey || event.metaKey || event.altKey || /^(?:INPUT|TEXTAREA|SELECT)$/.test(event.target.tagName)) return;
  const choice = { 1: "left", 0: "tie", 2: "right" }[event.key];
  if (choice !== undefined && !$("pair").hidden) guarded(vote)(choice);
});
await guarded(async () => {
  const adapters = await adapterNames();
  forms = { a: new ConfigurationForm("a", adapters), b: new ConfigurationForm("b", adapters) };
  $("sides").append(forms.a.element, forms.b.element);
  await listSessions();
})();
