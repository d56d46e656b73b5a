// Recent decisions, one a second, and what each stream contributed to the chosen one.
import { h, keyed, moment, number, percent, setText, seconds, shown, versionName } from "./dom.js";
import { lastDecision, missing } from "./derived.js";
import { request, section, send } from "./socket.js";

const SHOWN = 10;
const FIRST_MS = 3000;
const AGAIN_MS = 1500;
const listed = [];
const remembered = new Map();
let explained = null;
let busy = false;
let next = null;
let asked = 0;
let list;
let panel;

export const lastExplanation = () => explained;

export function mount() {
  list = h("ol", { class: "decisions", "aria-label": "Recent decisions, newest first; choose one to explain it" });
  panel = h("div", { id: "explanation", class: "explanation", "aria-live": "polite" }, h("p", { class: "muted" }, "Choose a decision to see the contribution of each stream."));
  document.getElementById("why").append(panel, list);
}

export function render() {
  const decision = lastDecision();
  const hovered = list.matches(":hover") || list.contains(document.activeElement);
  if (decision && !hovered && Math.abs(decision.stamp - (listed[0]?.stamp ?? 0)) >= 1 && decision.id !== listed[0]?.id) {
    listed.unshift(decision);
    listed.length = Math.min(listed.length, SHOWN);
    remembered.set(decision.id, decision);
    if (remembered.size > 200) remembered.delete(remembered.keys().next().value);
  }
  list.classList.toggle("held", hovered);
  keyed(list, listed.map((d) => d.id), (id) => row(listed.find((d) => d.id === id)), (id, entry) => entry.element.classList.toggle("chosen", explained?.decision === id));
  if (!explained && decision && section("status")?.state === "online" && Date.now() - asked > FIRST_MS) { // a young agent has too few ticks to compare with: ask again
    asked = Date.now();
    explain(decision, true);
  }
}

function row(decision) {
  const actions = Object.entries(decision.actions ?? {}).map(([name, a]) => `${name} ${shown(a.value)}`).join(", ");
  const first = Object.values(decision.actions ?? {})[0];
  const lost = decision.missing?.length ? h("span", { class: "badge warn" }, `without ${decision.missing.join(", ")}`) : null;
  return h("li", {}, h("button", { type: "button", onclick: () => explain(decision) },
    moment(decision.stamp), h("span", { class: "what" }, actions || "nothing"), lost,
    h("span", { class: "figure" }, first?.probabilities ? percent(Math.min(1, first.probability)) : ""), h("span", { class: "figure muted" }, `${number(decision.latency_ms)} ms`)));
}

/** Shapley values of one actuator's part: [{stream, value}], the strongest first. */
function bars(part) {
  return Object.entries(part.streams ?? {}).map(([stream, value]) => ({ stream, value: Number(value) }))
    .sort((a, b) => Math.abs(b.value) - Math.abs(a.value));
}

/** Over all actuators, each part scaled to its own size: what counted most in general. */
function summed(data) {
  const total = {};
  for (const part of Object.values(data.parts ?? {})) {
    const size = Object.values(part.streams ?? {}).reduce((sum, v) => sum + Math.abs(v), 0) || 1;
    for (const [stream, value] of Object.entries(part.streams ?? {})) total[stream] = (total[stream] ?? 0) + Math.abs(value) / size;
  }
  return Object.entries(total).map(([stream, value]) => ({ stream, value }));
}

/** Asks for an explanation, one at a time; what a person chose meanwhile is asked next, the newest choice alone. */
export async function explain(decision, quiet = false) {
  if (busy) {
    if (!quiet) next = decision;
    return;
  }
  busy = true;
  if (!quiet) panel.replaceChildren(h("p", { class: "muted" }, `Explaining decision ${decision.id} …`));
  try {
    const data = await (quiet ? ask(decision) : ask(decision).catch((error) => askAgain(decision, error)));
    explained = { decision: decision.id, at: decision.stamp, bars: summed(data), data };
    show(decision);
  } catch (error) {
    if (!quiet) {
      explained = null;
      panel.replaceChildren(
        h("p", { class: "error" }, `The agent did not explain it: ${error.message}`),
        h("button", { type: "button", class: "button", onclick: () => explain(decision) }, "Try again"));
    }
  } finally {
    busy = false;
    const chosen = next;
    next = null;
    if (chosen) explain(chosen);
  }
}

