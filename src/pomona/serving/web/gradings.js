// The Gradings page: projects, what is imported into them, what the graders said.
import { getJson, request } from "./api.js";
import { $, download, make, option, showError } from "./dom.js";
import { drawShares } from "./shares.js";
import "./site.js";

const FORMS = {
  pairs: 'One pair a line: {"id", "prompt", "a", "b"}; `pomona judge --pairs` writes such a file.',
  summaries: 'One summary a line: {"id", "prompt", "response", "system"}.',
};

let project = null;

const percent = (value) => (value === null ? "–" : `${(100 * value).toFixed(0)}%`);
const fixed = (value) => (value === null ? "–" : value.toFixed(2));
const between = ({ low, high }) => (low === null ? "–" : `${fixed(low)} to ${fixed(high)}`);
const spaced = (name) => name.replaceAll("_", " ");

async function listProjects(chosen) {
  const { data } = await getJson("/v1/grading/projects");
  const items = data.map((one) => option(one.id, `${one.name} (items: ${one.items}, gradings: ${one.gradings})`));
  $("projects").replaceChildren(option("", data.length === 0 ? "none yet" : "choose one"), ...items);
  $("projects").value = chosen ?? "";
  $("new").open = data.length === 0;
}

async function openProject() {
  const id = $("projects").value;
  $("delete").disabled = $("read").disabled = id === "";
  if (id === "") {
    project = null;
    $("project").hidden = true;
    return;
  }
  const results = await getJson(`/v1/grading/projects/${id}/results`);
  ({ project } = results);
  $("import-form").textContent = FORMS[project.kind];
  $("export-preferences").hidden = project.kind !== "pairs";
  showReport(results.report);
  $("project").hidden = false;
}

async function readAgain() {
  await listProjects(project.id);
  await openProject();
}

function showReport(report) {
  const sides = project.kind === "pairs" ? `A: ${project.a}. B: ${project.b}. ` : "";
  const many = project.overlap === null ? "every grader sees every item" : `graders per item: ${project.overlap}`;
  $("facts").textContent = `${sides}Items: ${project.items}, gradings: ${project.gradings}; ${many}. Intervals are of 95%.`;
  $("shares").replaceChildren();
  $("tables").replaceChildren();
  if (report === null) return;
  if (project.kind === "pairs") showPairs(report);
  else showSummaries(report);
  const rows = Object.entries(report.agreement).map(([name, one]) =>
    [spaced(name), one.level, fixed(one.value), between(one), percent(one.same), String(one.units)]);
  $("tables").append(table("Agreement: Krippendorff's alpha", ["of", "scale", "alpha", "interval", "same", "graded twice"], rows));
}

function showPairs(report) {
  drawShares($("shares"), { a_wins: report.wins, ties: report.ties, b_wins: report.losses, decided: report.decided });
  $("facts").textContent += ` Sign test: p = ${report.p.toPrecision(2)}.`;
  const told = (counts) => Object.entries(counts).map(([grade, count]) => `${count} ${grade}`).join(", ");
  const grades = Object.entries(report.grades).map(([question, one]) => {
    const better = report.better[question];
    return [spaced(question), told(one.a), told(one.b), better === undefined ? "–" : `${fixed(better.value)} (${between(better)})`];
  });
  const graders = report.graders.map((one) => [one.grader, String(one.gradings), percent(one.left_preferred.value)]);
  $("tables").append(
    table("Each side alone", ["question", "A", "B", "A minus B"], grades),
    table("Graders", ["name", "gradings", "left preferred"], graders));
}

function showSummaries(report) {
  const rows = Object.entries(report.systems).flatMap(([system, parts]) => Object.entries(parts).map(([name, one]) =>
    [system || "–", spaced(name), ...["good", "neutral", "poor"].map((grade) => share(one[grade]))]));
  $("tables").append(table("Summaries", ["system", "dimension", "good", "neutral", "poor"], rows));
}

const share = (one) => `${percent(one.value)} (${percent(one.low)} to ${percent(one.high)})`;

function table(caption, columns, rows) {
  const made = make("table", null, { class: "plain" }), head = make("tr"), body = make("tbody"), top = make("thead");
  head.append(...columns.map((name) => make("th", name, { scope: "col" })));
  top.append(head);
  for (const row of rows) {
    const line = make("tr");
    line.append(make("th", row[0], { scope: "row" }), ...row.slice(1).map((cell) => make("td", cell)));
    body.append(line);
  }
  made.append(make("caption", caption), top, body);
  return made;
}

async function begin() {
  const body = { name: $("name").value, kind: $("kind").value };
  if (body.kind === "pairs") Object.assign(body, { a: $("a").value, b: $("b").value });
  if ($("overlap").value !== "") body.overlap = Number($("overlap").value);
  const made = await getJson("/v1/grading/projects", { method: "POST", body });
  await listProjects(made.id);
  $("new").open = false;
  await openProject();
  $("file").focus();
}

async function take() {
  const [file] = $("file").files;
  if (file === undefined) throw new Error("Choose a file first.");
  const { added } = await getJson(`/v1/grading/projects/${project.id}/items`, { method: "POST", body: { jsonl: await file.text() } });
  await readAgain();
  $("status").textContent = `Added: ${added}.`;
  $("file").value = "";
}

async function save(rows) {
  const response = await request(`/v1/grading/projects/${project.id}/export?rows=${rows}`);
  download(`grading-${project.id}-${rows}.jsonl`, await response.text(), "application/jsonl");
}

async function forget() {
  if (project === null || !confirm("Delete this project with all its items and gradings?")) return;
  await getJson(`/v1/grading/projects/${project.id}`, { method: "DELETE" });
  await listProjects();
  await openProject();
}

const guarded = (work) => async (event) => {
  event?.preventDefault(); // the policy lets no form go anywhere
  showError($("error"), null);
  try {
    await work();
  } catch (error) {
    showError($("error"), error);
  }
};

$("begin").addEventListener("submit", guarded(begin));
$("kind").addEventListener("change", () => { $("sides").querySelectorAll("label").forEach((label) => { label.hidden = $("kind").value !== "pairs"; }); });
$("projects").addEventListener("change", guarded(openProject));
$("read").addEventListener("click", guarded(readAgain));
$("delete").addEventListener("click", guarded(forget));
$("add").addEventListener("click", guarded(take));
$("export-preferences").addEventListener("click", guarded(() => save("preferences")));
$("export-gradings").addEventListener("click", guarded(() => save("gradings")));
await guarded(listProjects)();
