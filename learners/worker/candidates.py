"""Candidates in the learner process: one is written, goes through the steps beside training, and is promoted or not.

One trial at a time. It goes on when it is given a while, so that whoever calls stays responsive; judging leaves no trace in what
is learned next. Another version that goes live meanwhile (a person's wish, a rollback) ends it without a pass.

Events: `policy_promoted`, `policy_rejected` (with every step's figures), `checkpoint_refused`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import orjson
import torch
from torch import Tensor, nn

from learners.checkpoints.manifest import CheckpointRefused
from learners.checkpoints.store import Checkpoints
from learners.config import PromotionSettings
from learners.experience.reader import Reader
from learners.experience.transition import Transition
from learners.ipc.outbox import Outbox
from learners.promotion.held_out import Feeding
from learners.promotion.pipeline import EvaluationContext, EvaluationRun, PromotionResult, Step
from learners.worker.learner import Learner

FRESH = 256
"""Rows that a trial takes from the store at a time."""
LEARNER_STATE_LIMIT = 64_000_000
"""Bytes of learner state that travel with a version; a larger one only lies in the saved state."""


class CandidateManager:
    """The trials of one learner.

    Args:
        learner: whose policy is put on trial.
        versions: where candidates are written and one is live.
        reader: of the experience.
        outbox: takes the events.
        build: makes a policy.
        settings: of promotion.
        steps: by name.
        feeding: the tasks that feed the policy.
        rate_hz: ticks a second.
    """

    def __init__(
        self,
        learner: Learner,
        versions: Checkpoints,
        reader: Reader,
        outbox: Outbox,
        build: Callable[..., nn.Module],
        settings: PromotionSettings,
        steps: Mapping[str, Step],
        feeding: Feeding,
        rate_hz: float,
    ) -> None:
        self.learner, self.versions, self.reader, self.outbox, self.build = learner, versions, reader, outbox, build
        self.settings, self.steps, self.feeding, self.rate_hz = settings, steps, feeding, rate_hz
        self.live: tuple[str, Any] | None = None
        """The version that acts and its policy."""
        self.verdict: PromotionResult | None = None
        """The last one."""
        self.examination: EvaluationRun | None = None
        """The trial that is going on."""
        self._candidate: tuple[str, Any] = ("", None)
        self._judged = -1

    @property
    def something_new(self) -> bool:
        """Whether the policy was updated since the last trial began."""
        return self.learner.position.update > self._judged

    def on_trial(self) -> dict[str, str] | None:
        """Version and step of the trial that is going on."""
        return {"version": self._candidate[0], "step": self.examination.step} if self.examination else None

    def run(self) -> PromotionResult | None:
        """Put a candidate on trial; the verdict, unless a step has to wait."""
        self.begin()
        return self.resume()

    def begin(self) -> None:
        """Write a candidate and prepare its trial."""
        self._judged = self.learner.position.update
        with torch.random.fork_rng(devices=[]):
            version = self._write()
            self.examination = self._examine(version)

    def resume(self, until_s: float = math.inf) -> PromotionResult | None:
        """Go on with the trial until a moment of the monotonic clock; at its end promote the candidate or say why not."""
        examination = self.examination
        assert examination is not None
        verdict: PromotionResult | None
        if self.versions.live().version != examination.trial.live_version:
            verdict = examination.void("another version went live during the trial")
        else:
            with torch.random.fork_rng(devices=[]):
                verdict = examination.advance(until_s)
        if verdict is not None:
            self.examination = None
            self._conclude(verdict)
        return verdict

    def follow_rollback(self) -> None:
        """After a rollback, learn on from the version that came back: what failed is not the ground to build on."""
        live = self.versions.live()
        failed = self.live is not None and self.live[0] in live.failed
        if failed and live.version is not None:
            with torch.random.fork_rng(devices=[]):
                self._live_policy()
            if self.live is not None:
                self.learner.reset_to_version(self.live[0], self.live[1].state_dict())
                self._judged = self.learner.position.update

    def refused(self, refusal: CheckpointRefused) -> None:
        """Tell of a version that could not be loaded."""
        fields = {"version": refusal.version, "reason": refusal.reason, "detail": refusal.detail}
        self.outbox.post("checkpoint_refused", fields)

    def _conclude(self, verdict: PromotionResult) -> None:
        version, candidate = self._candidate
        self._candidate, self.verdict = ("", None), verdict
        fields = {"version": version, "live": self.live[0] if self.live else None, **verdict.fields()}
        if not verdict.passed:
            self.outbox.post("policy_rejected", fields)
            return
        try:  # the event comes before the pointer: whoever sees the new LIVE finds it in the outbox
            self.versions.promote(
                version, self.learner.shapes(), announce=lambda _live: self.outbox.post("policy_promoted", fields)
            )
        except CheckpointRefused as refusal:
            self.refused(refusal)
        else:
            self.live = (version, candidate)

    def _write(self) -> str:
        learner = self.learner
        tensors: dict[str, dict[str, Tensor]] = {"policy": learner.policy.state_dict()}
        extra = learner.algorithm.state_dict()
        if sum(t.numel() * t.element_size() for t in extra.values()) <= LEARNER_STATE_LIMIT:
            tensors["learner"] = extra
        position = learner.position
        data = {"last_row": position.row, "transitions": len(learner.replay), "first_row": self.reader.first_row()}
        return self.versions.save(
            tensors,
            {
                "spec": orjson.loads(learner.spec.to_json()),
                "settings": learner.settings.model_dump(),
                "position": {"update": position.update, "row": position.row, "change": position.change},
            },
            parent=self.versions.live().version,
            encoder_versions=learner.replay.versions,
            data=data | ({"tasks": self.feeding.versions()} if self.feeding else {}),
            metrics={"score": learner.reward_mean, "updates": position.update, **learner.metrics},
        )

    def _examine(self, version: str) -> EvaluationRun:
        loaded = self.versions.load(version, self.learner.shapes())
        candidate: Any = self.build(self.learner.spec).eval()
        candidate.load_state_dict(loaded.tensors["policy"])
        self._candidate = (version, candidate)
        live = self._live_policy()
        trial = EvaluationContext(
            manifest=loaded.manifest,
            spec=self.learner.spec,
            candidate=candidate,
            live=live[1] if live else None,
            live_version=self.versions.live().version,
            recent=self._recent,
            settings=self.settings,
            period_s=1 / self.rate_hz,
            settle=round(self.learner.settings.reward_delay_s * self.rate_hz),
            after=lambda row: self.reader.rows(row + 1, row + 1 + FRESH),
            last_row=self.reader.last_row,
            versions=dict(self.learner.replay.versions),
            held_out=lambda: self.feeding.held_out(self._fed()),
        )
        return EvaluationRun(trial, self.steps, self.settings.steps)

    def _recent(self, count: int) -> list[Transition]:
        """The newest transitions, oldest first; after an encoder's swap with the tokens that were made anew since."""
        rows = self.reader.newest(count)
        learner = self.learner
        if learner.recoded is None:
            return [row.transition for row in rows]
        return learner.recoded.renew(rows, learner.replay.versions)

    def _fed(self) -> Mapping[str, str]:
        """The versions of the tasks that fed the live policy when it was written."""
        live = self.live[0] if self.live else None
        manifest = next((m for m in self.versions.list() if m.version == live), None)
        return dict(manifest.data.get("tasks", {})) if manifest is not None else {}

    def _live_policy(self) -> tuple[str, Any] | None:
        version = self.versions.live().version
        if version is None:
            self.live = None
        elif self.live is None or self.live[0] != version:
            try:
                loaded = self.versions.load(version, self.learner.shapes())
            except CheckpointRefused as refusal:
                self.refused(refusal)
                self.live = None
            else:
                policy: Any = self.build(self.learner.spec).eval()
                policy.load_state_dict(loaded.tensors["policy"])
                self.live = (version, policy)
        return self.live
