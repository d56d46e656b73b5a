// The header, always visible: state, mode, arm, and the software stop.
import { ask, closeQuestion, h, isAsking, seconds, setText, toast, zone } from "./dom.js";
import { armed, decisionAge, mode, recording, stopped, trouble } from "./derived.js";
import { command, operator, section, send, state } from "./socket.js";

const MODES = [["shadow", "Shadow", "the policy decides but does not act"], ["assist", "Assist", "the policy proposes, and a person confirms"],
  ["autonomous", "Autonomous", "the policy acts without confirmation"]];
let failure = null;
const byId = (id) => document.getElementById(id);

export function mount() {
  for (const [value, name, hint] of MODES) {
    const input = h("input", { type: "radio", name: "mode", value, id: `mode-${value}`, onchange: () => choose(value) });
    byId("mode").append(h("label", { title: hint }, input, h("span", {}, name)));
  }
  byId("stop").addEventListener("click", stop);
  byId("arm").addEventListener("click", arm);
  byId("theme").addEventListener("click", theme);
  byId("logout").addEventListener("click", async () => {
    await fetch("/logout", { method: "POST" });
    location.replace("/login");
  });
  setText(byId("zone"), `Times are in ${zone()}.`);
  byId("logout").disabled = false; // without the handler above, a click would do nothing
}

/** Engages the stop whatever else is open; an open question is answered with no. Releasing asks first. */
async function stop() {
  const asking = closeQuestion();
  if (!stopped() || asking || trouble()) return engage();
  const sure = await ask("Release the software stop?", "The release itself moves nothing. Arm the gate afterwards to let the policy act again.", "Release");
  return sure ? send({ do: "stop", engaged: false }, "Released. Arm the gate to let the policy act.") : undefined;
}

async function engage() {
  failure = null;
  try {
    const data = await command({ do: "stop", engaged: true });
    if (!data.stopped) throw new Error("stop: the gate answered, but did not engage the stop");
    toast("Stopped: the gate confirmed the stop.");
  } catch (error) {
    failure = `THE STOP WAS NOT CONFIRMED (${error.message}). Use the wired emergency stop.`;
    toast(failure, true);
  }
  render();
}

async function arm() {
  if (armed()) return send({ do: "request", verb: "disarm", data: {} }, "Disarmed");
  return send({ do: "request", verb: "arm", data: {} }, (data) => (data.armed === false ? [`Not armed yet: ${(data.waiting_for ?? []).join("; ") || "the agent is not ready"}`, true] : "Armed"));
}

async function choose(wanted) {
  const order = MODES.map(([value]) => value);
  const up = order.indexOf(wanted) > order.indexOf(mode());
  const sure = !up || (await ask(`Switch to ${wanted}?`, "This gives the policy more control over the actuators.", "Switch"));
  if (sure) await send({ do: "request", verb: "mode", data: { mode: wanted } }, (data) => modes(wanted, data));
  render();
}

/** What the gate has set: all actuators need not be in the mode that was asked for. */
function modes(wanted, data) {
  const other = Object.entries(data.modes ?? {}).filter(([, value]) => value !== wanted);
  return other.length ? [`Mode: ${wanted}, but ${other.map(([name, value]) => `${name} is in ${value}`).join(", ")}`, true] : `Mode: ${wanted}`;
}

function theme() {
  const dark = matchMedia("(prefers-color-scheme: dark)").matches;
  const current = document.documentElement.dataset.theme ?? (dark ? "dark" : "light");
  const wanted = current === "dark" ? "light" : "dark";
  document.documentElement.dataset.theme = wanted;
  localStorage.setItem("theme", wanted);
}

export function render() {
  const isStopped = stopped();
  const isArmed = armed();
  setText(byId("agent"), state.agent);
  setText(byId("role"), state.role);
  document.title = `${isStopped ? "Stopped · " : ""}${state.agent} · reflexd`;
  pill(isStopped, isArmed);
  banner(isStopped);
  const button = byId("stop");
  const releases = isStopped && !isAsking() && !trouble();
  setText(button, releases ? "Release stop" : "Software stop");
  button.classList.toggle("engaged", releases);
  setText(byId("arm"), isArmed ? "Disarm" : "Arm");
  byId("arm").classList.toggle("primary", !isArmed && !isStopped);
  for (const control of [button, byId("arm"), ...byId("mode").querySelectorAll("input")]) {
    control.disabled = !operator() || (control.id === "arm" && isStopped);
  }
  const current = document.getElementById(`mode-${mode()}`);
  if (current && !isAsking()) current.checked = true;
  const path = recording();
  byId("recording").hidden = path === null;
  byId("recording").title = path ?? "";
}

function pill(isStopped, isArmed) {
  const status = section("status");
  const gone = trouble();
  let [kind, text] = ["good", `online · ${isArmed ? "armed" : "not armed"}`];
  if (gone) [kind, text] = ["bad", !state.connected || !section("link")?.connected ? "no connection" : (status?.state ?? "no agent")];
  else if (isStopped) [kind, text] = ["bad", "stopped"];
  else if (status.state !== "online") [kind, text] = ["warn", status.state];
  else if (!isArmed) kind = "warn";
  const element = byId("pill");
  element.className = `pill ${kind}`;
  setText(element, text);
}

function banner(isStopped) {
  const element = byId("banner");
  const gone = trouble();
  const reasons = section("status")?.reasons ?? [];
  if (isStopped) failure = null;
  const since = decisionAge();
  let text = failure ?? (gone && since !== undefined ? `${gone} The newest decision is ${seconds(since)} old.` : gone);
  if (!text && isStopped) text = "The software stop is engaged: the gate sent every actuator its safe value. Release it and arm the gate to continue.";
  if (!text && section("status")?.state === "degraded") text = `Degraded: ${reasons.join("; ") || "no reason given"}`;
  element.hidden = !text;
  element.classList.toggle("bad", Boolean(failure ?? gone) || isStopped);
  setText(element, text ?? "");
}
