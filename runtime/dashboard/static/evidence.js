// Tables of figures: the steps of a promotion with figure and limit, and any other fields of an event.
import { h, shown, stepName } from "./dom.js";

const LIMIT = /limit|margin|budget|allowed|alpha|confidence|^min_|^least/;

/** The steps of a promotion: step, passed, limits, figures; null where there are none. */
export function stepTable(steps) {
  const rows = Object.entries(steps && typeof steps === "object" ? steps : {});
  if (!rows.length) return null;
  return h("table", { class: "evidence" }, h("caption", { class: "vh" }, "Steps of the promotion"),
    h("thead", {}, h("tr", {}, ["Step", "Passed", "Figures", "Limits"].map((title) => h("th", { scope: "col" }, title)))),
    h("tbody", {}, rows.map(([name, figures]) => stepRow(name, figures ?? {}))));
}

function stepRow(name, { passed, ...figures }) {
  const pick = (limits) => Object.entries(figures).filter(([key, value]) => LIMIT.test(key) === limits && value !== null).map(([key, value]) => `${readable(key)} ${flat(value)}`).join("; ");
  const verdict = figures.applies === false ? "does not apply" : passed ? "yes" : figures.finding === "inconclusive" ? "inconclusive" : "no";
  return h("tr", { class: passed || verdict === "inconclusive" ? "" : "failed" }, h("th", { scope: "row" }, stepName(name)), h("td", {}, verdict), h("td", {}, pick(false)), h("td", {}, pick(true)));
}

/** All other fields, one a row; an object becomes one row for each of its parts. */
export function figureTable(data) {
  const rows = Object.entries(data).filter(([name, value]) => name !== "steps" && value !== null && value !== undefined && value !== "");
  return h("table", { class: "evidence" }, h("caption", { class: "vh" }, "Figures"),
    h("tbody", {}, rows.map(([name, value]) => h("tr", {}, h("th", { scope: "row" }, readable(name)), h("td", {}, flat(value))))));
}

const readable = (name) => String(name).replaceAll("_", " ");

function flat(value, depth = 0) {
  if (value && typeof value === "object" && !Array.isArray(value)) {
    if (depth > 2) return "…";
    return Object.entries(value).slice(0, 24).map(([key, part]) => `${readable(key)} ${flat(part, depth + 1)}`).join(", ");
  }
  if (Array.isArray(value)) return value.length ? value.slice(0, 24).map((part) => flat(part, depth + 1)).join(", ") : "none";
  if (typeof value === "boolean") return value ? "yes" : "no";
  return shown(value);
}
