// What happened, newest first, in words, with the numbers that belong to it.
import { clock, h, keyed, shown } from "./dom.js";
import { proper } from "./derived.js";
import { section } from "./socket.js";

const BAD = /lost|rejected|rolled_back|^stopped|restarted|refused|failed|child_restart_limit|corrupt|unreadable|quarantine/;
const GOOD = /recovered|promoted|^armed|released|passed|reloaded$/;
let list;

export function mount() {
  list = h("ol", { class: "events" });
  document.getElementById("events").append(h("p", { class: "muted none" }, "Nothing has happened since this page's server started."), h("div", { class: "scroll tall", tabindex: "0", role: "region", "aria-label": "Events, newest first" }, list));
}

export function render(changed) {
  if (!changed.has("events")) return;
  const events = [...(section("events") ?? [])].reverse().slice(0, 60);
  document.querySelector("#events .none").hidden = events.length > 0;
  const key = (event) => `${event.at} ${event.type}`;
  keyed(list, events.map(key), (wanted) => row(events.find((event) => key(event) === wanted)));
}

function row(event) {
  const kind = BAD.test(event.type) ? "bad" : GOOD.test(event.type) ? "good" : "";
  const data = Object.entries(event.data ?? {}).filter(([name]) => name !== "id").map(([name, value]) => `${name.replaceAll("_", " ")} ${shown(value)}`).join(" · ");
  return h("li", {}, h("span", { class: `dotmark ${kind}`, "aria-hidden": "true" }), h("div", {}, h("strong", {}, proper(event.type)), h("time", {}, clock(event.stamp ?? event.at)), data ? h("p", { class: "muted small" }, data) : null));
}
