// Teach by clicking: stored readings of a task's stream, labels for many at once, training, and what the task gets wrong.
import { ask, clock, h, moment, number, percent, setText, toast } from "./dom.js";
import { info } from "./derived.js";
import { command, operator, request, section } from "./socket.js";

const ENDS = new Set(["task_promoted", "task_rejected", "task_awaiting_approval", "finetune_skipped", "task_rolled_back"]);
const KINDS = new Set(["image-classification", "text-classification", "audio-classification"]);
const POLL_MS = 2000;
let root, tasks, order, labelled, status, tiles, chosen, classes, label, who, give, suggested, train, progress, report, history, editing, newTask, newStream;
let shown = { readings: [] };
let facts = { counts: {}, labels: [] };
let last = 0;
let training = null;
let timer = 0;
let seenEvents = 0;
const picked = new Set();
const edited = new Set();

export function mount() {
  tasks = h("select", { id: "gallery-task", onchange: () => { picked.clear(); edited.clear(); load(); } });
  order = h("select", { id: "gallery-order", onchange: () => list() }, h("option", { value: "newest" }, "newest"), h("option", { value: "uncertain" }, "most uncertain"));
  labelled = h("input", { type: "checkbox", id: "gallery-labelled", onchange: () => list() });
  status = h("p", { class: "muted small", role: "status" });
  tiles = h("ul", { class: "gallery", "aria-label": "Stored readings" });
  chosen = h("p", { class: "small", role: "status" });
  label = h("input", { id: "gallery-class", list: "gallery-classes", maxlength: 200, autocomplete: "off", onkeydown: (event) => event.key === "Enter" && submit(label.value) });
  who = h("input", { id: "gallery-who", maxlength: 32, pattern: "[a-z0-9_\\-]{1,32}", autocomplete: "off", placeholder: "anna", value: remembered(), onchange: remember });
  classes = h("div", { class: "row wrap" });
  suggested = h("div", { class: "row wrap" });
  give = h("button", { type: "button", class: "button primary", onclick: () => submit(label.value) }, "Label");
  train = h("button", { type: "button", class: "button primary", onclick: start }, "Train");
  progress = h("p", { class: "small", role: "status" });
  report = h("div", { class: "stack tight" });
  history = h("ul", { class: "labels small" });
  editing = h("select", { "aria-label": "Correct to" });
  newTask = h("input", { id: "gallery-new", maxlength: 64, pattern: "[a-z0-9_\\-]{1,64}", autocomplete: "off", placeholder: "parts" });
  newStream = h("select", { id: "gallery-stream" });
  const field = (text, input) => h("label", { class: "field" }, h("span", {}, text), input);
  const button = (text, onclick, more = "") => h("button", { type: "button", class: `button small ${more}`, onclick }, text);
  const create = h("details", { class: "operator", id: "gallery-create" }, h("summary", {}, "New task"), field("Stream", newStream), field("Name", newTask), h("button", { type: "button", class: "button", onclick: add }, "Create task"));
  const labels = h("details", { ontoggle: (event) => event.target.open && facts.labels.length === 0 && loadLabels(24) }, h("summary", {}, "Labels, with who and when"), history,
    h("div", { class: "row wrap operator" }, editing, button("Correct selected", () => correct(editing.value)), button("Remove selected", () => correct(null)), button("Older", older)));
  root = h("details", { class: "hand", id: "gallery", ontoggle: () => root.open && load() }, h("summary", {}, "Teach by clicking"),
    create, field("Task", tasks),
    h("div", { class: "row wrap" }, field("Show", order), h("label", { class: "row" }, labelled, h("span", {}, "include labelled readings")), button("Refresh", list)),
    status, tiles,
    h("div", { class: "stack tight operator" }, h("div", { class: "row wrap" }, button("Select all", () => pick(shown.readings.map((r) => r.name))), button("Select none", () => pick([]))), suggested, chosen, classes,
      h("div", { class: "row wrap" }, field("Class", label), give, field("Your name", who)), h("datalist", { id: "gallery-classes" })),
    h("div", { class: "row wrap" }, h("span", { class: "operator" }, train), progress), report, labels);
  document.getElementById("teach").append(root);
}

export function render(changed) {
  if (changed.has("info")) {
    const about = info();
    const usable = Object.entries(about.tasks ?? {}).filter(([, task]) => KINDS.has(task.kind) && task.stream).map(([name]) => name);
    const before = tasks.value;
    options(tasks, usable);
    options(newStream, Object.keys(about.streams ?? {}).filter((name) => ["camera", "microphone", "text"].includes(about.streams[name].kind)));
    if (root.open && tasks.value !== before) load();
  }
  if (changed.has("events")) follow();
}

