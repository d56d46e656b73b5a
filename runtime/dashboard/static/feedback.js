// Feedback from people: answers to queries, labels, rewards, and text for a text stream.
import { ask, h, keyed, setText, shown } from "./dom.js";
import { info } from "./derived.js";
import { section, send } from "./socket.js";

let questions;
let none;
let tasks;
let streams;
let labelling;
let speaking;

export function mount() {
  questions = h("div", { class: "stack" });
  none = h("p", { class: "muted" }, "No open questions.");
  tasks = h("select", { id: "label-task" });
  streams = h("select", { id: "text-stream" });
  const options = h("datalist", { id: "label-options" });
  const label = h("input", { id: "label-label", list: "label-options", required: true, maxlength: 2000, autocomplete: "off" });
  const text = h("input", { id: "label-text", maxlength: 2000, autocomplete: "off" });
  tasks.addEventListener("change", () => {
    const declared = info().tasks[tasks.value];
    options.replaceChildren(...(declared?.labels ?? []).map((value) => h("option", { value })));
    // a picture or a sound cannot be typed: the label is about the newest decision
    text.closest("label").hidden = (declared?.modality ?? "text") !== "text";
    text.placeholder = (declared?.inputs ?? []).length > 1 ? `{${declared.inputs.map((name) => `"${name}": ""`).join(", ")}}` : "";
  });
  labelling = form("Give a label", [["Task", tasks], ["Text", text], ["Label", label]], "Send label", async () => {
    if (!(await isClass(tasks.value, label.value))) return;
    const about = text.value && (info().tasks[tasks.value]?.modality ?? "text") === "text" ? { text: text.value } : newest();
    await send({ do: "label", task: tasks.value, label: label.value, ...about }, "Label sent");
    text.value = "";
  });
  labelling.append(options);
  const line = h("input", { id: "text-line", required: true, maxlength: 2000, autocomplete: "off" });
  speaking = form("Send a text", [["Stream", streams], ["Text", line]], "Send", async () => {
    await send({ do: "text", stream: streams.value, text: line.value }, "Sent");
    line.value = "";
  });
  const judge = h("div", { class: "row operator" }, h("span", { class: "grow" }, "Rate the current action:"), reward(1, "Good"), reward(-1, "Bad"));
  document.getElementById("teach").append(none, questions, judge, speaking, labelling);
}

/** Name the newest decision as the subject of a label. */
function newest() {
  const decision = section("decision")?.id;
  return decision ? { decision } : {};
}

function reward(value, text) {
  return h("button", { type: "button", class: "button", "aria-label": `Reward: ${text}`, onclick: () => send({ do: "reward", value }, `Reward ${value > 0 ? "+" : ""}${value} sent`) }, text);
}

function form(title, fields, send, submit) {
  const body = h("form", { class: "stack tight", onsubmit: (event) => { event.preventDefault(); submit(); } },
    fields.map(([name, input]) => h("label", { class: "field" }, h("span", {}, name), input)), h("button", { class: "button" }, send));
  return h("details", { class: "hand operator" }, h("summary", {}, title), body);
}

export function render(changed) {
  if (changed.has("info")) {
    const kinds = info();
    options(tasks, Object.keys(kinds.tasks ?? {}));
    options(streams, Object.keys(kinds.streams).filter((n) => kinds.streams[n].kind === "text" && String(kinds.streams[n].source).startsWith("topic")));
    labelling.hidden = !tasks.options.length;
    speaking.hidden = !streams.options.length;
    tasks.dispatchEvent(new Event("change"));
  }
  const open = section("questions") ?? [];
  setText(none, open.length > 2 ? `${open.length} open questions; these are the newest.` : open.length ? "Open questions:" : "No open questions.");
  keyed(questions, open.slice(-2).reverse().map((q) => q.id), (id) => question(open.find((q) => q.id === id)));
}

/** Whether a label is a class that the task knows, or one that a person confirms to be new. */
async function isClass(task, label) {
  const classes = info().tasks?.[task]?.labels ?? [];
  return !classes.length || classes.includes(label) || ask(`Is “${label}” a new class?`, `The classes of ${task} are ${classes.slice(0, 12).join(", ")}. The task would learn a misspelt name as another class.`, "New class");
}

function options(select, names) {
  const chosen = select.value;
  select.replaceChildren(...names.map((value) => h("option", { value }, value)));
  if (names.includes(chosen)) select.value = chosen;
}

function question(asked) {
  const about = asked.text ?? Object.values(asked.reading ?? {}).find((r) => r.text)?.text ?? shown(asked.decision ?? asked.id);
  const candidates = (asked.candidates ?? info().tasks?.[asked.task]?.labels ?? []).map((c) => (typeof c === "string" ? c : c.label ?? c[0])).slice(0, 12);
  // what should have been done instead is shown by doing it
  const answer = (label) => asked.actuator && label !== asked.value ? send({ do: "override", actuator: asked.actuator, value: label, hold_s: 1 }, `${asked.actuator}: ${label}`) : send({ do: "label", task: asked.task, label, question: asked.id, ...(asked.text && { text: asked.text }), ...(asked.decision && { decision: asked.decision }) }, `Answered: ${label}`);
  const own = h("input", { "aria-label": "Another answer", maxlength: 2000, placeholder: "another answer" });
  return h("article", { class: "card question", "aria-label": `Question about ${asked.task}` },
    h("p", {}, h("strong", {}, `${asked.task}? `), h("q", {}, about)),
    h("div", { class: "row wrap operator" }, candidates.map((c) => h("button", { type: "button", class: "button", onclick: () => answer(c) }, c)), own,
      h("button", { type: "button", class: "button", onclick: async () => own.value && (asked.actuator || (await isClass(asked.task, own.value))) && answer(own.value) }, "Answer")));
}
