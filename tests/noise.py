"""Labels of every kind of task that a tiny model can learn, honest or noise, and what becomes of a first version."""

from __future__ import annotations

import io
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import soundfile
import tinymodels
from PIL import Image

from learners.config.tasks import FinetuneSettings, TaskSettings
from learners.continual.acceptance import AcceptanceVerdict
from learners.continual.trainer import ContinualTrainer
from learners.experience.reader import Reader
from learners.experience.store import Label, Raw, Store, Transition
from learners.task_kinds import TaskKind

WORDS = ("go", "stop", "left", "right", "up", "down", "red", "green", "blue", "the", "a", "now", "please", "in", "is")
OPTIONS = {"epochs": 30, "learning_rate": 3e-3, "patience": 12, "batch": 8}
RATES = {"text-generation": 1e-2, "translation": 1e-2, "summarization": 1e-2}
TURNS = {"go": "up", "stop": "down", "left": "red"}
"""What a rewriting or answering task makes of a word."""


def sentence(rng: random.Random) -> list[str]:
    words = rng.sample(WORDS, 6)
    words[rng.randrange(6)] = key = rng.choice(list(TURNS))
    return [word if word == key or word not in TURNS else "please" for word in words]


def key_of(words: list[str]) -> str:
    return next(word for word in words if word in TURNS)


def example(kind: str, rng: random.Random, *, noise: bool) -> tuple[str, Any, dict[str, Any]]:
    """A text, its label as it is published, and the example of a held-out file. Noise: the label of another text."""
    words = sentence(rng)
    received = sentence(rng) if noise else words
    text, key = " ".join(words), key_of(received)
    if kind in ("translation", "summarization", "text-generation"):
        answer = TURNS[key]
        turns = [{"role": "user", "content": text}, {"role": "assistant", "content": answer}]
        return text, answer, {"messages": turns} if kind == "text-generation" else {"source": text, "target": answer}
    if kind == "token-classification":
        tags = ["B-X" if word in TURNS else "O" for word in received]
        return text, tuple(tags), {"tokens": words, "tags": tags}
    if kind == "several":
        given = sorted({key, "red" if "red" in received else "green", "the" if "the" in received else "a"})
        return text, tuple(given), {"text": text, "label": given}
    if kind == "question-answering":
        at = rng.randrange(len(words)) if noise else words.index(key)
        start = len(" ".join([*words[:at], ""]))
        body = {"question": "what is", "context": text}
        return orjson.dumps(body).decode(), words[at], {**body, "answers": [{"text": words[at], "start": start}]}
    body = {"text": text, "label": key}
    if kind == "text-pair-classification":
        pair = {"text": " ".join(sentence(rng)), "text_pair": text}
        text, body = orjson.dumps(pair).decode(), {**pair, "label": key}
    elif kind == "relation-extraction":
        at = words.index(key_of(words))
        marked = [
            f"<e1> {word} </e1>" if i == at else f"<e2> {word} </e2>" if i == (at + 1) % 6 else word
            for i, word in enumerate(words)
        ]
        text = " ".join(marked)
        body["text"] = text
    return text, key, body


def media(kind: str, rng: random.Random, *, noise: bool) -> tuple[str, bytes, str]:
    """A picture of one colour, or a tone of one pitch; noise: of another one than its label."""
    names = list(TURNS) if kind == "automatic-speech-recognition" else list("abc")
    given, shown = rng.choice(names), rng.choice(names)
    of = names.index(shown if noise else given)
    generator = np.random.default_rng(rng.randrange(1 << 30))
    out = io.BytesIO()
    if kind == "image-classification":
        pixels = generator.integers(0, 60, (32, 32, 3), dtype=np.uint8)
        pixels[..., of] += 150
        Image.fromarray(pixels).save(out, "PNG")
        return "png", out.getvalue(), given
    samples = np.sin(np.arange(16_000) * (0.05, 0.2, 0.8)[of]) * 0.3 + generator.standard_normal(16_000) * 0.02
    soundfile.write(out, samples.astype(np.float32), 16_000, format="FLAC")
    return "flac", out.getvalue(), given


KINDS: dict[str, tuple[TaskKind, Callable[[Path], Path]]] = {
    "text-classification": ("text-classification", tinymodels.bert),
    "text-pair-classification": ("text-pair-classification", tinymodels.bert),
    "several": ("text-classification", tinymodels.bert),
    "token-classification": ("token-classification", tinymodels.bert),
    "relation-extraction": ("relation-extraction", tinymodels.bert),
    "question-answering": ("question-answering", tinymodels.bert),
    "translation": ("translation", tinymodels.t5),
    "summarization": ("summarization", tinymodels.t5),
    "text-generation": ("text-generation", tinymodels.llama),
    "image-classification": ("image-classification", tinymodels.efficientnet),
    "audio-classification": ("audio-classification", tinymodels.wav2vec2),
    "automatic-speech-recognition": ("automatic-speech-recognition", tinymodels.speech),
}
"""By name, the kind of task and the maker of its model; `several` is a text classification with several labels."""


def first_version(folder: Path, name: str, seed: int, *, noise: bool, labels: int = 160) -> AcceptanceVerdict:
    """Publish labels of one task, and fine-tune its first version against an honest held-out file."""
    kind, maker = KINDS[name]
    rng = random.Random(f"{seed} {name}")  # the same in every process
    model, held = folder / "model", folder / "held.jsonl"
    maker(model)
    store = Store(folder / "experience")
    if kind in ("image-classification", "audio-classification", "automatic-speech-recognition"):
        held = folder / "held"
        suffix = ".png" if kind == "image-classification" else ".flac"
        for number in range(60):
            _, data, given = media(kind, rng, noise=False)
            (held / given).mkdir(parents=True, exist_ok=True)
            (held / given / f"{number}{suffix}").write_bytes(data)
        if kind == "automatic-speech-recognition":  # the folders' names are the words
            paths = sorted(held.rglob("*.flac"))
            held = folder / "held.jsonl"
            held.write_bytes(
                b"\n".join(orjson.dumps({"sound": str(path), "target": path.parent.name}) for path in paths)
            )
        for number in range(labels):
            encoding, data, given = media(kind, rng, noise=noise)
            store.append(Transition("s", number, f"d{number}", 100.0 + number, "p", ages_s={"o": 0.0}))
            store.add_raw(Raw("o", 100.0 + number, encoding, data))
            store.add_label(Label("t", given, None, f"d{number}", streams=("o",)))
    else:
        rows = [example(name, rng, noise=False)[2] for _ in range(60)]
        held.write_bytes(b"\n".join(orjson.dumps(row) for row in rows))
        for _ in range(labels):
            text, given, _row = example(name, rng, noise=noise)
            store.add_label(Label("t", given, text))
    assert store.flush()
    store.close()
    settings = TaskSettings(
        kind=kind,
        stream="o",
        model=str(model),
        train="full",
        eval_file=str(held),
        multi_label=name == "several",
        max_new_tokens=4,
    )
    finetune = FinetuneSettings(every_s=1, min_labels=20, validation_fraction=0.25, batch=8)
    options = OPTIONS | {"learning_rate": RATES.get(name, 3e-3)}
    trainer = ContinualTrainer(
        "t", settings, finetune, folder / "tasks", Reader(folder / "experience"), seed=seed, options=options
    )
    return trainer.run()