/** An end of a fine-tune among the new events ends the waiting for it. */
function follow() {
  const events = section("events") ?? [];
  const newest = events.filter((event) => event.at > seenEvents);
  seenEvents = events.at(-1)?.at ?? seenEvents;
  const end = newest.findLast((event) => ENDS.has(event.type) && event.data.task === tasks.value);
  if (!end || !root.open) return;
  training = null;
  setText(progress, `${clock(end.at)}: ${end.text}`);
  loadLabels(facts.labels.length);
  list();
}

function load() {
  if (!tasks.value) return setText(status, "No task classifies a camera, a microphone or a text stream yet: create one.");
  label.value = "";
  return Promise.all([list(), loadLabels(0)]);
}

async function list() {
  if (!tasks.value) return;
  setText(status, "loading …");
  try {
    shown = await request("readings", { task: tasks.value, order: order.value, labelled: labelled.checked, count: 36 });
  } catch (error) {
    setText(status, error.message);
    return;
  }
  for (const name of picked) if (!shown.readings.some((one) => one.name === name)) picked.delete(name);
  const compared = shown.looked_at < shown.stored ? `, ${shown.looked_at} of them compared` : "";
  setText(status, shown.stored ? `${shown.unlabelled} different readings without a label; ${shown.stored} readings are stored${compared}.` : `No reading of ${shown.stream} is stored yet.`);
  showTiles();
}

function showTiles() {
  revoke(tiles);
  tiles.replaceChildren(...shown.readings.map(tile));
  update();
}

function tile(reading, index) {
  const note = [reading.label && `labelled ${reading.label}`, reading.value && `${reading.value} ${percent(reading.confidence)}`, reading.count > 1 && `× ${reading.count}`].filter(Boolean).join(" · ");
  const button = h("button", { type: "button", class: "tile", "aria-pressed": "false", "data-name": reading.name, "aria-label": `Reading of ${clock(reading.stamp)}${note ? `: ${note}` : ""}`, onclick: (event) => toggle(index, event.shiftKey) }, content(reading), h("span", { class: "small" }, note || clock(reading.stamp)));
  return h("li", {}, button, reading.flac ? h("audio", { controls: true, preload: "none", src: url(reading.flac, "audio/flac"), "aria-label": `Sound of ${clock(reading.stamp)}` }) : null);
}

function content(reading) {
  if (reading.jpeg) return image(reading.jpeg, { width: 96 });
  if (reading.text !== undefined) return h("q", {}, reading.text);
  return h("span", {}, reading.level_db !== undefined ? `${number(reading.seconds)} s, ${number(reading.level_db)} dB` : "no stored copy");
}

/** Address of bytes in base64; an image ends it when it is loaded, `revoke` that of a sound. */
function url(base64, type) {
  return URL.createObjectURL(new Blob([Uint8Array.from(atob(base64), (c) => c.charCodeAt(0))], { type }));
}

/** An image of bytes in base64. One that is removed while it loads would complain of a missing address. */
function image(base64, more) {
  const src = url(base64, "image/jpeg");
  const end = () => URL.revokeObjectURL(src);
  return h("img", { src, alt: "", onload: end, onerror: end, ...more });
}

function revoke(parent) {
  for (const element of parent.querySelectorAll("audio[src^='blob:']")) URL.revokeObjectURL(element.src);
}

function toggle(index, range) {
  const name = shown.readings[index].name;
  const on = !picked.has(name);
  const [from, to] = range ? [Math.min(last, index), Math.max(last, index)] : [index, index];
  for (const one of shown.readings.slice(from, to + 1)) on ? picked.add(one.name) : picked.delete(one.name);
  last = index;
  update();
}

function pick(names) {
  picked.clear();
  for (const name of names) picked.add(name);
  update();
}

/** Shows what is selected, the classes, and what the task itself suggests. */
function update() {
  for (const button of tiles.querySelectorAll(".tile")) button.setAttribute("aria-pressed", String(picked.has(button.dataset.name)));
  setText(chosen, picked.size ? `${picked.size} selected` : "Select readings; with Shift, a click selects all from the last one to this one.");
  const known = [...new Set([...(info().tasks?.[tasks.value]?.labels ?? []), ...Object.keys(facts.counts)])].sort();
  const count = (name) => { const at = facts.counts[name] ?? { train: 0, held_out: 0 }; return `${name} (${at.train} + ${at.held_out})`; };
  fill(classes, known.slice(0, 48).map((name) => [name, count(name), () => submit(name)]));
  const values = [...new Set(shown.readings.filter((one) => one.value && !one.label).map((one) => one.value))].sort();
  fill(suggested, values.slice(0, 24).map((name) => [name, `Select all predicted as ${name}`, () => pick(shown.readings.filter((one) => one.value === name && !one.label).map((one) => one.name))]));
  document.getElementById("gallery-classes").replaceChildren(...known.map((value) => h("option", { value })));
  options(editing, known);
  give.disabled = !picked.size;
}

