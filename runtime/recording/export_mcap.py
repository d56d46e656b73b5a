"""Export an MCAP file from a state folder: a whole recording, a slice of one, or experience if nothing was recorded.

A slice from the start of its recording can be replayed like the recording. Other slices, and experience, are for viewing only:
their first decisions depend on a history that the file does not contain.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from learners.experience.episodes import CHUNK
from learners.experience.reader import Reader, Rewarded
from learners.experience.records import Raw
from learners.experience.transition import Transition
from learners.export.lerobot_features import has_fields
from runtime.recording.codec import ReadingCodec, picture
from runtime.recording.reader import Recording, RecordingError
from runtime.recording.recorder import MAIN, Channels, Note, TickRecord, written
from sensors.codecs.sounds import decode_sound
from sensors.readings import Reading, Sound, Telemetry, Text

OnProgress = Callable[[int, int], None]
"""Takes how much is done, and of how much."""
REMEMBERED = "reflexd-experience"
"""Metadata of a file made of experience; one that can be replayed has `reflexd`."""


@dataclass(frozen=True, slots=True)
class TimeWindow:
    """Unix seconds, `start_s <= stamp < stop_s`."""

    start_s: float = 0.0
    stop_s: float = float("inf")

    def __contains__(self, stamp_s: float) -> bool:
        return self.start_s <= stamp_s < self.stop_s

    @property
    def everything(self) -> bool:
        """Whether nothing is cut off."""
        return self == TimeWindow()


def copy_recording(recording: Recording, out: Path, window: TimeWindow, on_progress: OnProgress) -> int:
    """Copy a recording, whole or a part of it; return how many decisions are in it (-1: not counted, it was copied as it is).

    Raises:
        RecordingError: the file is no recording of ours.
    """
    source = recording.path
    metadata = recording.metadata()
    if window.everything:
        shutil.copyfile(source, out)
        return -1
    codec, size = ReadingCodec(), source.stat().st_size
    attachments: dict[str, bytes] = {}
    begins = _first_stamp(recording) in window
    if begins:
        attachments = recording.attachments()
    out_codec = ReadingCodec()
    with written(out, out_codec, MAIN if begins else "reflexd-slice", metadata, attachments) as channels:
        count = _slice(recording, codec, channels, window, lambda: on_progress(min(channels.bytes, size), size))
    on_progress(size, size)
    return count


def _first_stamp(recording: Recording) -> float:
    for topic, _, body in recording.messages():
        if topic == "/decision":
            return recording.stamp_ns(topic, body) / 1e9
    return -1.0


def _slice(
    recording: Recording, codec: ReadingCodec, channels: Channels, window: TimeWindow, on_progress: Callable[[], None]
) -> int:
    """Copy a slice. All readings are decoded, because a sound message has only new samples and a slice must begin with all."""
    held: dict[str, Reading] = {}
    fresh: list[Reading] = []
    count, follows = 0, False
    for topic, schema, body in recording.messages():
        stamp_ns = recording.stamp_ns(topic, body)
        if topic.startswith("/in/"):
            try:
                fresh.append(codec.decode(topic.removeprefix("/in/"), schema, body))
            except ValueError as error:
                raise RecordingError(f"{recording.path}: {error}") from None
            held[fresh[-1].stream] = fresh[-1]
        elif topic != "/decision":
            if stamp_ns / 1e9 in window:
                channels.write(Note(stamp_ns, topic.removeprefix("/"), body))
        else:
            is_wanted = stamp_ns / 1e9 in window
            if is_wanted:
                first = [held[name] for name in sorted(recording.used(body)) if name in held]
                channels.write(TickRecord(stamp_ns, tuple(fresh if follows else first), body))
                count += 1
                on_progress()
            fresh, follows = [], is_wanted
    return count


def from_experience(
    reader: Reader,
    out: Path,
    window: TimeWindow,
    *,
    agent: str,
    fields: Mapping[str, tuple[str, ...]],
    on_progress: OnProgress,
) -> int:
    """Write decisions with executed actions, rewards, telemetry, and the stored raw readings; return the number of ticks.

    Args:
        reader: reads the experience.
        out: the file.
        window: the time to export.
        agent: name of the agent.
        fields: field names of each telemetry stream, by name.
        on_progress: called with the number of rows read and of all rows.
    """
    codec = ReadingCodec()
    rewards = _rewards(reader, window)
    due = next(rewards, None)
    count = 0
    with written(out, codec, REMEMBERED, {"agent": agent}, {}) as channels:
        for ticks in _chunks(reader, window, on_progress):
            for run in _rising(ticks):
                records: list[tuple[float, int, Any]] = [(t.stamp_s, 1, t) for t in run]
                records += [(raw.stamp_s, 0, raw) for raw in _raws(reader, run)]
                while due is not None and due.stamp_s <= run[-1].stamp_s:
                    records.append((due.stamp_s, 2, due))
                    due = next(rewards, None)
                for stamp_s, _, record in sorted(records, key=lambda entry: entry[:2]):
                    _put(channels, int(stamp_s * 1e9), record, fields)
            count += len(ticks)
        while due is not None:
            _put(channels, int(due.stamp_s * 1e9), due, fields)
            due = next(rewards, None)
    return count


def _chunks(reader: Reader, window: TimeWindow, on_progress: OnProgress) -> Iterator[list[Transition]]:
    first, last = reader.first_row(), reader.last_row()
    for start in range(first, last + 1, CHUNK):
        stop = min(start + CHUNK, last + 1)
        ticks = [row.transition for row in reader.rows(start, stop) if row.transition.stamp_s in window]
        if ticks:
            yield ticks
        on_progress(stop - first, last + 1 - first)


def _rising(ticks: Sequence[Transition]) -> Iterator[list[Transition]]:
    """Yield runs of ticks with rising stamps: a new one begins where the wall clock was set back."""
    run: list[Transition] = []
    for tick in ticks:
        if run and tick.stamp_s < run[-1].stamp_s:
            yield run
            run = []
        run.append(tick)
    yield run


def _raws(reader: Reader, run: Sequence[Transition]) -> Iterator[Raw]:
    """Yield the raw readings that were new at these ticks."""
    stamps = {tick.stamp_s for tick in run}
    for stream in sorted(reader.raw_streams()):
        yield from (raw for raw in reader.raw(stream, run[0].stamp_s, run[-1].stamp_s + 1e-6) if raw.stamp_s in stamps)


def _rewards(reader: Reader, window: TimeWindow) -> Iterator[Rewarded]:
    since = 0
    while found := reader.rewards(since):
        yield from (reward for reward in found if reward.stamp_s in window)
        since = found[-1].id


def _put(channels: Channels, stamp_ns: int, record: Transition | Raw | Rewarded, fields: Mapping[str, Any]) -> None:
    match record:
        case Rewarded():
            body = {"value": record.value, "source": record.source, "row": record.row}
            channels.add("/reward", "reflexd.Message", stamp_ns, body)
        case Raw():
            _raw(channels, stamp_ns, record)
        case Transition():
            for name in fields:
                if record.present.get(name) and name in record.tokens:
                    values = record.tokens[name].ravel()
                    seen_s = record.stamp_s - record.ages_s.get(name, 0.0)
                    reading = Telemetry(name, seen_s, record.tick, _names(record, name, fields[name]), values)
                    channels.read(reading, stamp_ns, int(seen_s * 1e9))
            channels.add("/decision", "reflexd.Decision", stamp_ns, body_of(record))


def _names(tick: Transition, stream: str, fields: tuple[str, ...]) -> tuple[str, ...]:
    """Return the names of a stream's numbers; numbers that were stored under other settings have their places as names."""
    if has_fields(tick, stream, fields):
        return fields
    return tuple(map(str, range(tick.tokens[stream].size)))


