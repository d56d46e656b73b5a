// Is it well: latency against its budget, age of every stream against its limit, what was dropped and refused.
import { chart } from "./charts.js";
import { clock, count, h, keyed, number, setText, seconds, shown } from "./dom.js";
import { age, health, info, missing, recording } from "./derived.js";
import { section, send } from "./socket.js";

let latency;
let figures;
let ages;
let losses;
let recordButton;
let recordNote;
let drift;
let accept;

export function mount() {
  latency = chart("Tick latency", { unit: " ms", from: 0, goal: "Time of one tick, from its deadline to the proposal. It should stay below the budget." });
  figures = h("dl", { class: "facts" });
  ages = h("ul", { class: "bars", "aria-label": "Age of each stream against its limit" });
  losses = h("ul", { class: "lines small" });
  recordButton = h("button", { type: "button", class: "button", onclick: record }, "Record a session");
  recordNote = h("p", { class: "muted small" });
  drift = h("p", { class: "drift", hidden: true });
  accept = h("button", { type: "button", class: "button small operator", hidden: true,
    onclick: () => send({ do: "request", verb: "accept_drift", data: { stream: "policy" } }, "The present figures of the policy are its new reference") }, "Accept as the policy's new reference");
  document.getElementById("well").append(drift, accept, latency.element, figures, h("h3", {}, "Age of each stream"), ages, h("h3", {}, "Dropped and refused"), losses,
    h("div", { class: "row operator wrap" }, h("button", { type: "button", class: "button", onclick: () => send({ do: "request", verb: "reload", data: {} }, reloaded) }, "Reload settings"), recordButton), recordNote);
}

function reloaded(data) {
  const later = data.restart_required ?? [];
  if (later.length) return [`The daemon read the settings, but a restart is required for: ${later.join(", ")}`, true];
  return (data.changed ?? []).length ? `Reloaded: ${data.changed.join(", ")}` : "Reloaded: no setting has changed";
}

function record() {
  const on = recording() === null;
  return send({ do: "request", verb: "record", data: { on } }, (data) => (on ? `Recording to ${data.path}` : `Recording ended: ${data.path}, ${count(data.written)} records, ${count(data.dropped)} dropped`));
}

export function render(changed) {
  latency.update(section("series/latency"), changed.has("series/latency"));
  const path = recording();
  setText(recordButton, path === null ? "Record a session" : "End the recording");
  setText(recordNote, path === null ? "" : `Recording to ${path}`);
  const tick = health().tick ?? {};
  const budget = info().rate_hz ? 1000 / info().rate_hz : null;
  fill(figures, { "Median": `${number(tick.p50_ms)} ms`, "99th percentile": `${number(tick.p99_ms)} ms`, "Budget": budget ? `${number(budget)} ms` : "–",
    "Ticks": count(tick.count), "Overruns": count(tick.overruns), "Memory": health().memory_mb ? `${count(health().memory_mb)} MB` : "–", "Disk": disk(health().storage),
    "Version": info().version ?? "–" });
  keyed(ages, Object.keys(info().streams), (name) => {
    const bar = h("span", { class: "fill" });
    const figure = h("span", { class: "figure" });
    return { element: h("li", { class: "bar" }, h("span", { class: "name" }, name), h("span", { class: "rail" }, bar), figure), bar, figure };
  }, (name, view) => {
    const old = age(name);
    const limit = info().streams[name].max_age_s;
    view.bar.style.width = `${Math.min(1, (old ?? limit) / limit) * 100}%`;
    view.element.classList.toggle("over", missing(name));
    setText(view.figure, old === undefined ? "nothing received yet" : `${seconds(old)} of ${seconds(limit)}`);
  });
  const drifted = health().drift?.policy;
  drift.hidden = accept.hidden = !drifted;
  if (drifted) setText(drift, `The policy's value and certainty have differed from their reference since ${clock(drifted.since_unix_s)}: ${shown(drifted.words)}`);
  listLosses();
}

function disk(storage) {
  if (typeof storage?.used_bytes !== "number" || typeof storage.max_bytes !== "number") return "–";
  const megabytes = (n) => count(Math.round(n / 1e6));
  const use = `${megabytes(storage.used_bytes)} of ${megabytes(storage.max_bytes)} MB`;
  if (typeof storage.problem === "string") return `${use}; cannot write ${storage.problem}`;
  if (typeof storage.days_until_full !== "number") return use;
  const fits = typeof storage.free_bytes !== "number" || storage.free_bytes >= storage.max_bytes - storage.used_bytes;
  const left = seconds(storage.days_until_full * 86_400);
  return fits ? `${use}; in ${left} the oldest is deleted` : `${use}; the disk is full in ${left}`;
}

export function fill(list, values) {
  keyed(list, Object.keys(values), (key) => {
    const value = h("dd", {});
    return { element: h("div", {}, h("dt", {}, key), value), value };
  }, (key, view) => setText(view.value, values[key]));
}

function listLosses() {
  const lines = {};
  for (const [name, stream] of Object.entries(health().streams ?? {})) {
    for (const [cause, n] of Object.entries(stream.drops ?? {})) lines[`${name}: ${cause}`] = n;
    if (typeof stream.last_refusal === "string") lines[`${name}: last refusal: ${stream.last_refusal}`] = undefined;
  }
  for (const [rule, n] of Object.entries(health().gate?.refusals ?? {})) lines[`gate refused: ${rule}`] = n;
  for (const [cause, n] of Object.entries(section("refused") ?? {})) lines[`malformed message: ${cause}`] = n;
  const keys = Object.keys(lines).length ? Object.keys(lines) : ["nothing"];
  keyed(losses, keys, (key) => {
    const n = h("span", { class: "figure" });
    return { element: h("li", { class: "row" }, h("span", {}, key), n), n };
  }, (key, view) => setText(view.n, lines[key] === undefined ? "" : count(lines[key])));
}
