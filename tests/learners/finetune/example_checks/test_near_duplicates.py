"""A picture or sound of the held-out file is recognised when it comes back as a label; others are not."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import orjson
import pytest
import soundfile
from numpy.typing import NDArray
from PIL import Image

from learners.continual.labels import LEAST_BLOCKS, Labelled
from learners.continual.splits import Holdout
from learners.data_error import DataError
from learners.finetune.example_checks.near_duplicates import NearDuplicates, fingerprint, same_sound
from learners.tasks.base import EncodedMedia
from sensors.codecs.resampling import RATE_HZ


def utterance(seed: int, seconds: float = 1.5) -> NDArray[np.float32]:
    """A voice of harmonics that glides from vowel to vowel."""
    rng = np.random.default_rng(seed)
    n = int(seconds * RATE_HZ)
    knots = np.linspace(0, n, 7)
    pitch = np.interp(np.arange(n), knots, rng.uniform(90, 250, 7))
    phase = 2 * np.pi * np.cumsum(pitch) / RATE_HZ
    loud = [np.interp(np.arange(n), knots, rng.uniform(0, 1, 7)) for _ in range(20)]
    sound = sum(gain * np.sin(k * phase) / k for k, gain in enumerate(loud, 1))
    return np.asarray(0.1 * sound + rng.normal(0, 1e-3, n), np.float32)


def scene(seed: int) -> NDArray[np.uint8]:
    small = Image.fromarray(np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8))
    return np.asarray(small.resize((96, 72), Image.Resampling.BICUBIC))


def changed_copies(sound_N: NDArray[np.float32], seed: int) -> list[NDArray[np.float32]]:
    """The sound at another volume, begun later, with noise 30 dB below it."""
    rng = np.random.default_rng(seed)
    noise_N = rng.normal(0, float(np.std(sound_N)) * 10 ** (-30 / 20), len(sound_N)).astype(np.float32)
    return [0.3 * sound_N, sound_N[int(rng.integers(1, len(sound_N) // 5)) :], sound_N + noise_N]


def test_a_sound_is_recognised_louder_later_and_with_noise_and_no_other_is() -> None:
    sounds = [utterance(seed, 0.6 + 0.1 * (seed % 12)) for seed in range(40)]
    prints = [fingerprint(sound) for sound in sounds]
    for seed, sound in enumerate(sounds):
        assert all(same_sound(fingerprint(copy), prints[seed]) for copy in changed_copies(sound, seed))
    pairs = [(a, b) for a in range(40) for b in range(a)]
    assert not [pair for pair in pairs if same_sound(prints[pair[0]], prints[pair[1]])]
    assert not same_sound(fingerprint(sounds[0][:900]), prints[0]), "two frames say nothing"
    assert not len(fingerprint(np.zeros(0, np.float32)))


def test_what_the_file_holds_never_trains(tmp_path: Path) -> None:
    """The file's pictures come back compressed, its sounds from another rate; the labels of the rest train."""
    Image.fromarray(scene(1)).save(tmp_path / "one.png")
    out = io.BytesIO()
    Image.fromarray(scene(1)).save(out, "JPEG", quality=60)
    again, other = EncodedMedia("jpeg", out.getvalue()), scene(2)
    darker = np.asarray(scene(1) * 0.8, np.uint8)
    holdout = Holdout(0.0, ({"picture": str(tmp_path / "one.png"), "label": "a"},), media=NearDuplicates([
        {"picture": str(tmp_path / "one.png")}]))  # fmt: skip
    labels = [
        Labelled(n, f"{n:016x}", {"picture": picture, "label": "a"}) for n, picture in enumerate([again, other, darker])
    ]
    parts = holdout.parts(labels, [])
    assert parts.new == [labels[1].example, labels[2].example], "the same scene in another light is another picture"
    assert parts.repeated == 1

    soundfile.write(tmp_path / "one.wav", utterance(3), RATE_HZ)
    media = NearDuplicates([{"sound": str(tmp_path / "one.wav")}])
    assert media.has("a", {"sound": np.repeat(utterance(3), 2), "rate_hz": 2 * RATE_HZ})
    assert not media.has("b", {"sound": utterance(4)})
    assert not media.has("c", {"text": "go"})


def test_a_corrected_target_makes_another_file(tmp_path: Path) -> None:
    """The anchor's scores belong to the answers that the file had."""
    forms = (
        {"source": "go", "target": "{}"},
        {"question": "q", "context": "one two", "answers": [{"text": "{}"}]},
        {"messages": [{"role": "user", "content": "go"}, {"role": "assistant", "content": "{}"}]},
        {"text": "go", "label": "{}"},
    )
    for form in forms:
        digests = set()
        for target in ("one", "two"):
            (tmp_path / "held.jsonl").write_bytes(orjson.dumps(form).replace(b"{}", target.encode()))
            digests.add(Holdout.of(str(tmp_path / "held.jsonl"), 0.2).digest)
        assert len(digests) == 2, form


def test_another_file_of_pictures_is_another_file(tmp_path: Path) -> None:
    digests = set()
    for seed in (1, 2, 1):
        Image.fromarray(scene(seed)).save(tmp_path / "one.png")
        (tmp_path / "held.jsonl").write_text('{"picture": "one.png", "label": "a"}\n' * 2)
        digests.add(Holdout.of(str(tmp_path / "held.jsonl"), 0.2).digest)
    assert len(digests) == 2
    (tmp_path / "one.png").write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"one\.png"):
        Holdout.of(str(tmp_path / "held.jsonl"), 0.2)


def test_moments_of_one_scene_are_in_one_part_where_there_are_enough_scenes() -> None:
    rng = np.random.default_rng(0)
    labels = [
        Labelled(n, rng.bytes(8).hex(), {"text": str(n), "label": "a"}, block=f"{n // 4 * 7919 % 997:016x}"[::-1])
        for n in range(4 * LEAST_BLOCKS)
    ]
    parts = Holdout(0.4).parts(labels, [])
    sides = [{row["text"] for row in rows} for rows in (parts.new, parts.tried)]
    assert all(sides)
    for at in range(LEAST_BLOCKS):
        scene_of = {str(n) for n in range(4 * at, 4 * at + 4)}
        assert scene_of <= sides[0] or scene_of <= sides[1]
    few = Holdout(0.4).parts(labels[: 4 * LEAST_BLOCKS - 4], [])
    assert any(
        {str(n) for n in range(4 * at, 4 * at + 4)} & {row["text"] for row in few.new}
        and {str(n) for n in range(4 * at, 4 * at + 4)} & {row["text"] for row in few.tried}
        for at in range(LEAST_BLOCKS - 1)
    ), "with fewer scenes each example is selected by its content"
