// The header, always visible: state, mode, arm, and the software stop.
import { ask, h, setText } from "./dom.js";
import { armed, mode, stopped, trouble } from "./derived.js";
import { operator, section, state, send } from "./socket.js";

const MODES = [["shadow", "Shadow", "decides, never acts"], ["assist", "Assist", "proposes, a person confirms"],
  ["autonomous", "Autonomous", "acts by itself"]];
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
  byId("logout").disabled = false; // before this it would have done nothing
}

async function stop() {
  if (!stopped()) return send({ do: "stop", engaged: true });
  const sure = await ask("Release the software stop?", "Releasing moves nothing by itself. Arm it afterwards to let the policy act again.", "Release");
  return sure ? send({ do: "stop", engaged: false }, "Released. Arm it to let the policy act.") : undefined;
}

async function arm() {
  if (armed()) return send({ do: "request", verb: "disarm", data: {} }, "Disarmed");
  return send({ do: "request", verb: "arm", data: {} }, "Armed");
}

async function choose(wanted) {
  const order = MODES.map(([value]) => value);
  const up = order.indexOf(wanted) > order.indexOf(mode());
  const sure = !up || (await ask(`Switch to ${wanted}?`, "This gives the policy more setText over the actuators.", "Switch"));
  if (sure) await send({ do: "request", verb: "mode", data: { mode: wanted } }, `Mode: ${wanted}`);
  render();
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
  setText(button, isStopped ? "Release stop" : "Software stop");
  button.classList.toggle("engaged", isStopped);
  setText(byId("arm"), isArmed ? "Disarm" : "Arm");
  byId("arm").classList.toggle("primary", !isArmed && !isStopped);
  for (const control of [button, byId("arm"), ...byId("mode").querySelectorAll("input")]) {
    control.disabled = !operator() || (control.id === "arm" && isStopped);
  }
  const current = document.getElementById(`mode-${mode()}`);
  if (current && !byId("ask").open) current.checked = true;
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
  let text = gone;
  if (!text && isStopped) text = "Stopped by software: every actuator was sent its safe value. Release it, then arm, to go on.";
  if (!text && section("status")?.state === "degraded") text = `Degraded: ${reasons.join("; ") || "no reason given"}`;
  element.hidden = !text;
  element.classList.toggle("bad", Boolean(gone) || isStopped);
  setText(element, text ?? "");
}
