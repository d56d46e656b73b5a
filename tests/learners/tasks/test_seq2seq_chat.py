"""Translation and summaries learn a rule; chat learns from the assistant's turns and speaks piece by piece."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import sacrebleu
import tinymodels
from transformers import AutoModelForSeq2SeqLM

from learners.data_error import DataError
from learners.finetune.labelled_files.splits import Splits
from learners.finetune.trainer import TrainerSettings
from learners.finetune.training_phases import tune
from learners.tasks.base import IGNORED, Prediction
from learners.tasks.seq2seq import bleu
from learners.tasks.task_classes import open_task
from learners.tasks.text_generation import PLAIN

COLOURS, THINGS = ["red", "green", "blue", "a", "the"], ["left", "right", "up", "down", "paris", "anna"]
VERBS = ["go", "stop", "works", "is"]


def swaps() -> list[dict[str, str]]:
    return [{"source": f"{v} {c} {t}", "target": f"{v} {t} {c}"} for v in VERBS for c in COLOURS for t in THINGS]


def test_translation_learns_to_swap_words_it_never_saw_together(tmp_path: Path) -> None:
    rows = swaps()
    held = rows[::7]
    train = [row for row in rows if row not in held]
    task = open_task("translation", tinymodels.t5(tmp_path), max_new_tokens=6)
    before = task.metrics(held, task.predict(held))["exact_match"]
    settings = TrainerSettings(epochs=40, batch=16, learning_rate=4e-3, patience=10)
    tuned = tune(task, Splits(train, held), settings, "full")
    assert before == 0.0
    assert tuned.run.history[tuned.run.best_epoch - 1]["exact_match"] >= 0.5, "one in 120 by chance"
    task.save(tmp_path / "o")
    assert AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "o").config.d_model == 32


def test_scores_of_translations_and_summaries(tmp_path: Path) -> None:
    folder = tinymodels.t5(tmp_path)
    rows = [{"source": "x", "target": "the red cup is in the box now"}]
    translate, summarize = open_task("translation", folder), open_task("summarization", folder)
    assert translate.metrics(rows, [Prediction(rows[0]["target"])]) == {
        "bleu": pytest.approx(100.0),
        "exact_match": 1.0,
    }
    half = summarize.metrics(rows, [Prediction("the red cup is")])
    assert half["rouge1"] == pytest.approx(2 / (1 / 1 + 8 / 4))  # precision 1, recall 4 of 8
    with pytest.raises(DataError, match="source"):
        translate.features({"text": "a"})


TALK = [{"role": "user", "content": "what is red ?"}, {"role": "assistant", "content": "stop ."}]


def test_only_the_assistants_tokens_are_learned(tmp_path: Path) -> None:
    task = open_task("text-generation", tinymodels.llama(tmp_path), system="please")
    feature = task.features({"messages": TALK})[0]
    learned = [i for i, target in zip(feature["input_ids"], feature["labels"], strict=True) if target != IGNORED]
    assert task.processor.decode(learned).split() == ["stop", ".", "</s>"]
    assert task.processor.decode(feature["input_ids"]).startswith("<system> please")
    with pytest.raises(DataError, match="messages"):
        task.features({"text": "a"})


def test_turns_that_the_models_template_refuses_are_refused(tmp_path: Path) -> None:
    task = open_task("text-generation", tinymodels.llama(tmp_path))
    task.processor.chat_template = "{{ raise_exception('roles must alternate') }}"
    with pytest.raises(DataError, match=r"refuses these turns: roles must alternate; correct their roles"):
        task.features({"messages": TALK})


def test_chat_learns_an_answer_and_streams_it(tmp_path: Path) -> None:
    task = open_task("text-generation", tinymodels.llama(tmp_path), max_new_tokens=8)
    rows = [{"messages": TALK}] * 8
    first = task.metrics(rows, task.predict(rows))["perplexity"]
    tune(task, Splits(rows, rows), TrainerSettings(epochs=30, batch=8, learning_rate=2e-2, patience=30), "full")
    assert task.metrics(rows, task.predict(rows))["perplexity"] < min(1.5, first)
    pieces = list(task.stream(TALK[:1]))  # type: ignore[attr-defined]
    assert "".join(pieces).split() == ["stop", "."], "it ends at the end token"
    assert len(pieces) == 2
    long = open_task("text-generation", tinymodels.llama(tmp_path / "l"), system="please", max_length=16)
    prompt = long._prompt(long.turns({"messages": TALK * 5}))  # type: ignore[attr-defined]
    assert len(prompt) <= 16
    assert long.processor.decode(prompt).startswith("<system> please")


def test_models_without_a_template_get_a_plain_one(tmp_path: Path) -> None:
    folder = tinymodels.llama(tmp_path)
    (folder / "chat_template.jinja").unlink()
    task = open_task("text-generation", folder)
    assert task.processor.chat_template == PLAIN
    assert task.processor.decode(task.ids(TALK[:1], generation_prompt=True)).endswith("<unk>")  # type: ignore[attr-defined]


def test_bleu_of_texts_that_are_all_short_counts_runs_of_their_length() -> None:
    assert bleu(["go left now", "stop"], ["go left now", "stop"]) == pytest.approx(100.0)
    assert bleu(["stop"], ["stop"]) == pytest.approx(100.0)
    right, long = ["go left", "stop now"], ["go left left left left", "stop now now now now"]
    assert bleu(right, right) > bleu(long, right)
    assert bleu(["up"], ["stop"]) == 0.0
    texts = ["the robot goes to the left", "stop"]
    for found in (texts, ["the robot goes left", "stop"], ["a", "b"]):
        assert bleu(found, texts) == pytest.approx(sacrebleu.corpus_bleu(found, [texts]).score), "as it is defined"


ENDS = "{{ m.content.split(' ')[-1] if m.role == 'assistant' and not loop.last else m.content }}"
"""How templates of models that think write earlier answers: without their thoughts."""


@pytest.mark.parametrize(
    ("template", "learned"),
    [
        (tinymodels.TURN, [["red green </s>", "blue now </s>"]]),
        (tinymodels.TURN.replace("{{ m.content }}", ENDS), [["red green </s>"], ["blue now </s>"]]),
        (
            tinymodels.TURN.replace("<assistant> {% endif", "<assistant> please {% endif"),
            [["red green </s>", "blue now </s>"]],
        ),
        (tinymodels.TURN.replace("</s>", "{% if loop.last %}</s>{% endif %}"), [["red green </s>"], ["blue now </s>"]]),
    ],
    ids=["plain", "earlier ones are shortened", "another beginning", "the last one ends"],
)
@pytest.mark.parametrize("greeted", [False, True])
def test_answers_are_learned_as_they_are_written_when_they_are_the_last(
    tmp_path: Path, template: str, learned: list[list[str]], greeted: bool
) -> None:
    task: Any = open_task("text-generation", tinymodels.llama(tmp_path))
    task.processor.chat_template = template
    turns = {"go left " * 8: "user", "red green": "assistant", "stop": "user", "blue now": "assistant"}
    messages = [{"role": role, "content": text} for text, role in turns.items()][greeted:]
    found = []
    for feature in task.features({"messages": messages}):
        targets = [one if one != IGNORED else task.processor.convert_tokens_to_ids("?") for one in feature["labels"]]
        found.append([part.strip() for part in task.processor.decode(targets).split("?") if part.strip()])
    assert found == learned
    (prediction,) = task.predict([{"messages": messages}])
    assert prediction.value["tokens"] == 6
