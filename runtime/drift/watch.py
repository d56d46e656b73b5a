"""Watch every stream and the policy for drift, one vector a second each, and react as the settings say.

What an agent sees depends on what it does: when another version goes live, the references are learned again. A drift never trains
or promotes anything. Events: `drift_noticed`, `drift_ended`, `drift_accepted`, `drift_state_unreadable`.
"""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from learners.checkpoints.manifest import CheckpointRefused
from learners.checkpoints.store import Checkpoints
from runtime.config.schema import DriftSettings
from runtime.control.tick import TickResult
from runtime.drift.descriptors import DIFFERENT, Description, describe, in_words
from runtime.drift.detector import DriftDetector
from runtime.process.emit import Emit
from runtime.process.state_file import StateFile, StateUnreadable
from sensors.readings import Observation

FILE = "drift.json"
SAVE_EVERY_S = 600.0
SAMPLE_S = 1.0
POLICY = "policy"
"""The source that holds the policy's own figures."""
WEEK_S = 7 * 86_400.0
MOST_WORDS = 3
LARGEST = 1e100


@dataclass(slots=True)
class _Source:
    """One stream, or the policy."""

    detector: DriftDetector
    width: int
    """Numbers of a vector."""
    next_s: float
    last_seq: int = -1
    encoder: str = ""
    """Version of the encoder that made the tokens of the reference."""
    since_s: float = 0.0
    """Begin of the drift, on the clock of the ticks."""
    since_unix_s: float = 0.0
    words: str = ""