/** Buttons that are made again only where their text changes, so that the focus stays. */
function fill(parent, wanted) {
  const about = JSON.stringify(wanted.map(([name, text]) => [name, text]));
  if (parent.dataset.about === about) return;
  parent.dataset.about = about;
  parent.replaceChildren(...wanted.map(([name, text, onclick]) => h("button", { type: "button", class: "button small", "data-class": name, onclick }, text)));
}

async function submit(name) {
  name = name.trim();
  if (!picked.size || !name) return toast("Select readings and name a class.", true);
  const declared = info().tasks?.[tasks.value]?.labels ?? [];
  if (declared.length && !declared.includes(name)) return extend(name);
  try {
    const done = await command({ do: "label_readings", task: tasks.value, label: name, readings: [...picked], by: who.value });
    const gone = done.gone.length ? `; ${done.gone.length} had been deleted already` : "";
    toast(`${done.train} labelled ${name}, ${done.held_out} held out for evaluation${gone}`, done.gone.length > 0);
  } catch (error) {
    return toast(error.message, true);
  }
  // what is labelled goes at once, so that the next selection is made among the others while the list is loaded again
  if (!labelled.checked) shown.readings = shown.readings.filter((one) => !picked.has(one.name));
  picked.clear();
  label.value = "";
  showTiles();
  return Promise.all([list(), loadLabels(facts.labels.length)]);
}

/** Adds a class to a task that declares its classes; agent and learner start again. */
async function extend(name) {
  if (!(await ask(`Add the class “${name}”?`, `The page writes it to tasks.${tasks.value}.labels. Agent and learner restart. Label the readings afterwards.`, "Add class"))) return;
  await change({ do: "edit_task", what: "add_class", task: tasks.value, label: name }, `${name} is a class of ${tasks.value} now`);
}

async function add() {
  if (!newTask.reportValidity() || !newTask.value) return;
  if (!(await ask(`Create the task “${newTask.value}”?`, `The page writes it to the settings file; it reads ${newStream.value}. Agent and learner restart, and the agent then stores readings for it.`, "Create"))) return;
  if (await change({ do: "edit_task", what: "create", task: newTask.value, stream: newStream.value }, `The task ${newTask.value} is created`)) newTask.value = "";
}

async function change(body, done) {
  try {
    await command(body);
    await request("reload");
    toast(done);
    return true;
  } catch (error) {
    toast(error.message, true);
    return false;
  }
}

async function start() {
  try {
    await request("finetune", { task: tasks.value });
  } catch (error) {
    return toast(error.message, true);
  }
  training = tasks.value;
  setText(progress, "waiting for the learner …");
  clearTimeout(timer);
  timer = setTimeout(poll, POLL_MS);
}

async function poll() {
  if (!root.open || training !== tasks.value) return;
  try {
    const at = (await request("labels", { task: training, count: 0 })).progress;
    if (training && at?.task === training) setText(progress, `training: epoch ${at.epoch ?? 0}, step ${at.step ?? 0}, loss ${number(at.loss)}, validation ${number(at.score)}`);
  } catch { /* the agent may be starting again */ }
  if (training) timer = setTimeout(poll, POLL_MS);
}

async function loadLabels(count) {
  try {
    facts = await request("labels", { task: tasks.value, count: Math.min(48, count) });
  } catch (error) {
    setText(progress, error.message);
    return;
  }
  edited.clear();
  showLabels();
  await evaluation(facts.evaluation);
  update();
}

async function older() {
  const more = await request("labels", { task: tasks.value, count: 24, ...(facts.labels.length && { before: facts.labels.at(-1).number }) }).catch((error) => toast(error.message, true));
  if (!more) return;
  facts.labels = [...facts.labels, ...more.labels].slice(-240);
  showLabels();
}

function showLabels() {
  revoke(history);
  history.replaceChildren(...facts.labels.map(row));
}

function row(one) {
  const part = one.held_out ? "held out for evaluation" : "used for training";
  const state = one.removed ? h("span", {}, `removed by ${one.removed_by}, `, moment(one.removed)) : h("span", {}, part);
  const tick = one.removed || !operator() ? null : h("input", { type: "checkbox", "aria-label": `Label ${one.number}: ${one.label}`, onchange: (event) => (event.target.checked ? edited.add(one.number) : edited.delete(one.number)) });
  return h("li", { class: one.removed ? "gone" : null, "data-number": one.number }, tick, content(one), h("span", {}, h("strong", {}, [one.label].flat().join(", ")), ` by ${one.source}, `, moment(one.stamp), one.replaces ? `, instead of label ${one.replaces}` : "", " · ", state));
}

