// Edits of a text, each accepted, rejected or still open.
//
// The text stands with what goes struck out and what comes marked; below it every edit is a line with two buttons.
import { button, make } from "./dom.js";

const SHOWN = { space: "␣", line: "⏎" };

export class Edits {
  // text: what was given. edits: [{start, end, original, replacement}], places in code points as the server counts.
  constructor(text, edits, places, onChange) {
    this.letters = Array.from(text);
    this.edits = edits.map((edit) => ({ ...edit, state: "open" }));
    this.places = places; // {output, list, decided}
    this.onChange = onChange;
    this.drawList();
    this.draw();
  }

  // The text with the accepted edits alone.
  get text() {
    return this.parts().map((part) => (part.edit === undefined ? part.text : part.edit.state === "accepted" ? part.edit.replacement : part.edit.original)).join("");
  }

  parts() {
    const parts = [];
    let at = 0;
    for (const edit of this.edits) {
      parts.push({ text: this.letters.slice(at, edit.start).join("") }, { edit });
      at = edit.end;
    }
    parts.push({ text: this.letters.slice(at).join("") });
    return parts;
  }

  set(index, state) {
    this.edits[index].state = state;
    this.draw();
  }

  setAll(state) {
    for (const edit of this.edits) edit.state = state;
    this.draw();
  }

  draw() {
    const nodes = [];
    for (const { text, edit } of this.parts()) {
      if (edit === undefined) nodes.push(text);
      else nodes.push(...this.marked(edit));
    }
    this.places.output.replaceChildren(...nodes);
    this.edits.forEach((edit, index) => {
      const line = this.places.list.children[index];
      line.dataset.state = edit.state;
      const [accept, reject] = line.querySelectorAll("button");
      accept.setAttribute("aria-pressed", String(edit.state === "accepted"));
      reject.setAttribute("aria-pressed", String(edit.state === "rejected"));
    });
    const left = this.edits.filter((edit) => edit.state === "open").length;
    const count = this.edits.length;
    this.places.decided.textContent = count === 0 ? "No mistakes were found." : `${count - left} of ${count} decided`;
    this.onChange();
  }

  marked({ original, replacement, state }) {
    if (state === "accepted") return replacement === "" ? [] : [make("ins", replacement)];
    if (state === "rejected") return [original];
    return [...(original === "" ? [] : [make("del", original)]), ...(replacement === "" ? [] : [make("ins", replacement)])];
  }

  drawList() {
    const lines = this.edits.map((edit, index) => {
      const line = make("li"), change = make("span", null, { class: "change" });
      const words = `${visible(edit.original)} → ${visible(edit.replacement)}`;
      change.append(edit.original === "" ? make("span", "nothing", { class: "quiet" }) : make("del", visible(edit.original)));
      change.append(make("span", " → ", { "aria-hidden": "true" }));
      change.append(edit.replacement === "" ? make("span", "nothing", { class: "quiet" }) : make("ins", visible(edit.replacement)));
      line.append(change,
        button("Accept", () => this.set(index, "accepted"), { class: "small", "aria-label": `Accept: ${words}`, "aria-pressed": "false" }),
        button("Reject", () => this.set(index, "rejected"), { class: "small", "aria-label": `Reject: ${words}`, "aria-pressed": "false" }));
      line.addEventListener("keydown", (event) => this.key(event, index));
      return line;
    });
    this.places.list.replaceChildren(...lines);
  }

  key(event, index) {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const state = { a: "accepted", r: "rejected", u: "open" }[event.key.toLowerCase()];
    const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    if (state !== undefined) {
      this.set(index, state);
      if (state !== "open") this.focus(index + 1, event);
    } else if (step !== undefined) this.focus(index + step, event);
    else return;
    event.preventDefault();
  }

  // The same button of another line, so that one can go down the list.
  focus(index, event) {
    const line = this.places.list.children[index];
    if (line === undefined) return;
    const buttons = [...event.currentTarget.querySelectorAll("button")];
    line.querySelectorAll("button")[Math.max(buttons.indexOf(event.target), 0)].focus();
  }
}

// White space that would not be seen.
function visible(text) {
  if (text === "") return "nothing";
  return text.trim() === "" ? Array.from(text, (c) => (c === "\n" ? SHOWN.line : SHOWN.space)).join("") : text;
}
