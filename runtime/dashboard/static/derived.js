// What follows from several sections together: stopped, armed, mode, last decision, connection problems, trends.
import { seconds } from "./dom.js";
import { now, section, state } from "./socket.js";

const latest = (candidates) => candidates.filter((c) => c.value !== undefined && c.value !== null && c.at).sort((a, b) => b.at - a.at)[0]?.value;

function event(types) {
  const found = (section("events") ?? []).filter((e) => types.includes(e.type)).at(-1);
  return { type: found?.type, at: found?.at, data: found?.data };
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

/** The file that is being recorded, or null. */
export function recording() {
  const announced = event(["recording_started", "recording_ended"]);
  const path = announced.type === "recording_started" ? announced.data?.path ?? "" : false;
  const current = section("health")?.recording;
  const found = latest([
    { value: announced.type && path, at: announced.at },
    { value: current === undefined ? undefined : current?.path ?? false, at: section("health")?.at },
  ]);
  return found === undefined || found === false ? null : String(found);
}

export const info = () => section("info") ?? { streams: {}, actuators: {}, tasks: {} };
export const lastDecision = () => section("decision");
export const health = () => section("health") ?? {};

export function mode() {
  const decision = lastDecision();
  if (decision && now() - decision.stamp < patience() + 2) return decision.mode;
  return health().mode ?? info().mode;
}

/** Seconds without a decision after which the agent does not decide: three, or two and a half ticks of a slow one. */
function patience() {
  return Math.max(3, 2.5 / (info().rate_hz || 1));
}

/** Why what is shown may be old or cannot be steered; null when broker and agent are there and decide. */
export function trouble() {
  if (!state.connected) return state.reason || "The connection to the page's server is lost: start the daemon with `reflexd run FILE`. The page shows old values.";
  const link = section("link");
  if (link && !link.connected) return `No connection to the broker: ${link.reason}. The page shows old values and cannot send commands.`;
  const status = section("status");
  if (!status) return "The agent has not published anything yet: start it with `reflexd run FILE`.";
  if (status.state === "offline") return "The agent is offline: start it with `reflexd run FILE`. The page shows old values.";
  const decision = lastDecision();
  if (status.state !== "starting" && (!decision || now() - decision.stamp > patience())) return `The agent has made no decision for over ${seconds(patience())}: run \`reflexd status\` and read the log for the reason. The page shows old values.`;
  return null;
}

/** Seconds since the agent's last decision; undefined before the first. */
export function decisionAge() {
  const decision = lastDecision();
  return decision ? Math.max(0, now() - decision.stamp) : undefined;
}

/** Age of a stream in seconds: what the newest decision says, else health, and the time since then. */
export function age(stream) {
  const ms = lastDecision()?.ages_ms?.[stream];
  if (typeof ms === "number") return ms / 1000 + (trouble() ? decisionAge() : 0);
  const age_s = health().streams?.[stream]?.age_s;
  return typeof age_s === "number" ? age_s + Math.max(0, now() - health().at) : undefined;
}

export function missing(stream) {
  return lastDecision()?.missing?.includes(stream) ?? health().streams?.[stream]?.stale ?? false;
}

/** The override in force of an actuator, with the seconds that are left of it; null without one. */
export function holdOf(actuator) {
  const hold = section("holds")?.[actuator];
  const left = typeof hold?.until === "number" ? hold.until - now() : 0;
  return left > 0 ? { value: hold.value, left } : null;
}

// Student's t, 97.5 %, by degrees of freedom 1 to 12
const T975 = [12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179];
const BLOCKS = 8;

/**
 * The change over a series of [stamp, value], with its 95 % interval: { change, low, high, span }; null for too few points.
 * A straight line through the means of 8 blocks: neighbouring points are not independent, means of blocks nearly are.
 */
export function trend(points) {
  const size = Math.floor((points?.length ?? 0) / BLOCKS);
  if (size < 2) return null;
  const used = points.slice(-size * BLOCKS);
  const mean = (values) => values.reduce((sum, v) => sum + v, 0) / values.length;
  const blocks = Array.from({ length: BLOCKS }, (_, i) => used.slice(i * size, (i + 1) * size)).map((block) => [mean(block.map((p) => p[0])), mean(block.map((p) => p[1]))]);
  const x0 = mean(blocks.map((b) => b[0]));
  const y0 = mean(blocks.map((b) => b[1]));
  const sxx = blocks.reduce((sum, [x]) => sum + (x - x0) ** 2, 0);
  if (!sxx) return null;
  const slope = blocks.reduce((sum, [x, y]) => sum + (x - x0) * (y - y0), 0) / sxx;
  const rest = blocks.reduce((sum, [x, y]) => sum + (y - y0 - slope * (x - x0)) ** 2, 0);
  const error = Math.sqrt(rest / (BLOCKS - 2) / sxx) * T975[BLOCKS - 3];
  const span = used.at(-1)[0] - used[0][0];
  return { change: slope * span, low: (slope - error) * span, high: (slope + error) * span, span };
}

export function proper(kind) {
  return String(kind).replaceAll("_", " ").replace(/^./, (c) => c.toUpperCase());
}
