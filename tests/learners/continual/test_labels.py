"""Labelled readings stay stored: the reading lies beside its label for as long as the label counts, within a budget."""

from __future__ import annotations

import io
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest
import smooth_pictures
from PIL import Image

from learners.config.learner import ExperienceSettings
from learners.config.tasks import TaskSettings
from learners.continual.labels import Labels
from learners.experience import store as store_module
from learners.experience.reader import Reader
from learners.experience.reading_similarity import DIGEST, distances, signature
from learners.experience.store import Label, Raw, Store, Transition
from learners.tasks.base import EncodedMedia

TASK = TaskSettings(kind="image-classification", model="m", stream="front")


picture = partial(smooth_pictures.picture, spread=2)


@dataclass
class Camera:
    """A store in virtual time, and a camera with labelled decisions."""

    store: Store
    now_s: list[float]
    ticks: int = 0

    def see(self, data: bytes, wait_s: float = 30.0) -> str:
        """A tick that sees a new picture; returns its decision."""
        self.now_s[0] += wait_s
        self.ticks += 1
        decision = f"d{self.ticks}"
        assert self.store.append(Transition("s", self.ticks, decision, self.now_s[0], "p", ages_s={"front": 0.0}))
        assert self.store.add_raw(Raw("front", self.now_s[0], "jpeg", data))
        return decision

    def label(self, decision: str, of: str) -> None:
        assert self.store.add_label(Label("t", of, None, decision, streams=("front",)))
        assert self.store.flush()


@pytest.fixture
def camera(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Camera:
    monkeypatch.setattr(store_module, "_TRIM_EVERY_S", 0.0)
    now_s = [1e9]
    settings = ExperienceSettings(max_gb=2e-3)
    return Camera(Store(tmp_path / "experience", settings, clock=lambda: now_s[0]), now_s)


def usable(tmp_path: Path) -> Labels:
    return Labels("t", TASK, Reader(tmp_path / "experience"))


def test_every_picture_that_was_labelled_in_two_hours_trains_an_hour_later(tmp_path: Path, camera: Camera) -> None:
    wanted = []
    for number in range(240):
        camera.label(camera.see(picture(number)), "ab"[number % 2])
        wanted.append("ab"[number % 2])
    camera.see(picture(999), wait_s=3_600)
    assert camera.store.flush()
    labels = usable(tmp_path)
    found = labels.all()
    assert [one.example["label"] for one in found] == wanted
    assert not labels.skipped
    assert not Reader(tmp_path / "experience").raw("front", 0, camera.now_s[0] - 3_000), (
        "raw readings are deleted as before"
    )
    shown = found[7].example["picture"]
    assert isinstance(shown, EncodedMedia)
    assert shown.data == picture(7)
    assert shown.decode()["picture"].shape == (48, 64, 3)
    camera.store.close()


def test_a_label_before_its_reading_is_copied_when_that_is_stored(tmp_path: Path, camera: Camera) -> None:
    """The picture is encoded in a thread, so a quick answer to a question can arrive first."""
    camera.now_s[0] += 1
    assert camera.store.append(Transition("s", 1, "d1", camera.now_s[0], "p", ages_s={"front": 0.0}))
    camera.label("d1", "a")
    assert camera.store.add_raw(Raw("front", camera.now_s[0], "jpeg", picture(1)))
    assert camera.store.flush()
    for number in range(2, 30):
        camera.see(picture(number), wait_s=60)
        assert camera.store.flush()
    assert [one.example["label"] for one in usable(tmp_path).all()] == ["a"]
    camera.store.close()


def test_equal_pictures_of_a_class_are_stored_once(tmp_path: Path, camera: Camera) -> None:
    for _ in range(6):
        camera.label(camera.see(picture(1)), "a")
    camera.label(camera.see(picture(1, 7)), "b")
    camera.label(camera.see(picture(2)), "a")
    found = usable(tmp_path).all()
    assert [one.example["label"] for one in found] == ["a", "b", "a"]
    for _ in range(40):
        camera.see(picture(3), wait_s=60)
        assert camera.store.flush()
    assert len(usable(tmp_path).all()) == 3
    camera.store.close()


def test_above_the_budget_the_largest_class_gives_way(tmp_path: Path, camera: Camera) -> None:
    size = len(picture(0))
    room = int(2e-3 * 1e9 * 0.25 / size)
    camera.label(camera.see(picture(10_000)), "rare")
    for number in range(room + 30):
        camera.label(camera.see(picture(number), wait_s=0.1), "often")
    camera.see(picture(20_000), wait_s=3_600)
    camera.see(picture(20_001))
    assert camera.store.flush()
    labels = usable(tmp_path)
    stored = [one.example["label"] for one in labels.all()]
    assert stored[0] == "rare"
    assert room * 0.8 < len(stored) < room * 1.1
    assert labels.skipped["reading_gone"] == room + 31 - len(stored)
    camera.store.close()


def test_a_signature_forgives_noise_and_separates_pictures() -> None:
    def apart(a: bytes, b: bytes) -> float:
        one, other = (signature(Raw("front", 0.0, "jpeg", data)) for data in (a, b))
        return float(distances([one], other)[0])

    assert max(apart(picture(1, 0), picture(1, noise)) for noise in range(1, 9)) <= 1.0
    assert min(apart(picture(1), picture(other)) for other in range(2, 60)) > 4.0
    tiny = io.BytesIO()
    Image.new("RGB", (3, 2), (200, 100, 50)).save(tiny, "PNG")
    assert len(signature(Raw("front", 0.0, "png", tiny.getvalue()))) == DIGEST + 16 * 16 * 3
    assert signature(Raw("front", 0.0, "jpeg", b"torn")) != signature(Raw("front", 0.0, "jpeg", b"other"))
    assert signature(Raw("room", 0.0, "utf-8", b"go")) == signature(Raw("room", 1.0, "utf-8", b"go"))
