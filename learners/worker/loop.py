"""Run the learner's main loop, for one policy spec after another (`python -m learners.worker SETTINGS.json`).

The loop waits for the policy spec that the agent writes and resumes from the saved state. Then it repeats until it is stopped:
ingest new experience every `update_every_s`, update the policy, start a candidate's evaluation every `promote_every_s`. An
evaluation takes a while, because its shadow step waits for fresh ticks: each round advances it a little. A fine-tune runs in a
process of its own. The learner uses no actuator and no network: it writes checkpoints, `learner/progress.json` and the outbox.
The supervisor starts and restarts it.

Events in the outbox: `policy_proposed`, `policy_rejected` (with every step's figures), `checkpoint_refused`,
`learner_resumed`, `learner_waiting_for_spec`; of fine-tunes see `finetune_process.py`.
"""

from __future__ import annotations

import logging
import sqlite3
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from learners.checkpoints.manifest import CheckpointRefused
from learners.checkpoints.signing import KeyRefused, credentials_folder, load_key
from learners.checkpoints.store import Checkpoints, open_checkpoints
from learners.checkpoints.trusted_keys import read_public
from learners.experience.reader import Reader
from learners.experience.snapshots import ExperienceSnapshots
from learners.files import storage_problem
from learners.fleet_data.received_policies import forget_received, received, withdrawn
from learners.ipc.outbox import Outbox
from learners.ipc.policy_spec import read_policy_spec
from learners.ipc.progress import ProgressWriter
from learners.ipc.settings import FleetRoute, LearnerConfig
from learners.model.policy import Policy
from learners.model.spec import PolicySpec
from learners.promotion.feeding_tasks import FeedingTasks
from learners.promotion.step_types import Step
from learners.promotion.steps import STEPS
from learners.reencoding.encoder_versions import EncoderVersions
from learners.reencoding.reencoder import Reencoder
from learners.reencoding.token_store import TokenStore
from learners.rl.tokens.sharded import Shards
from learners.torch_device import pick_device
from learners.worker.finetuning import FinetuneRunner
from learners.worker.journal import Journal
from learners.worker.learner import Learner
from learners.worker.policy_candidates import CandidateManager, fleet_base
from learners.worker.torch_limits import background_stream

if TYPE_CHECKING:
    from learners.continual.trainer import ContinualTrainer

POLL_S = 0.2
ENCODED_LATER = 64
"""Rows that may still wait for an encoder's new version when the evaluation of a candidate begins."""
STORAGE_RETRY_S = 5.0
"""Between two attempts to write while the disk refuses; training pauses, because its journal cannot be written."""
_LOG = logging.getLogger(__name__)


