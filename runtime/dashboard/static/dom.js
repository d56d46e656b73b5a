// Small helpers: making elements, showing numbers and times.

// Signs that turn the direction of all text behind them: a name could show "% 05" for 50 %, or hide what it is.
const TURNING = /[\u202A-\u202E\u2066-\u2069]/g;
const plain = (value) => String(value).replace(TURNING, "\uFFFD");

/** An element; attributes starting with "on" are listeners, null children are left out. */
export function h(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name === "value") element.value = value;
    else element.setAttribute(name, value === true ? "" : plain(value));
  }
  element.append(...children.flat().filter((child) => child !== null && child !== undefined).map((child) => (child instanceof Node ? child : plain(child))));
  return element;
}

/** An SVG element. */
export function s(tag, attributes = {}) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  return element;
}

/** Sets text only where it differs, so that screen readers and selections are left alone. */
export function setText(element, text) {
  const wanted = plain(text ?? "");
  if (element.textContent !== wanted) element.textContent = wanted;
}

export function number(value, digits = 3) {
  if (typeof value !== "number" || !Number.isFinite(value)) return "–";
  if (value !== 0 && (Math.abs(value) >= 1e5 || Math.abs(value) < 1e-3)) return value.toExponential(1);
  return String(Number(value.toPrecision(digits)));
}

export function count(value) {
  return typeof value === "number" ? value.toLocaleString("en", { maximumFractionDigits: 0 }) : "–";
}

export function percent(value) {
  return typeof value === "number" ? `${Math.round(value * 100)} %` : "–";
}

export function seconds(value) {
  if (typeof value !== "number") return "–";
  if (value < 1) return `${Math.round(value * 1000)} ms`;
  if (value < 90) return `${value < 10 ? value.toFixed(1) : Math.round(value)} s`;
  if (value < 5400) return `${Math.round(value / 60)} min`;
  return value < 129600 ? `${Math.round(value / 3600)} h` : `${Math.round(value / 86400)} days`;
}

/** The time of day; the date as well where it is not today's. */
export function clock(stamp) {
  if (typeof stamp !== "number" || !Number.isFinite(stamp)) return "";
  const then = new Date(stamp * 1000);
  const time = then.toLocaleTimeString("en-GB");
  return then.toDateString() === new Date().toDateString() ? time : `${then.toLocaleDateString("en-GB", { day: "numeric", month: "short", year: "numeric" })} ${time}`;
}

/** Date, time and zone in full. */
export function whole(stamp) {
  return typeof stamp === "number" && Number.isFinite(stamp) ? new Date(stamp * 1000).toLocaleString("en-GB", { dateStyle: "full", timeStyle: "long" }) : "";
}

export function zone() {
  const found = Intl.DateTimeFormat("en-GB", { timeZoneName: "longOffset" }).formatToParts().find((part) => part.type === "timeZoneName")?.value ?? "";
  return `${Intl.DateTimeFormat().resolvedOptions().timeZone} (${found})`;
}

/** A time element: short, with date and zone when one points at it. */
export function moment(stamp) {
  const time = h("time", {});
  setMoment(time, stamp);
  return time;
}

export function setMoment(time, stamp) {
  if (typeof stamp !== "number" || !Number.isFinite(stamp)) return setText(time, "");
  time.dateTime = new Date(stamp * 1000).toISOString();
  time.title = whole(stamp);
  return setText(time, clock(stamp));
}

const STEPS = { integrity: "Files", latency: "Speed", sanity: "Actions", held_out: "Held-out file", ope: "Off-policy evaluation", shadow: "Shadow run" };

/** The name of a promotion step, or of any word with underscores. */
export const stepName = (name) => STEPS[name] ?? String(name).replaceAll("_", " ").replace(/^./, (c) => c.toUpperCase());

/** A version by its number: `000042-1f3a9c0e` is 42. Other names stay as they are. */
export function versionName(version) {
  const found = /^0*(\d+)-[0-9a-f]{6,}$/.exec(String(version ?? ""));
  return found ? `no. ${found[1]}` : String(version ?? "–");
}

export function shown(value) {
  if (Array.isArray(value)) return value.map((v) => (typeof v === "number" ? number(v) : v)).join(", ");
  if (typeof value === "number") return number(value);
  return value === null || value === undefined ? "–" : typeof value === "object" ? JSON.stringify(value) : String(value);
}

/** Keeps one child element for each key, made by `make` and refreshed by `refresh`; the order follows the keys. */
export function keyed(parent, keys, make, refresh) {
  parent._byKey ??= new Map();
  const view = parent._byKey;
  for (const key of [...view.keys()]) if (!keys.includes(key)) { view.get(key).element.remove(); view.delete(key); }
  keys.forEach((key, index) => {
    if (!view.has(key)) {
      const made = make(key);
      view.set(key, made instanceof Element ? { element: made } : made);
    }
    const { element } = view.get(key);
    if (parent.children[index] !== element) parent.insertBefore(element, parent.children[index] ?? null);
    refresh?.(key, view.get(key));
  });
}

/** Removes the elements of keys that are described otherwise than when they were made (`about`): they are made again. */
export function forgetChanged(parent, descriptions) {
  for (const [key, view] of parent._byKey ?? []) {
    if (view.about === descriptions[key] || JSON.stringify(view.about) === JSON.stringify(descriptions[key])) continue;
    view.element.remove();
    parent._byKey.delete(key);
  }
}

export function toast(text, bad = false) {
  const box = document.getElementById("toasts");
  const note = h("p", { class: bad ? "toast bad" : "toast" }, text);
  box.append(note);
  while (box.children.length > 3) box.firstChild.remove();
  setTimeout(() => note.remove(), bad ? 9000 : 4000);
}

/**
 * Asks yes or no; resolves to a boolean. Not a modal dialog: the software stop stays in reach while a question is open.
 * Everything else is inert meanwhile.
 */
export function ask(title, text, yes = "Yes") {
  closeQuestion();
  const dialog = document.getElementById("ask");
  setText(document.getElementById("ask-title"), title);
  setText(document.getElementById("ask-text"), text);
  setText(document.getElementById("ask-yes"), yes);
  const before = document.activeElement;
  dialog.returnValue = "no";
  setInert(true);
  dialog.show();
  document.getElementById("ask-yes").focus();
  return new Promise((resolve) => {
    dialog.addEventListener("close", () => {
      setInert(false);
      before?.focus?.();
      resolve(dialog.returnValue === "yes");
    }, { once: true });
  });
}

/** Closes an open question with "no"; returns whether one was open. */
export function closeQuestion() {
  const dialog = document.getElementById("ask");
  if (!dialog.open) return false;
  dialog.close("no");
  return true;
}

export const isAsking = () => document.getElementById("ask").open;

function setInert(on) {
  document.getElementById("scrim").hidden = !on;
  for (const element of document.querySelectorAll("[data-behind]")) element.inert = on;
}

document.addEventListener("keydown", (event) => {
  if (event.key === "Escape") closeQuestion();
});
