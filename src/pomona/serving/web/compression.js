// The Compression page: the analysis of `pomona inspect --report`, with the data of the model that is served.
//
// analysis.js reads its data from the element #data when it is loaded, so that it is loaded last. The element is no
// script here: Trusted Types count the text of one as code.
import { getJson } from "./api.js";
import { $, showError } from "./dom.js";
import "./site.js";

async function show(address) {
  $("waiting").hidden = false;
  $("measure").hidden = true;
  showError($("failed"), null);
  try {
    $("data").textContent = JSON.stringify(await getJson(address));
    const { begin } = await import("./analysis.js");
    $("analysis").hidden = false;
    begin();
    document.title = "Compression · pomona";
  } catch (error) {
    showError($("failed"), error);
    $("measure").textContent = "Try again";
  } finally {
    $("waiting").hidden = true;
    $("measure").hidden = false;
  }
}

// A module runs once: with new data the page is loaded anew.
$("measure").addEventListener("click", async () => {
  if ($("analysis").hidden) return show("/v1/compression");
  $("measure").disabled = true;
  $("waiting").hidden = false;
  try {
    await getJson("/v1/compression?again=true");
    location.reload();
  } catch (error) {
    showError($("failed"), error);
    $("measure").disabled = false;
    $("waiting").hidden = true;
  }
});
show("/v1/compression");