class LearnerLoop:
    """The running learner of one spec.

    Args:
        inputs: the learner's settings.
        spec: of the policy.
        stop: ends the loop.
        build: makes a policy of a spec.
        steps: the registry of promotion steps.
        clock: monotonic seconds, which decide what is due.
        shards: where the tokens of the replay buffer are; None for this process.
    """

    def __init__(
        self,
        inputs: LearnerConfig,
        spec: PolicySpec,
        stop: threading.Event,
        *,
        build: Callable[[PolicySpec], nn.Module] = Policy,
        steps: Mapping[str, Step] = STEPS,
        clock: Callable[[], float] = time.monotonic,
        shards: Shards | None = None,
    ) -> None:
        self.clock = clock
        folder = inputs.state_dir / "learner"
        key = load_key(inputs.state_dir, credentials_folder())
        promotion = inputs.promotion
        self.inputs, self.spec, self.stop = inputs, spec, stop
        self.local = "all" if inputs.fleet is None or inputs.fleet.key is None else inputs.fleet.local
        """What is trained here: `all`, the `head` of the fleet's live version, or `none`."""
        self._bases: dict[str, str | None] = {}
        """By version, the version of the fleet that it is or builds on."""
        self.device = pick_device(inputs.device)
        self.reader = Reader(inputs.state_dir / "experience")
        self.outbox = Outbox(folder / "outbox")
        self.progress = ProgressWriter(folder / "progress.json")
        self.checkpoints = open_checkpoints(inputs.state_dir, promotion)
        recoded = TokenStore(folder / "reencoded.db")
        self.learner = Learner(
            spec,
            inputs.learner,
            ExperienceSnapshots(self.reader),
            Checkpoints(folder / "state", key, keep_last=2, keep_best=0, keep_promoted=2),
            Journal(folder / "journal.jsonl"),
            build,
            rate_hz=inputs.tick.rate_hz,
            device=self.device,
            recoded=recoded,
            heads_only=self.local == "head",
            shards=shards,
        )
        self.encoder_versions = EncoderVersions(inputs)
        self.reencoder = Reencoder(self.reader, recoded, self.encoder_versions)
        tasks = _tasks(inputs, self.reader)
        self.finetuning = FinetuneRunner(inputs, tasks, self.outbox)
        self.candidates = CandidateManager(
            self.learner,
            self.checkpoints,
            self.reader,
            outbox=self.outbox,
            settings=promotion,
            tasks=FeedingTasks(tasks),
            reencoder=self.reencoder,
            backend=inputs.engine if build is Policy and self.device.type == "cpu" else None,
            steps=steps,
            clock=clock,
        )
        self.storage: str | None = None
        """What could not be written, as `PATH: REASON`; None while everything can."""
        self._due: dict[str, float] = {}
        self._withdrawn: tuple[frozenset[str], str | None] = (frozenset(), None)
        """Versions of the fleet that this process took back, and the version that was live then."""

    def run(self) -> None:
        """Train until `stop` is set or the agent runs another spec; save the state at the end."""
        stream = background_stream(self.device, self.inputs.learner.memory_fraction)
        with torch.cuda.stream(stream) if stream is not None else nullcontext():
            self.begin()
            while not self.stop.is_set() and self._same_spec():
                self._round()
            self.finetuning.stop()
            self._attempt(self.learner.save)
            self.finetuning.close()
            self._tell("stopped", now=True)
        self.reader.close()
        self.reencoder.recoded.close()

    def begin(self) -> None:
        """Resume, or start from the live version, or from fresh weights."""
        self._tell("starting", now=True)
        resumed = self.learner.resume(self._weights)
        self._report_refusals()
        if not resumed:
            loaded = self.checkpoints.load_live(
                self.candidates.report_refusal, self.learner.shapes(), self.spec.meaning()
            )
            if loaded is not None:
                version, weights, metrics = loaded.manifest.version, loaded.tensors["policy"], loaded.manifest.metrics
                self._attempt(lambda: self.learner.reset_to_version(version, weights, metrics))
            self._attempt(self.learner.save)
        elif self._changed_meanwhile():
            self._attempt(self._reset_to_live)
        position = self.learner.position
        self.outbox.post("learner_resumed", {"resumed": resumed, "update": position.update, "row": position.row})

    def _round(self) -> None:
        """Do one round; while the disk refuses, try to save every `STORAGE_RETRY_S` instead."""
        if self.storage is None:
            self._attempt(self.step)
        else:
            self.stop.wait(STORAGE_RETRY_S)
            self._attempt(self.learner.save)
        if self.storage is not None:
            self._tell("waiting_for_storage", now=True)

    def _attempt(self, work: Callable[[], object]) -> None:
        """Do something that writes; an error of the disk is noted and logged, and success clears the note.

        Raises:
            OSError, sqlite3.OperationalError: it is no error of the disk.
        """
        try:
            work()
        except (OSError, sqlite3.OperationalError) as error:
            problem = storage_problem(error, self.inputs.state_dir)
            if problem is None:
                raise
            if self.storage is None:
                _LOG.warning("learner.storage: %s; training waits until the disk accepts it", problem)
            self.storage = problem
        else:
            self.storage = None

    def step(self) -> None:
        """Do one round: ingest experience, update the policy for a while, and start or continue what is due."""
        settings = self.inputs.learner
        if self.inputs.fleet is not None:
            self._withdraw(self.inputs.fleet)
        self.candidates.follow_live()
        self.learner.follow_encoders(self.encoder_versions.followed(partial(self.outbox.post, "encoder_refused")))
        trains = self._follow_base()
        self.learner.ingest()
        done = self.learner.train(self.clock() + settings.update_every_s, clock=self.clock) if trains else 0
        state = "training" if done else ("waiting" if not self.learner.position.update else "idle")
        self.finetuning.step()
        self._tell("finetuning" if self.finetuning.task else state)
        if not done:
            self.stop.wait(min(settings.update_every_s, 1.0))
        with torch.random.fork_rng(devices=[]):
            self.reencoder.step(self.learner.replay, time.monotonic() + settings.update_every_s / 2)
        self.learner.take_reencoded()
        if self._is_due("save", settings.save_every_s):
            self.learner.save()
        if self.candidates.evaluation is not None:
            self.candidates.resume(self.clock() + settings.update_every_s)
        elif self._begin_received():
            pass
        elif self.reencoder.waiting > ENCODED_LATER:
            pass  # an encoder changed: a candidate is evaluated with its tokens
        elif trains and self._is_due("promote", settings.promote_every_s) and self.candidates.has_new_updates:
            self.candidates.begin()

    def _follow_base(self) -> bool:
        """Train on from the fleet's version that is live now, where only its heads are trained; return whether anything is trained.

        A new version of the fleet replaces the base, and the local head on the one before is dropped: it fits other features.
        """
        if self.local != "head":
            return self.local == "all"
        live = self.checkpoints.live().version
        base = self._base_of(live)
        if live is None or base is None:
            return False
        if base != self._base_of(self.learner.started_from):
            try:
                weights = self._weights(live)
            except CheckpointRefused as refusal:
                self.candidates.report_refusal(refusal)
                return False
            self.candidates.reset(live, weights)
            self.learner.save()
        if self.candidates.local_base != base:
            self.candidates.local_base = base
            self.candidates.drop_local()
        return True

    def _base_of(self, version: str | None) -> str | None:
        """Return the version of the fleet that a version is or builds on; None if it is of this device alone, or gone."""
        if version is None:
            return None
        if version not in self._bases:
            self._bases = {m.version: fleet_base(m) for m in self.checkpoints.list()}
        return self._bases.get(version)

    def _withdraw(self, fleet: FleetRoute) -> None:
        """Take back the versions that the fleet withdrew, once."""
        if fleet.key is None:
            return
        found = withdrawn(self.inputs.state_dir), self.checkpoints.live().version
        if found[0] and found != self._withdrawn:
            self.candidates.withdraw(found[0])
            self._withdrawn = found  # after the rollback: a killed learner does it again

    def _begin_received(self) -> bool:
        """Begin the evaluation of a policy that the fleet sent; False if there is none."""
        key = self.inputs.fleet.key if self.inputs.fleet is not None else None
        directory = received(self.inputs.state_dir) if key is not None else None
        if key is None or directory is None:
            return False
        try:
            is_examined = self.candidates.begin_received(directory, read_public(key))
        except KeyRefused as refusal:
            _LOG.warning("learner.fleet_key: %s", refusal)
            is_examined = False
        forget_received(self.inputs.state_dir, directory, is_examined=is_examined)
        return True

    def _changed_meanwhile(self) -> bool:
        """Return whether a rollback or an import is newer than the saved state, which builds on another version."""
        live, saved = self.checkpoints.live(), self.learner.state.list()
        if not (live.version and saved) or live.changed_s <= saved[-1].created_s:
            return False
        back = bool(live.failed) and int(live.version.split("-")[0]) < int(live.failed[-1].split("-")[0])
        return back or live.by == "import"

    def _reset_to_live(self) -> None:
        live = self.checkpoints.live().version
        assert live is not None
        try:
            weights = self._weights(live)
        except CheckpointRefused as refusal:
            self.candidates.report_refusal(refusal)
            return
        self.learner.reset_to_version(live, weights)
        self.learner.save()

    def _weights(self, version: str) -> dict[str, Tensor]:
        return self.checkpoints.load(version, self.learner.shapes(), self.spec.meaning()).tensors["policy"]

    def _same_spec(self) -> bool:
        spec = read_policy_spec(self.inputs.state_dir)
        return spec is None or spec == self.spec

    def _is_due(self, what: str, every_s: float) -> bool:
        moment = self.clock()
        if moment - self._due.setdefault(what, moment) < every_s:
            return False
        self._due[what] = moment
        return True

    def _report_refusals(self) -> None:
        while self.learner.refused:
            self.candidates.report_refusal(self.learner.refused.pop(0))

    def _tell(self, state: str, *, now: bool = False) -> None:
        self.progress.report(self.learner.position.update, lambda: {"state": state, **self.figures()}, now=now)

    def figures(self) -> dict[str, Any]:
        """Return the fields of `progress.json`; see `learners/ipc/progress.py`."""
        learner = self.learner
        metrics = learner.metrics
        strata = learner.replay.strata()
        values = [value for name, value in metrics.items() if name.endswith("_value")]
        return {
            "loss": {name.removesuffix("_loss"): value for name, value in metrics.items() if name.endswith("_loss")},
            "metrics": metrics,
            "q": sum(values) / len(values) if values else None,
            "buffer": len(learner.replay),
            "sampleable": strata.sampleable,
            "outdated": learner.replay.outdated,
            "demonstrations": strata.demonstrations,
            "terminal": strata.terminal,
            "row": learner.position.row,
            "pending_updates": round(learner.position.pending_updates, 1),
            "dropped_updates": learner.dropped_updates,
            "skipped": learner.skipped,
            "reward_mean": learner.reward_mean,
            "policy": self.checkpoints.live().version,
            "candidate": self.candidates.last_result.fields() if self.candidates.last_result else None,
            "on_trial": self.candidates.on_trial(),
            "unreadable": self.reader.unreadable,
            "storage": self.storage,
            "finetuning": self.finetuning.progress(),
            "reencoded": self.reencoder.figures(),
        }


