// Puts the parts together: each part is mounted once and then rendered with the names of the changed sections.
import * as actuators from "./actuators.js";
import * as events from "./events.js";
import * as explanation from "./explanation.js";
import * as feedback from "./feedback.js";
import * as gallery from "./gallery.js";
import * as goal from "./goal.js";
import * as header from "./header.js";
import * as healthPanel from "./health.js";
import * as learning from "./learning.js";
import * as settings from "./settings.js";
import * as streams from "./streams.js";
import * as summary from "./summary.js";
import { trouble } from "./derived.js";
import { connect, onChange, operator } from "./socket.js";

const parts = Object.entries({ header, summary, streams, goal, actuators, explanation, feedback, gallery, healthPanel, learning, settings, events });
const broken = new Set();
for (const [, part] of parts) part.mount();

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
    document.body.classList.toggle("old", Boolean(trouble()));
    for (const [name, part] of parts) render(name, part, changed);
  }, 0);
});

/** One part that cannot show a message must not keep the others, the stop among them, from being shown. */
function render(name, part, changed) {
  try {
    part.render(changed);
  } catch (error) {
    if (!broken.has(name)) console.warn(`${name} cannot be shown: ${error.message}`);
    broken.add(name);
  }
}

connect();
