// Small helpers. Texts reach the document through textContent alone, whoever wrote them.
export const $ = (id) => document.getElementById(id);

export function make(tag, text, attributes = {}) {
  const element = document.createElement(tag);
  if (text !== undefined && text !== null) element.textContent = text;
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  return element;
}

export function button(text, onClick, attributes = {}) {
  const element = make("button", text, { type: "button", ...attributes });
  element.addEventListener("click", onClick);
  return element;
}

export function svg(tag, attributes = {}) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  return element;
}

export function formatBytes(count) {
  const units = ["B", "kB", "MB", "GB"];
  let size = count, unit = 0;
  while (size >= 999.5 && unit < units.length - 1) size /= 1000, ++unit;
  return unit === 0 ? `${size} B` : `${size.toPrecision(3)} ${units[unit]}`;
}

// Shows an error in its place, or clears it.
export function showError(place, error) {
  place.hidden = error === null;
  place.textContent = error === null ? "" : String(error.message ?? error);
}

export const stopped = (error) => error.name === "AbortError";

// Copies a text, and says on the button that it did.
export async function copy(text, control) {
  const before = control.dataset.label ?? control.textContent;
  control.dataset.label = before;
  let said = "Copied";
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    said = copyBySelection(text) ? "Copied" : "Not copied: select the text";
  }
  control.textContent = said;
  setTimeout(() => { control.textContent = before; }, 1500);
}

// Where the page has no right to the clipboard (plain http from another machine).
function copyBySelection(text) {
  const field = make("textarea", null, { "aria-hidden": "true", class: "said" });
  field.value = text;
  document.body.append(field);
  field.select();
  const done = document.execCommand("copy");
  field.remove();
  return done;
}

export function download(name, text, type) {
  const url = URL.createObjectURL(new Blob([text], { type }));
  const link = make("a", null, { href: url, download: name });
  document.body.append(link);
  link.click();
  link.remove();
  setTimeout(() => URL.revokeObjectURL(url), 1000);
}

export function option(value, text) {
  const element = make("option", text ?? value);
  element.value = value;
  return element;
}
