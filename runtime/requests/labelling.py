"""Answer what the page needs to label by clicking: recent readings of a task's stream, and the labels that operators give them.

`readings` lists stored raw readings, near duplicates folded into one, the newest or the most uncertain first.
`label_readings`, `labels` and `correct_labels` store, list, correct and remove labels; an answer is sent once the change is on disk.
All work runs in one thread of low priority and is bounded in readings, bytes and seconds.
"""

from __future__ import annotations

import asyncio
import base64
import math
import os
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal, TypeVar

from pydantic import AfterValidator, Field

from learners.class_names import class_name
from learners.config.tasks import TaskSettings
from learners.continual.evaluation_report import read_evaluation
from learners.experience.label_table import reading_name
from learners.experience.reader import Reader
from learners.experience.reading_similarity import distances, signature
from learners.experience.records import LabelCorrection, Raw, ReadingLabels, StoredLabel
from learners.experience.store import Store
from learners.ipc.progress import read_progress
from learners.task_kinds import KINDS
from runtime.feedback.recent_results import RecentResult, RecentResults
from runtime.mqtt.rpc import Answer, RequestFailed
from runtime.mqtt.topics import Payload
from sensors.codecs.readings import decode_reading, facts, thumbnail
from sensors.readings import Frame, Sound

T = TypeVar("T")
MAX_LISTED = 48
MAX_SOUNDS = 12
"""Sounds in one answer, because a person must be able to hear them."""
MAX_SOUND = 65_536
"""Bytes of a sound in an answer; a longer one comes without its samples."""
MAX_TEXT = 600
"""Characters of a text in an answer."""
MAX_ANSWER = 650_000
"""Bytes of pictures and sounds in one answer."""
THUMBNAIL = 144
"""Pixels; the width of a picture in an answer."""
MAX_STAMPS = 50_000
"""Stored readings of a stream that one listing may choose from."""
LOOK_AT = 400
"""Readings, evenly over the time that is stored, that one listing compares with each other."""
LOOK_AT_LEAST = 96
LOOK_S = 2.0
"""Seconds after which one listing compares no more than `LOOK_AT_LEAST`; what it looked at is remembered for the next one."""
MAX_HASHES = 20_000
MAX_LABELLED = 4_000
NICE = 5
Name = Annotated[str, Field(max_length=64)]
Class = Annotated[str, Field(min_length=1, max_length=200, pattern=r"^\S(.*\S)?$"), AfterValidator(class_name)]
Source = Annotated[str, Field(max_length=80, pattern=r"^[a-z0-9_:-]{1,80}$")]


class ReadingsRequest(Payload):
    """Payload of readings."""

    task: Name
    order: Literal["newest", "uncertain"] = "newest"
    count: int = Field(24, ge=1, le=MAX_LISTED)
    labelled: bool = False
    """Also list readings that have a label."""


class LabelReadingsRequest(Payload):
    """Payload of label_readings."""

    task: Name
    label: Class
    readings: list[Annotated[str, Field(max_length=64)]] = Field(min_length=1, max_length=200)
    source: Source = "default"


class LabelsRequest(Payload):
    """Payload of labels: the newest ones before a number, or those with some numbers."""

    task: Name
    before: int | None = Field(None, ge=0, le=1 << 62)
    numbers: list[Annotated[int, Field(ge=0, le=1 << 62)]] | None = Field(None, max_length=MAX_LISTED)
    count: int = Field(24, ge=0, le=MAX_LISTED)


class CorrectLabelsRequest(Payload):
    """Payload of correct_labels: another class for some labels, or, without one, their removal."""

    task: Name
    labels: list[Annotated[int, Field(ge=0, le=1 << 62)]] = Field(min_length=1, max_length=200)
    label: Class | None = None
    source: Source = "default"


@dataclass(slots=True)
class _Group:
    """Readings that look alike."""

    number: int
    """Of the newest one."""
    raw: Raw
    digest: bytes
    count: int = 1
    result: RecentResult | None = None
    """The least certain result of one of them."""
    label: tuple[int, str] | None = None
    """Number and class of the newest label about a reading like these."""

    @property
    def confidence(self) -> float:
        return math.inf if self.result is None else self.result.confidence


