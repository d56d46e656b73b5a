"""Augmentations change what they name, by the given generator, and nothing where they are off."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tinymodels
import torch
from transformers import BertForMaskedLM

from learners.tasks.augmentation import pictures, sounds, texts
from learners.tasks.augmentation.mixing import can_mix, mixed
from learners.tasks.augmentation.texts import Synonyms, masked_model, without_tokens
from learners.tasks.base import Options
from learners.tasks.task_classes import open_task

ORDER = {"text": "go left now please", "label": "a"}


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def classifier(tmp_path: Path, *augment: str) -> Any:
    return open_task("text-classification", tinymodels.bert(tmp_path / "m"), labels=("a", "b"), augment=augment)


def test_tokens_are_left_out_at_their_rate_and_special_ones_never(tmp_path: Path) -> None:
    task = classifier(tmp_path, "token_dropout")
    plain = task.features(ORDER)[0]["input_ids"]
    found = [task.features(ORDER, rng=rng(seed))[0]["input_ids"] for seed in range(400)]
    assert all(row[0] == plain[0] and row[-1] == plain[-1] for row in found)
    assert 1 - np.mean([len(row) - 2 for row in found]) / 4 == pytest.approx(0.1, abs=0.03)
    assert task.varying
    assert task.features(ORDER)[0]["input_ids"] == plain, "prediction changes nothing"
    only = {"input_ids": [2, 5, 3]}
    assert all(5 in without_tokens(only, frozenset({2, 3}), rng(seed))["input_ids"] for seed in range(50))


def test_a_model_without_masked_predictions_backs_off_to_its_nearest_words(tmp_path: Path) -> None:
    task = classifier(tmp_path, "synonyms")
    assert masked_model(tmp_path / "m") is None
    table = task.model.get_input_embeddings().weight.detach().clone()
    vocabulary = task.processor.get_vocab()
    table[vocabulary["stop"]] = table[vocabulary["go"]] * 1.01  # the nearest by far
    synonyms = Synonyms(tmp_path / "m", task.processor, table)
    feature = task.features({"text": "go go go go go go"})[0]
    words = [w for seed in range(40) for w in synonyms.replaced(feature, rng(seed))["input_ids"]]
    assert words.count(vocabulary["stop"]) > 20
    assert words.count(vocabulary["stop"]) > 0.95 * (len(words) - words.count(vocabulary["go"]) - 80)


def test_a_masked_model_replaces_by_its_own_predictions(tmp_path: Path) -> None:
    """A model that was trained to say `left` in the place of the masked word draws it most."""
    source = tinymodels.bert(tmp_path / "m", ["[MASK]", *tinymodels.WORDS])
    task: Any = open_task("text-classification", source, labels=("a", "b"))
    task.processor.add_special_tokens({"mask_token": "[MASK]"})
    torch.manual_seed(0)
    model = BertForMaskedLM(task.model.config).eval()
    left, right = (task.processor.get_vocab()[word] for word in ("left", "right"))
    with torch.no_grad():
        model.cls.predictions.bias[left] = 30.0
    model.save_pretrained(tmp_path / "masked")
    assert masked_model(tmp_path / "masked") is not None
    synonyms = Synonyms(tmp_path / "masked", task.processor, task.model.get_input_embeddings().weight)
    feature = task.features({"text": "go right right right right"})[0]
    drawn = [w for seed in range(30) for w in synonyms.replaced(feature, rng(seed))["input_ids"]]
    assert drawn.count(left) > 10
    assert set(drawn) <= {*feature["input_ids"], left}
    assert right in drawn


def test_mixed_texts_have_the_mean_of_their_embeddings_and_of_their_losses(tmp_path: Path) -> None:
    task = classifier(tmp_path, "mixup")
    batch = task.collate(
        [task.features({"text": t, "label": n})[0] for t, n in (("go left", "a"), ("stop now please", "b"))]
    )
    given = {name: tensor for name, tensor in batch.items() if name != "labels"}
    other = torch.tensor([1, 0])
    found = mixed(task.model, given, 0.25, other)
    table = task.model.get_input_embeddings()(given["input_ids"])
    torch.testing.assert_close(found["inputs_embeds"][0], 0.25 * table[0] + 0.75 * table[1])
    assert found["attention_mask"].tolist() == [[1] * 5] * 2
    whole = task.model(**mixed(task.model, given, 1.0, other)).logits[1]
    torch.testing.assert_close(whole, task.model(**given).logits[1])
    task.model.train()
    drawn = set()
    for seed in range(8):
        torch.manual_seed(seed)
        drawn.add(float(task.loss(task.model, batch).detach()))
    assert len(drawn) > 2, "other shares and other pairs"
    task.model.eval()
    assert float(task.loss(task.model, batch).detach()) == float(
        task.criterion(task.model(**given).logits, batch["labels"]).detach()
    )


def test_decoders_refuse_to_mix_texts(tmp_path: Path) -> None:
    source = tinymodels.llama(tmp_path / "llama")
    with pytest.raises(ValueError, match="mixup: texts of llama cannot be mixed"):
        open_task("text-classification", source, labels=("a", "b"), augment=("mixup",))
    pixels = open_task(
        "image-classification", tinymodels.efficientnet(tmp_path / "e"), labels=("a", "b"), augment=("mixup",)
    )
    assert can_mix(pixels.model)
    assert not pixels.varying, "pictures stay as they are; batches are mixed"


@pytest.mark.parametrize("name", ["crops", "brightness", "colour", "rand_augment"])
def test_each_change_of_pictures_differs_by_the_generator_and_stays_in_range(name: str) -> None:
    picture = torch.from_numpy(rng(3).random((3, 24, 32), np.float32))
    made = [pictures.changed(picture, rng(seed), (name,)) for seed in range(8)]
    assert all(one.shape == picture.shape and float(one.min()) >= 0 and float(one.max()) <= 1 for one in made)
    assert len({one.numpy().tobytes() for one in made}) > 4
    torch.testing.assert_close(made[3], pictures.changed(picture, rng(3), (name,)))
    assert pictures.changed(picture, rng(), ()) is picture
    grey = torch.full((3, 8, 8), 0.5)
    if name == "colour":
        torch.testing.assert_close(pictures.changed(grey, rng(), (name,)), grey, atol=1e-6, rtol=0)


def test_masks_cover_few_frequencies_and_times_with_the_mean() -> None:
    mels = torch.arange(80 * 100, dtype=torch.float32).reshape(80, 100)
    for seed in range(20):
        made = sounds.masked(mels, rng(seed))
        changed = made != mels
        assert float(made[changed].float().std()) < 1e-3 if changed.any() else True
        assert float(changed.float().mean()) < 1 - (1 - 2 * 0.15) ** 2 + 0.01
    assert sounds.masked(mels, rng(1)).ne(mels).any()
    samples = rng(0).standard_normal(16_000).astype(np.float32)
    assert (sounds.changed(samples, rng(0), 16_000, ())[0] == samples).all()
    assert len(sounds.changed(samples, rng(0), 16_000, ("speed",))[0]) >= 16_000
    louder = sounds.changed(samples, rng(0), 16_000, ("noise",))[0]
    assert abs(20 * np.log10(louder.std() / samples.std())) < 6.1


@pytest.mark.parametrize("axis", [0, 1])
def test_masks_of_times_are_measured_in_the_sound_and_not_in_its_window(axis: int) -> None:
    """Ten frames of sound in a window of two hundred: a mask of the window's width hid all of it."""
    mels = torch.zeros(80, 200)
    mels[:, 100:110] = torch.arange(800, dtype=torch.float32).reshape(80, 10) + 1.0
    mels = mels if axis else mels.T.contiguous()
    for seed in range(40):
        made = sounds.masked(mels, rng(seed), (0.5, 0.55), time_axis=axis)
        changed = (made != mels) if axis else (made != mels).T
        assert int(changed[:, 100:110].all(0).sum()) <= 2, "of ten frames, two masks of one"
        assert not bool(changed[:, :100].any(1).all()), "no mask of times lies in the silence"


