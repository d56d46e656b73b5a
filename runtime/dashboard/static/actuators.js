// Actuators: the policy's action and its probability, the last command, the device's acknowledgement, the hold in force, and
// manual override with the gate's own answer.
import { forgetChanged, h, keyed, number, percent, setText, seconds, shown, versionName } from "./dom.js";
import { holdOf, info, lastDecision } from "./derived.js";
import { command, now, operator, request, section } from "./socket.js";

const PROPOSAL_S = 5;
const BUTTONS = 24;

const root = () => document.getElementById("actuators");

export function mount() {
  document.getElementById("act").append(h("div", { id: "actuators", class: "stack" }));
}

export function render() {
  const actuators = info().actuators;
  forgetChanged(root(), actuators);
  keyed(root(), Object.keys(actuators), (name) => make(name, actuators[name]), (name, view) => refresh(name, view));
}

function make(name, about) {
  const value = h("p", { class: "big" }, "–");
  const acknowledged = h("span", { class: "badge" });
  const sent = h("p", { class: "muted small" });
  const chart = (about.kind === "choice" ? choices : about.kind === "continuous" ? tracks : () => ({ body: null, refresh() {} }))(name, about);
  const proposal = makeProposal(name);
  const hold = makeHold(name);
  const hand = manual(name, about);
  const outcome = h("p", { class: "outcome small", role: "status" });
  const element = h("article", { class: "card actuator", "aria-label": `Actuator ${name}`, "data-actuator": name },
    h("header", { class: "row" }, h("h3", {}, name), h("span", { class: "kind" }, `${about.kind}, safe: ${shown(about.safe)}`), acknowledged),
    value, chart.body, sent, hold.row, proposal.row, outcome, hand.details);
  return { element, about, value, acknowledged, sent, chart, proposal, hold, hand, outcome };
}

function refresh(name, view) {
  const known = (section("actuators") ?? {})[name] ?? {};
  setText(view.value, shown(inForce(name)));
  const [kind, text] = acknowledgement(view, known);
  view.acknowledged.className = `badge ${kind}`;
  setText(view.acknowledged, text);
  setText(view.sent, known.set ? `Last command ${shown(known.set.value ?? known.set.state)}, ${seconds(Math.max(0, now() - known.set.at))} ago, by ${author(known.set)}` : "No command yet");
  view.chart.refresh(lastDecision()?.actions?.[name]);
  refreshProposal(name, view.proposal);
  refreshHold(name, view.hold);
  view.hand.refresh();
}

function author(command) {
  if (command.policy === "gate") return "the gate (safe action)";
  if (command.policy === "override" || command.by === "override") return "a person";
  return command.policy ? `policy ${versionName(command.policy)}` : "the agent";
}