@dataclass(slots=True)
class Gallery:
    """Lists and labels stored readings.

    Args:
        folder: of the experience.
        versions: `state_dir/learner/tasks`.
        tasks: settings of the tasks by name.
        store: the writer of the experience.
        results: of the tasks for recent readings.
        wall: Unix seconds.
    """

    folder: Path
    versions: Path
    tasks: Mapping[str, TaskSettings]
    store: Store
    results: RecentResults
    wall: Callable[[], float] = time.time
    _hashes: OrderedDict[str, bytes] = field(default_factory=OrderedDict)
    """By name of the reading."""
    _worker: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(1, "gallery", _yield_to_others))

    async def readings(self, request: ReadingsRequest) -> Answer:
        """List groups of readings that look alike.

        Raises:
            RequestFailed: no such task, or it does not classify readings of a stream.
        """
        stream, _ = self._task(request.task)
        return await self._run(lambda: self._readings(request, stream))

    async def label_readings(self, request: LabelReadingsRequest) -> Answer:
        """Store labels; the answer says which part each reading went to, and which readings are deleted.

        Raises:
            RequestFailed: no such task or class, or the disk refuses.
        """
        stream, settings = self._task(request.task)
        if settings.labels and request.label not in settings.labels:
            raise RequestFailed(
                f"{request.label!r} is not under tasks.{request.task}.labels: {list(settings.labels)}; add it there first"
            )
        given = ReadingLabels(
            *(request.task, request.label, stream, tuple(request.readings), request.source, self.wall()),
            hold_out=settings.eval_file is None,
        )
        if not await self._run(lambda: self.store.edit_labels(given)):
            raise RequestFailed("the labels are not stored: the disk refuses or is too slow; health says why")
        parts = list(given.outcome.values())
        gone = [name for name in request.readings if name not in given.outcome]
        return {"train": parts.count("train"), "held_out": parts.count("held_out"), "gone": gone}

    async def labels(self, request: LabelsRequest) -> Answer:
        """List labels with their history, the counts of each class, and the report on the last candidate.

        Raises:
            RequestFailed: no such task.
        """
        self._task(request.task)
        return await self._run(lambda: self._labels(request))

    async def correct_labels(self, request: CorrectLabelsRequest) -> Answer:
        """Correct or remove labels.

        Raises:
            RequestFailed: no such task or class, or the disk refuses.
        """
        _, settings = self._task(request.task)
        if request.label is not None and settings.labels and request.label not in settings.labels:
            raise RequestFailed(f"{request.label!r} is not under tasks.{request.task}.labels: {list(settings.labels)}")
        edit = LabelCorrection(request.task, tuple(request.labels), request.label, request.source, self.wall())
        if not await self._run(lambda: self.store.edit_labels(edit)):
            raise RequestFailed("the change is not stored: the disk refuses or is too slow; health says why")
        unknown = [number for number in request.labels if number not in edit.outcome]
        return {"changed": len(edit.outcome), "unknown": unknown}

    async def _run(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._worker, work)

    def _task(self, name: str) -> tuple[str, TaskSettings]:
        settings = self.tasks.get(name)
        if settings is None:
            raise RequestFailed(f"{name!r} is not under tasks: {sorted(self.tasks)}")
        if settings.stream is None or not KINDS[settings.kind].classifies:
            raise RequestFailed(
                f"tasks.{name} does not classify the readings of a stream; label it on the topic `label`"
            )
        return settings.stream, settings

    def _readings(self, request: ReadingsRequest, stream: str) -> Answer:
        with Reader(self.folder) as reader:
            stamps = reader.raw_stamps(stream, MAX_STAMPS)
            groups, looked_at = self._groups(reader, request.task, stamps)
            _add_labels(reader, request.task, stream, groups)
        listed = [group for group in groups if request.labelled or group.label is None]
        if request.order == "uncertain":
            listed.sort(key=lambda group: group.confidence)
        budget = _Budget()
        rows = [self._row(group, budget) for group in listed[: request.count]]
        return {
            "task": request.task,
            "stream": stream,
            "stored": len(stamps),
            "looked_at": looked_at,
            "groups": len(groups),
            "unlabelled": sum(group.label is None for group in groups),
            "readings": [row for row in rows if row is not None],
        }

    def _groups(self, reader: Reader, task: str, stamps: Sequence[tuple[int, float]]) -> tuple[list[_Group], int]:
        """Fold readings that look alike, evenly over the stored time, within `LOOK_S`."""
        end_s = time.monotonic() + LOOK_S
        step = max(1, -(-len(stamps) // LOOK_AT))
        numbers = [number for number, _ in stamps[::step]]
        groups: list[_Group] = []
        looked_at = 0
        for at in range(0, len(numbers), 16):
            found = reader.raw_by_number(page := numbers[at : at + 16])
            for number in page:
                if number in found:
                    looked_at += 1
                    self._fold(groups, number, found[number], self.results.of(task, found[number].stamp_s))
            if looked_at >= LOOK_AT_LEAST and time.monotonic() > end_s:
                break
        return groups, looked_at

    def _fold(self, groups: list[_Group], number: int, raw: Raw, result: RecentResult | None) -> None:
        digest = self._hash(number, raw)
        if groups:
            near = distances([group.digest for group in groups], digest)
            nearest = int(near.argmin())
            if near[nearest] <= 1.0:
                group = groups[nearest]
                group.count += 1
                if result is not None and result.confidence < group.confidence:
                    group.result = result
                return
        groups.append(_Group(number, raw, digest, result=result))

    def _hash(self, number: int, raw: Raw) -> bytes:
        name = reading_name(number, raw.stamp_s)
        digest = self._hashes.get(name)
        if digest is None:
            digest = self._hashes[name] = signature(raw)
            if len(self._hashes) > MAX_HASHES:
                self._hashes.popitem(last=False)
        return digest

    def _row(self, group: _Group, budget: _Budget) -> Answer | None:
        content = _content(group.raw, budget)
        if content is None:
            return None
        row = {
            "name": reading_name(group.number, group.raw.stamp_s),
            "stamp": group.raw.stamp_s,
            "count": group.count,
            **content,
        }
        if group.result is not None:
            row |= {"value": group.result.value, "confidence": round(group.result.confidence, 4)}
        if group.label is not None:
            row["label"] = group.label[1]
        return row

    def _labels(self, request: LabelsRequest) -> Answer:
        budget = _Budget()
        with Reader(self.folder) as reader:
            counts = reader.label_counts(request.task)
            if request.numbers is None:
                found = reader.label_history(request.task, request.count, request.before)
            else:
                found = reader.labels_by_number(request.task, request.numbers)
            rows = [_label_row(reader, label, budget) for label in found]
        return {
            "task": request.task,
            "counts": {name: {"train": train, "held_out": aside} for name, (train, aside) in sorted(counts.items())},
            "labels": rows,
            "evaluation": read_evaluation(self.versions / request.task),
            "progress": read_progress(self.versions.parent / "finetuning.json"),
        }


@dataclass(slots=True)
class _Budget:
    """What one answer may still carry."""

    left: int = MAX_ANSWER
    sounds: int = MAX_SOUNDS

    def take(self, size: int) -> bool:
        if size > self.left:
            return False
        self.left -= size
        return True


def _yield_to_others() -> None:
    """Give the thread a low priority."""
    os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICE)


def _add_labels(reader: Reader, task: str, stream: str, groups: Sequence[_Group]) -> None:
    """Note for each group the label about the nearest reading like it, the newest of several."""
    texts = {group.raw.data.decode(errors="replace"): group for group in groups if group.raw.encoding == "utf-8"}
    for text, label in reader.labelled_texts(task, list(texts)).items():
        texts[text].label = label
    known = reader.labelled_hashes(task, stream, MAX_LABELLED)
    if not known:
        return
    digests = [digest for _, _, digest in known]
    for group in groups:
        apart = distances(digests, group.digest)
        nearest = int(apart.argmin())
        if apart[nearest] <= 1.0:
            number, name, _ = known[nearest]
            group.label = (number, name)


def _content(raw: Raw, budget: _Budget) -> Answer | None:
    """Return the picture, sound or text of a reading for a person; None if its bytes are unreadable or the answer is full."""
    reading = decode_reading(raw.stream, raw.stamp_s, raw.encoding, raw.data)
    if isinstance(reading, Frame):
        picture = base64.b64encode(thumbnail(reading, THUMBNAIL)).decode()
        return {"jpeg": picture} if budget.take(len(picture)) else None
    if isinstance(reading, Sound):
        content: Answer = {**facts(reading), "seconds": round(len(reading.samples) / reading.rate_hz, 2)}
        if budget.sounds and len(raw.data) <= MAX_SOUND and budget.take(len(raw.data) * 4 // 3):
            budget.sounds -= 1
            content["flac"] = base64.b64encode(raw.data).decode()
        return content
    if reading is None:
        return None
    text = raw.data.decode(errors="replace")[:MAX_TEXT]
    return {"text": text} if budget.take(4 * len(text)) else None


def _label_row(reader: Reader, stored: StoredLabel, budget: _Budget) -> Answer:
    label = stored.label
    row: Answer = {
        "number": label.id,
        "label": label.label,
        "source": label.source,
        "stamp": label.stamp_s,
        "held_out": stored.held_out,
    }
    if stored.replaces is not None:
        row["replaces"] = stored.replaces
    if not stored.counts:
        row |= {"removed": stored.removed_s, "removed_by": stored.removed_by}
    if label.text is not None:
        return row | {"text": label.text[:MAX_TEXT]}
    for raw in reader.labelled(label.id).values():
        return row | (_content(raw, budget) or {})
    return row
