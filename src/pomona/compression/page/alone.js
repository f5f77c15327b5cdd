// What the page needs where it is a file of its own; the server's pages have their own theme and their own start.
function setTheme(dark) {
  document.documentElement.dataset.theme = dark ? "dark" : "light";
  $("theme").setAttribute("aria-pressed", String(dark));
}

function beginAlone() {
  $("theme").addEventListener("click", () => setTheme(document.documentElement.dataset.theme !== "dark"));
  const dark = matchMedia("(prefers-color-scheme: dark)");
  setTheme(dark.matches);
  dark.addEventListener("change", (event) => setTheme(event.matches));
  begin();
}

document.addEventListener("DOMContentLoaded", beginAlone); // when all scripts have run
