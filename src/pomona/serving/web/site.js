// The bar on top of every page: where one can go, which model answers, light or dark.
import { getJson } from "./api.js";
import { $, button, make } from "./dom.js";

const PAGES = [
  ["/write", "Write"], ["/chat", "Chat"], ["/adapters", "Adapters"], ["/compression", "Compression"], ["/compare", "Compare"],
  ["/grade", "Grade"], ["/gradings", "Gradings"],
];
const THEME = "pomona-theme";

const dark = matchMedia("(prefers-color-scheme: dark)");

function stored() {
  try {
    return localStorage.getItem(THEME);
  } catch {
    return null; // storage is forbidden: the system's theme it is
  }
}

function applyTheme() {
  const theme = stored() ?? (dark.matches ? "dark" : "light");
  document.documentElement.dataset.theme = theme;
  $("site-theme").setAttribute("aria-pressed", String(theme === "dark"));
}

function toggleTheme() {
  const next = document.documentElement.dataset.theme === "dark" ? "light" : "dark";
  try {
    localStorage.setItem(THEME, next);
  } catch {
    // Then it holds for this page alone.
  }
  document.documentElement.dataset.theme = next;
  $("site-theme").setAttribute("aria-pressed", String(next === "dark"));
}

function buildBar() {
  const bar = make("header", null, { class: "bar" });
  const nav = make("nav", null, { "aria-label": "Pages" }), list = make("ul");
  for (const [path, name] of PAGES) {
    const link = make("a", name, { href: path }), item = make("li");
    if (location.pathname === path) link.setAttribute("aria-current", "page");
    item.append(link);
    list.append(item);
  }
  nav.append(list);
  bar.append(make("a", "pomona", { href: "/", class: "name" }), nav, make("span", "", { class: "served", id: "served" }),
    button("Dark", toggleTheme, { id: "site-theme", class: "small" }));
  document.body.prepend(make("a", "Skip to the page", { class: "skip", href: "#main" }), bar);
}

// The models that can be named: the base, and the base with each adapter.
let asked = null;
export function models() {
  asked ??= getJson("/v1/models").then((list) => list.data.map((model) => model.id));
  return asked;
}

// Names of adapters, without the model's.
export async function adapterNames() {
  const names = (await models()).filter((id) => id.includes(":")).map((id) => id.slice(id.indexOf(":") + 1));
  return names.filter((name) => name !== "base");
}

buildBar();
applyTheme();
dark.addEventListener("change", applyTheme);
models().then((ids) => { $("served").textContent = ids[0] ?? ""; }, () => { $("served").textContent = "no answer from the server"; });