const ask = (decision) => request("explain", { decision: decision.id });

/** A second and last request after AGAIN_MS: the decision may not be on the disk yet, or the connection has just come back. */
async function askAgain(decision, error) {
  panel.replaceChildren(h("p", { class: "muted" }, `Explaining decision ${decision.id} … (${error.message}; the page tries once more)`));
  await new Promise((resolve) => setTimeout(resolve, AGAIN_MS));
  return ask(decision);
}

function show(decision) {
  const { data } = explained;
  const parts = Object.entries(data.parts ?? {});
  panel.replaceChildren(
    h("p", { class: "row" }, h("strong", {}, `Decision ${decision.id}`), moment(decision.stamp)),
    ...parts.map(([name, part]) => actuatorPart(name, part, decision, data)),
    parts.length ? "" : h("p", { class: "muted" }, "The policy proposed nothing and nothing was executed, so there is nothing to explain."),
    h("p", { class: "muted small" }, facts(data, decision)),
    ...(data.notes ?? []).map((note) => h("p", { class: "muted small" }, `Note: ${note}.`)),
    h("div", { class: "row operator" }, h("span", { class: "small muted" }, "Was the decision right?"), judge(decision, 1, "Good"), judge(decision, -1, "Bad")));
}

function actuatorPart(name, part, decision, data) {
  const all = bars(part);
  const largest = Math.max(1e-9, ...all.map((bar) => Math.abs(bar.value)));
  const value = part.action ?? data.actions?.[name] ?? decision.actions?.[name]?.value;
  return h("div", { class: "stack tight" },
    h("p", {}, h("strong", {}, `${name} ${shown(value)}${verdict(data, name)}`), h("span", { class: "muted small" }, `  ${part.score_kind === "q" ? "value" : "log density"} ${number(part.score)}, ${number(part.baseline)} without the streams`)),
    h("ul", { class: "shapley", "aria-label": `Contribution of each stream to ${name}` }, all.map((bar) => shapley(bar, largest, decision))));
}

/** Who acted, and what became of the policy's proposal if it was another one or was refused. */
function verdict(data, name) {
  const executed = data.actions?.[name], proposed = data.proposed?.[name], by = data.by?.[name], words = [];
  if (executed === undefined) words.push("proposed, not executed");
  else if (by && by !== "policy") words.push(`by ${by}`);
  if (executed !== undefined && proposed !== undefined && JSON.stringify(proposed) !== JSON.stringify(executed)) words.push(`proposed ${shown(proposed)}`);
  if (data.refused?.[name]) words.push(`refused: ${data.refused[name]}`);
  return words.length ? ` (${words.join(", ")})` : "";
}

function shapley(bar, largest, decision) {
  const fill = h("span", { class: bar.value < 0 ? "fill against" : "fill" });
  fill.style.width = `${(Math.abs(bar.value) / largest) * 50}%`;
  const old = decision.ages_ms?.[bar.stream];
  const note = decision.missing?.includes(bar.stream) ? "missing" : typeof old === "number" ? seconds(old / 1000) : "";
  return h("li", { class: "bar" }, h("span", { class: "name" }, bar.stream, h("small", {}, note)), h("span", { class: "rail middle" }, fill), h("span", { class: "figure" }, `${bar.value > 0 ? "+" : ""}${number(bar.value)}`));
}

function facts(data, decision) {
  const parts = [`policy ${versionName(data.policy ?? decision.policy)}`];
  if (Array.isArray(data.lineage) && data.lineage.length > 1) parts.push(`from ${data.lineage.slice(1, 4).map(versionName).join(" ← ")}`);
  if (typeof data.reward === "number") parts.push(`reward ${number(data.reward)}`);
  if (typeof data.value === "number") parts.push(`estimated return ${number(data.value)}`);
  return parts.join(" · ");
}

function judge(decision, value, text) {
  return h("button", { type: "button", class: "button", onclick: () => send({ do: "reward", value, decision: decision.id }, `Reward ${value > 0 ? "+" : ""}${value} sent`) }, text);
}
