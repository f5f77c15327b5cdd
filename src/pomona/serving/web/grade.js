// The Grade page: one item after the other. The server shuffles the sides and keeps the names; here nothing is to be peeked at.
import { getJson } from "./api.js";
import { ChoiceGroup } from "./choices.js";
import { $, make, option, showError } from "./dom.js";
import "./site.js";

const QUESTIONS = [
  ["instruction_following", "Follows the instruction"], ["conciseness", "Concise"],
  ["truthfulness", "Truthful"], ["harmlessness", "Harmless"],
];
const DIMENSIONS = [
  ["composition", "Composition"], ["comprehensiveness", "Comprehensive"], ["groundedness", "Grounded in the text"],
  ["following_instructions", "Follows the instruction"], ["harmfulness", "Free of harm"],
];
const GRADES = [["poor", "poor"], ["fair", "fair"], ["good", "good"]];
const SUMMARY_GRADES = [["poor", "poor"], ["neutral", "neutral"], ["good", "good"]];
const VERDICTS = [["left", "Left"], ["tie", "Tie"], ["right", "Right"]];
const LEVELS = [
  ["significantly_better", "significantly"], ["better", "clearly"], ["slightly_better", "slightly"], ["negligibly_better", "hardly"],
];

let grader = "";
let task = null; // {item, groups, said}: what is shown
let before = null; // the one before it, with what was said
let saving = false;

async function listProjects() {
  const { data } = await getJson("/v1/grading/projects");
  $("projects").replaceChildren(...data.map((one) => option(one.id, `${one.name} (items: ${one.items})`)));
  if (data.length === 0) $("projects").append(option("", "none yet"));
  const wanted = new URLSearchParams(location.search).get("project");
  if (data.some((one) => one.id === wanted)) $("projects").value = wanted;
}

async function begin() {
  grader = $("grader").value.trim();
  if ($("projects").value === "" || grader === "") throw new Error("Choose a project and write your name first.");
  before = null;
  await next();
}

async function next() {
  const found = await getJson(`/v1/grading/projects/${$("projects").value}/next`, { method: "POST", body: { grader } });
  showStanding(found);
  if (found.item === null) {
    task = null;
    $("task").hidden = true;
    $("status").textContent = `Nothing is left to grade. You have looked at ${found.done}. Thank you.`;
    return;
  }
  show(found.item, null);
}

function showStanding({ done, open }) {
  $("progress").hidden = false;
  $("progress").value = done + open === 0 ? 1 : done / (done + open);
  $("status").textContent = `${done} done, ${open} open`;
}

// said: what the grader said of it earlier, or null.
function show(item, said) {
  const groups = item.kind === "pairs" ? showPair(item) : showSummary(item);
  task = { item, groups };
  for (const [name, value] of Object.entries(said ?? {})) groups.get(name).value = value;
  tellLevel();
  $("prompt").replaceChildren(...item.prompt.map(({ role, content }) => {
    const part = make("p");
    if (item.prompt.length > 1) part.append(make("strong", `${role}: `));
    part.append(content);
    return part;
  }));
  $("prompt-name").textContent = item.kind === "pairs" ? "Prompt" : "What is summarised";
  $("task").hidden = false;
  $("back").disabled = before === null;
  $("task-title").focus();
  scrollTo(0, 0);
}

function showPair(item) {
  const groups = new Map();
  const cards = ["left", "right"].map((place) => {
    const name = place === "left" ? "Left" : "Right";
    const card = make("div", null, { class: "card" });
    card.append(make("h3", name), make("div", item[place], { class: "text", id: place }));
    for (const [question, words] of QUESTIONS) card.append(group(groups, `${place}-${question}`, words, GRADES, name));
    return card;
  });
  $("answers").replaceChildren(...cards);
  $("verdict-groups").replaceChildren(
    group(groups, "verdict", "Which is better?", VERDICTS), group(groups, "level", "By how much?", LEVELS));
  groups.get("verdict").element.addEventListener("change", tellLevel);
  $("verdict").hidden = false;
  $("task-title").textContent = item.left === item.right ? "Which is better? (The answers are the same.)" : "Which is better?";
  return groups;
}

function showSummary(item) {
  const groups = new Map();
  const card = make("div", null, { class: "card" });
  card.append(make("h3", "Summary"), make("div", item.response, { class: "text", id: "response" }));
  const grades = make("div", null, { class: "card" });
  grades.append(make("h3", "Grades"));
  for (const [dimension, words] of DIMENSIONS) grades.append(group(groups, dimension, words, SUMMARY_GRADES));
  $("answers").replaceChildren(card, grades);
  $("verdict").hidden = true;
  $("task-title").textContent = "How good is the summary?";
  return groups;
}

function group(groups, name, words, choices, side) {
  const made = new ChoiceGroup(name, words, choices, side);
  groups.set(name, made);
  return made.element;
}

// A tie is by nothing.
function tellLevel() {
  const level = task?.groups.get("level");
  if (level === undefined) return;
  level.disabled = task.groups.get("verdict").value === "tie";
}

function grading({ item, groups }) {
  const value = (name) => groups.get(name).value;
  if (item.kind === "summaries") {
    const missing = DIMENSIONS.find(([name]) => value(name) === null);
    if (missing !== undefined) throw asked(groups.get(missing[0]), "Grade all five, please.");
    return { grades: Object.fromEntries(DIMENSIONS.map(([name]) => [name, value(name)])) };
  }
  const verdict = value("verdict");
  if (verdict === null) throw asked(groups.get("verdict"), "Say which one is better, or that it is a tie.");
  const body = { verdict, gradings: {} };
  if (verdict !== "tie") {
    if (value("level") === null) throw asked(groups.get("level"), "Say by how much it is better.");
    body.level = value("level");
  }
  for (const place of ["left", "right"]) {
    const given = QUESTIONS.map(([question]) => [question, value(`${place}-${question}`)]).filter(([, grade]) => grade !== null);
    if (given.length > 0) body.gradings[place] = Object.fromEntries(given);
  }
  return body;
}

function asked(choices, message) {
  choices.focus();
  return new Error(message);
}

async function send(body) {
  if (task === null || saving) return;
  saving = true;
  try {
    await getJson(`/v1/grading/items/${task.item.id}/gradings`, { method: "POST", body: { grader, ...body } });
  } finally {
    saving = false;
  }
  const said = {};
  for (const [name, choices] of task.groups) if (choices.value !== null) said[name] = choices.value;
  before = { item: task.item, said };
  await next();
}

function back() {
  if (before === null) return;
  const { item, said } = before;
  before = null;
  show(item, said);
}

const guarded = (work) => async (event) => {
  event?.preventDefault(); // the policy lets no form go anywhere
  showError($("error"), null);
  try {
    await work(event);
  } catch (error) {
    showError($("error"), error);
  }
};

$("who").addEventListener("submit", guarded(begin));
$("task").addEventListener("submit", guarded(() => send(grading(task))));
$("skip").addEventListener("click", guarded(() => send({ skip: true })));
$("back").addEventListener("click", guarded(back));
document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || /^(?:TEXTAREA|SELECT)$/.test(event.target.tagName)) return;
  if (event.target.id === "grader" || $("task").hidden || task?.item.kind !== "pairs") return;
  const choice = { 1: "left", 0: "tie", 2: "right" }[event.key];
  if (choice === undefined) return;
  task.groups.get("verdict").value = choice;
  tellLevel();
});
await guarded(listProjects)();
