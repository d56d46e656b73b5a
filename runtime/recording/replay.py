"""`reflexd replay`: decides a recorded session again, without sensors, clock or broker, and compares every decision.

The same policy and encoder versions read the same readings at the same ticks, so on the same machine every action, probability and
value must come out bit for bit. Before decisions are compared, the report names what else is different: settings, backends,
libraries, the machine, gaps in the recording. With another version it says where that one would have decided otherwise.
"""

from __future__ import annotations

import asyncio
import itertools
import math
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from rich.progress import track
from safetensors import SafetensorError

from learners.checkpoints.manifest import CheckpointRefused
from learners.checkpoints.store import open_checkpoints
from learners.model.spec import PolicySpec, SpecError
from runtime.config.schema import Config
from runtime.deploy.encoder_updater import EncoderUpdater, EncoderVersionNotFound
from runtime.inference.build import Runtime, build_engine, graph_compiler
from runtime.inference.engine import MOST_LOADED, UNTRAINED, Engine, InferenceResult
from runtime.mqtt.topics import parse
from runtime.recording.reader import Recording, RecordingError
from runtime.recording.replay_conditions import conditions, differences
from sensors.readings import Observation, Reading

DENSITY_TOLERANCE = 1e-6
"""Relative."""
SHOWN = 20


@dataclass(slots=True)
class ReplayReport:
    """What a replay found."""

    decisions: int = 0
    versions: list[str] = field(default_factory=list)
    different: list[dict[str, Any]] = field(default_factory=list)
    """Each with the decision's id, what was recorded and what came out."""
    notes: list[str] = field(default_factory=list)
    """What is different here and what the recording lacks; each may be why decisions differ."""
    not_compared: int = 0
    """Decisions that still depend on ticks in a gap."""

    @property
    def same(self) -> bool:
        """Whether every decision that was compared came out as recorded."""
        return not self.different

    def body(self) -> dict[str, Any]:
        """Return the report as JSON."""
        return {
            "decisions": self.decisions,
            "versions": self.versions,
            "same": self.same,
            "different": self.different,
            "notes": self.notes,
            "not_compared": self.not_compared,
        }

    def text(self) -> str:
        """Return the report for a person."""
        notes = "".join(f"  note: {note}\n" for note in self.notes)
        head = f"{notes}{self.decisions} decisions by {', '.join(self.versions) or 'no version'}: "
        if self.not_compared:
            head += f"{self.not_compared} after a gap not compared, "
        if self.same:
            return head + ("all identical" if not self.not_compared else "all others identical")
        lines = [f"  {d['decision']}: recorded {d['recorded']}, now {d['now']}" for d in self.different[:SHOWN]]
        more = [] if len(self.different) <= SHOWN else [f"  and {len(self.different) - SHOWN} more"]
        return "\n".join([head + f"{len(self.different)} differ", *lines, *more])


def replay_file(path: Path, config: Config, *, policy: str | None = None, progress: bool = False) -> ReplayReport:
    """Replay a recording with the versions that acted in it, or with `policy` throughout.

    Raises:
        RecordingError: the file is no recording, was made with other settings, or a version is gone.
    """
    recording = Recording(path)
    metadata = recording.metadata()
    checkpoints = open_checkpoints(config.state_dir, config.promotion)
    engine = build_engine(config, checkpoints, runtime=_runtime(metadata))
    compiled: list[str] = []
    engine.compiler = graph_compiler(config, engine, lambda _kind, fields: compiled.append(str(fields["reason"])))
    try:
        _check_spec(path, metadata.get("spec", ""), engine.spec)
        tuning = EncoderUpdater(config, engine, lambda _kind, _data: None)
        report = asyncio.run(_replay(recording, tuning, policy, progress=progress))
    except CheckpointRefused as refusal:
        raise RecordingError(str(refusal)) from None
    except RecordingError:
        raise
    except (LookupError, TypeError, AttributeError, ValueError) as error:
        raise RecordingError(
            f"{path}: a message is damaged or of another version ({type(error).__name__}: {error})"
        ) from error
    finally:
        engine.close()
    report.notes += [f"a graph was compiled: {reason}" for reason in dict.fromkeys(compiled)]
    return report


def _runtime(metadata: Mapping[str, str]) -> Runtime:
    """Return what decided in the recording; recordings that do not state it were decided in torch."""
    try:
        stated = parse(metadata.get("conditions", "{}").encode()).get("runtime", "torch")
    except (ValueError, AttributeError):  # damaged, as the replay itself says
        return "torch"
    return "auto" if stated == "compiled" else "torch"


def _check_spec(path: Path, recorded: str, spec: PolicySpec) -> None:
    """Refuse a recording that was not made with this spec, which it may state in former names.

    How much a version explores comes with its weights: another schedule for the learner changes no recorded decision.
    """
    try:
        same = replace(PolicySpec.from_json(recorded), exploration=spec.exploration) == spec
    except SpecError:
        same = False
    if not same:
        raise RecordingError(
            f"{path}: recorded with other streams, actuators or policy settings; give the file it was made with: --config"
        )


def _check_decision(recording: Recording, recorded: dict[str, Any]) -> None:
    missing = {"id", "policy", "explore"} - recorded.keys()
    if missing:
        raise RecordingError(f"{recording.path}: a decision without {sorted(missing)}; reflexd did not write it")


