"""`reflexd replay`: decides a recorded session again, without sensors, clock or broker, and compares every decision.

The same policy and encoder versions read the same readings at the same ticks, so on the same machine every action, probability and
value must come out bit for bit. With another version it says where that one would have decided otherwise.
"""

from __future__ import annotations

import asyncio
import itertools
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.progress import track

from learners.checkpoints.manifest import CheckpointRefused
from learners.checkpoints.store import open_checkpoints
from learners.model.spec import PolicySpec, SpecError
from runtime.config.schema import Config
from runtime.deploy.encoder_updater import EncoderUpdater, EncoderVersionNotFound
from runtime.inference.build import build_engine
from runtime.inference.engine import UNTRAINED, Engine, InferenceResult
from runtime.mqtt.topics import parse
from runtime.recording.recorder import Recording, RecordingError
from sensors.readings import Observation, Reading

SHOWN = 20


@dataclass(slots=True)
class Report:
    """What a replay found."""

    decisions: int = 0
    versions: list[str] = field(default_factory=list)
    different: list[dict[str, Any]] = field(default_factory=list)
    """Each with the decision's id, what was recorded and what came out."""

    @property
    def same(self) -> bool:
        """Whether every decision came out as recorded."""
        return not self.different

    def body(self) -> dict[str, Any]:
        """The report as JSON."""
        return {"decisions": self.decisions, "versions": self.versions, "same": self.same, "different": self.different}

    def text(self) -> str:
        """The report for a person."""
        head = f"{self.decisions} decisions by {', '.join(self.versions) or 'no version'}: "
        if self.same:
            return head + "all identical"
        lines = [f"  {d['decision']}: recorded {d['recorded']}, now {d['now']}" for d in self.different[:SHOWN]]
        more = [] if len(self.different) <= SHOWN else [f"  and {len(self.different) - SHOWN} more"]
        return "\n".join([head + f"{len(self.different)} differ", *lines, *more])


def replay_file(path: Path, config: Config, *, policy: str | None = None, progress: bool = False) -> Report:
    """Replay a recording with the versions that acted in it, or with `policy` throughout.

    Raises:
        RecordingError: the file is no recording, was made with other settings, or a version is gone.
    """
    recording = Recording(path)
    metadata = recording.metadata()
    checkpoints = open_checkpoints(config.state_dir, config.promotion)
    engine = build_engine(config, checkpoints)
    try:
        if not _same_spec(metadata.get("spec", ""), engine.spec):
            raise RecordingError(
                f"{path}: recorded with other streams, actuators or policy settings; give the file it was made with: --config"
            )
        tuning = EncoderUpdater(config, engine, lambda _kind, _data: None)
        return asyncio.run(_replay(recording, tuning, policy, progress=progress))
    except (LookupError, TypeError, AttributeError) as error:
        raise RecordingError(
            f"{path}: a message is damaged or of another version ({type(error).__name__}: {error})"
        ) from error
    finally:
        engine.close()


def _same_spec(recorded: str, spec: PolicySpec) -> bool:
    """Return whether a recording was made with this spec, which it may state in former names."""
    try:
        return PolicySpec.from_json(recorded) == spec
    except SpecError:
        return False


async def _replay(recording: Recording, tuning: EncoderUpdater, policy: str | None, *, progress: bool) -> Report:
    report, engine = Report(), tuning.engine
    await _recall(tuning, parse(recording.metadata().get("encoders", "{}").encode()), "at its begin")
    ticks = recording.ticks()
    first = next(ticks, None)
    if first is None:
        return report
    held: dict[str, Reading] = {}
    await _switch(engine, policy or first[1]["policy"], report)
    await engine.restore(recording.attachments())
    for fresh, recorded in track(itertools.chain([first], ticks), "replaying", total=None, disable=not progress):
        await _switch(engine, policy or recorded["policy"], report)
        await _recall(tuning, recorded.get("encoders", {}), recorded["id"])
        held |= {reading.stream: reading for reading in fresh}
        decided = await engine.decide(_observation(recorded, fresh, held), explore=recorded["explore"])
        _compare(report, recorded, decided)
    return report


async def _recall(tuning: EncoderUpdater, encoders: dict[str, str], where: str) -> None:
    """Have every encoder in the version it had; a swap begins the history anew, as it did then."""
    try:
        await tuning.restore(encoders)
    except EncoderVersionNotFound as gone:
        raise RecordingError(f"{where}: {gone}") from None


async def _switch(engine: Engine, version: str, report: Report) -> None:
    if version not in report.versions:
        report.versions.append(version)
    if version == engine.version:
        return
    if version == UNTRAINED:
        raise RecordingError("decisions of untrained weights after trained ones: two sessions in one recording")
    try:
        await engine.load(version)
    except CheckpointRefused as refusal:
        raise RecordingError(
            f"{refusal}; promoted versions are kept, so use the state_dir the recording was made in"
        ) from None


def _observation(recorded: dict[str, Any], fresh: list[Reading], held: dict[str, Reading]) -> Observation:
    """What that tick saw: the readings it names, their ages exactly as they were."""
    missing = frozenset(recorded["missing"])
    readings = {name: held[name] for name in recorded["used"] if name in held}
    lost = set(recorded["used"]) - readings.keys()
    if lost:
        raise RecordingError(
            f"{recorded['id']}: saw {sorted(lost)} before the recording began or in a gap; its first decisions cannot be replayed"
        )
    return Observation(
        recorded["tick"],
        recorded["stamp_s"],
        readings,
        recorded["ages_s"],
        missing,
        frozenset(reading.stream for reading in fresh),
    )


def _compare(report: Report, recorded: dict[str, Any], decided: InferenceResult) -> None:
    report.decisions += 1
    now = {
        name: {key: _plain(x) for key, x in told.items() if key in recorded["actions"].get(name, told)}
        for name, told in decided.actions_message().items()
    }  # recordings of before have no probabilities of all choices
    if now != recorded["actions"] or decided.value != recorded["value"]:
        report.different.append({"decision": recorded["id"], "recorded": recorded["actions"], "now": now})


def _plain(value: object) -> object:
    return list(value) if isinstance(value, tuple) else value