@dataclass(slots=True)
class DriftWatch:
    """Listens to ticks. Create it before the loop runs.

    Args:
        settings: the section `drift`.
        streams: names of the streams.
        live: returns the version that is live.
        state_dir: where the references are stored.
        emit: publishes an event.
        wall: Unix seconds.
        checkpoints: takes the live version back with `react: version_before`.
    """

    settings: DriftSettings
    streams: tuple[str, ...]
    live: Callable[[], str]
    state_dir: Path
    emit: Emit
    wall: Callable[[], float]
    checkpoints: Checkpoints
    file: StateFile = field(init=False)
    _sources: dict[str, _Source] = field(default_factory=dict)
    _stored: dict[str, Any] = field(default_factory=dict)
    """References of the file that no reading has claimed yet."""
    skipped: int = 0
    """Vectors that were not finite."""
    _version: str | None = None
    _returned: bool = False
    """A version was taken back, and no other promoted since."""
    _expected: str | None = None
    """The version to which the watch itself returned."""
    _alarm: asyncio.Queue[str] = field(default_factory=lambda: asyncio.Queue(1))

    def __post_init__(self) -> None:
        self.file = StateFile(self.state_dir / FILE, self._dump, self._restore, SAVE_EVERY_S, self.emit, durable=False)
        try:
            self.file.load()
        except StateUnreadable as error:
            self.emit("drift_state_unreadable", {"reason": str(error)})

    async def run(self) -> None:
        """Take the live version back when a drift requires it, until cancelled."""
        while True:
            name = await self._alarm.get()
            version, why = self.live(), f"drift of {name}"
            try:
                live = await asyncio.to_thread(self.checkpoints.rollback, failing=version, by="drift")
            except (CheckpointRefused, OSError) as refusal:
                self.emit("rollback_failed", {"version": version, "why": why, "reason": str(refusal)})
            else:
                self._expected = live.version
                self.emit("policy_rolled_back", {"version": version, "to": live.version, "by": "drift", "why": why})

    @property
    def is_careful(self) -> bool:
        """Whether a stream drifts and `react: shadow`: the gate then sets the mode to shadow, until a person sets another."""
        return self.settings.react == "shadow" and any(s.detector.drifting for s in self._sources.values())

    def ticked(self, result: TickResult) -> None:
        """Process one finished tick: a vector of every source that is due, once a second."""
        if not self.settings.enabled:
            return
        version = self.live()
        if version != self._version:
            self._forget(version)
        observation = result.observation
        for name, reading in observation.readings.items():
            source = self._sources.get(name)
            if source is not None and (observation.stamp_s < source.next_s or reading.seq == source.last_seq):
                continue
            tokens = result.decided.tokens.get(name)
            encoder = result.decided.encoder_versions.get(name, "")
            source = self._take(name, observation, describe(reading, tokens), encoder)
            source.last_seq = reading.seq
        policy = self._sources.get(POLICY)
        if result.decided.policy == version and (policy is None or observation.stamp_s >= policy.next_s):
            self._take(POLICY, observation, _of_policy(result), "")

    def figures(self) -> dict[str, dict[str, Any]]:
        """Return the sources that drift: since when, and how they differ in words."""
        return {
            name: {"since_unix_s": round(source.since_unix_s, 1), "words": source.words}
            for name, source in self._sources.items()
            if source.detector.drifting
        }

    def accept(self, name: str) -> bool:
        """Take what a source delivers now as usual; False where it does not drift."""
        source = self._sources.get(name)
        if source is None or not source.detector.drifting:
            return False
        self._renew(name, "person")
        return True

    def _take(self, name: str, observation: Observation, described: Description, encoder: str) -> _Source:
        source = self._sources.get(name)
        same = source is not None and source.width == len(described.values_D)
        if source is None or not same or source.encoder != encoder or source.detector.names != described.names:
            source = self._sources[name] = self._new(name, described, encoder, observation.stamp_s)
        source.next_s = max(source.next_s + SAMPLE_S, observation.stamp_s)
        detector = source.detector
        if not np.isfinite(described.values_D).all() or np.abs(described.values_D).max(initial=0.0) > LARGEST:
            self.skipped += 1
            return source
        if detector.add(described.values_D):
            self._changed(name, source, observation.stamp_s)
        elif detector.drifting and self._accepts_automatically(source, observation.stamp_s):
            self._renew(name, "time")
        self.file.changed()
        return source

    def _new(self, name: str, described: Description, encoder: str, now_s: float) -> _Source:
        sources = len(self.streams) + 1
        seed = zlib.crc32(name.encode())
        apart_s = WEEK_S * sources / self.settings.false_alarms_per_week
        detector, width = DriftDetector(described.names, apart_s, np.random.default_rng(seed)), len(described.values_D)
        stored = self._stored.pop(name, None)
        if stored is not None:
            try:
                if stored["encoder"] == encoder:
                    detector.restore(stored["reference"], width)
            except (LookupError, TypeError, ValueError) as error:
                self.emit("drift_state_unreadable", {"reason": f"{name}: {error}"})
        # sources take their turns at different ticks of a second
        return _Source(detector, width, now_s + seed % 1_000 / 1_000 * SAMPLE_S, encoder=encoder)

    def _changed(self, name: str, source: _Source, now_s: float) -> None:
        if not source.detector.drifting:
            self.emit("drift_ended", {"stream": name, "seconds": round(now_s - source.since_s)})
            return
        differs = source.detector.explanation()
        words = [in_words(number, z) for number, z in differs.items()][:MOST_WORDS]
        source.since_s = now_s
        source.since_unix_s, source.words = self.wall(), ", ".join(words) or DIFFERENT
        self.emit(
            "drift_noticed",
            {"stream": name, "words": source.words, "differs": differs, "react": self.settings.react},
        )
        if self.settings.react == "version_before" and not self._returned:
            self._returned = True
            self._alarm.put_nowait(name)

    def _accepts_automatically(self, source: _Source, now_s: float) -> bool:
        limit_s = self.settings.accept_after_s
        return self.settings.react != "ask" and limit_s > 0 and now_s - source.since_s >= limit_s

    def _renew(self, name: str, by: str) -> None:
        self.emit("drift_accepted", {"stream": name, "by": by})
        del self._sources[name]
        self.file.changed(urgent=True)

    def _forget(self, version: str) -> None:
        """Learn every reference again: another version acts."""
        self._version = version
        if version != self._expected:
            self._returned = False
        self._sources, self._stored = {}, {}

    def _dump(self) -> dict[str, Any]:
        references = {
            name: {"encoder": source.encoder, "reference": reference}
            for name, source in self._sources.items()
            if (reference := source.detector.dump()) is not None
        }
        return {"version": self._version, "sources": {**self._stored, **references}}

    def _restore(self, data: dict[str, Any]) -> None:
        self._version, self._stored = str(data["version"]), dict(data["sources"])


def _of_policy(result: TickResult) -> Description:
    """Return the policy's value, and how sure it is of every choice."""
    decided = result.decided
    named = {"value": decided.value}
    named |= {f"certainty of {name}": max(shares.values()) for name, shares in sorted(decided.choices.items())}
    values: NDArray[np.float64] = np.array(list(named.values()), np.float64)
    return Description(tuple(named), np.nan_to_num(values))