async def _replay(recording: Recording, tuning: EncoderUpdater, policy: str | None, *, progress: bool) -> ReplayReport:
    report, engine, metadata = ReplayReport(), tuning.engine, recording.metadata()
    report.notes += differences(parse(metadata.get("conditions", "{}").encode()), conditions(tuning.config, engine))
    engine.fuse_history_as_batch = "conditions" not in metadata  # recorded by an older program
    named = zlib.crc32(tuning.config.agent.encode())  # the seed of older programs
    engine.seed = int(metadata.get("seed", named))
    await _recall(tuning, parse(metadata.get("encoders", "{}").encode()), "at its start")
    ticks = recording.ticks()
    first = next(ticks, None)
    if first is None:
        report.notes.append("no decision can be read" + "".join(f": {reason}" for reason in recording.damage))
        return report
    held: dict[str, Reading] = {}
    gaps = _Gaps(engine, report)
    _check_decision(recording, first[1])
    await _switch(engine, policy or first[1]["policy"], report)
    try:
        await engine.restore(recording.attachments())
    except (SafetensorError, RuntimeError) as error:
        raise RecordingError(f"{recording.path}: its snapshot is damaged: {error}") from error
    for fresh, recorded in track(itertools.chain([first], ticks), "replaying", total=None, disable=not progress):
        _check_decision(recording, recorded)
        await _switch(engine, policy or recorded["policy"], report)
        await _recall(tuning, recorded.get("encoders", {}), recorded["id"])
        held |= {reading.stream: reading for reading in fresh}
        decided = await engine.decide(_observation(recorded, fresh, held), explore=recorded["explore"])
        if gaps.comparable(recorded):
            _compare(report, recorded, decided)
    if (ending := recording.ending(recorded["id"])) is not None:
        report.notes.append(ending)
    return report


@dataclass(slots=True)
class _Gaps:
    """Finds ticks that were dropped, by the numbers of the records."""

    engine: Engine
    report: ReplayReport
    _next: int | None = None
    _doubtful: int = 0
    """Decisions to come that depend on a tick in a gap through the history."""
    _any: bool = False

    def comparable(self, recorded: dict[str, Any]) -> bool:
        """Return whether a decision depends on no tick in a gap."""
        number = recorded.get("record")
        if number is not None:
            if self._next is not None and number != self._next:
                self.report.notes.append(f"gap: {number - self._next} ticks before {recorded['id']} were dropped")
                self._doubtful, self._any = self.engine.spec.history, True
            self._next = number + 1
        self._doubtful = max(0, self._doubtful - 1)
        if self._doubtful or (self._any and self._remembers(recorded)):
            self.report.not_compared += 1
            return False
        return True

    def _remembers(self, recorded: dict[str, Any]) -> bool:
        """Return whether a decision depends on every tick before: by excursions, or by the statistics of untrained weights."""
        excursions = recorded["explore"] and self.engine.has_excursions
        return excursions or self.engine.version == UNTRAINED


async def _recall(tuning: EncoderUpdater, encoders: dict[str, str], where: str) -> None:
    """Load every encoder in its recorded version; a swap restarts the history, as it did then."""
    try:
        await tuning.restore(encoders)
    except EncoderVersionNotFound as gone:
        raise RecordingError(f"{where}: {gone}") from None


async def _switch(engine: Engine, version: str, report: ReplayReport) -> None:
    if version not in report.versions:
        report.versions.append(version)
    if version == engine.version:
        return
    if version not in engine.loaded and len(engine.loaded) >= MOST_LOADED:
        await engine.release(next(name for name in sorted(engine.loaded) if name not in (engine.version, UNTRAINED)))
    try:
        await engine.load(version)
        await engine.activate(version)
    except CheckpointRefused as refusal:
        raise RecordingError(
            f"{refusal}; promoted versions are not deleted, so use the state_dir of the recording daemon"
        ) from None


def _observation(recorded: dict[str, Any], fresh: list[Reading], held: dict[str, Reading]) -> Observation:
    """Return the observation of that tick: the readings that it names, with exactly their ages."""
    missing = frozenset(recorded["missing"])
    readings = {name: held[name] for name in recorded["used"] if name in held}
    lost = {name for name, seq in recorded["used"].items() if name not in readings or readings[name].seq != seq}
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
        frozenset(recorded.get("fresh", [reading.stream for reading in fresh])),
        allowed={name: tuple(choices) for name, choices in recorded.get("allowed", {}).items()},
    )


def _equal(now: Any, recorded: Any) -> bool:
    """Return whether two decisions are equal: bit for bit, but for the last digits of a density, which older programs rounded otherwise."""
    if isinstance(now, dict) and isinstance(recorded, dict) and now.keys() == recorded.keys():
        is_motion = isinstance(now.get("value"), list)
        return all(
            math.isclose(now[key], recorded[key], rel_tol=DENSITY_TOLERANCE)
            if is_motion and key == "probability"
            else _equal(now[key], recorded[key])
            for key in now
        )
    return bool(now == recorded)


def _compare(report: ReplayReport, recorded: dict[str, Any], decided: InferenceResult) -> None:
    report.decisions += 1
    now = {
        name: {key: _plain(x) for key, x in message.items() if key in recorded["actions"].get(name, message)}
        for name, message in decided.actions_message().items()
    }  # recordings of before have no probabilities of all choices
    if not _equal(now, recorded["actions"]) or decided.value != recorded["value"]:
        report.different.append({"decision": recorded["id"], "recorded": recorded["actions"], "now": now})


def _plain(value: object) -> object:
    return list(value) if isinstance(value, tuple) else value
