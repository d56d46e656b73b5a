// The page of a fleet: asks the server for the newest reports and shows them as text. What an agent wrote is never markup.
const byId = (id) => document.getElementById(id);
const POLL_MS = 2000;
const rows = new Map();
let paused = false;

// A row stays the same element while its agent is listed: a press on its button is never lost to a refresh.
function row(name) {
  if (rows.has(name)) return rows.get(name);
  const made = document.createElement("tr");
  for (const head of document.querySelectorAll("th")) {
    const cell = document.createElement("td");
    cell.className = head.className;
    cell.dataset.name = head.textContent;
    made.append(cell);
  }
  const button = document.createElement("button");
  button.type = "button";
  button.className = "button small";
  button.textContent = "Stop";
  button.setAttribute("aria-label", `Stop ${name}`);
  button.addEventListener("click", () => act("stop", name));
  made.lastElementChild.append(button, document.createElement("span"));
  rows.set(name, made);
  return made;
}

function filled(agent, role) {
  const made = row(agent.agent);
  made.className = agent.excluded ? "excluded" : agent.state;
  const reward = agent.reward === null ? "" : agent.reward.toPrecision(3);
  const remark = agent.excluded ? `excluded: ${agent.excluded}` : agent.apart;
  const state = agent.state === "online" && agent.daemon_state ? agent.daemon_state : agent.state;
  const values = [agent.agent, state, agent.policy, agent.wave, reward, agent.backlog_rows, agent.verdict, remark];
  for (const [place, value] of values.entries()) made.children[place].textContent = value ?? "";
  const [button, answer] = made.lastElementChild.children;
  button.hidden = role !== "operator";
  answer.textContent = agent.stop;
  return made;
}

async function refresh() {
  const answer = await fetch("/state").catch(() => null);
  if (answer?.status === 401) return location.replace("/login");
  if (!answer?.ok) byId("summary").textContent = "The page's server does not answer.";
  else show(await answer.json());
  setTimeout(refresh, POLL_MS);
}

function show(state) {
  paused = state.paused;
  byId("group").textContent = `Fleet ${state.group}`;
  const online = state.agents.filter((agent) => agent.state === "online").length;
  const excluded = state.agents.filter((agent) => agent.excluded).length;
  const without = excluded ? `; the rows of ${excluded} are excluded` : "";
  const link = state.connected ? "" : "No connection to the broker. ";
  byId("summary").textContent = `${link}${online} of ${state.agents.length} agents are online; learner ${state.learner}${without}. ${state.alert}`;
  byId("wave").textContent = state.wave;
  byId("actions").hidden = state.role !== "operator";
  byId("pause").textContent = paused ? "Resume waves" : "Pause waves";
  byId("stop").hidden = state.role !== "operator";
  const wanted = state.agents.map((agent) => filled(agent, state.role));
  const body = byId("agents");
  // only where the list changed: moving an element would end a press on its button
  if (wanted.length !== body.children.length || wanted.some((each, at) => body.children[at] !== each)) body.replaceChildren(...wanted);
}

async function act(action, agent) {
  byId("error").textContent = "";
  byId("outcome").textContent = action.startsWith("stop") ? "The stop was sent; waiting for the answer." : "";
  const body = JSON.stringify(agent === undefined ? { action } : { action, agent });
  const answer = await fetch("/action", { method: "POST", headers: { "Content-Type": "application/json" }, body }).catch(() => null);
  byId("outcome").textContent = answer?.ok ? (await answer.json()).outcome : "";
  if (!answer?.ok) byId("error").textContent = answer ? await answer.text() : "The page's server does not answer.";
}

byId("stop").addEventListener("click", () => act("stop_all"));
byId("pause").addEventListener("click", () => act(paused ? "resume" : "pause"));
byId("rollback").addEventListener("click", () => {
  if (confirm("Take the published version out on every agent?")) act("rollback");
});
refresh();
