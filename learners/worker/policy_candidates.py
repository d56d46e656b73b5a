"""Candidates in the learner process: the learner writes one, evaluates it while training goes on, and proposes it or not.

A candidate that no step rejects is proposed. An inconclusive step holds it to the live experiment; without experiments it is rejected.

The agent decides: a proposed candidate waits there as the challenger of the live version.

One evaluation runs at a time, a slice each round. It changes nothing in what the learner learns next. If another version goes live
meanwhile (by a request or a rollback), the evaluation ends without a pass.

A candidate's checkpoint carries the graph with which the agent will act (`compilation.py`).

Events: `policy_proposed`, `policy_rejected` (with the figures of every step), `policy_rolled_back`, `checkpoint_refused`, `graph_missing`.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import orjson
import torch
from torch import Tensor

from learners.checkpoints.manifest import CheckpointRefused, Manifest
from learners.checkpoints.signing import PublicKey
from learners.checkpoints.store import Checkpoints, Live
from learners.config.learner import PromotionSettings
from learners.experience.reader import Reader
from learners.ipc.outbox import Outbox
from learners.ipc.settings import Backend
from learners.promotion.feeding_tasks import FeedingTasks
from learners.promotion.pipeline import EvaluationRun, PromotionResult
from learners.promotion.recent_experience import RecentExperience
from learners.promotion.step_types import EvaluationContext, Step
from learners.promotion.steps import STEPS
from learners.reencoding.reencoder import Reencoder
from learners.worker.compilation import APART, NOTHING, WINDOWS, compile_candidate
from learners.worker.learner import Learner


class CandidateManager:
    """Writes candidates of one learner, evaluates them and proposes those that pass.

    Args:
        learner: trains the policy.
        checkpoints: stores the candidates; one of them is live.
        reader: of the experience.
        outbox: takes the events.
        settings: of promotion.
        tasks: the tasks that feed the policy.
        reencoder: makes the tokens of an encoder's new version, with which a candidate is evaluated.
        backend: how the agent runs its models; None compiles nothing.
        steps: the registry of promotion steps.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        learner: Learner,
        checkpoints: Checkpoints,
        reader: Reader,
        *,
        outbox: Outbox,
        settings: PromotionSettings,
        tasks: FeedingTasks,
        reencoder: Reencoder | None = None,
        backend: Backend | None = None,
        steps: Mapping[str, Step] = STEPS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.clock = clock
        self.learner, self.checkpoints, self.reader = learner, checkpoints, reader
        self.outbox, self.settings, self.tasks, self.steps = outbox, settings, tasks, steps
        self.reencoder = reencoder
        self.backend = backend
        self.live: tuple[str, Any] | None = None
        """The live version and its policy."""
        self._seen_live: str | None = None
        """What LIVE named at the last call of `follow_live`."""
        self._followed = False
        """`follow_live` was called before."""
        self.last_result: PromotionResult | None = None
        self.evaluation: EvaluationRun | None = None
        """The one that is running."""
        self._candidate: tuple[str, Any] = ("", None)
        self._evaluated = -1
        """Number of the last update that was evaluated."""
        self.local_base: str | None = None
        """The version of the fleet with the heads that are trained here; None where a whole policy is."""

    @property
    def has_new_updates(self) -> bool:
        """Whether the policy was updated since the last evaluation began."""
        return self.learner.position.update > self._evaluated

    def on_trial(self) -> dict[str, str] | None:
        """Return version and step of the running evaluation."""
        return {"version": self._candidate[0], "step": self.evaluation.step} if self.evaluation else None

    def run(self) -> PromotionResult | None:
        """Evaluate a candidate; return the result, unless a step has to wait."""
        self.begin()
        return self.resume()

    def begin(self) -> None:
        """Write a candidate and prepare its evaluation."""
        self._evaluated = self.learner.position.update
        with torch.random.fork_rng(devices=[]):
            version = self._write()
            self.evaluation = self._examine(version)

    def begin_received(self, directory: Path, public: PublicKey) -> bool:
        """Store a policy of the fleet as a candidate under our own key, and prepare its evaluation; post why it cannot be loaded.

        A version that a killed learner stored already is not stored again. Return whether it is stored.

        Args:
            directory: of the checkpoint, as the uplink left it.
            public: the fleet's key.
        """
        with torch.random.fork_rng(devices=[]):
            try:
                stored = [m.version for m in self._adopted({directory.name})]
                version = stored[-1] if stored else self.checkpoints.import_version(directory, public)
                self.evaluation = self._examine(version)
            except CheckpointRefused as refusal:
                self.report_refusal(refusal)
                return False
        return True

    def _adopted(self, names: Collection[str]) -> list[Manifest]:
        """Return the manifests of what was imported from versions of the fleet."""
        return [m for m in self.checkpoints.list() if m.metrics.get("adopted_from") in names]

    def reset(self, version: str, weights: dict[str, Tensor]) -> None:
        """Continue training from the weights of a version; nothing is evaluated before a further update."""
        self.learner.reset_to_version(version, weights)
        self._evaluated = self.learner.position.update

    def drop_local(self) -> None:
        """Take back the candidate with a local head on another version of the fleet than `local_base`."""
        proposed = self.checkpoints.proposed()
        manifest = next((m for m in self.checkpoints.list() if m.version == proposed), None)
        base = None if manifest is None else local_base(manifest)
        if manifest is not None and base not in {None, self.local_base} and proposed != self.checkpoints.live().version:
            self.checkpoints.rollback(failing=manifest.version, by="fleet")

    def withdraw(self, names: Collection[str]) -> None:
        """Take back what the fleet withdrew, and every local head on it: end the evaluation, mark it as failed, roll back where it is live.

        Where no other version acted before, none is live any more: the agent begins again with untrained weights.

        Args:
            names: versions as the fleet calls them.
        """
        local = [m for m in self.checkpoints.list() if local_base(m) in names]
        for version in [m.version for m in (*self._adopted(names), *local)]:
            if self._candidate[0] == version:
                self.evaluation, self._candidate = None, ("", None)
            live = self.checkpoints.live()
            if version in live.failed:
                continue
            announce = partial(self._announce_withdrawal, version) if version == live.version else lambda _live: None
            try:
                self.checkpoints.rollback(failing=version, announce=announce, by="fleet", or_none=True)
            except CheckpointRefused as refusal:
                self.report_refusal(refusal)

    def _announce_withdrawal(self, version: str, live: Live) -> None:
        fields = {"version": version, "to": live.version, "by": "fleet", "why": "a rollback of the fleet"}
        self.outbox.post("policy_rolled_back", fields)

    def resume(self, until_s: float = math.inf) -> PromotionResult | None:
        """Continue the evaluation until a moment of the monotonic clock; at its end propose the candidate or post why not."""
        evaluation = self.evaluation
        assert evaluation is not None
        result: PromotionResult | None
        live = self.checkpoints.live().version
        if live == self._candidate[0]:  # a person promoted it meanwhile
            self.evaluation, self._candidate = None, ("", None)
            return None
        if live != evaluation.context.live_version:
            result = evaluation.cancel("another version went live during the evaluation")
        else:
            with torch.random.fork_rng(devices=[]):
                result = evaluation.advance(until_s)
        if result is not None:
            self.evaluation = None
            self._conclude(result)
        return result

    def follow_live(self) -> None:
        """Train on from the version that is live again after a rollback, and from one that a person imported.

        Call it often: the version that was live before is known from the call before.
        """
        live = self.checkpoints.live()
        known = {self._seen_live, self.live[0] if self.live is not None else None}
        imported = self._followed and live.by == "import" and live.version != self._seen_live
        self._seen_live, self._followed = live.version, True
        if live.version is not None and (imported or known & set(live.failed)):
            with torch.random.fork_rng(devices=[]):
                self._live_policy()
            if self.live is not None:
                self.learner.reset_to_version(self.live[0], self.live[1].state_dict())
                self._evaluated = self.learner.position.update

    def report_refusal(self, refusal: CheckpointRefused) -> None:
        """Post that a version could not be loaded."""
        fields = {"version": refusal.version, "reason": refusal.reason, "detail": refusal.detail}
        self.outbox.post("checkpoint_refused", fields)

    def _conclude(self, result: PromotionResult) -> None:
        version = self._candidate[0]
        self._candidate, self.last_result = ("", None), result
        fields = {"version": version, "live": self.live[0] if self.live else None, **result.fields()}
        if result.rejected:
            self.outbox.post("policy_rejected", fields)
            return
        if result.held and not self.settings.experiments:
            reason = f"{fields['reason']}; promotion.experiments is false, so nothing can decide"
            self.outbox.post("policy_rejected", fields | {"reason": reason})
            return
        self.outbox.post("policy_proposed", fields)  # before the file: whoever sees the proposal finds the event
        try:
            self.checkpoints.propose(version, self.learner.shapes())
        except CheckpointRefused as refusal:
            self.report_refusal(refusal)

    def _write(self) -> str:
        learner = self.learner
        position = learner.position
        data = {"last_row": position.row, "transitions": len(learner.replay), "first_row": self.reader.first_row()}
        weights = learner.policy.state_dict()
        compiled = NOTHING
        if self.backend is not None:
            recent = RecentExperience(lambda: learner.replay.versions, self.reader)
            newest = recent.recent(WINDOWS * APART + learner.spec.history)
            compiled = compile_candidate(learner.spec, weights, self.backend, newest)
        version = self.checkpoints.save(
            {"policy": weights},  # what resumes the training is in `learner/state` alone
            {
                "spec": orjson.loads(learner.spec.to_json()),
                "settings": learner.settings.model_dump(),
                "position": {"update": position.update, "row": position.row, "change": position.change},
                **compiled.documents,
            },
            parent=self.checkpoints.live().version,
            encoder_versions=learner.replay.versions,
            data=data
            | ({"tasks": self.tasks.versions()} if self.tasks else {})
            | ({"local_head_on": self.local_base} if self.local_base is not None else {}),
            metrics={
                "score": learner.reward_mean,
                "updates": position.update,
                "decisions": learner.algorithm.decisions,
                **learner.metrics,
            },
            graphs=compiled.graphs,
        )
        if compiled.problem:
            self.outbox.post("graph_missing", {"version": version, "reason": compiled.problem})
        return version

    def _examine(self, version: str) -> EvaluationRun:
        loaded = self.checkpoints.load(version, self.learner.shapes())
        candidate: Any = self.learner.build(self.learner.spec).eval()
        candidate.load_state_dict(loaded.tensors["policy"])
        self._candidate = (version, candidate)
        live = self._live_policy()
        context = EvaluationContext(
            manifest=loaded.manifest,
            spec=self.learner.spec,
            candidate=candidate,
            live=live[1] if live else None,
            live_version=self.checkpoints.live().version,
            experience=RecentExperience(lambda: self.learner.replay.versions, self.reader, self.reencoder),
            settings=self.settings,
            period_s=1 / self.learner.rate_hz,
            reward_delay_ticks=self.learner.replay.settle,
            encoder_versions=dict(self.learner.replay.versions),
            live_encoder_versions=self._live_encoders(),
            tasks=self.tasks,
            task_versions=self._task_versions(),
            clock=self.clock,
        )
        return EvaluationRun(context, self.steps, self.settings.steps)

    def _task_versions(self) -> Mapping[str, str]:
        """Return the versions of the tasks that fed the live policy when it was written."""
        live = self.live[0] if self.live else None
        manifest = next((m for m in self.checkpoints.list() if m.version == live), None)
        return dict(manifest.data.get("tasks", {})) if manifest is not None else {}

    def _live_encoders(self) -> Mapping[str, str]:
        """Return the encoder versions, by stream, that the live policy acts with."""
        live = self.live[0] if self.live else None
        manifest = next((m for m in self.checkpoints.list() if m.version == live), None)
        return manifest.encoder_versions if manifest is not None else {}

    def _live_policy(self) -> tuple[str, Any] | None:
        version = self.checkpoints.live().version
        if version is None:
            self.live = None
        elif self.live is None or self.live[0] != version:
            try:
                loaded = self.checkpoints.load(version, self.learner.shapes())
            except CheckpointRefused as refusal:
                self.report_refusal(refusal)
                self.live = None
            else:
                policy: Any = self.learner.build(self.learner.spec).eval()
                policy.load_state_dict(loaded.tensors["policy"])
                self.live = (version, policy)
        return self.live


def fleet_base(manifest: Manifest) -> str | None:
    """Return the version of the fleet that a version is, or that its local head builds on; None where it is of this device alone."""
    adopted = manifest.metrics.get("adopted_from")
    return adopted if isinstance(adopted, str) else local_base(manifest)


def local_base(manifest: Manifest) -> str | None:
    """Return the version of the fleet that a version with a local head builds on; None for any other version."""
    base = manifest.data.get("local_head_on")
    return base if isinstance(base, str) and "adopted_from" not in manifest.metrics else None
