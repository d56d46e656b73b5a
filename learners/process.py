"""The learner process: `python -m learners.process SETTINGS.json`.

Waits for the spec the agent leaves, resumes, and then, until told to stop: takes in new experience every `update_every_s`,
updates the policy, every `promote_every_s` puts a candidate on trial and promotes it if it passes. A trial takes a while (its
shadow step watches fresh ticks): it goes on a little in every round, beside training. It touches no actuator and
no network: checkpoints, `learner/progress.json` and the outbox are all it leaves. Started and restarted by the supervisor.

Events in the outbox: `policy_promoted`, `policy_rejected` (with every step's figures), `checkpoint_refused`,
`learner_resumed`, `learner_waits`, `update_skipped`.
"""

from __future__ import annotations

import math
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import orjson
import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn

from learners.background import background_stream, die_with, give_way
from learners.checkpoints import CheckpointRefused, Checkpoints
from learners.config import ExperienceSettings, FinetuneSettings, LearnerSettings, PromotionSettings, TaskSettings
from learners.evaluate import Examination, Step, Trial, Verdict
from learners.handover import take_over
from learners.journal import Journal
from learners.learner import Learner
from learners.model.policy import Policy
from learners.model.spec import PolicySpec
from learners.online import Online
from learners.outbox import Outbox
from learners.promotion import STEPS
from learners.reader import Reader
from learners.signing import load_key
from learners.source import Source
from learners.status import Progress
from learners.tasks.base import DataError
from learners.trainer import Stopped

POLL_S = 0.2
FRESH = 256
"""Rows that a trial takes from the store at a time."""
LEARNER_STATE_LIMIT = 64_000_000
"""Bytes of learner state that travel with a version; a larger one only lies in the saved state."""


class Pace(BaseModel):
    """Of the tick."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    rate_hz: float = 10.0


class Inputs(BaseModel):
    """What the learner needs of the settings file; the rest is not its business."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    state_dir: Path
    device: str = "auto"
    tick: Pace = Pace()
    learner: LearnerSettings = LearnerSettings.model_validate({})
    experience: ExperienceSettings = ExperienceSettings.model_validate({})
    promotion: PromotionSettings = PromotionSettings.model_validate({})
    finetune: FinetuneSettings = FinetuneSettings.model_validate({})
    tasks: dict[str, TaskSettings] = {}


