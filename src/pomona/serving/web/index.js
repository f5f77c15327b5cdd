// The first page: which model is there, and where a program finds it.
import { $ } from "./dom.js";
import { models } from "./site.js";

$("base-url").textContent = `${location.origin}/v1`;
try {
  const ids = await models();
  const adapters = ids.filter((id) => id.includes(":") && !id.endsWith(":base")).length;
  $("facts").textContent = `${ids[0]} with ${adapters === 1 ? "1 adapter" : `${adapters} adapters`}, on this machine. Nothing leaves it.`;
} catch (error) {
  $("facts").textContent = error.message;
}
