// What happened, newest first: a sentence, and a table with the event's figures that opens.
import { h, keyed, moment, stepName } from "./dom.js";
import { figureTable, stepTable } from "./evidence.js";
import { section } from "./socket.js";

let list;

export function mount() {
  list = h("ol", { class: "events" });
  document.getElementById("events").append(h("p", { class: "muted none" }, "No events since this page's server started."), h("div", { class: "scroll tall", tabindex: "0", role: "region", "aria-label": "Events, newest first" }, list));
}

export function render(changed) {
  if (!changed.has("events")) return;
  const events = [...(section("events") ?? [])].reverse().slice(0, 60);
  document.querySelector("#events .none").hidden = events.length > 0;
  const key = (event) => `${event.at} ${event.type}`;
  keyed(list, events.map(key), (wanted) => row(events.find((event) => key(event) === wanted)));
}

function row(event) {
  const data = event.data ?? {};
  const head = [h("span", { class: "sentence" }, event.text ?? stepName(event.type)), moment(event.stamp ?? event.at)];
  const figures = Object.keys(data).length > 0;
  const body = figures ? h("details", {}, h("summary", {}, head), stepTable(data.steps), figureTable({ type: event.type, ...data })) : h("p", {}, head);
  return h("li", {}, h("span", { class: `dotmark ${event.tone ?? ""}`, "aria-hidden": "true" }), h("div", {}, body));
}
