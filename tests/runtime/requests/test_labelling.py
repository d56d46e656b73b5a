"""The gallery lists stored readings folded, and what it acknowledges of labels, corrections and removals is on disk."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError
from smooth_pictures import picture

from learners.config.learner import ExperienceSettings
from learners.config.tasks import TaskSettings
from learners.continual.labels import Labels
from learners.continual.splits import Holdout
from learners.experience import store as store_module
from learners.experience.database import LABELLED_SHARE
from learners.experience.label_table import reading_name
from learners.experience.reader import Reader
from learners.experience.store import Label, Raw, Store
from runtime.feedback.recent_results import RecentResults
from runtime.mqtt.rpc import RequestFailed
from runtime.mqtt.topics import Refused, decode
from runtime.requests import labelling as labelling_module
from runtime.requests.labelling import (
    CorrectLabelsRequest,
    Gallery,
    LabelReadingsRequest,
    LabelsRequest,
    ReadingsRequest,
)

PICTURES = TaskSettings(kind="image-classification", model="m", stream="front")
TEXTS = TaskSettings(kind="text-classification", model="m", stream="orders", labels=("go", "stop"))
JUDGED = TaskSettings(kind="text-classification", model="m", stream="orders", eval_file="held.csv")
ANSWERS = TaskSettings(kind="question-answering", model="m", stream="orders")
NOW_S = 1_750_000_000.0


class World:
    """A store with readings, and the gallery on it."""

    def __init__(self, folder: Path) -> None:
        settings = ExperienceSettings(raw_retention_s=1e9)
        self.store = Store(folder / "experience", settings, clock=lambda: NOW_S)
        tasks = {"parts": PICTURES, "intents": TEXTS, "judged": JUDGED, "answers": ANSWERS}
        self.results = RecentResults()
        self.gallery = Gallery(
            folder / "experience", folder / "tasks", tasks, self.store, self.results, wall=lambda: NOW_S
        )
        self.reader = Reader(folder / "experience")
        self.seen = 0

    def see(self, stream: str, encoding: str, data: bytes) -> float:
        """Store one reading; return its stamp."""
        self.seen += 1
        stamp_s = NOW_S + self.seen / 10
        assert self.store.add_raw(Raw(stream, stamp_s, encoding, data))
        return stamp_s

    async def list(self, task: str = "parts", **more: Any) -> dict[str, Any]:
        assert self.store.flush()
        return await self.gallery.readings(ReadingsRequest(task=task, **more))

    async def label(self, label: str, names: list[str], task: str = "parts", source: str = "anna") -> dict[str, Any]:
        return await self.gallery.label_readings(
            LabelReadingsRequest(task=task, label=label, readings=names, source=source)
        )


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = World(tmp_path)
    yield made
    made.store.close()
    made.reader.close()


async def test_readings_that_look_alike_are_one_and_the_newest_or_most_uncertain_come_first(world: World) -> None:
    stamps = [world.see("front", "jpeg", picture(seed, noise)) for seed in range(3) for noise in range(4)]
    world.see("orders", "utf-8", b"not a picture")
    world.results.ticked("d", stamps[5])
    world.results.add("parts", "d", "cat", 0.41, {"cat": 0.41, "dog": 0.4})
    world.results.ticked("e", stamps[1])
    world.results.add("parts", "e", "dog", 0.97, {"dog": 0.97})
    newest = await world.list()
    assert [row["count"] for row in newest["readings"]] == [4, 4, 4]
    assert [row["stamp"] for row in newest["readings"]] == [stamps[11], stamps[7], stamps[3]]
    assert (newest["stored"], newest["looked_at"], newest["groups"]) == (12, 12, 3)
    assert all(row["jpeg"] for row in newest["readings"])
    uncertain = await world.list(order="uncertain")
    assert [row.get("confidence") for row in uncertain["readings"]] == [0.41, 0.97, None]
    assert uncertain["readings"][0]["value"] == "cat"


async def test_labels_train_some_are_put_aside_and_what_looks_like_one_stays_on_its_side(
    world: World, tmp_path: Path
) -> None:
    for seed in range(16):
        world.see("front", "jpeg", picture(seed))
    names = [row["name"] for row in (await world.list())["readings"]]
    assert await world.label("cat", names[:8]) == {"train": 6, "held_out": 2, "gone": []}
    assert await world.label("dog", names[8:]) == {"train": 6, "held_out": 2, "gone": []}
    assert (await world.list())["readings"] == [], "all have a label"
    for seed in range(16):
        world.see("front", "jpeg", picture(seed, noise=1))
    assert (await world.list())["unlabelled"] == 0, "a labelled reading is recognised in a later one"
    labelled = (await world.list(labelled=True))["readings"]
    assert {row["label"] for row in labelled} == {"cat", "dog"}
    assert await world.label("cat", [row["name"] for row in labelled if row["label"] == "cat"]) == {
        "train": 6,
        "held_out": 2,
        "gone": [],
    }
    labels = Labels("parts", PICTURES, Reader(tmp_path / "experience"))
    aside = labels.held_out()
    holdout = Holdout.put_aside(aside, 0.2)
    assert holdout.origin == "labels"
    parts = holdout.parts(labels.all(), [])
    judged = {one.key for one in aside}
    assert not judged & {one.key for one in labels.all()}
    assert len(parts.new) + len(parts.tried) == len(labels.all())
    listed = await world.gallery.labels(LabelsRequest(task="parts"))
    assert listed["counts"] == {"cat": {"train": 12, "held_out": 4}, "dog": {"train": 6, "held_out": 2}}


async def test_a_label_is_corrected_and_removed_with_who_and_when(world: World) -> None:
    for seed in range(2):
        world.see("front", "jpeg", picture(seed))
    names = [row["name"] for row in (await world.list())["readings"]]
    await world.label("cat", names)
    first, second = (row["number"] for row in (await world.gallery.labels(LabelsRequest(task="parts")))["labels"])
    change = CorrectLabelsRequest(task="parts", labels=[first], label="dog", source="bert")
    assert await world.gallery.correct_labels(change) == {"changed": 1, "unknown": []}
    assert await world.gallery.correct_labels(change) == {"changed": 0, "unknown": [first]}
    removal = CorrectLabelsRequest(task="parts", labels=[second, 99], source="carla")
    assert await world.gallery.correct_labels(removal) == {"changed": 1, "unknown": [99]}
    listed = await world.gallery.labels(LabelsRequest(task="parts"))
    assert listed["counts"] == {"dog": {"train": 0, "held_out": 1}}, "a correction stays on its side"
    corrected, old, removed = listed["labels"]
    assert (corrected["label"], corrected["source"], corrected["replaces"], corrected["stamp"]) == (
        "dog",
        "bert",
        first,
        NOW_S,
    )
    assert corrected["jpeg"]
    assert (old["label"], old["removed_by"], old["removed"]) == ("cat", "bert", NOW_S)
    assert (removed["removed_by"], "jpeg" in removed) == ("carla", False), "a removed label keeps no picture"
    assert [label.label for label in world.reader.labels("parts", held_out=True)] == ["dog"]
    assert world.reader.labels("parts") == []
    assert len((await world.list())["readings"]) == 1, "the reading of a removed label can be labelled again"


async def test_texts_are_folded_by_their_words_and_a_held_out_file_takes_no_labels(world: World) -> None:
    for text in ("go", "stop", "go", "<img src=x onerror=alert(1)>"):
        world.see("orders", "utf-8", text.encode())
    listed = (await world.list("intents"))["readings"]
    assert [(row["text"], row["count"]) for row in listed] == [
        ("<img src=x onerror=alert(1)>", 1),
        ("go", 2),
        ("stop", 1),
    ]
    names = [row["name"] for row in listed]
    with pytest.raises(RequestFailed, match=r"'<b>' is not under tasks.intents.labels"):
        await world.label("<b>", names, "intents")
    assert (await world.label("go", names, "intents"))["held_out"] == 1
    assert (await world.label("<b>&amp;</b>", names, "judged")) == {"train": 3, "held_out": 0, "gone": []}
    with pytest.raises(RequestFailed, match="does not classify"):
        await world.list("answers")
    with pytest.raises(RequestFailed, match="not under tasks"):
        await world.list("../etc")


async def test_a_deleted_or_foreign_reading_is_named_and_labels_nothing(world: World) -> None:
    stamp_s = world.see("front", "jpeg", picture(1))
    world.see("orders", "utf-8", b"go")
    good = (await world.list())["readings"][0]["name"]
    false = [
        reading_name(1, stamp_s + 1),
        "2-1750000000200",
        "-",
        "99999999999999999999-1",
        "1; DROP TABLE raw",
        "\u0661-1",
    ]
    assert (await world.label("cat", [*false, good, good])) == {"train": 1, "held_out": 0, "gone": false}


async def test_ten_thousand_readings_and_torn_ones_are_listed_within_the_bounds(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(labelling_module, "MAX_ANSWER", 20_000)
    for number in range(10_000):  # most are torn, as after a disk fault
        world.see("front", "jpeg", picture(number % 7) if number % 997 == 0 else b"torn %d" % (number % 50))
        if number % 2_000 == 0:
            assert world.store.flush()
    listed = await world.list(count=48)
    assert listed["stored"] == 10_000
    assert 0 < listed["looked_at"] <= labelling_module.LOOK_AT
    assert len(json.dumps(listed)) < 40_000


@pytest.mark.parametrize(
    ("model", "payload"),
    [
        (LabelReadingsRequest, {"task": "parts", "label": "", "readings": ["1-1"]}),
        (LabelReadingsRequest, {"task": "parts", "label": " cat", "readings": ["1-1"]}),
        (LabelReadingsRequest, {"task": "parts", "label": "a\nb", "readings": ["1-1"]}),
        (LabelReadingsRequest, {"task": "parts", "label": "cat", "readings": []}),
        (LabelReadingsRequest, {"task": "parts", "label": "cat", "readings": ["1-1"] * 201}),
        (LabelReadingsRequest, {"task": "parts", "label": "cat", "readings": ["1-1"], "source": "<b>"}),
        (CorrectLabelsRequest, {"task": "parts", "labels": [-1]}),
        (ReadingsRequest, {"task": "parts", "count": 10_000}),
        (LabelsRequest, {"task": "parts", "numbers": [1] * 49}),
    ],
)
def test_a_crafted_request_is_refused(model: Any, payload: dict[str, Any]) -> None:
    with pytest.raises((Refused, ValidationError)):
        decode(model, json.dumps(payload).encode())


async def test_what_was_acknowledged_is_in_the_files_that_kill_9_leaves(world: World, tmp_path: Path) -> None:
    """A copy of the files at the moment of the answer is what a killed process leaves: its memory is gone."""
    for seed in range(5):
        world.see("front", "jpeg", picture(seed))
    names = [row["name"] for row in (await world.list())["readings"]]
    for count, name in enumerate(names, 1):
        await world.label("cat", [name])
        shutil.copytree(tmp_path / "experience", left := tmp_path / f"left-{count}")
        with Reader(left) as reader:
            assert sum(reader.label_counts("parts")["cat"]) == count
            newest = reader.label_history("parts", 1)[0].label.id
            assert reader.labelled(newest).keys() == {"front"}


async def test_a_client_of_the_topic_label_does_not_choose_what_is_held_out(world: World) -> None:
    """Neither labels of the same class, nor of the same texts, sent before the operator's."""
    for number in range(40):
        assert world.store.add_label(Label("intents", "go", f"foreign {number}", source="mallory"))
    for word in ("run", "walk", "drive", "fly", "swim", "hop", "climb", "crawl"):
        world.see("orders", "utf-8", word.encode())
        assert world.store.add_label(Label("intents", "go", word, source="mallory"))
    names = [row["name"] for row in (await world.list("intents", labelled=True))["readings"]]
    assert len(names) == 8
    assert await world.label("go", names, "intents") == {"train": 6, "held_out": 2, "gone": []}


