"""Run the learner's loop on the rows of a whole fleet: the loop of a daemon, with a merge of new shards in each round.

The loop reads the merged experience store as a daemon's learner reads that of its agent. So training, candidates, promotion steps and
the exact resume are those of `loop.py`. A candidate that no step rejects waits in `checkpoints/CHALLENGER`; the server publishes it in
waves (`runtime/fleet/waves.py`). An agent that is excluded ends the loop: it is opened again without that agent's rows.
"""

from __future__ import annotations

import logging
import shutil
import threading
from collections.abc import Callable, Mapping
from itertools import islice
from typing import Any

from learners.fleet_data.merging.experience_merger import ExperienceMerger
from learners.ipc.settings import LearnerConfig
from learners.model.spec import PolicySpec
from learners.worker.loop import LearnerLoop

MAX_NAMED = 100
"""Agents that wait, in `progress.json`."""
_LOG = logging.getLogger(__name__)


class FleetLearnerLoop(LearnerLoop):
    """The running learner of one group.

    Args:
        inputs: the learner's settings; `state_dir` is the folder of the group's learner.
        spec: of the policy.
        stop: ends the loop.
        merger: writes the experience store below `state_dir`; the loop closes it at its end.
        commands: called in each round, in the thread of the loop; it may change the merger's agents.
        more: arguments of `LearnerLoop`.
    """

    def __init__(
        self,
        inputs: LearnerConfig,
        spec: PolicySpec,
        stop: threading.Event,
        merger: ExperienceMerger,
        *,
        commands: Callable[[ExperienceMerger], None] = lambda _merger: None,
        **more: Any,
    ) -> None:
        if merger.counts["set_aside"]:  # its rows have other numbers than those that the saved state names
            for name in ("state", "journal.jsonl"):
                path = inputs.state_dir / "learner" / name
                shutil.rmtree(path, ignore_errors=True)
                path.unlink(missing_ok=True)
        super().__init__(inputs, spec, stop, **more)
        self.merger, self._commands = merger, commands
        self._reopens = False
        self._alert = ""

    def run(self) -> None:
        """Train until `stop` is set, the group has another spec, or an agent was excluded; save the state at the end."""
        try:
            super().run()
        finally:
            self.merger.close()

    def step(self) -> None:
        """Merge new rows and do one round of the learner."""
        self._commands(self.merger)
        self.merger.merge()
        self._report_alert()
        if self.merger.newly_excluded:
            for agent, reason in self.merger.newly_excluded:
                _LOG.warning("fleet.agent_excluded: %s: %s; its rows do not train any more", agent, reason)
            self.merger.newly_excluded.clear()
            self._reopens = True  # the replay is filled again from the rows that are left
            return
        super().step()

    def _report_alert(self) -> None:
        """Log why no agent is excluded, once per reason."""
        alert = "" if self.merger.trust is None else self.merger.trust.alert
        if alert and alert != self._alert:
            _LOG.error("fleet.exclusion_alert: %s; look at their rows and exclude the agents that are wrong", alert)
        self._alert = alert

    def _same_spec(self) -> bool:
        return not self._reopens and super()._same_spec()

    def figures(self) -> dict[str, Any]:
        """Return the fields of `progress.json`, with the merged rows, the trust in each agent, the alert, and the first agents that wait."""
        trust: Mapping[str, Any] = {} if self.merger.trust is None else self.merger.trust.figures()
        more = {"alert": self._alert, "waiting": dict(islice(self.merger.waiting.items(), MAX_NAMED))}
        return {**super().figures(), "rows": dict(self.merger.counts), "trust": trust, **more}
