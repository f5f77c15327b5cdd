// The Write page: a text, a task, its answer as it comes; and for corrections every edit on its own.
import { events } from "./api.js";
import { $, button, copy, make, option, showError, stopped } from "./dom.js";
import { Edits } from "./edits.js";
import { partialTexts } from "./partial_json.js";
import { adapterNames } from "./site.js";

const AS_JSON = new Set(["key_points", "replies"]); // tasks whose answer comes as JSON
let running = null; // AbortController
let edits = null;
let result = ""; // what Copy and Use take

function showOptions() {
  for (const element of document.querySelectorAll("#options [data-task]")) element.hidden = element.dataset.task !== $("task").value;
}

function body() {
  const task = $("task").value, given = { text: $("text").value, stream: true };
  if ($("adapter").value !== "") given.adapter = $("adapter").value;
  if (task === "summarize") Object.assign(given, { style: $("style").value, kind: $("kind").value });
  if (task === "rewrite") given.tone = $("tone").value;
  return given;
}

function setResult(text) {
  result = text;
  $("copy").disabled = $("use").disabled = text === "";
}

function setRunning(controller) {
  running = controller;
  $("go").disabled = controller !== null;
  $("stop").disabled = controller === null;
  $("progress").hidden = controller === null;
  $("output").setAttribute("aria-busy", String(controller !== null));
}

function clear() {
  edits = null;
  showError($("error"), null);
  $("edits-part").hidden = true;
  $("output").replaceChildren();
  $("origin").textContent = "";
  $("status").textContent = "";
  setResult("");
}

// What has come so far of all requests of the present batch.
function showPieces(task, texts) {
  const whole = texts.filter((text) => text !== undefined);
  if (AS_JSON.has(task)) {
    const list = make("ul");
    for (const text of whole.flatMap(partialTexts)) list.append(make("li", text));
    $("output").replaceChildren(list);
  } else $("output").textContent = whole.join("\n\n");
}

async function go() {
  if (running !== null) return;
  clear();
  const given = body(), task = $("task").value;
  if (given.text.trim() === "") {
    showError($("error"), "Paste a text first.");
    $("text").focus();
    return;
  }
  setRunning(new AbortController());
  let texts = [], batch = 0;
  try {
    $("status").textContent = "Waiting for the model…";
    $("progress").removeAttribute("value");
    for await (const { event, data } of events(`/v1/write/${task}`, { body: given, signal: running.signal })) {
      if (event === "progress") {
        if (data.batch !== undefined) texts = [], batch = data.batch;
        if (data.requests > 1) $("progress").value = data.done / data.requests;
        $("status").textContent = told(data, batch);
      } else if (event === "piece") {
        texts[data.request] = (texts[data.request] ?? "") + data.text;
        showPieces(task, texts);
      } else if (event === "result") showResult(task, given.text, data);
    }
  } catch (error) {
    if (stopped(error)) $("status").textContent = "Stopped.";
    else {
      $("status").textContent = "";
      showError($("error"), error);
    }
  } finally {
    setRunning(null);
  }
}

function told({ done, requests }, batch) {
  const again = batch > 0 ? ", from what the pieces gave" : "";
  return requests > 1 ? `Piece ${Math.min(done + 1, requests)} of ${requests}${again}…` : `Writing${again}…`;
}

function showResult(task, given, data) {
  $("status").textContent = "Done.";
  const { origin, timings, usage } = data;
  const facts = [
    origin.adapter === null ? `${origin.model} without an adapter` : `${origin.model} with the adapter ${origin.adapter}`,
    origin.requests === 1 ? "1 answer" : `${origin.requests} answers`,
    `${usage.completion_tokens} tokens in ${timings.seconds.toFixed(1)} s`,
    `${timings.tokens_per_second.toFixed(1)} tokens/s`,
  ];
  if (data.complete === false) facts.push("cut off: the model came to no end");
  if (data.kept > 0) facts.push(`${data.kept} of ${data.parts} pieces left as they were: the answers were no corrections`);
  $("origin").textContent = facts.join(" · ");
  if (task === "proofread") return showEdits(given, data.edits);
  if (task === "key_points") return showList(data.points);
  if (task === "replies") return showReplies(data);
  $("output").textContent = data.text;
  setResult(data.text);
}

function showEdits(given, found) {
  $("edits-part").hidden = false;
  $("accept-all").disabled = $("reject-all").disabled = found.length === 0;
  const places = { output: $("output"), list: $("edits"), decided: $("decided") };
  edits = new Edits(given, found, places, () => edits !== null && setResult(edits.text));
  setResult(edits.text);
}

function showList(points) {
  const list = make("ul");
  for (const point of points) list.append(make("li", point));
  $("output").replaceChildren(list);
  setResult(points.map((point) => `- ${point}`).join("\n"));
}

function showReplies({ questions, replies }) {
  const nodes = [];
  if (questions.length > 0) {
    const list = make("ul");
    for (const question of questions) list.append(make("li", question));
    nodes.push(make("h3", "Asked"), list);
  }
  nodes.push(make("h3", "Replies"));
  for (const reply of replies) {
    const row = make("div", null, { class: "row" }), control = button("Copy", () => copy(reply, control), { class: "small", "aria-label": `Copy the reply: ${reply}` });
    row.append(make("span", reply), control);
    nodes.push(row);
  }
  $("output").replaceChildren(...nodes);
  setResult(replies.join("\n"));
}

$("task").addEventListener("change", showOptions);
$("go").addEventListener("click", go);
$("stop").addEventListener("click", () => running?.abort());
$("copy").addEventListener("click", () => copy(result, $("copy")));
$("use").addEventListener("click", () => { $("text").value = result; $("text").focus(); });
$("accept-all").addEventListener("click", () => edits?.setAll("accepted"));
$("reject-all").addEventListener("click", () => edits?.setAll("rejected"));
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape") running?.abort();
  else if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) go();
});
showOptions();
try {
  $("adapter").append(...(await adapterNames()).map((name) => option(name)));
} catch (error) {
  showError($("error"), error);
}
