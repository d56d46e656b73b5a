// Is it well: latency against its budget, age of every stream against its limit, what was dropped and refused.
import { chart } from "./charts.js";
import { count, h, keyed, number, setText, seconds } from "./dom.js";
import { age, health, info, missing } from "./derived.js";
import { operator, section, send } from "./socket.js";

let latency;
let figures;
let ages;
let losses;

export function mount() {
  latency = chart("Tick latency", { unit: " ms", from: 0 });
  figures = h("dl", { class: "facts" });
  ages = h("ul", { class: "bars", "aria-label": "Age of each stream against its limit" });
  losses = h("ul", { class: "lines small" });
  document.getElementById("well").append(latency.element, figures, h("h3", {}, "Age of each stream"), ages, h("h3", {}, "Dropped and refused"), losses,
    h("div", { class: "row operator wrap" }, button("Reload settings", "reload"), button("Record a session", "record")));
}

function button(text, verb) {
  return h("button", { type: "button", class: "button", onclick: () => send({ do: "request", verb, data: {} }, `${text}: accepted`) }, text);
}

export function render(changed) {
  if (changed.has("series/latency")) latency.update(section("series/latency"));
  const tick = health().tick ?? {};
  const budget = info().rate_hz ? 1000 / info().rate_hz : null;
  fill(figures, { "Median": `${number(tick.p50_ms)} ms`, "99 of 100": `${number(tick.p99_ms)} ms`, "Budget": budget ? `${number(budget)} ms` : "–",
    "Ticks": count(tick.count), "Overruns": count(tick.overruns), "Memory": health().memory_mb ? `${count(health().memory_mb)} MB` : "–", "Version": info().version ?? "–" });
  keyed(ages, Object.keys(info().streams), (name) => {
    const bar = h("span", { class: "fill" });
    const figure = h("span", { class: "figure" });
    return { element: h("li", { class: "bar" }, h("span", { class: "name" }, name), h("span", { class: "rail" }, bar), figure), bar, figure };
  }, (name, view) => {
    const old = age(name);
    const limit = info().streams[name].max_age_s;
    view.bar.style.width = `${Math.min(1, (old ?? limit) / limit) * 100}%`;
    view.element.classList.toggle("over", missing(name));
    setText(view.figure, `${seconds(old)} of ${seconds(limit)}`);
  });
  listLosses();
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
  }
  for (const [rule, n] of Object.entries(health().gate?.refusals ?? {})) lines[`gate refused: ${rule}`] = n;
  const keys = Object.keys(lines).length ? Object.keys(lines) : ["nothing"];
  keyed(losses, keys, (key) => {
    const n = h("span", { class: "figure" });
    return { element: h("li", { class: "row" }, h("span", {}, key), n), n };
  }, (key, view) => setText(view.n, lines[key] === undefined ? "" : count(lines[key])));
}
