// Puts the parts together: each part is mounted once and then rendered with the names of the changed sections.
import * as actuators from "./actuators.js";
import * as events from "./events.js";
import * as summary from "./summary.js";
import * as header from "./header.js";
import * as learning from "./learning.js";
import * as streams from "./streams.js";
import * as feedback from "./feedback.js";
import * as healthPanel from "./health.js";
import * as explanation from "./explanation.js";
import { connect, onChange, operator } from "./socket.js";

const parts = [header, summary, streams, actuators, explanation, feedback, healthPanel, learning, events];
for (const part of parts) part.mount();

let pending = new Set();
let scheduled = false;

onChange((names) => {
  for (const name of names) pending.add(name);
  if (scheduled) return;
  scheduled = true;
  setTimeout(() => {
    scheduled = false;
    const changed = pending;
    pending = new Set();
    document.body.classList.toggle("viewer", !operator());
    for (const part of parts) part.render(changed);
  }, 0);
});

connect();