@pytest.mark.parametrize("make", ["whisper", "wav2vec2"])
def test_a_short_sound_is_never_masked_as_a_whole(tmp_path: Path, make: str) -> None:
    source = getattr(tinymodels, make)(tmp_path / make)
    task = open_task("audio-classification", source, labels=("a", "b"), window_s=8.0, augment=("spec_augment",))
    plain = open_task("audio-classification", source, labels=("a", "b"), window_s=8.0, augment=("mixup",))
    sound = {"sound": (0.3 * np.sin(np.arange(8_000) * 0.3)).astype(np.float32)}
    name = task.processor.model_input_names[0]  # type: ignore[attr-defined]
    for seed in range(12):
        mine, whole = (one.features(sound, rng=rng(seed))[0][name] for one in (task, plain))
        hidden = (mine.std(0) if mine.dim() == 2 else (mine != mine.mode().values).float()) <= 1e-6
        assert float(hidden.float().mean()) < 1.0
        assert mine.shape[-1] >= whole.shape[-1]


def test_masked_predictions_of_a_long_text_take_little_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    task: Any = open_task(
        "text-classification", tinymodels.bert(tmp_path / "m", ["[MASK]", *tinymodels.WORDS]), labels=("a", "b")
    )
    task.processor.add_special_tokens({"mask_token": "[MASK]"})
    torch.manual_seed(0)
    model = BertForMaskedLM(task.model.config).eval()
    monkeypatch.setattr(texts, "masked_model", lambda _: model)
    feature = {"input_ids": task.features({"text": "go stop left right " * 12})[0]["input_ids"]}
    found, largest = [], []
    model.register_forward_hook(lambda _, __, made: largest.append(made.logits.numel()))
    for most in (texts.MAX_SCORES, 5_000):
        monkeypatch.setattr(texts, "MAX_SCORES", most)
        words = texts.Synonyms(tmp_path / "m", task.processor, task.model.get_input_embeddings().weight)
        found.append([words.replaced(feature, rng(seed))["input_ids"] for seed in range(5)])
        assert max(largest) <= most
        largest.clear()
    assert found[0] == found[1] != [feature["input_ids"]] * 5, "the same words, whatever the size of a batch"


@pytest.mark.parametrize(("saved", "wanted"), [(True, None), (False, ()), (["mixup"], ["mixup"])])
def test_folders_of_older_programs_keep_their_augmentation(saved: Any, wanted: Any) -> None:
    assert Options.known({"augment": saved})["augment"] == wanted
