"""Labels of a fixed view: small objects at different places are different readings, noise makes none, and no write is acknowledged falsely."""

from __future__ import annotations

import io
import sqlite3
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import learners.experience.writer as writer_module
from learners.config.learner import ExperienceSettings
from learners.experience.database import Database
from learners.experience.label_table import reading_name
from learners.experience.reader import Reader
from learners.experience.reading_similarity import distances, signature
from learners.experience.records import Label, Raw, ReadingLabels
from learners.experience.store import Store
from learners.experience.writer import Writer
from learners.finetune.example_checks.near_duplicates import NearDuplicates
from learners.tasks.base import EncodedMedia

HIGH, WIDE, NOISE = 240, 320, 3.0
RED, GREEN = (200.0, 40.0, 40.0), (40.0, 200.0, 40.0)
NOW_S = 1_750_000_000.0


class FixedView:
    """A camera that does not move: the same background, noise of its own in each picture, and perhaps an object."""

    def __init__(self, seed: int = 0) -> None:
        self.random = np.random.default_rng(seed)
        y, x = np.mgrid[0:HIGH, 0:WIDE]
        self.background_YX = 110 + 40 * np.sin(x / 35) + 30 * np.cos(y / 25)

    def shot(
        self, colour: tuple[float, ...] = (), size: int = 40, light: float = 0.0, at: tuple[int, int] | None = None
    ) -> bytes:
        pixels = np.repeat(self.background_YX[:, :, None], 3, 2) + light
        if colour:
            y, x = at or (self.random.integers(0, HIGH - size), self.random.integers(0, WIDE - size))
            pixels[y : y + size, x : x + size] = colour
        pixels += self.random.normal(0, NOISE, pixels.shape)
        out = io.BytesIO()
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(out, "JPEG", quality=85)
        return out.getvalue()


def apart(one: bytes, other: bytes) -> float:
    return float(distances([signature(Raw("cam", 0.0, "jpeg", one))], signature(Raw("cam", 0.0, "jpeg", other)))[0])


def open_database(folder: Path) -> Database:
    folder.mkdir(exist_ok=True)
    return Database(folder, max_bytes=10**9, reserve=0.2, raw_retention_s=600)


def click(database: Database, label: str, shots: list[bytes], encoding: str = "jpeg") -> list[str]:
    """Store readings and label them as a person does; return the part of each."""
    with database:
        numbers = []
        for data in shots:
            database.add_raw(Raw("cam", NOW_S, encoding, data))
            numbers.append(database._raw.execute("SELECT max(id) FROM raw").fetchone()[0])
        names = tuple(reading_name(number, NOW_S) for number in numbers)
        given = ReadingLabels("parts", label, "cam", names, "anna", NOW_S, hold_out=True)
        database.labels.label_readings(given)
    return list(given.outcome.values())


def test_small_objects_at_different_places_are_different_readings_and_each_label_counts(tmp_path: Path) -> None:
    view, database = FixedView(), open_database(tmp_path / "experience")
    shots = {name: [view.shot(colour) for _ in range(12)] for name, colour in (("red", RED), ("green", GREEN))}
    for name, pictures in shots.items():
        parts = click(database, name, pictures)
        assert (parts.count("train"), parts.count("held_out")) == (9, 3)
        assert click(database, name, pictures[:4]) == parts[:4], "equal bytes stay on their side"
    database.close()
    copies = sqlite3.connect(tmp_path / "experience" / "raw.db").execute("SELECT count(*) FROM labelled_readings")
    assert copies.fetchone() == (24,), "equal bytes are stored once, and nothing else is"


def test_noise_is_the_same_picture_and_light_colour_or_a_small_object_are_not() -> None:
    view = FixedView(1)
    empty = view.shot()
    assert max(apart(empty, view.shot()) for _ in range(5)) <= 1.0
    assert apart(empty, view.shot(light=15.0)) > 1.0, "a lamp"
    assert min(apart(empty, view.shot(RED, 20)) for _ in range(5)) > 1.0
    place = (100, 150)
    assert apart(view.shot(RED, at=place), view.shot(RED, at=place)) <= 1.0
    assert apart(view.shot(RED, at=place), view.shot(GREEN, at=place)) > 1.0, "equally bright"
    assert apart(empty, empty) == 0.0


def test_a_held_out_picture_excludes_noisy_copies_of_its_class_alone() -> None:
    view = FixedView(2)
    held = [view.shot(RED, at=(50, 60)) for _ in range(2)] + [view.shot()]
    media = NearDuplicates(
        {"picture": EncodedMedia("jpeg", data), "label": name}
        for data, name in zip(held, ("red", "red", "none"), strict=True)
    )

    def has(data: bytes, name: str) -> bool:
        return media.has("key of the content", {"picture": EncodedMedia("jpeg", data), "label": name})

    media._found.clear()
    assert has(view.shot(RED, at=(50, 60)), "red")
    for size in (20, 40, 60):
        media._found.clear()
        assert not has(view.shot(RED, size, at=(150, 200)), "red")
        assert not has(view.shot(RED, size, at=(50, 60)), "scratched"), "a person gave another class"
    media._found.clear()
    assert has(held[0], "scratched"), "the very picture never trains"


def test_readings_of_other_classes_do_not_choose_the_side_of_a_label(tmp_path: Path) -> None:
    view, database = FixedView(3), open_database(tmp_path / "experience")
    assert click(database, "none", [view.shot()]) == click(database, "red", [view.shot()]) == ["train"]
    assert click(database, "none", [view.shot()]) == ["train"], "the same picture of the same class"
    assert click(database, "none", [view.shot(light=30.0)]) == ["held_out"]
    database.close()


def test_a_kill_between_two_commits_leaves_no_reading_for_a_later_label(tmp_path: Path) -> None:
    database = open_database(tmp_path / "experience")
    click(database, "red", [b"A"], "x-bytes")
    database.close()
    with sqlite3.connect(
        tmp_path / "experience" / "experience.db"
    ) as db:  # what a kill before the second commit leaves
        db.execute("DELETE FROM labels")
        db.execute("DELETE FROM sqlite_sequence WHERE name = 'labels'")
    db.close()
    database = open_database(tmp_path / "experience")
    with database:
        database.add_label(Label("other", "b", None, "dec-1", "mqtt", NOW_S))
    database.close()
    with Reader(tmp_path / "experience") as reader:
        (label,) = reader.labels("other")
        assert reader.labelled(label.id) == {}


def test_a_lost_edit_is_not_acknowledged_by_an_empty_batch_after_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The edit is the last item of one batch, its mark the first of the next one, which has nothing to write."""
    monkeypatch.setattr(writer_module, "RETRIES_S", ())
    monkeypatch.setattr(writer_module, "FAILING_PAUSE_S", 0.0)
    monkeypatch.setattr("learners.experience.store._BATCH", 1)
    written = Writer._try

    def full(self: Writer, items: list[object], *, trim: bool) -> None:
        if any(isinstance(item, ReadingLabels) for item in items):
            raise sqlite3.OperationalError("database or disk is full")
        written(self, items, trim=trim)  # type: ignore[arg-type]

    monkeypatch.setattr(Writer, "_try", full)
    store = Store(tmp_path / "experience", ExperienceSettings())
    try:
        assert store.add_raw(Raw("cam", NOW_S, "x", b"a"))
        assert store.flush()
        edit = ReadingLabels("t", "a", "cam", (reading_name(1, NOW_S),), "anna", NOW_S, hold_out=True)
        assert not store.edit_labels(edit)
        assert store.flush(), "a later mark acknowledges what came after the loss"
    finally:
        store.close()
