// The form of one side of a comparison, and a configuration in words.
import { make, option } from "./dom.js";

const NUMBERS = [
  ["temperature", "Temperature", { min: "0", max: "2", step: "0.1", value: "0" }],
  ["top_p", "Top p", { min: "0.05", max: "1", step: "0.05", value: "1" }],
  ["repetition_penalty", "Repetition penalty", { min: "0.5", max: "2", step: "0.05", value: "1" }],
  ["seed", "Seed", { min: "0", step: "1", placeholder: "random" }],
  ["max_tokens", "Longest answer", { min: "1", max: "2048", step: "1", value: "256" }],
];
const DEFAULTS = { temperature: 0, top_p: 1, top_k: 0, min_p: 0, repetition_penalty: 1, max_tokens: 256 };

export class ConfigurationForm {
  constructor(side, adapters) {
    this.side = side;
    this.element = make("fieldset");
    this.element.append(make("legend", `Side ${side.toUpperCase()}`));
    this.adapter = make("select", null, { id: `${side}-adapter` });
    this.adapter.append(option("", "the model's default"), option("base", "no adapter"), ...adapters.map((name) => option(name)));
    this.system = make("textarea", null, { id: `${side}-system`, rows: "2", maxlength: "20000" });
    this.element.append(labelled("Adapter", this.adapter), labelled("Instructions", this.system));
    const row = make("div", null, { class: "row end" });
    this.numbers = new Map();
    for (const [name, label, attributes] of NUMBERS) {
      const field = make("input", null, { type: "number", id: `${side}-${name}`, ...attributes });
      this.numbers.set(name, field);
      row.append(labelled(label, field));
    }
    this.element.append(row);
  }

  // As the server takes it. Throws where a number is out of range.
  get value() {
    const value = {};
    if (this.adapter.value !== "") value.adapter = this.adapter.value;
    if (this.system.value.trim() !== "") value.system = this.system.value.trim();
    for (const [name, field] of this.numbers) {
      if (!field.checkValidity()) {
        field.focus();
        throw new Error(`Side ${this.side.toUpperCase()}, ${field.labels[0].textContent.trim()}: ${field.validationMessage}`);
      }
      if (field.value !== "") value[name] = Number(field.value);
    }
    return value;
  }
}

function labelled(text, field) {
  const label = make("label", null, { for: field.id, class: "field" });
  label.append(make("span", text), field);
  return label;
}

// One line that says what differs from the defaults.
export function described(configuration) {
  const parts = [configuration.adapter === null ? "default adapter" : configuration.adapter === "base" ? "no adapter" : `adapter ${configuration.adapter}`];
  for (const [name, usual] of Object.entries(DEFAULTS))
    if (configuration[name] !== usual) parts.push(`${name.replaceAll("_", " ")} ${configuration[name]}`);
  if (configuration.seed !== null) parts.push(`seed ${configuration.seed}`);
  if (configuration.system !== null) parts.push(`instructions “${configuration.system}”`);
  return parts.join(", ");
}