/** Devices report again and again: what counts is the first report after a command. */
function acknowledgement(view, { set, state }) {
  if (!set) return ["", "idle"];
  const same = state && (state.seq === undefined || state.seq === null ? JSON.stringify(state.value) === JSON.stringify(set.value) : state.boot === set.boot && state.seq >= set.seq);
  if (same) {
    if (view.answered?.set !== set.at) view.answered = { set: set.at, after: Math.max(0, state.at - set.at) };
    return ["good", `acknowledged in ${seconds(view.answered.after)}`];
  }
  const late = now() - set.at > (view.about.ttl_ms ?? 300) / 1000 + 0.5;
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
        setText(view.figure, p === null || p === undefined ? "" : percent(p));
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

/** The proposal's row is made once: a button that is replaced at each proposal loses clicks and the keyboard's focus. */
function makeProposal(name) {
  const text = h("span");
  const row = h("div", { class: "proposal", hidden: true }, text);
  const view = { row, text, offer: null };
  view.button = h("button", { type: "button", class: "button primary", onclick: () => view.offer && override(name, view.offer.value, 1) }, "Confirm");
  row.append(view.button);
  return view;
}

function refreshProposal(name, view) {
  const newest = (section("proposals") ?? {})[name];
  const fresh = (offer) => Boolean(offer) && now() - offer.at < PROPOSAL_S;
  // a proposal under the pointer stays: a click confirms what the page shows, not a newer proposal
  const held = view.row.matches(":hover, :focus-within") && fresh(view.offer);
  if (!held) view.offer = fresh(newest) ? newest : null;
  view.row.hidden = !view.offer;
  view.button.disabled = !operator();
  if (view.offer) setText(view.text, `The policy proposes ${shown(view.offer.value)}`);
}

/** Sends an override and shows the gate's own answer beside the actuator. */
async function override(name, value, hold_s) {
  outcome(name, "sending …");
  try {
    const data = await command({ do: "override", actuator: name, value, hold_s });
    if (data.sent) return outcome(name, `${shown(value)}: sent, held for ${seconds(hold_s)}`, "good");
    return outcome(name, `${shown(value)}: refused by the gate: ${data.reason || data.rule}`, "bad");
  } catch (error) {
    return outcome(name, error.message, "bad");
  }
}

async function endOverride(name) {
  try {
    await request("end_override", { actuator: name });
    outcome(name, "the override ended", "good");
  } catch (error) {
    outcome(name, error.message, "bad");
  }
}

function outcome(name, text, kind = "") {
  const element = root()._byKey?.get(name)?.outcome;
  if (!element) return;
  element.className = `outcome small ${kind}`;
  setText(element, text);
  clearTimeout(element._timer);
  element._timer = setTimeout(() => { element.className = "outcome small"; setText(element, ""); }, 20000);
}

function makeHold(name) {
  const text = h("span");
  const button = h("button", { type: "button", class: "button small operator", onclick: () => endOverride(name) }, "End override");
  return { row: h("div", { class: "hold row", hidden: true }, text, button), text };
}

function refreshHold(name, view) {
  const hold = holdOf(name);
  view.row.hidden = !hold;
  if (hold) setText(view.text, `Held at ${shown(hold.value)} by a person, ${seconds(Math.ceil(hold.left))} left`);
}

/** The value in force, by the device's report, else by the last command; undefined where neither is known. */
function inForce(name) {
  const { set, state } = (section("actuators") ?? {})[name] ?? {};
  return state?.value ?? state?.state ?? set?.value;
}

function manual(name, about) {
  const hold = h("select", { "aria-label": `How long to hold ${name}` }, [["2", "2 s"], ["10", "10 s"], ["60", "1 min"], ["600", "10 min"]].map(([value, text]) => h("option", { value }, text)));
  const held = () => Number(hold.value);
  const inputs = { choice: choiceInputs, continuous: sliderInputs }[about.kind] ?? textInputs;
  const { element, refresh } = inputs(name, about, (value) => override(name, value, held()));
  const details = h("details", { class: "hand operator" }, h("summary", {}, "Take over by hand"), h("div", { class: "stack tight" }, element, h("label", { class: "row small" }, "Hold for ", hold)));
  return { details, refresh: () => refresh?.(details.open) };
}

function choiceInputs(name, about, act) {
  const button = (choice) => h("button", { type: "button", class: "button", onclick: () => act(choice) }, choice);
  if (about.choices.length <= BUTTONS) return { element: h("div", { class: "row wrap" }, about.choices.map(button)) };
  const select = h("select", { "aria-label": `Choice of ${name}` }, about.choices.map((choice) => h("option", { value: choice }, choice)));
  return { element: h("div", { class: "row" }, select, h("button", { type: "button", class: "button", onclick: () => act(select.value) }, "Set")) };
}

/** Sliders start at the value in force and follow it until one is moved. Without a known value each must be moved first. */
function sliderInputs(name, about, act) {
  const moved = new Set();
  let known = false;
  const sliders = about.low.map((low, i) => {
    const figure = h("output", { class: "figure" }, "–");
    const input = h("input", { type: "range", min: low, max: about.high[i], step: "any", "aria-label": `${name} component ${i}`, oninput: () => { moved.add(i); update(); } });
    return { input, figure };
  });
  const button = h("button", { type: "button", class: "button", disabled: true, onclick: () => { act(sliders.map(({ input }) => Number(input.value))); moved.clear(); } }, "Hold these values");
  const note = h("span", { class: "muted small" });
  function update() {
    sliders.forEach(({ input, figure }, i) => setText(figure, known || moved.has(i) ? number(Number(input.value)) : "–"));
    const ready = known || moved.size === sliders.length;
    button.disabled = !ready;
    setText(note, ready ? (moved.size ? "" : "at the value in force") : "The value in force is unknown: move every slider first.");
  }
  function refresh(open) {
    const value = inForce(name);
    const current = Array.isArray(value) ? value : typeof value === "number" ? [value] : [];
    if (!open) moved.clear();
    if (!moved.size) {
      known = current.length === sliders.length && current.every((v) => typeof v === "number");
      if (known) sliders.forEach(({ input }, i) => { input.value = current[i]; });
    }
    update();
  }
  return { element: h("div", { class: "stack tight" }, sliders.map(({ input, figure }) => h("div", { class: "row" }, input, figure)), h("div", { class: "row wrap" }, button, note)), refresh };
}

function textInputs(name, about, act) {
  const line = h("input", { type: "text", maxlength: 1000, "aria-label": `Text for ${name}` });
  return { element: h("div", { class: "row" }, line, h("button", { type: "button", class: "button", onclick: () => line.value && act(line.value) }, "Say")) };
}
