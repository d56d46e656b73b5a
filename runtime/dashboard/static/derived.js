// What follows from several sections together: stopped, armed, mode, last decision, connection problems.
import { now, section, state } from "./socket.js";

const latest = (candidates) => candidates.filter((c) => c.value !== undefined && c.at).sort((a, b) => b.at - a.at)[0]?.value;

function event(types) {
  const found = (section("events") ?? []).filter((e) => types.includes(e.type)).at(-1);
  return { type: found?.type, at: found?.at };
}

export function stopped() {
  const status = section("status");
  const health = section("health");
  const announced = event(["stopped", "stop_released"]);
  return Boolean(latest([
    { value: status ? status.state === "stopped" : undefined, at: status?.at },
    { value: health?.stopped, at: health?.at },
    { value: announced.type && announced.type === "stopped", at: announced.at },
  ]));
}

export function armed() {
  const health = section("health");
  const status = section("status");
  const announced = event(["armed", "disarmed", "stopped"]);
  const byStatus = { online: !status?.reasons?.includes("not armed"), stopped: false, starting: false, offline: false }[status?.state];
  return latest([
    { value: byStatus, at: status?.at },
    { value: health?.armed, at: health?.at },
    { value: announced.type && announced.type === "armed", at: announced.at },
  ]);
}

export const info = () => section("info") ?? { streams: {}, actuators: {}, tasks: {} };
export const lastDecision = () => section("decisions")?.at(-1);
export const health = () => section("health") ?? {};

export function mode() {
  const decision = lastDecision();
  if (decision && now() - decision.stamp < 5) return decision.mode;
  return health().mode ?? info().mode;
}

/** The broker is there, the agent is there, and it decides: else in words what is missing. */
export function trouble() {
  if (!state.connected) return "This page has lost its server. What you see is old.";
  const link = section("link");
  if (link && !link.connected) return "The broker does not answer. What you see is old, and nothing can be steered from here.";
  const status = section("status");
  if (!status) return "The agent has not published anything yet. Is `reflexd run` running?";
  if (status.state === "offline") return "The agent is offline. What you see is old.";
  const decision = lastDecision();
  if (status.state !== "starting" && (!decision || now() - decision.stamp > 3)) return "The agent has made no decision for over 3 s.";
  return null;
}

/** Age of a stream in seconds, from the newest decision, else from health. */
export function age(stream) {
  const ms = lastDecision()?.ages_ms?.[stream];
  return typeof ms === "number" ? ms / 1000 : health().streams?.[stream]?.age_s;
}

export function missing(stream) {
  return lastDecision()?.missing?.includes(stream) ?? health().streams?.[stream]?.stale ?? false;
}

export function proper(kind) {
  return String(kind).replaceAll("_", " ").replace(/^./, (c) => c.toUpperCase());
}
