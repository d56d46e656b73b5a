// Every verdict on a policy version over time: candidates that were rejected, versions that went live, and rollbacks.
import { h, s, seconds, stepName, versionName, whole } from "./dom.js";
import { now } from "./socket.js";

const HEIGHT = 90;
const SHOWN = 60;
const KINDS = { policy_promoted: ["went live", "good"], policy_rolled_back: ["rolled back", "bad"], policy_rejected: ["rejected", "plain"], policy_trusted: ["trusted", "good"] };

export function promotions() {
  const svg = s("svg", { role: "img", class: "chart promotions", viewBox: `0 0 300 ${HEIGHT}` });
  const element = h("figure", { class: "chartbox", hidden: true }, h("figcaption", {}, h("span", {}, "Promotions: a filled mark is a version that went live, a hollow one was rejected, a cross was rolled back")), svg);
  let drawn = "";
  return {
    element,
    /** Draws the verdicts where they changed. */
    update(past) {
      const drawnEvents = past.filter((each) => KINDS[each.type]).slice(-SHOWN);
      element.hidden = drawnEvents.length === 0;
      const about = `${drawnEvents.length} ${drawnEvents.at(-1)?.stamp} ${svg.clientWidth} ${Math.floor(Date.now() / 30000)}`;
      if (about === drawn || !drawnEvents.length) return;
      drawn = about;
      draw(svg, drawnEvents);
    },
  };
}

function draw(svg, drawnEvents) {
  const width = Math.max(160, svg.clientWidth || 300);
  svg.setAttribute("viewBox", `0 0 ${width} ${HEIGHT}`);
  svg.replaceChildren();
  const t0 = drawnEvents[0].stamp;
  const t1 = Math.max(now(), drawnEvents.at(-1).stamp, t0 + 1);
  const x = (t) => 10 + ((t - t0) / (t1 - t0)) * (width - 20);
  const rows = { policy_promoted: 18, policy_trusted: 18, policy_rejected: 42, policy_rolled_back: 66 };
  for (const [text, y] of [["live", 18], ["rejected", 42], ["rolled back", 66]]) {
    svg.append(s("line", { x1: 0, x2: width, y1: y, y2: y, class: "gridline" }), label(2, y - 6, text, "start"));
  }
  for (const each of drawnEvents) {
    const [word, tone] = KINDS[each.type];
    const mark = each.type === "policy_rolled_back" ? cross(x(each.stamp), 66) : s("circle", { cx: x(each.stamp), cy: rows[each.type], r: each.type === "policy_trusted" ? 2 : 5, class: `mark ${tone}` });
    const title = s("title");
    title.textContent = `${versionName(each.data.version)} ${word}${each.data.step ? ` at ${stepName(each.data.step)}` : ""}, ${whole(each.stamp)}`;
    mark.append(title);
    svg.append(mark);
  }
  svg.append(label(0, HEIGHT - 3, `${seconds(t1 - t0)} ago`, "start"), label(width, HEIGHT - 3, "now", "end"));
  const count = (type) => drawnEvents.filter((each) => each.type === type).length;
  svg.setAttribute("aria-label", `Promotions in ${seconds(t1 - t0)}: ${count("policy_promoted")} went live, ${count("policy_rejected")} rejected, ${count("policy_rolled_back")} rolled back`);
}

function cross(x, y) {
  const mark = s("g", { class: "mark bad" });
  mark.append(s("line", { x1: x - 5, x2: x + 5, y1: y - 5, y2: y + 5 }), s("line", { x1: x - 5, x2: x + 5, y1: y + 5, y2: y - 5 }));
  return mark;
}

function label(x, y, text, anchor) {
  const element = s("text", { x, y, "text-anchor": anchor, class: "tick" });
  element.textContent = text;
  return element;
}
