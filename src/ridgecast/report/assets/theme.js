// Sets the chosen colours before the first paint.
"use strict";
try {
  const chosen = window.localStorage.getItem("ridgecast-theme");
  if (chosen === "light" || chosen === "dark") document.documentElement.dataset.theme = chosen;
} catch {
  // a browser may refuse storage; the page then follows the system
}
