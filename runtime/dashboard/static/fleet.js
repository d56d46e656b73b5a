// The page of a fleet: asks the server for the newest reports and shows them as text. What an agent wrote is never markup.
const byId = (id) => document.getElementById(id);
const POLL_MS = 2000;
let paused = false;

function cells(agent) {
  const row = document.createElement("tr");
  row.className = agent.excluded ? "excluded" : agent.state;
  const reward = agent.reward === null ? "" : agent.reward.toPrecision(3);
  const remark = agent.excluded ? `excluded: ${agent.excluded}` : agent.apart;
  const values = [agent.agent, agent.state, agent.policy, agent.wave, reward, agent.backlog_rows, agent.verdict, remark];
  const names = document.querySelectorAll("th");
  for (const [place, value] of values.entries()) {
    const cell = document.createElement("td");
    cell.className = names[place].className;
    cell.dataset.name = names[place].textContent;
    cell.textContent = value ?? "";
    row.append(cell);
  }
  return row;
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
  byId("agents").replaceChildren(...state.agents.map(cells));
}

async function act(what) {
  byId("error").textContent = "";
  const answer = await fetch("/action", { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify({ action: what }) }).catch(() => null);
  if (!answer?.ok) byId("error").textContent = answer ? await answer.text() : "The page's server does not answer.";
}

byId("pause").addEventListener("click", () => act(paused ? "resume" : "pause"));
byId("rollback").addEventListener("click", () => {
  if (confirm("Take the published version out on every agent?")) act("rollback");
});
refresh();
