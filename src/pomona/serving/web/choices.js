// A question with a few answers of which one is chosen: radio buttons in a fieldset.
import { make } from "./dom.js";

export class ChoiceGroup {
  // choices: [value, words]. side: whose question it is, for those who do not see where it stands.
  constructor(name, question, choices, side) {
    this.element = make("fieldset", null, { class: "choices" });
    const legend = make("legend", question);
    if (side !== undefined) legend.prepend(make("span", `${side}: `, { class: "said" }));
    this.element.append(legend);
    this.fields = choices.map(([value, words]) => {
      const field = make("input", null, { type: "radio", name, value, id: `${name}-${value}` });
      const label = make("label", null, { for: field.id });
      label.append(field, ` ${words}`);
      this.element.append(label);
      return field;
    });
  }

  get value() {
    return this.element.disabled ? null : (this.fields.find((field) => field.checked)?.value ?? null);
  }

  set value(wanted) {
    for (const field of this.fields) field.checked = field.value === wanted;
  }

  set disabled(is) {
    this.element.disabled = is;
  }

  focus() {
    this.fields[0].focus();
  }
}