async def test_copies_of_labels_that_are_put_aside_are_deleted_last(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_module, "_TRIM_EVERY_S", 0.0)
    stamps = [world.see("front", "jpeg", picture(seed)) for seed in range(40)]
    assert world.store.flush()
    await world.label("cat", [reading_name(number, stamp_s) for number, stamp_s in enumerate(stamps, 1)])
    aside, others = (world.reader.labels("parts", held_out=held_out) for held_out in (True, False))
    assert (len(aside), len(others)) == (10, 30)
    size = sum(len(world.reader.labelled(label.id)["front"].data) for label in aside)
    world.store.limit(int(1.5 * size / LABELLED_SHARE))
    world.see("front", "jpeg", picture(99))
    assert world.store.flush()
    world.see("front", "jpeg", picture(98))
    assert world.store.flush()
    assert all(world.reader.labelled(label.id) for label in aside)
    assert 0 < sum(bool(world.reader.labelled(label.id)) for label in others) < 10, "the newest others, and no more"


def test_a_label_is_the_class_of_the_settings_whatever_form_it_is_written_in() -> None:
    """An accent may be one character or two, and a cell of a table ends with an invisible mark."""
    accented = TaskSettings(kind="text-classification", model="m", stream="orders", labels=("caf\u00e9", "tea\u200b"))
    assert accented.labels == ("caf\u00e9", "tea")
    assert LabelReadingsRequest(task="t", label="cafe\u0301", readings=["orders@1"]).label == "caf\u00e9"
    with pytest.raises(ValidationError, match="is there twice"):
        TaskSettings(kind="text-classification", model="m", stream="orders", labels=("caf\u00e9", "cafe\u0301"))
    with pytest.raises(ValidationError, match="a label is empty"):
        TaskSettings(kind="text-classification", model="m", stream="orders", labels=("\u200b",))