def _raw(channels: Channels, stamp_ns: int, raw: Raw) -> None:
    common = {"seq": 0, "stamp_s": raw.stamp_s}
    if raw.encoding in ("jpeg", "png"):
        channels.add(f"/in/{raw.stream}", "foxglove.CompressedImage", stamp_ns, common | picture(raw.stream, raw.data))
    elif raw.encoding == "flac":
        samples, rate_hz = decode_sound(raw.data)
        channels.read(Sound(raw.stream, raw.stamp_s, 0, samples, rate_hz), stamp_ns)
    else:
        channels.read(Text(raw.stream, raw.stamp_s, 0, raw.data.decode()), stamp_ns)


def body_of(t: Transition) -> dict[str, Any]:
    """Return a stored tick in the form of a `decision` message, with its reward.

    `value` of an actuator is what was executed, and `probability` that of the proposal.
    """
    return {
        "id": t.decision,
        "tick": t.tick,
        "stamp": t.stamp_s,
        "policy": t.policy,
        "actions": {
            name: {"value": t.actions.get(name), "probability": p, "by": t.by.get(name, "none")}
            for name, p in t.probabilities.items()
        },
        "proposed": dict(t.proposed),
        "refused": dict(t.refused),
        "value": t.value,
        "ages_ms": {name: round(age * 1e3, 1) for name, age in t.ages_s.items() if age != float("inf")},
        "missing": sorted(name for name, there in t.present.items() if not there),
        "reward": t.reward,
        "done": t.done,
        "intervention": t.intervention,
        "demonstration": t.demonstration,
        "failure": t.failure,
    }