def serve(inputs: LearnerConfig, stop: threading.Event) -> None:
    """Train for one spec after another until `stop` is set."""
    waited = False
    while not stop.is_set():
        spec = read_policy_spec(inputs.state_dir)
        if spec is None:
            if not waited:
                Outbox(inputs.state_dir / "learner" / "outbox").post(
                    "learner_waiting_for_spec", {"for": "the agent's policy spec"}
                )
            waited = True
            stop.wait(POLL_S)
            continue
        loop = _opened(inputs, spec, stop)
        if loop is not None:
            loop.run()


def _tasks(inputs: LearnerConfig, reader: Reader) -> dict[str, ContinualTrainer]:
    """Build the fine-tuning of every task, by name; without tasks, the libraries of their models are not imported."""
    if not inputs.tasks:
        return {}
    from learners.worker.finetune_process import tasks_of  # noqa: PLC0415 - transformers and matplotlib: seconds, and memory

    return tasks_of(inputs, reader)


def _opened(inputs: LearnerConfig, spec: PolicySpec, stop: threading.Event) -> LearnerLoop | None:
    """Open the files of the loop; on an error of the disk wait and return None, because a restart would not help.

    Raises:
        OSError, sqlite3.OperationalError: it is no error of the disk.
    """
    try:
        return LearnerLoop(inputs, spec, stop)
    except (OSError, sqlite3.OperationalError) as error:
        problem = storage_problem(error, inputs.state_dir)
        if problem is None:
            raise
        _LOG.warning("learner.storage: %s; the learner starts once the disk accepts it", problem)
        stop.wait(STORAGE_RETRY_S)
        return None