class Background:
    """The running learner of one spec."""

    def __init__(
        self,
        inputs: Inputs,
        spec: PolicySpec,
        stop: threading.Event,
        *,
        build: Callable[[PolicySpec], nn.Module] = Policy,
        steps: Mapping[str, Step] = STEPS,
        chores: Sequence[Callable[[], object]] = (),
    ) -> None:
        folder = inputs.state_dir / "learner"
        key = load_key(inputs.state_dir, _credentials())
        promotion = inputs.promotion
        self.inputs, self.spec, self.stop, self.build, self.steps = inputs, spec, stop, build, steps
        self.chores = chores
        """Called once a round, such as periodic fine-tuning; they look at the clock themselves."""
        self.device = pick_device(inputs.device)
        self.reader = Reader(inputs.state_dir / "experience")
        self.outbox = Outbox(folder / "outbox")
        self.progress = Progress(folder / "progress.json")
        self.versions = Checkpoints(
            inputs.state_dir / "checkpoints", key, keep_last=promotion.keep_last, keep_best=promotion.keep_best
        )
        self.learner = Learner(
            spec,
            inputs.learner,
            Source(self.reader),
            Checkpoints(folder / "state", key, keep_last=2, keep_best=0, keep_promoted=2),
            Journal(folder / "journal.jsonl"),
            build,
            rate_hz=inputs.tick.rate_hz,
            device=self.device,
        )
        self.live: tuple[str, Any] | None = None
        self.verdict: Verdict | None = None
        self.examination: Examination | None = None
        """The trial that is going on."""
        self._candidate: tuple[str, Any] = ("", None)
        self._judged = -1
        self._due: dict[str, float] = {}

    def run(self) -> None:
        """Work until told to stop or until the agent runs another spec; the state is saved at the end."""
        stream = background_stream(self.device, self.inputs.learner.memory_fraction)
        with torch.cuda.stream(stream) if stream is not None else nullcontext():
            self.begin()
            while not self.stop.is_set() and self._same_spec():
                self.once()
            self.learner.save()
            self._tell("stopped", now=True)
        self.reader.close()

    def begin(self) -> None:
        """Resume, or start from the live version, or from fresh weights."""
        self._tell("starting", now=True)
        resumed = self.learner.resume(self._weights)
        self._report_refusals()
        if not resumed:
            loaded = self.versions.load_live(self._refused, self.learner.shapes())
            if loaded is not None:
                self.learner.take_up(loaded.manifest.version, loaded.tensors["policy"])
            self.learner.save()
        position = self.learner.position
        self.outbox.post("learner_resumed", {"resumed": resumed, "update": position.update, "row": position.row})

    def once(self) -> None:
        """One round: take in, update for a while, and what has become due."""
        settings = self.inputs.learner
        self._follow_rollback()
        self.learner.ingest()
        done = self.learner.train(time.monotonic() + settings.update_every_s)
        state = "training" if done else ("waiting" if not self.learner.position.update else "idle")
        self._tell(state)
        if not done:
            self.stop.wait(min(settings.update_every_s, 1.0))
        with torch.random.fork_rng(devices=[]):
            for chore in self.chores:
                chore()
        if self._is_due("save", settings.save_every_s):
            self.learner.save()
        if self.examination is not None:
            self.go_on(time.monotonic() + settings.update_every_s)
        elif self._is_due("promote", settings.promote_every_s) and self.learner.position.update > self._judged:
            self.begin_trial()

    def trial(self) -> Verdict | None:
        """Put a candidate on trial; the verdict, unless a step has to wait."""
        self.begin_trial()
        return self.go_on()

    def begin_trial(self) -> None:
        """Write a candidate and prepare its trial."""
        self._judged = self.learner.position.update
        with torch.random.fork_rng(devices=[]):  # judging must not change what is learned next
            version = self._write_candidate()
            self.examination = self._examine(version)

    def go_on(self, until_s: float = math.inf) -> Verdict | None:
        """Go on with the trial until a moment of the monotonic clock; at its end promote the candidate or say why not."""
        examination = self.examination
        assert examination is not None
        if self.versions.live().version != examination.trial.live_version:
            verdict: Verdict | None = examination.void("another version went live during the trial")
        else:
            with torch.random.fork_rng(devices=[]):
                verdict = examination.advance(until_s)
        if verdict is not None:
            self.examination = None
            self._conclude(verdict)
        return verdict

    def _conclude(self, verdict: Verdict) -> None:
        version, candidate = self._candidate
        self._candidate, self.verdict = ("", None), verdict
        fields = {"version": version, "live": self.live[0] if self.live else None, **verdict.fields()}
        if not verdict.passed:
            self.outbox.post("policy_rejected", fields)
            return
        try:
            self.versions.promote(version, self.learner.shapes())
        except CheckpointRefused as refusal:
            self._refused(refusal)
        else:
            self.live = (version, candidate)
            self.outbox.post("policy_promoted", fields)

    def _write_candidate(self) -> str:
        learner = self.learner
        tensors: dict[str, dict[str, Tensor]] = {"policy": learner.policy.state_dict()}
        extra = learner.algorithm.state_dict()
        if sum(t.numel() * t.element_size() for t in extra.values()) <= LEARNER_STATE_LIMIT:
            tensors["learner"] = extra
        position = learner.position
        mean = learner.reward_mean
        return self.versions.save(
            tensors,
            {
                "spec": orjson.loads(self.spec.to_json()),
                "settings": self.inputs.learner.model_dump(),
                "position": {"update": position.update, "row": position.row, "change": position.change},
            },
            parent=self.versions.live().version,
            encoder_versions=learner.replay.versions,
            data={"last_row": position.row, "transitions": len(learner.replay), "first_row": self.reader.first_row()},
            metrics={"score": mean, "updates": position.update, **learner.metrics},
        )

    def _examine(self, version: str) -> Examination:
        loaded = self.versions.load(version, self.learner.shapes())
        candidate: Any = self.build(self.spec).eval()
        candidate.load_state_dict(loaded.tensors["policy"])
        self._candidate = (version, candidate)
        live = self._live_policy()
        settings, rate_hz = self.inputs.learner, self.inputs.tick.rate_hz
        trial = Trial(
            manifest=loaded.manifest,
            spec=self.spec,
            candidate=candidate,
            live=live[1] if live else None,
            live_version=self.versions.live().version,
            recent=lambda count: [row.transition for row in self.reader.newest(count)],
            settings=self.inputs.promotion,
            period_s=1 / rate_hz,
            settle=round(settings.settle_s * rate_hz),
            after=lambda row: self.reader.rows(row + 1, row + 1 + FRESH),
            last_row=self.reader.last_row,
            versions=dict(self.learner.replay.versions),
        )
        return Examination(trial, self.steps, self.inputs.promotion.steps)

    def _live_policy(self) -> tuple[str, Any] | None:
        version = self.versions.live().version
        if version is None:
            self.live = None
        elif self.live is None or self.live[0] != version:
            try:
                loaded = self.versions.load(version, self.learner.shapes())
            except CheckpointRefused as refusal:
                self._refused(refusal)
                self.live = None
            else:
                policy: Any = self.build(self.spec).eval()
                policy.load_state_dict(loaded.tensors["policy"])
                self.live = (version, policy)
        return self.live

    def _follow_rollback(self) -> None:
        """After a rollback, learn on from the version that came back: what failed is not the ground to build on."""
        live = self.versions.live()
        failed = self.live is not None and self.live[0] in live.failed
        if failed and live.version is not None:
            with torch.random.fork_rng(devices=[]):
                self._live_policy()
            if self.live is not None:
                self.learner.take_up(self.live[0], self.live[1].state_dict())
                self._judged = self.learner.position.update

    def _weights(self, version: str) -> dict[str, Tensor]:
        return self.versions.load(version, self.learner.shapes()).tensors["policy"]

    def _same_spec(self) -> bool:
        spec = take_over(self.inputs.state_dir)
        return spec is None or spec == self.spec

    def _is_due(self, what: str, every_s: float) -> bool:
        moment = time.monotonic()
        if moment - self._due.setdefault(what, moment) < every_s:
            return False
        self._due[what] = moment
        return True

    def _refused(self, refusal: CheckpointRefused) -> None:
        fields = {"version": refusal.version, "reason": refusal.reason, "detail": refusal.detail}
        self.outbox.post("checkpoint_refused", fields)

    def _report_refusals(self) -> None:
        while self.learner.refused:
            self._refused(self.learner.refused.pop(0))

    def _tell(self, state: str, *, now: bool = False) -> None:
        self.progress.tell(self.learner.position.update, lambda: {"state": state, **self.figures()}, now=now)

    def figures(self) -> dict[str, Any]:
        """What `progress.json` says; see `status.py`."""
        learner = self.learner
        metrics = learner.metrics
        strata = learner.replay.strata()
        values = [value for name, value in metrics.items() if name.endswith("_value")]
        return {
            "loss": {name.removesuffix("_loss"): value for name, value in metrics.items() if name.endswith("_loss")},
            "metrics": metrics,
            "q": sum(values) / len(values) if values else None,
            "buffer": len(learner.replay),
            "drawable": strata.all,
            "taught": strata.taught,
            "failures": strata.failures,
            "row": learner.position.row,
            "owed": round(learner.position.owed, 1),
            "forgotten": learner.forgotten,
            "skipped": learner.skipped,
            "reward_mean": learner.reward_mean,
            "policy": self.versions.live().version,
            "candidate": self.verdict.fields() if self.verdict else None,
            "on_trial": {"version": self._candidate[0], "step": self.examination.step} if self.examination else None,
            "unreadable": self.reader.unreadable,
        }


