// The settings file: read it, edit it, see its problems by line, save it and reload the daemon. Operators only.
import { ask, h, setText, toast } from "./dom.js";
import { command, operator, request } from "./socket.js";

const PAUSE_MS = 900;
let box;
let lines;
let found;
let status;
let save;
let digest = null;
let timer = 0;
let checked = 0;

export function mount() {
  lines = h("pre", { class: "gutter", "aria-hidden": "true" });
  box = h("textarea", { id: "settings-text", rows: 18, spellcheck: "false", autocomplete: "off", wrap: "off", "aria-label": "Settings file", "aria-describedby": "settings-status", oninput: edited, onscroll: () => { lines.scrollTop = box.scrollTop; } });
  status = h("p", { id: "settings-status", class: "small muted", role: "status" });
  found = h("ol", { class: "lines small findings" });
  save = h("button", { type: "button", class: "button primary", disabled: true, onclick: keep }, "Save and reload");
  const again = h("button", { type: "button", class: "button", onclick: read }, "Read again");
  const details = h("details", { class: "hand operator", id: "settings", ontoggle: () => details.open && digest === null && read() },
    h("summary", {}, "Edit the settings"), h("div", { class: "editor" }, lines, box), status, found, h("div", { class: "row wrap" }, save, again));
  document.getElementById("well").append(details);
}

export function render() {
  save.hidden = !operator();
}

async function read() {
  clearTimeout(timer);
  try {
    const data = await command({ do: "settings", what: "read" });
    digest = data.digest;
    box.value = data.text;
    found.replaceChildren();
    number([]);
    save.disabled = true;
    setText(status, `${data.path}. Secrets are shown as <hidden N>.`);
  } catch (error) {
    setText(status, error.message);
  }
}

function edited() {
  clearTimeout(timer);
  save.disabled = true;
  number([]);
  setText(status, "edited, not checked yet");
  timer = setTimeout(check, PAUSE_MS);
}

async function check() {
  const turn = ++checked;
  setText(status, "checking …");
  try {
    const data = await command({ do: "settings", what: "check", text: box.value });
    if (turn !== checked) return;
    show(data);
  } catch (error) {
    setText(status, `not checked: ${error.message}`);
  }
}

function show({ problems, warnings }) {
  const entry = (each, kind) => h("li", {}, h("button", { type: "button", class: `finding ${kind}`, onclick: () => go(each.line) }, `Line ${each.line}: ${each.path ? `${each.path}: ` : ""}${each.message}${each.remedy ? `; ${each.remedy}` : ""}`));
  found.replaceChildren(...problems.map((each) => entry(each, "bad")), ...warnings.map((each) => entry(each, "warn")));
  number(problems.map((each) => each.line));
  save.disabled = problems.length > 0;
  setText(status, problems.length ? `${problems.length} ${problems.length === 1 ? "problem" : "problems"}: correct the file before you save it` : warnings.length ? "valid, with warnings" : "valid");
}

/** Numbers the lines, and marks those with a problem. */
function number(bad) {
  const total = box.value.split("\n").length;
  lines.replaceChildren(...Array.from({ length: total }, (_, i) => h("span", { class: bad.includes(i + 1) ? "bad" : null }, `${bad.includes(i + 1) ? "✗" : ""}${i + 1}\n`)));
  lines.scrollTop = box.scrollTop;
}

function go(line) {
  const start = box.value.split("\n").slice(0, line - 1).reduce((sum, text) => sum + text.length + 1, 0);
  box.focus();
  box.setSelectionRange(start, start + (box.value.split("\n")[line - 1] ?? "").length);
  box.scrollTop = Math.max(0, (line - 4) * (box.scrollHeight / box.value.split("\n").length));
}

async function keep() {
  if (!(await ask("Save and reload?", "The page replaces the file and stores the previous version next to it. The daemon reads the new file at once.", "Save"))) return;
  save.disabled = true;
  setText(status, "checking once more and saving …");
  try {
    const data = await command({ do: "settings", what: "save", text: box.value, digest });
    digest = data.digest;
    save.disabled = true;
    setText(status, `saved; the previous version is in ${data.previous}`);
    const answer = await request("reload");
    const later = answer.restart_required ?? [];
    toast(later.length ? `Saved, but a restart is required for: ${later.join(", ")}` : `Saved and reloaded: ${(answer.changed ?? []).join(", ") || "no setting has changed"}`, later.length > 0);
  } catch (error) {
    setText(status, error.message);
    toast(error.message, true);
  }
}
