// The dialog that asks for the API key.
import { make } from "./dom.js";

let asking = null; // one dialog for all requests that wait

// The key, or null where none is given. `wrong`: the last one was refused.
export function askForKey(wrong) {
  asking ??= show(wrong).finally(() => { asking = null; });
  return asking;
}

function show(wrong) {
  const field = make("input", null, { type: "password", id: "api-key", autocomplete: "off", required: "" });
  const label = make("label", null, { for: "api-key", class: "field" });
  label.append(make("span", "API key"), field);
  const cancel = make("button", "Cancel", { type: "button" });
  const buttons = make("div", null, { class: "row" });
  buttons.append(make("button", "Use this key", { type: "submit", class: "primary" }), cancel);
  const form = make("form");
  form.append(label, buttons);
  const dialog = make("dialog", null, { "aria-labelledby": "key-title" });
  dialog.append(
    make("h2", wrong ? "That key was refused" : "This server asks for a key", { id: "key-title" }),
    make("p", "It is kept in this tab until you close it, and sent to this server alone.", { class: "quiet" }),
    form,
  );
  document.body.append(dialog);
  return new Promise((resolve) => {
    const end = (value) => {
      dialog.close();
      dialog.remove();
      resolve(value);
    };
    form.addEventListener("submit", (event) => {
      event.preventDefault(); // the policy lets no form go anywhere
      if (field.value.trim() !== "") end(field.value.trim());
    });
    cancel.addEventListener("click", () => end(null));
    dialog.addEventListener("cancel", (event) => { event.preventDefault(); end(null); });
    dialog.showModal();
    field.focus();
  });
}