def pick_device(name: str) -> torch.device:
    """`auto` is the first GPU where there is one."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(name)


def serve(inputs: Inputs, stop: threading.Event) -> None:
    """Learn for one spec after another until told to stop."""
    outbox = Outbox(inputs.state_dir / "learner" / "outbox")
    waited = False
    while not stop.is_set():
        spec = take_over(inputs.state_dir)
        if spec is None:
            if not waited:
                outbox.post("learner_waits", {"for": "the agent's policy spec"})
            waited = True
            stop.wait(POLL_S)
            continue
        Background(inputs, spec, stop, chores=chores(inputs, outbox, stop)).run()


def chores(inputs: Inputs, outbox: Outbox, stop: threading.Event) -> list[Callable[[], object]]:
    """Periodic fine-tuning of every task, and what was wished for on `request/finetune`."""
    folder = inputs.state_dir / "learner"
    reader = Reader(inputs.state_dir / "experience")
    tasks = {
        name: Online(name, settings, inputs.finetune, folder / "tasks", reader, seed=inputs.learner.seed)
        for name, settings in inputs.tasks.items()
    }
    wishes = Outbox(folder / "wishes", limit=16)
    return [partial(_finetune, tasks, wishes, outbox, stop)] if tasks else []


def _finetune(tasks: Mapping[str, Online], wishes: Outbox, outbox: Outbox, stop: threading.Event) -> None:
    wished: set[str] = set()
    for wish in wishes.collect():
        wished |= {wish.fields["task"]} if wish.fields.get("task") else set(tasks)
        wish.acknowledge()
    for name, task in tasks.items():
        if name in wished or task.due():
            try:
                verdict = task.run(stop=stop.is_set)
            except (DataError, Stopped) as reason:
                outbox.post("finetune_skipped", {"task": name, "reason": str(reason)})
            else:
                outbox.post(verdict.event, {"task": name, **verdict.fields})


def _credentials() -> Path | None:
    given = os.environ.get("CREDENTIALS_DIRECTORY")
    return Path(given) if given else None


def main(arguments: list[str]) -> int:
    """The process's entry; returns its exit code."""
    if len(arguments) != 1:
        sys.stderr.write("usage: python -m learners.process SETTINGS.json\n")
        return 2
    parent = os.getppid()
    if not die_with(parent):
        return 1
    inputs = Inputs.model_validate(orjson.loads(Path(arguments[0]).read_bytes()))
    give_way("reflexd: learner", inputs.learner.threads, inputs.learner.priority)
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    serve(inputs, stop)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
