// The deliberator: the goal in force, how probable each goal is, why, which goals were before; a person can set one.
import { h, keyed, percent, seconds, setText } from "./dom.js";
import { now, section, send } from "./socket.js";

const WHY = { started: "since the start", changed: "chosen by the model", confirmed: "confirmed", close: "confirmed, although another goal is about as probable",
  held: "another goal waits until the hold ends", done: "the previous goal is done", expired: "no answer confirmed the previous goal" };
const HOLD_S = 600;
let panel;
let title;
let why;
let list;
let past;
let drawn = "";

export function mount() {
  title = h("h3", {});
  why = h("p", { class: "muted" });
  list = h("ul", { class: "bars", "aria-label": "Probability of each goal" });
  past = h("p", { class: "muted small" });
  panel = h("article", { class: "card", id: "goal", "aria-label": "Goal", hidden: true }, title, why, list, past);
  document.getElementById("act").append(panel);
}

export function render() {
  const goal = section("goal");
  panel.hidden = !goal;
  if (!goal) return;
  setText(title, `Goal: ${goal.goal}`);
  const held = goal.held_s ? goal.held_s - (now() - goal.at) : 0;
  const by = goal.model === "person" ? "set by a person" : WHY[goal.why] ?? goal.why;
  const step = goal.step ? `step ${goal.step.number} of ${goal.step.of}: “${goal.step.text}”` : "";
  setText(why, [step, by, goal.since ? `for ${seconds(Math.max(0, now() - goal.since))}` : "", held > 0 ? `held for another ${seconds(held)}` : ""].filter(Boolean).join(", "));
  const names = goal.goals.length ? goal.goals : Object.keys(goal.probabilities);
  if (drawn !== names.join()) list.replaceChildren(), (list._byKey = undefined), (drawn = names.join());
  keyed(list, names, row, (name, view) => {
    const p = goal.probabilities[name];
    view.bar.style.width = `${Math.min(1, p ?? 0) * 100}%`;
    view.element.classList.toggle("chosen", goal.goal === name);
    setText(view.figure, p === undefined ? "" : percent(p));
  });
  setText(past, goal.past.length ? `Earlier: ${goal.past.map((one) => `${one.goal} (${one.outcome}${one.lasted_s === null ? "" : ` after ${seconds(one.lasted_s)}`})`).join(", ")}` : "");
}

function row(name) {
  const bar = h("span", { class: "fill" });
  const figure = h("span", { class: "figure" });
  const set = h("button", { type: "button", class: "button small operator", "aria-label": `Set the goal ${name} for ${HOLD_S / 60} minutes`,
    onclick: () => send({ do: "goal", value: name, hold_s: HOLD_S }, `Goal ${name} sent`) }, "Set");
  return { element: h("li", { class: "bar" }, h("span", { class: "name" }, name), h("span", { class: "rail" }, bar), figure, set), bar, figure };
}
