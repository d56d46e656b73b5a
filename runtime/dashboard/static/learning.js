// Is it learning: curves, the learner's figures, and every version of the policy with what was decided about it.
import { chart } from "./charts.js";
import { ask, clock, count, h, keyed, number, setText } from "./dom.js";
import { health, proper } from "./derived.js";
import { request, section, state, send } from "./socket.js";
import { fill } from "./health.js";

const CURVES = [["reward", "Reward"], ["return", "Return"], ["loss", "Loss"], ["value", "Estimated value"]];
const VERDICTS = ["policy_promoted", "policy_rejected", "policy_rolled_back", "policy_on_probation", "policy_confirmed"];
const charts = {};
let figures;
let versions;
let note;
let asked = 0;

export function mount() {
  for (const [name, title] of CURVES) charts[name] = chart(title);
  figures = h("dl", { class: "facts" });
  versions = h("tbody");
  note = h("p", { class: "muted small" }, "No checkpoint yet.");
  const table = h("table", { class: "versions" }, h("caption", {}, "Policies, newest first"),
    h("thead", {}, h("tr", {}, ["Version", "Made", "Verdict", ""].map((t) => h("th", { scope: "col" }, t || h("span", { class: "vh" }, "Promote"))))), versions);
  document.getElementById("learn").append(h("div", { class: "charts" }, CURVES.map(([name]) => charts[name].element)), figures, note, h("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "Policies" }, table),
    h("div", { class: "row operator wrap" }, h("button", { type: "button", class: "button", id: "rollback", onclick: rollback }, "Roll back"),
      h("button", { type: "button", class: "button", onclick: () => send({ do: "request", verb: "finetune", data: {} }, "Fine-tuning requested") }, "Fine-tune now")));
}

export function render(changed) {
  for (const [name] of CURVES) charts[name].update(section(`series/${name}`), changed.has(`series/${name}`));
  const learner = health().learner ?? {};
  const loss = typeof learner.loss === "object" && learner.loss ? Object.values(learner.loss).reduce((a, b) => a + b, 0) : learner.loss;
  fill(figures, { "State": learner.state ?? "–", "Updates": count(learner.updates), "A second": number(learner.updates_per_s), "Loss": number(loss),
    "Q": number(learner.q), "Buffer": count(learner.buffer), "Mean reward": number(learner.reward_mean) });
  const news = changed.has("events") && VERDICTS.includes((section("events") ?? []).at(-1)?.type);
  if (state.connected && section("link")?.connected && (news || Date.now() - asked > 15000)) refresh();
}

async function refresh() {
  asked = Date.now();
  const data = await request("checkpoints").catch(() => null);
  if (data) list(data);
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
  const when = h("td");
  const promote = h("button", { type: "button", class: "button small", "aria-label": `Promote ${version}`, onclick: () => promoteTo(version) }, "Promote");
  return { element: h("tr", {}, h("th", { scope: "row" }, version), when, h("td", {}, badge), h("td", { class: "operator" }, promote)), badge, when, promote };
}

function refreshRow(version, view, entry, live, failed) {
  const isLive = version === live || entry.live === true;
  const [kind, text, title] = verdict(entry, version, isLive, failed);
  view.element.classList.toggle("live", isLive);
  setText(view.when, made(entry) ? clock(made(entry)) : "");
  view.badge.className = `badge ${kind}`;
  view.badge.title = title;
  setText(view.badge, text);
  view.promote.hidden = isLive;
}

function verdict(entry, version, isLive, failed) {
  const event = (section("events") ?? []).filter((e) => VERDICTS.includes(e.type) && [e.data?.version, e.data?.candidate, e.data?.policy].includes(version)).at(-1);
  const title = JSON.stringify(event?.data ?? entry.verdict ?? entry.metrics ?? {});
  if (isLive) return ["good", "live", title];
  if (event?.type === "policy_rolled_back" || failed.includes(version)) return ["bad", "rolled back", title];
  if (event?.type === "policy_rejected") return ["bad", `rejected: ${event.data.step ?? event.data.reason ?? "see events"}`, title];
  const verdictText = entry.verdict?.state ?? entry.verdict ?? entry.state ?? (event ? proper(event.type) : "candidate");
  return ["", typeof verdictText === "string" ? verdictText : "judged", title];
}

async function promoteTo(version) {
  if (!(await ask(`Promote ${version}?`, "It goes live between two ticks, on probation: a drop in reward rolls it back automatically.", "Promote"))) return;
  if (await send({ do: "request", verb: "promote", data: { version } }, `${version} promoted`)) refresh();
}

async function rollback() {
  if (!(await ask("Roll back?", "The last good version before this one goes live again.", "Roll back"))) return;
  if (await send({ do: "request", verb: "rollback", data: {} }, "Rolled back")) refresh();
}
