// The web socket: changes of sections and pictures in, commands out. It reconnects automatically and notices a silent server.
import { toast } from "./dom.js";

const SILENT_MS = 2000;
const REPLACED = 4001;

export const state = { sections: {}, role: "viewer", agent: "", connected: false, offset: 0, reason: "" };
const listeners = new Set();
const pictures = new Map();
const waiting = new Map();
const firsts = new Map();
let socket = null;
let lastMessageMs = 0;
let next = 1;
let watching = [];
let retry = 250;

export const section = (name) => state.sections[name];
export const now = () => Date.now() / 1000 + state.offset;
export const operator = () => state.role === "operator";

/** `listener(names)` is called with the set of sections that changed; an empty set twice a second for the clocks. */
export function onChange(listener) { listeners.add(listener); }
export function onPicture(stream, listener) { pictures.set(stream, listener); }
function notify(names) { for (const listener of listeners) listener(names); }

export function watch(streams) {
  const wanted = document.hidden ? [] : [...streams].sort();
  if (JSON.stringify(wanted) === JSON.stringify(watching)) return;
  watching = wanted;
  if (state.connected) socket.send(JSON.stringify({ do: "subscribe_previews", streams: watching }));
}

/** Sends a command; resolves to the response's data, rejects with the reason. */
export function command(body) {
  if (!state.connected) return Promise.reject(new Error("not sent: no connection to the page's server"));
  const id = next++;
  socket.send(JSON.stringify({ ...body, id }));
  return new Promise((resolve, reject) => waiting.set(id, { resolve, reject }));
}

export const request = (verb, data = {}) => command({ do: "request", verb, data });

/** Sends a command and shows its outcome: `done` is a text, or a function of the response that returns one, or [text, bad]. */
export async function send(body, done) {
  try {
    const data = await command(body);
    const shown = typeof done === "function" ? done(data) : done;
    if (shown) toast(...[shown].flat());
    return data;
  } catch (error) {
    toast(error.message, true);
    return undefined;
  }
}

function receive(message) {
  lastMessageMs = Date.now();
  if (typeof message.data !== "string") return picture(message.data);
  const news = JSON.parse(message.data);
  state.offset = news.now - Date.now() / 1000;
  for (const reply of news.replies) {
    if (reply.role) Object.assign(state, { role: reply.role, agent: reply.agent });
    const asked = waiting.get(reply.id);
    waiting.delete(reply.id);
    if (reply.error) asked ? asked.reject(new Error(reply.error)) : toast(reply.error, true);
    else asked?.resolve(reply.data ?? {});
  }
  const changed = merge(news);
  if (news.replies.length) changed.add("replies");
  notify(changed);
}

/** Puts changes into the sections; returns the names of those that changed. */
function merge({ values = {}, tables = {}, lists = {} }) {
  Object.assign(state.sections, values);
  for (const [name, entries] of Object.entries(tables)) state.sections[name] = { ...state.sections[name], ...entries };
  for (const [name, { first, at, items }] of Object.entries(lists)) {
    const known = at > first ? (state.sections[name] ?? []).slice(first - (firsts.get(name) ?? first)) : [];
    firsts.set(name, first);
    state.sections[name] = known.slice(0, at - first).concat(items);
  }
  return new Set([values, tables, lists].flatMap((changes) => Object.keys(changes)));
}

function picture(buffer) {
  const bytes = new Uint8Array(buffer);
  const stream = new TextDecoder().decode(bytes.subarray(1, 1 + bytes[0]));
  pictures.get(stream)?.(new Blob([bytes.subarray(1 + bytes[0])]));
}

export function connect() {
  socket = new WebSocket(`${location.protocol === "https:" ? "wss" : "ws"}://${location.host}/socket`);
  socket.binaryType = "arraybuffer";
  socket.onmessage = receive;
  socket.onopen = () => {
    state.connected = true;
    lastMessageMs = Date.now();
    retry = 250;
    state.sections = {}; // the server sends everything again; what an earlier one knew may be gone
    firsts.clear();
    socket.send(JSON.stringify({ do: "subscribe_previews", streams: watching }));
    notify(new Set(["connected"]));
  };
  socket.onclose = (event) => (event.code === REPLACED ? replaced() : lost());
}

/** Too many operators: a newer browser has this one's place. It returns when a person reloads the page. */
function replaced() {
  state.connected = false;
  state.reason = "Too many browsers are connected, and a newer one replaced this one. Reload the page to connect again.";
  notify(new Set(["connected"]));
}

async function lost() {
  state.connected = false;
  for (const asked of waiting.values()) asked.reject(new Error("the connection was lost before a response arrived"));
  waiting.clear();
  notify(new Set(["connected"]));
  const page = await fetch("/", { redirect: "manual" }).catch(() => null);
  if (page && page.type === "opaqueredirect") return location.replace("/login");
  setTimeout(connect, retry);
  retry = Math.min(4000, retry * 2);
  return undefined;
}

setInterval(() => {
  if (state.connected && Date.now() - lastMessageMs > SILENT_MS) {
    state.connected = false;
    socket.onclose = null;
    socket.close();
    lost();
  }
  notify(new Set());
}, 500);
