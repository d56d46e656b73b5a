// Is it learning: curves, the learner's figures, and every version of the policy with the verdict on it.
import { chart } from "./charts.js";
import { ask, count, h, keyed, number, percent, seconds, setText, stepName, versionName, whole } from "./dom.js";
import { health } from "./derived.js";
import { figureTable, stepTable } from "./evidence.js";
import { now, request, section, state, send } from "./socket.js";
import { fill } from "./health.js";
import { promotions } from "./promotions.js";

const CURVES = [["reward", "Reward per tick", "Mean reward over time. It should rise, then level off."],
  ["return", "Return", "Sum of the rewards of an episode, or of a minute if no reward ends an episode. It should rise."],
  ["loss", "Loss", "Error of the critic's prediction. It falls at first, then varies with the policy. Alone it proves little."],
  ["value", "Estimated value", "The return that the policy expects from now on. If it is far above the actual return, the policy is overconfident."]];
const VERDICTS = ["policy_promoted", "policy_proposed", "policy_rejected", "policy_rolled_back", "policy_trusted", "experiment_ended"];
const charts = {};
let figures;
let versions;
let note;
let history;
let past = [];
let asked = 0;

export function mount() {
  for (const [name, title, goal] of CURVES) charts[name] = chart(title, { goal });
  history = promotions();
  figures = h("dl", { class: "facts" });
  versions = h("tbody");
  note = h("p", { class: "muted small" }, "No checkpoint yet.");
  const table = h("table", { class: "versions" }, h("caption", {}, "Policies, newest first"),
    h("thead", {}, h("tr", {}, ["Version", "Age", "Verdict", ""].map((t) => h("th", { scope: "col" }, t || h("span", { class: "vh" }, "Promote"))))), versions);
  document.getElementById("learn").append(h("div", { class: "charts" }, CURVES.map(([name]) => charts[name].element)), figures, history.element, note, h("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "Policies" }, table),
    h("div", { class: "row operator wrap" }, h("button", { type: "button", class: "button", id: "rollback", onclick: rollback }, "Roll back"),
      h("button", { type: "button", class: "button", onclick: () => send({ do: "request", verb: "finetune", data: {} }, "Fine-tuning requested") }, "Fine-tune now")));
}

export function render(changed) {
  for (const [name] of CURVES) charts[name].update(section(`series/${name}`), changed.has(`series/${name}`));
  const learner = health().learner ?? {};
  const loss = typeof learner.loss === "object" && learner.loss ? Object.values(learner.loss).reduce((a, b) => a + b, 0) : learner.loss;
  fill(figures, { "Learner": learner.state === "dead" ? "no report" : learner.state ?? "–", "Updates": count(learner.updates), "Updates per second": number(learner.updates_per_s), "Latest loss": number(loss),
    "Mean Q": number(learner.q), "Transitions": count(learner.buffer), "Reward, last 1,000 ticks": number(learner.reward_mean), "Exploration": exploration() });
  history.update(past);
  const news = changed.has("events") && VERDICTS.includes((section("events") ?? []).at(-1)?.type);
  if (state.connected && section("link")?.connected && (news || Date.now() - asked > 15000)) refresh();
}

async function refresh() {
  asked = Date.now();
  const data = await request("checkpoints").catch(() => null);
  if (!data) return;
  past = (data.history ?? []).filter((each) => each?.data && typeof each.stamp === "number");
  list(data);
}

const made = (entry) => entry.created ?? entry.created_s ?? 0;

function list(data) {
  const found = Array.isArray(data) ? data : (data.checkpoints ?? data.versions ?? []);
  const live = data.live?.version ?? data.live ?? health().policy;
  const failed = data.failed ?? data.live?.failed ?? [];
  const entries = found.map((entry) => (typeof entry === "string" ? { version: entry } : entry)).sort((a, b) => made(b) - made(a)).slice(0, 20);
  note.hidden = entries.length > 0;
  const byVersion = Object.fromEntries(entries.map((entry) => [entry.version ?? entry.id, entry]));
  keyed(versions, Object.keys(byVersion), makeRow, (version, view) => refreshRow(version, view, byVersion[version], live, failed));
}

/** A row is made once and then refreshed: a button that is replaced loses clicks and the keyboard's focus. */
function makeRow(version) {
  const badge = h("span", { class: "badge" });
  const evidence = h("details", { class: "verdict" }, h("summary", {}, badge));
  const when = h("td");
  const promote = h("button", { type: "button", class: "button small", "aria-label": `Promote ${version}`, onclick: () => promoteTo(version) }, "Promote");
  return { element: h("tr", {}, h("th", { scope: "row", title: version }, versionName(version)), when, h("td", {}, evidence), h("td", { class: "operator" }, promote)), badge, when, promote, evidence, shown: null };
}

function refreshRow(version, view, entry, live, failed) {
  const isLive = version === live || entry.live === true;
  const verdicts = past.filter((each) => each.data.version === version);
  const [kind, text] = verdict(verdicts.at(-1), isLive, failed.includes(version));
  view.element.classList.toggle("live", isLive);
  setText(view.when, made(entry) ? seconds(Math.max(0, now() - made(entry))) : "");
  view.when.title = whole(made(entry));
  view.badge.className = `badge ${kind}`;
  setText(view.badge, text);
  const figuresText = JSON.stringify([verdicts, entry.metrics]);
  if (figuresText !== view.shown) {
    view.shown = figuresText;
    const judged = [...verdicts].reverse().find((each) => each.data.steps) ?? verdicts.at(-1);
    view.evidence.replaceChildren(view.evidence.firstChild, ...[stepTable(judged?.data.steps), figureTable({ version, ...(judged?.data ?? entry.metrics ?? {}) })].filter(Boolean));
  }
  view.promote.hidden = isLive;
}

/** The newest verdict that the agent has stored, in words. */
function verdict(last, isLive, hasFailed) {
  if (isLive) return ["good", health().experiments?.trusted === false ? "live, not yet trusted" : "live"];
  if (last?.type === "policy_rolled_back" || hasFailed) return ["bad", "rolled back"];
  if (last?.type === "experiment_ended") return [last.data.outcome === "out" ? "bad" : "", last.data.result ?? last.data.reason];
  if (last?.type === "policy_proposed") return ["", health().experiments?.experiment?.challenger === last.data.version ? "on trial" : "waiting for its experiment"];
  if (last?.type === "policy_rejected") return ["bad", `rejected: ${stepName(last.data.step ?? "see the events")}`];
  return ["", last ? "previously live" : "not evaluated"];
}

/** How the policy explores now: by the newest decision, else by health. */
function exploration() {
  const mode = section("decision")?.mode;
  if (mode === undefined) return "–";
  const share = health().exploration;
  if (mode !== "autonomous") return `off in ${mode}`;
  return typeof share === "number" ? percent(share) : "on";
}

async function promoteTo(version) {
  if (!(await ask(`Promote ${versionName(version)}?`, "It acts at once. An experiment then compares it with the trusted version and rolls it back automatically if it is worse.", "Promote"))) return;
  if (await send({ do: "request", verb: "promote", data: { version } }, `${versionName(version)} promoted`)) refresh();
}

async function rollback() {
  if (!(await ask("Roll back?", "The last good version before this one becomes the live version again.", "Roll back"))) return;
  if (await send({ do: "request", verb: "rollback", data: {} }, "Rolled back")) refresh();
}
