// Streams: pictures while the page is visible, loudness, recognised text, texts and numbers, each with its age.
import { clock, forgetChanged, h, keyed, number, setText, seconds, shown } from "./dom.js";
import { age, health, info, missing } from "./derived.js";
import { sparkline } from "./charts.js";
import { onPicture, section, send, watch } from "./socket.js";

const visible = new Set();
const root = () => document.getElementById("streams");
const observer = new IntersectionObserver((entries) => {
  for (const entry of entries) visible[entry.isIntersecting ? "add" : "delete"](entry.target.dataset.stream);
  watch(visible);
});

export function mount() {
  document.getElementById("see").append(h("div", { id: "streams", class: "stack" }));
  document.addEventListener("visibilitychange", () => watch(visible));
}

export function render() {
  const streams = info().streams;
  forgetChanged(root(), streams);
  const order = { camera: 0, microphone: 1, text: 2, telemetry: 3, plugin: 4 };
  const names = Object.keys(streams).sort((a, b) => order[streams[a].kind] - order[streams[b].kind]);
  keyed(root(), names, (name) => make(name, streams[name]), (name, view) => refresh(name, view));
}

function make(name, stream) {
  const body = { camera, microphone, text, telemetry }[stream.kind] ?? telemetry;
  const made = body(name, stream);
  const mark = h("span", { class: "badge" });
  const drift = h("p", { class: "drift", hidden: true });
  const usual = h("button", { type: "button", class: "button small operator", hidden: true, onclick: () => send({ do: "request", verb: "accept_drift", data: { stream: name } }, `The present readings of ${name} are its new reference`) }, "Accept as the new reference");
  const element = h("article", { class: `card stream ${stream.kind}`, "data-stream": name, "aria-label": `${stream.kind} ${name}` },
    h("header", { class: "row" }, h("h3", {}, name), h("span", { class: "kind" }, stream.required ? `${stream.kind}, required` : stream.kind), mark), drift, usual, made.body);
  observer.observe(element);
  return { element, mark, drift, usual, about: stream, refresh: made.refresh };
}

function refresh(name, view) {
  const gone = missing(name);
  const old = age(name);
  const unused = typeof old !== "number";
  view.mark.className = `badge ${gone && (view.about.required || !unused) ? "bad" : unused ? "" : "good"}`;
  setText(view.mark, unused ? "nothing received yet" : gone ? `missing, ${seconds(old)}` : seconds(old));
  view.element.classList.toggle("gone", gone && (view.about.required || !unused));
  const drift = health().drift?.[name];
  view.drift.hidden = view.usual.hidden = !drift;
  if (drift) setText(view.drift, `Has differed from its reference since ${clock(drift.since_unix_s)}: ${shown(drift.words)}`);
  view.refresh?.((section("streams") ?? {})[name] ?? {});
}

function camera(name) {
  const canvas = h("canvas", { width: 320, height: 180, role: "img", "aria-label": `Live picture of ${name}` });
  const note = h("p", { class: "overlay" }, "waiting for a picture");
  let busy = false;
  onPicture(name, async (blob) => {
    if (busy) return;
    busy = true;
    try {
      const picture = await createImageBitmap(blob);
      if (canvas.width !== picture.width || canvas.height !== picture.height) Object.assign(canvas, { width: picture.width, height: picture.height });
      canvas.getContext("2d").drawImage(picture, 0, 0);
      canvas.dataset.frames = Number(canvas.dataset.frames ?? 0) + 1;
      note.hidden = true;
    } catch {
      note.hidden = false;
      setText(note, "this picture cannot be shown");
    } finally {
      busy = false;
    }
  });
  return { body: h("div", { class: "picture" }, canvas, note) };
}

function microphone(name) {
  const meter = h("meter", { min: -60, max: 0, low: -50, high: -6, optimum: -20, "aria-label": `Sound level of ${name} in dBFS` });
  const level = h("span", { class: "figure" }, "–");
  const words = h("p", { class: "quoted" });
  const line = sparkline();
  let seen = 0;
  return {
    body: h("div", {}, h("div", { class: "row" }, meter, level), line.element, words),
    refresh(content) {
      if (typeof content.level_db === "number") meter.value = content.level_db;
      setText(level, typeof content.level_db === "number" ? `${content.level_db.toFixed(0)} dB` : "–");
      if (content.at && content.at !== seen) { seen = content.at; line.add(content.level_db); }
      const recognisedText = recognised(name);
      setText(words, recognisedText ? `“${recognisedText}”` : "");
    },
  };
}

/** Text that a task recognised in this stream, if any. */
function recognised(name) {
  const tasks = info().tasks ?? {};
  for (const [task, result] of Object.entries(section("tasks") ?? {})) {
    if (result.stream === name || tasks[task]?.stream === name) return tasks[task]?.modality !== "text" && typeof result.value === "string" ? result.value : undefined;
  }
  return undefined;
}

function text() {
  const list = h("ol", { class: "quoted lines", reversed: true });
  return {
    body: list,
    refresh(content) {
      const lines = [...(content.texts ?? [])].reverse().slice(0, 4);
      keyed(list, lines.map((l) => `${l.at}`), (key) => {
        const found = lines.find((l) => `${l.at}` === key);
        return h("li", {}, h("q", {}, found.text), h("time", {}, clock(found.at)));
      });
    },
  };
}

function telemetry() {
  const list = h("dl", { class: "values" });
  let seen = 0;
  return {
    body: list,
    refresh(content) {
      const values = content.values ?? {};
      const fresh = content.at !== seen;
      seen = content.at;
      keyed(list, Object.keys(values), (key) => {
        const line = sparkline();
        const figure = h("dd", { class: "figure" });
        return { element: h("div", { class: "value" }, h("dt", {}, key), line.element, figure), line, figure };
      }, (key, view) => {
        setText(view.figure, typeof values[key] === "number" ? number(values[key]) : shown(values[key]));
        if (fresh && typeof values[key] === "number") view.line.add(values[key]);
      });
    },
  };
}
