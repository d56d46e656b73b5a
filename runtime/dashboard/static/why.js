// Decisions of the last while, one a second, and what each stream contributed to the chosen one.
import { clock, h, keyed, number, percent, say, seconds, shown } from "./dom.js";
import { lastDecision, missing } from "./facts.js";
import { request, section, tryTo } from "./wire.js";

const SHOWN = 10;
const kept = [];
const remembered = new Map();
let told = null;
let busy = false;
let asked = false;
let list;
let panel;

export const lastExplanation = () => told;

export function mount() {
  list = h("ol", { class: "decisions", "aria-label": "Recent decisions, newest first; choose one to explain it" });
  panel = h("div", { id: "explanation", class: "explanation", "aria-live": "polite" }, h("p", { class: "muted" }, "Choose a decision to see what each stream contributed."));
  document.getElementById("why").append(panel, list);
}

export function render() {
  const decision = lastDecision();
  const hovered = list.matches(":hover") || list.contains(document.activeElement);
  if (decision && !hovered && Math.abs(decision.stamp - (kept[0]?.stamp ?? 0)) >= 1 && decision.id !== kept[0]?.id) {
    kept.unshift(decision);
    kept.length = Math.min(kept.length, SHOWN);
    remembered.set(decision.id, decision);
    if (remembered.size > 200) remembered.delete(remembered.keys().next().value);
  }
  list.classList.toggle("held", hovered);
  keyed(list, kept.map((d) => d.id), (id) => row(kept.find((d) => d.id === id)), (id, entry) => entry.element.classList.toggle("chosen", told?.decision === id));
  if (!asked && decision && section("status")?.state === "online") {
    asked = true;
    explain(decision, true);
  }
}

function row(decision) {
  const actions = Object.entries(decision.actions ?? {}).map(([name, a]) => `${name} ${shown(a.value)}`).join(", ");
  const first = Object.values(decision.actions ?? {})[0];
  const lost = decision.missing?.length ? h("span", { class: "badge warn" }, `without ${decision.missing.join(", ")}`) : null;
  return h("li", {}, h("button", { type: "button", onclick: () => explain(decision) },
    h("time", {}, clock(decision.stamp)), h("span", { class: "what" }, actions || "nothing"), lost,
    h("span", { class: "figure" }, first ? percent(Math.min(1, first.probability)) : ""), h("span", { class: "figure muted" }, `${number(decision.latency_ms)} ms`)));
}

/** Shapley values by stream, whatever actuator they are for: [{stream, value}]. */
function bars(data) {
  const values = data.values ?? data.contributions ?? data.shapley ?? data.streams ?? {};
  return Object.entries(values).map(([stream, v]) => ({ stream, value: typeof v === "number" ? v : Number(v?.value ?? v?.shapley ?? 0) }));
}

export async function explain(decision, quiet = false) {
  if (busy) return;
  busy = true;
  try {
    const data = await request("explain", { decision: decision.id });
    told = { decision: decision.id, at: decision.stamp, bars: bars(data), data };
    show(decision);
  } catch (error) {
    if (!quiet) {
      told = null;
      panel.replaceChildren(h("p", { class: "error" }, `Not explained: ${error.message}`));
    }
  } finally {
    busy = false;
  }
}

function show(decision) {
  const { data } = told;
  const largest = Math.max(1e-9, ...told.bars.map((bar) => Math.abs(bar.value)));
  const what = Object.entries(decision.actions ?? {}).map(([name, a]) => `${name} ${shown(a.value)}`).join(", ");
  const ordered = [...told.bars].sort((a, b) => Math.abs(b.value) - Math.abs(a.value));
  panel.replaceChildren(
    h("p", { class: "row" }, h("strong", {}, what), h("time", { class: "muted" }, clock(decision.stamp))),
    h("ul", { class: "shapley", "aria-label": "Contribution of each stream to the chosen action" }, ordered.map((bar) => shapley(bar, largest, decision))),
    h("p", { class: "muted small" }, facts(data, decision)),
    h("div", { class: "row operator" }, h("span", { class: "small muted" }, "Was it right?"), judge(decision, 1, "Good"), judge(decision, -1, "Bad")));
}

function shapley(bar, largest, decision) {
  const fill = h("span", { class: bar.value < 0 ? "fill against" : "fill" });
  fill.style.width = `${(Math.abs(bar.value) / largest) * 50}%`;
  const old = decision.ages_ms?.[bar.stream];
  const note = decision.missing?.includes(bar.stream) ? "missing" : typeof old === "number" ? seconds(old / 1000) : "";
  return h("li", { class: "bar" }, h("span", { class: "name" }, bar.stream, h("small", {}, note)), h("span", { class: "rail middle" }, fill), h("span", { class: "figure" }, `${bar.value > 0 ? "+" : ""}${number(bar.value)}`));
}

function facts(data, decision) {
  const parts = [`policy ${data.policy ?? decision.policy}`];
  if (Array.isArray(data.lineage) && data.lineage.length > 1) parts.push(`from ${data.lineage.slice(1, 4).join(" ← ")}`);
  if (typeof data.score === "number") parts.push(`score ${number(data.score)}`);
  if (typeof data.baseline === "number") parts.push(`without any stream ${number(data.baseline)}`);
  const gate = data.gate;
  if (gate) parts.push(`gate: ${typeof gate === "string" ? gate : (gate.rule ?? (gate.sent === false ? "not sent" : "sent"))}`);
  return parts.join(" · ");
}

function judge(decision, value, text) {
  return h("button", { type: "button", class: "button", onclick: () => tryTo({ do: "reward", value, decision: decision.id }, `Reward ${value > 0 ? "+" : ""}${value} given`) }, text);
}
