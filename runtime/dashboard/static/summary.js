// Five questions, each answered in one line.
import { h, number, percent, setText, seconds, shown, versionName } from "./dom.js";
import { age, armed, decisionAge, health, info, lastDecision, missing, mode, stopped, trend, trouble } from "./derived.js";
import { section } from "./socket.js";
import { lastExplanation } from "./explanation.js";

const QUESTIONS = [["well", "Is it healthy?", well], ["see", "What does it see and hear?", sees], ["act", "What does it do?", does],
  ["why", "Why?", why], ["learn", "Is it learning?", learning]];
const tiles = {};

export function mount() {
  for (const [target, question] of QUESTIONS) {
    const answer = h("p", { class: "answer" });
    const detail = h("p", { class: "detail" });
    tiles[target] = { answer, detail, dot: h("span", { class: "dotmark", "aria-hidden": "true" }) };
    document.getElementById("glance").append(
      h("a", { class: "tile", href: `#${target}` }, h("p", { class: "question" }, tiles[target].dot, question), answer, detail));
  }
}

export function render() {
  const gone = trouble();
  const since = decisionAge();
  for (const [target, , judge] of QUESTIONS) {
    const [kind, answer, detail] = judge();
    const old = gone && target !== "well";
    tiles[target].dot.className = `dotmark ${old ? "" : kind}`;
    setText(tiles[target].answer, answer);
    setText(tiles[target].detail, old ? `as of ${since === undefined ? "an unknown time" : `${seconds(since)} ago`}; ${detail}` : detail);
  }
}

function well() {
  const gone = trouble();
  if (gone) return ["bad", "No", gone];
  const streams = Object.keys(info().streams);
  const stale = streams.filter((name) => missing(name) && (info().streams[name].required || age(name) !== undefined)); // a stream without any reading yet is not missing
  const unused = streams.filter((name) => age(name) === undefined);
  const tick = health().tick;
  const pace = tick ? `ticks take ${number(tick.p50_ms)} ms (median), ${number(tick.p99_ms)} ms (99th percentile)` : `${number(info().rate_hz)} Hz`;
  if (stopped()) return ["bad", "Stopped", "the software stop is engaged"];
  if (stale.length) return ["warn", "Partly", `missing: ${stale.join(", ")}; ${pace}`];
  if (tick && tick.p99_ms > 1000 / info().rate_hz) return ["warn", "Slow at times", `budget ${number(1000 / info().rate_hz)} ms; ${pace}`];
  return ["good", "Yes", `${streams.length - unused.length} of ${streams.length} streams fresh${unused.length ? `, no reading yet on ${unused.join(", ")}` : ""}, ${pace}`];
}

function sees() {
  const streams = Object.entries(info().streams);
  const fresh = streams.filter(([name]) => !missing(name));
  const contents = section("streams") ?? {};
  const text = streams.map(([name]) => contents[name]).filter((c) => c?.text).sort((a, b) => b.at - a.at)[0]?.text;
  const answer = text ? `“${text}”` : fresh.map(([name]) => name).join(", ") || "Nothing";
  const worst = Math.max(0, ...fresh.filter(([, s]) => s.kind !== "text").map(([name]) => age(name) ?? 0));
  return [fresh.length ? "good" : "bad", answer, fresh.length ? `${fresh.map(([n]) => n).join(", ")}; oldest reading ${seconds(worst)}` : "every stream is missing"];
}

function does() {
  const decision = lastDecision();
  if (!decision) return ["warn", "Nothing yet", ""];
  const parts = Object.entries(decision.actions ?? {}).map(([name, action]) => `${name} ${shown(action.value)}`);
  const sure = Object.values(decision.actions ?? {})[0]?.probability;
  const acts = armed() && !stopped() && mode() === "autonomous";
  const kind = acts ? "good" : "warn";
  const how = stopped() ? "stopped: the policy may not act" : !armed() ? "not armed: the policy may not act" : mode() === "shadow" ? "shadow: the policy may not act" : mode() === "assist" ? "the policy only proposes" : certainty(decision, sure);
  return [kind, parts.join(", ") || "Nothing", how];
}

/** The probability of a choice. A continuous action has a density, which is no probability. */
function certainty(decision, probability) {
  const [name] = Object.keys(decision.actions ?? {});
  if (typeof probability !== "number" || info().actuators[name]?.kind !== "choice") return "the policy acts";
  return `probability ${percent(Math.min(1, probability))}`;
}

function why() {
  const explanation = lastExplanation();
  if (!explanation) return ["", "Choose a decision", "to see the contribution of each stream"];
  const total = explanation.bars.reduce((sum, bar) => sum + Math.abs(bar.value), 0);
  if (!total) return ["warn", "No stream mattered", "the chosen decision would have been the same without them"];
  const [first, ...rest] = [...explanation.bars].sort((a, b) => Math.abs(b.value) - Math.abs(a.value));
  const share = (bar) => `${bar.stream} ${percent(Math.abs(bar.value) / total)}`;
  return ["good", `Mostly ${first.stream}`, [first, ...rest].slice(0, 3).map(share).join(", ")];
}

function learning() {
  const learner = health().learner ?? {};
  if (["off", undefined].includes(learner.state)) return ["", "Off", learner.state ? "the learner is not enabled" : "the learner has not reported yet"];
  if (learner.state === "dead") return ["bad", "No", learner.updates === undefined ? "the learner has not reported since its start; it waits while other programs use all cores" : "the learner has stopped reporting"];
  const points = section("series/reward")?.length > 15 ? section("series/reward") : section("series/reward_mean");
  const found = trend(points);
  const answer = !found ? "Collecting data" : found.low > 0 ? "Yes, reward is rising" : found.high < 0 ? "No, reward is falling" : "Cannot tell yet";
  const interval = found ? `reward changed by ${signed(found.low)} to ${signed(found.high)} (95 %) in ${seconds(found.span)}; ` : "";
  const rate = learner.updates_per_s === undefined ? learner.state : `${number(learner.updates_per_s)} updates/s`;
  const kind = !found ? "" : found.low > 0 ? "good" : found.high < 0 ? "warn" : "";
  return [kind, answer, `${interval}${rate}, policy ${versionName(health().policy)}`];
}

const signed = (value) => `${value > 0 ? "+" : ""}${number(value, 2)}`;
