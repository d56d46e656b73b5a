// Actuators: the policy's action and its probability, the last command, the device's acknowledgement, and manual override.
import { h, keyed, number, percent, setText, seconds, shown } from "./dom.js";
import { info, lastDecision } from "./derived.js";
import { now, operator, section, send } from "./socket.js";

const root = () => document.getElementById("actuators");

export function mount() {
  document.getElementById("act").append(h("div", { id: "actuators", class: "stack" }));
}

export function render() {
  const actuators = info().actuators;
  keyed(root(), Object.keys(actuators), (name) => make(name, actuators[name]), (name, view) => refresh(name, view));
}

function make(name, about) {
  const value = h("p", { class: "big" }, "–");
  const acknowledged = h("span", { class: "badge" });
  const sent = h("p", { class: "muted small" });
  const chart = (about.kind === "choice" ? choices : about.kind === "continuous" ? tracks : () => ({ body: null, refresh() {} }))(name, about);
  const proposal = h("div", { class: "proposal", hidden: true });
  const hand = override(name, about);
  const element = h("article", { class: "card actuator", "aria-label": `Actuator ${name}`, "data-actuator": name },
    h("header", { class: "row" }, h("h3", {}, name), h("span", { class: "kind" }, `${about.kind}, safe: ${shown(about.safe)}`), acknowledged),
    value, chart.body, sent, proposal, hand);
  return { element, about, value, acknowledged, sent, chart, proposal };
}

function refresh(name, view) {
  const known = (section("actuators") ?? {})[name] ?? {};
  setText(view.value, shown(known.state?.value ?? known.state?.state ?? known.set?.value));
  const [kind, text] = acknowledgement(view.about, known);
  view.acknowledged.className = `badge ${kind}`;
  setText(view.acknowledged, text);
  setText(view.sent, known.set ? `Last command ${shown(known.set.value)}, ${seconds(Math.max(0, now() - known.set.at))} ago, by ${author(known.set)}` : "No command yet");
  view.chart.refresh(lastDecision()?.actions?.[name]);
  propose(name, view);
}

function author(command) {
  if (command.policy === "gate") return "the gate (safe action)";
  if (command.policy === "override" || command.by === "override") return "a person";
  return command.policy ? `policy ${command.policy}` : "the agent";
}

function acknowledgement(about, { set, state }) {
  if (!set) return ["", "idle"];
  const same = state && (state.seq === undefined || state.seq === null ? JSON.stringify(state.value) === JSON.stringify(set.value) : state.boot === set.boot && state.seq >= set.seq);
  if (same) return ["good", `acknowledged in ${seconds(Math.max(0, state.at - set.at))}`];
  const late = now() - set.at > (about.ttl_ms ?? 300) / 1000 + 0.5;
  return late ? ["bad", "not acknowledged"] : ["", "sent"];
}

function choices(name, about) {
  const list = h("ul", { class: "bars", "aria-label": `Probability of each choice of ${name}` });
  return {
    body: list,
    refresh(action) {
      if (!action) return;
      keyed(list, about.choices, (choice) => {
        const bar = h("span", { class: "fill" });
        const figure = h("span", { class: "figure" });
        return { element: h("li", { class: "bar" }, h("span", { class: "name" }, choice), h("span", { class: "rail" }, bar), figure), bar, figure };
      }, (choice, view) => {
        const chosen = action.value === choice;
        const p = action.probabilities?.[choice] ?? (chosen ? action.probability : null);
        view.bar.style.width = `${Math.min(1, p ?? 0) * 100}%`;
        view.element.classList.toggle("chosen", chosen);
        setText(view.figure, p === null ? "" : percent(p));
      });
    },
  };
}

function tracks(name, about) {
  const list = h("ul", { class: "bars", "aria-label": `Value of each component of ${name}` });
  const keys = about.low.map((_, i) => String(i));
  return {
    body: list,
    refresh(action) {
      keyed(list, keys, (key) => {
        const knob = h("span", { class: "knob" });
        const figure = h("span", { class: "figure" });
        return { element: h("li", { class: "bar" }, h("span", { class: "name" }, key), h("span", { class: "rail thin" }, knob), figure), knob, figure };
      }, (key, view) => {
        const value = action?.value?.[Number(key)];
        if (typeof value !== "number") return;
        const [low, high] = [about.low[key], about.high[key]];
        view.knob.style.left = `${Math.max(0, Math.min(1, (value - low) / (high - low))) * 100}%`;
        setText(view.figure, number(value));
      });
    },
  };
}

function propose(name, view) {
  const offer = (section("proposals") ?? {})[name];
  const open = Boolean(offer) && now() - offer.at < 5;
  if (open && (view.proposal.hidden || view.offered !== shown(offer.value))) {
    view.offered = shown(offer.value);
    view.proposal.replaceChildren(h("span", {}, `Proposes ${shown(offer.value)}`),
      h("button", { type: "button", class: "button primary", disabled: !operator(), onclick: () => take(name, offer.value, 1) }, "Confirm"));
  }
  view.proposal.hidden = !open;
}

function take(name, value, hold_s) {
  return send({ do: "override", actuator: name, value, hold_s }, `${name}: ${shown(value)} for ${hold_s} s`);
}

function override(name, about) {
  const hold = h("select", { "aria-label": `How long to hold ${name}` }, [["2", "2 s"], ["10", "10 s"], ["60", "1 min"], ["600", "10 min"]].map(([value, text]) => h("option", { value }, text)));
  const held = () => Number(hold.value);
  let inputs;
  if (about.kind === "choice") {
    inputs = h("div", { class: "row wrap" }, about.choices.slice(0, 24).map((choice) => h("button", { type: "button", class: "button", onclick: () => take(name, choice, held()) }, choice)));
  } else if (about.kind === "continuous") {
    const sliders = about.low.map((low, i) => h("input", { type: "range", min: low, max: about.high[i], step: (about.high[i] - low) / 100, "aria-label": `${name} component ${i}` }));
    inputs = h("div", { class: "stack tight" }, sliders, h("button", { type: "button", class: "button", onclick: () => take(name, sliders.map((x) => Number(x.value)), held()) }, "Hold these values"));
  } else {
    const line = h("input", { type: "text", maxlength: 1000, "aria-label": `Text for ${name}` });
    inputs = h("div", { class: "row" }, line, h("button", { type: "button", class: "button", onclick: () => line.value && take(name, line.value, held()) }, "Say"));
  }
  return h("details", { class: "hand operator" }, h("summary", {}, "Take over by hand"), h("div", { class: "stack tight" }, inputs, h("label", { class: "row small" }, "Hold for ", hold)));
}
