// Exchanges the token for a session cookie. A token after # in the address (as the terminal prints it) is used at once and
// removed from the address; the part after # never reaches a server or its log.
const form = document.getElementById("form");
const error = document.getElementById("error");

async function signIn(token) {
  error.textContent = "";
  const answer = await fetch("/login", { method: "POST", body: new URLSearchParams({ token }) }).catch(() => null);
  if (answer?.ok) return location.replace("/");
  const reason = answer ? (await answer.json().catch(() => ({}))).error : "the page's server does not answer; start the daemon with `reflexd run FILE`";
  error.textContent = `Sign-in failed: ${reason ?? "refused"}.`;
}

form.addEventListener("submit", (event) => {
  event.preventDefault();
  signIn(document.getElementById("token").value.trim());
});

const given = new URLSearchParams(location.hash.slice(1)).get("token");
if (given) {
  history.replaceState(null, "", location.pathname);
  signIn(given);
}