async function correct(name) {
  if (!edited.size) return toast("Select labels first.", true);
  try {
    const done = await command({ do: "correct_labels", task: tasks.value, labels: [...edited], label: name || null, by: who.value });
    toast(name ? `${done.changed} corrected to ${name}` : `${done.changed} removed`);
  } catch (error) {
    return toast(error.message, true);
  }
  return Promise.all([list(), loadLabels(Math.max(24, facts.labels.length))]);
}

/** What the last candidate knows: accuracy, each class, the confusion matrix, and the examples it gets wrong. */
async function evaluation(found) {
  revoke(report);
  if (!found) return report.replaceChildren();
  const wrong = (found.wrong ?? []).filter((one) => one.label !== null).slice(0, 12);
  const about = wrong.length ? (await request("labels", { task: tasks.value, numbers: wrong.map((one) => one.label) }).catch(() => ({ labels: [] }))).labels : [];
  const head = found.accuracy === undefined ? "" : `${percent(found.accuracy)} right of ${found.examples} held-out readings. `;
  report.replaceChildren(
    h("p", { id: "gallery-accuracy" }, h("strong", {}, head), `${String(found.verdict)}: ${String(found.reason)}`, " ", moment(found.stamp)),
    found.verdict === "inconclusive" && operator() ? h("button", { type: "button", class: "button small", onclick: () => live("promote", { version: found.version }) }, "Promote this version") : null,
    found.verdict === "promoted" && operator() ? h("button", { type: "button", class: "button small", onclick: () => live("rollback", {}) }, "Return to the previous version") : null,
    matrix(found) ?? "",
    slices(found) ?? "",
    wrong.length ? h("p", { class: "small" }, "Wrong answers:") : "",
    h("ul", { class: "gallery" }, wrong.map((one) => { const seen = about.find((each) => each.number === one.label); return h("li", { class: "tile" }, seen ? content(seen) : null, h("span", { class: "small" }, `${one.predicted}, not ${one.is}`)); })),
  );
}

function matrix(found) {
  if (!found.confusion) return null;
  const rows = found.confusion.map((counts, i) => h("tr", {}, h("th", { scope: "row" }, found.classes[i]), counts.map((n, j) => h("td", { class: i === j ? "right" : n ? "bad" : null }, String(n))), h("td", {}, String(found.train?.[found.classes[i]] ?? 0))));
  return h("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "Confusion matrix" }, h("table", { class: "small" }, h("caption", {}, "Held-out readings: rows are the true classes, columns the predicted ones; the last column counts training labels."), h("thead", {}, h("tr", {}, h("th", { scope: "col" }, "class"), found.classes.map((name) => h("th", { scope: "col" }, name)), h("th", { scope: "col" }, "trained on"))), h("tbody", {}, rows)));
}

/** The metric of each slice of the held-out readings, the one that lost most first. */
function slices(found) {
  if (!found.slices?.length) return null;
  const lost = (one) => (one.before === undefined ? 0 : one.metric - one.before);
  const rows = [...found.slices].sort((a, b) => lost(a) - lost(b) || a.metric - b.metric).slice(0, 40).map((one) => h("tr", {}, h("th", { scope: "row" }, `${one.rule}=${one.value}`), h("td", { class: lost(one) < 0 ? "bad" : null }, percent(one.metric)), h("td", {}, `${percent(one.low)} to ${percent(one.high)}`), h("td", {}, one.before === undefined ? "" : percent(one.before)), h("td", {}, String(one.examples))));
  return h("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "Slices" }, h("table", { class: "small" }, h("caption", {}, "Slices of the held-out readings: the metric, its interval at 95 %, the metric of the previous version, and the number of readings."), h("thead", {}, h("tr", {}, ["slice", "metric", "interval", "previous", "readings"].map((name) => h("th", { scope: "col" }, name)))), h("tbody", {}, rows)));
}

async function live(verb, data) {
  try {
    await request(verb, { task: tasks.value, ...data });
    toast(verb === "promote" ? "The version is live" : "The previous version is live again");
  } catch (error) {
    toast(error.message, true);
  }
}

function options(select, names) {
  const before = select.value;
  if (JSON.stringify([...select.options].map((each) => each.value)) === JSON.stringify(names)) return;
  select.replaceChildren(...names.map((value) => h("option", { value }, value)));
  if (names.includes(before)) select.value = before;
}

function remembered() {
  try { return localStorage.getItem("reflexd-name") ?? ""; } catch { return ""; }
}

function remember() {
  try { localStorage.setItem("reflexd-name", who.value); } catch { /* a browser may forbid it; the name then lasts as long as the page */ }
}
