// Puts the parts together: each part is mounted once and told which sections changed.
import * as acts from "./acts.js";
import * as events from "./events.js";
import * as glance from "./glance.js";
import * as header from "./header.js";
import * as learning from "./learning.js";
import * as senses from "./senses.js";
import * as teach from "./teach.js";
import * as well from "./well.js";
import * as why from "./why.js";
import { connect, onChange, operator } from "./wire.js";

const parts = [header, glance, senses, acts, why, teach, well, learning, events];
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
