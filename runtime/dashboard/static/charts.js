// Line charts as SVG: a thin line over a light area, three grid lines, a reading under the pointer.
import { clock, h, number, s, setText, seconds } from "./dom.js";
import { now } from "./socket.js";

const HEIGHT = 110;
const LEFT = 40;
const BOTTOM = 16;
const TOP = 6;

/** A titled chart; `update(points)` takes [[stamp, value], ...]. */
export function chart(title, { unit = "", from = null, goal = "" } = {}) {
  const latest = h("span", { class: "latest" }, "–");
  const svg = s("svg", { role: "img", class: "chart" });
  const element = h("figure", { class: "chartbox" }, h("figcaption", {}, goal ? h("details", { class: "goal" }, h("summary", { title: goal }, title), h("span", {}, goal)) : h("span", {}, title), latest), svg);
  let shownPoints = [];
  let width = 300;

  function draw(points, pointer = null) {
    shownPoints = points;
    svg.replaceChildren();
    width = Math.max(160, svg.clientWidth || 300);
    svg.setAttribute("viewBox", `0 0 ${width} ${HEIGHT}`);
    if (points.length < 2) {
      svg.append(label(width / 2, HEIGHT / 2, "waiting for values", "middle"));
      svg.setAttribute("aria-label", `${title}: no values yet`);
      return;
    }
    const { x, y, ticks, t0, t1 } = scales(points, from, width);
    for (const tick of ticks) {
      svg.append(s("line", { x1: LEFT, x2: width, y1: y(tick), y2: y(tick), class: "gridline" }));
      svg.append(label(LEFT - 5, y(tick) + 3, number(tick, 3), "end"));
    }
    svg.append(label(LEFT, HEIGHT - 3, `${seconds(t1 - t0)} ago`, "start"), label(width, HEIGHT - 3, "now", "end"));
    for (const run of runs(points)) {
      const line = run.map(([t, v]) => `${x(t).toFixed(1)},${y(v).toFixed(1)}`).join(" ");
      svg.append(s("polygon", { points: `${x(run[0][0])},${HEIGHT - BOTTOM} ${line} ${x(run.at(-1)[0])},${HEIGHT - BOTTOM}`, class: "area" }));
      svg.append(s("polyline", { points: line, class: "line" }));
    }
    const [t, v] = pointer ?? points.at(-1);
    svg.append(s("circle", { cx: x(t), cy: y(v), r: 3, class: "dot" }));
    setText(latest, pointer ? `${clock(t)}  ${number(v)}${unit}` : `${number(v)}${unit}`);
    svg.setAttribute("aria-label", describe(title, unit, points));
  }

  svg.addEventListener("pointermove", (event) => {
    if (shownPoints.length < 2) return;
    const box = svg.getBoundingClientRect();
    const { t0, t1 } = scales(shownPoints, from, width);
    const wanted = t0 + ((((event.clientX - box.left) / box.width) * width - LEFT) / (width - LEFT)) * (t1 - t0);
    draw(shownPoints, shownPoints.reduce((best, point) => (Math.abs(point[0] - wanted) < Math.abs(best[0] - wanted) ? point : best)));
  });
  svg.addEventListener("pointerleave", () => draw(shownPoints));
  draw([]);
  let drawnMs = 0;
  return {
    element,
    /** Draws where the points changed, and now and then because "now" moves on. */
    update(points, changed) {
      if (!changed && Date.now() - drawnMs < 5000) return;
      drawnMs = Date.now();
      draw(points ?? []);
    },
  };
}

/** Parts of a series without a gap: where nothing came for more than three of its usual steps, nothing is drawn. */
function runs(points) {
  const steps = points.slice(1).map(([t], i) => t - points[i][0]).sort((a, b) => a - b);
  const usual = steps[Math.floor(steps.length / 2)] ?? 0;
  const found = [[points[0]]];
  for (const [i, point] of points.slice(1).entries()) {
    if (point[0] - points[i][0] > 3 * usual + 1) found.push([]);
    found.at(-1).push(point);
  }
  return found;
}

function scales(points, from, width) {
  const values = points.map(([, v]) => v);
  let low = Math.min(...values, from ?? Infinity);
  let high = Math.max(...values);
  if (high - low < 1e-9) { low -= 0.5; high += 0.5; }
  const step = nice((high - low) / 2);
  low = from ?? Math.floor(low / step) * step;
  const ticks = [];
  for (let tick = Math.ceil(low / step) * step; tick <= high + step * 0.999 && ticks.length < 5; tick += step) ticks.push(tick);
  high = Math.max(high, ticks.at(-1));
  const t0 = points[0][0];
  const t1 = Math.max(now(), points.at(-1)[0], t0 + 1);
  return {
    t0, t1, ticks,
    x: (t) => LEFT + ((t - t0) / (t1 - t0)) * (width - LEFT - 4),
    y: (v) => TOP + (1 - (v - low) / (high - low)) * (HEIGHT - BOTTOM - TOP),
  };
}

function nice(raw) {
  const power = 10 ** Math.floor(Math.log10(raw));
  const ratio = raw / power;
  return (ratio > 5 ? 10 : ratio > 2 ? 5 : ratio > 1 ? 2 : 1) * power;
}

function label(x, y, text, anchor) {
  const element = s("text", { x, y, "text-anchor": anchor, class: "tick" });
  element.textContent = text;
  return element;
}

function describe(title, unit, points) {
  const values = points.map(([, v]) => v);
  const span = seconds(points.at(-1)[0] - points[0][0]);
  return `${title} over ${span}: from ${number(values[0])} to ${number(values.at(-1))}${unit}, lowest ${number(Math.min(...values))}, highest ${number(Math.max(...values))}`;
}

/** A tiny line of the last values, without axes. */
export function sparkline() {
  const svg = s("svg", { viewBox: "0 0 100 24", class: "spark", "aria-hidden": "true", preserveAspectRatio: "none" });
  const line = s("polyline", { class: "line" });
  svg.append(line);
  const values = [];
  return {
    element: svg,
    add(value) {
      values.push(value);
      if (values.length > 80) values.shift();
      const low = Math.min(...values);
      const span = Math.max(...values) - low || 1;
      line.setAttribute("points", values.map((v, i) => `${(i / 79) * 100},${22 - ((v - low) / span) * 20}`).join(" "));
    },
  };
}
