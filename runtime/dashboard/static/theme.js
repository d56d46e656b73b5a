// Before the first paint: the theme chosen earlier, if any; otherwise the system's own.
"use strict";
{
  const chosen = localStorage.getItem("theme");
  if (chosen === "light" || chosen === "dark") document.documentElement.dataset.theme = chosen;
}
