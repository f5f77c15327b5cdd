// The texts in a piece of JSON that is still being written: strings that are values, the last perhaps cut off.
//
// `partialTexts('{"points": ["One", "Tw')` gives ["One", "Tw"].
const STRING = /"((?:[^"\\]|\\.)*)("?)/gs;

export function partialTexts(json) {
  const texts = [];
  for (const match of json.matchAll(STRING)) {
    const rest = json.slice(match.index + match[0].length);
    if (match[2] !== "" && /^\s*:/.test(rest)) continue; // a key
    const text = read(match[1]);
    if (text !== "") texts.push(text);
  }
  return texts;
}

function read(inner) {
  // An escape that is cut off at the end is left out until it is whole.
  const whole = inner.replace(/\\(?:u[0-9a-fA-F]{0,3})?$/, "");
  try {
    return JSON.parse(`"${whole}"`);
  } catch {
    return whole;
  }
}
