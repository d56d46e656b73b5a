"""Dialogues of several turns: answers are learned from all turns before them, and files with wrong turns are refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import dialogues
import orjson
import pytest
import tinymodels

from learners.data_error import DataError
from learners.finetune.labelled_files import datasets
from learners.tasks.base import IGNORED
from learners.tasks.task_classes import task_class
from learners.tasks.text_generation import Chat

USER, ANSWER = {"role": "user", "content": "go"}, {"role": "assistant", "content": "stop"}


@pytest.mark.parametrize(
    ("turns", "message"),
    [
        ([{"content": "go"}, ANSWER], 'turn 1 of `messages` has no `role` that is a text, only `content`; add "role": "user"'),
        ([USER, {"role": "assistant"}], "turn 2 of `messages` has no `content` that is a text, only `role`; add"),
        ([USER, {"role": "bot", "content": "a"}], "turn 2 of `messages` has the role 'bot'; write one of system, user, assistant"),
        ([USER, "stop"], "turn 2 of `messages` is a str; write"),
        ([USER], "has no turn of the assistant; only these are trained"),
        ([], "holds no turn"),
    ],
)  # fmt: skip
def test_a_file_with_wrong_turns_is_refused(tmp_path: Path, turns: list[Any], message: str) -> None:
    path = tmp_path / "chat.jsonl"
    path.write_bytes(b"\n".join(orjson.dumps({"messages": some}) for some in ([USER, ANSWER], turns)))
    with pytest.raises(DataError) as error:
        datasets.read(path, task_class("text-generation"))
    assert str(error.value).startswith(f"{path}:2: ")
    assert message in str(error.value)


def test_every_answer_and_no_other_turn_is_learned(tmp_path: Path) -> None:
    task = Chat.open(tinymodels.llama(tmp_path))
    feature = task.features(dialogues.dialogues()[0][0])[0]
    learned = [i for i, target in zip(feature["input_ids"], feature["labels"], strict=True) if target != IGNORED]
    last = dialogues.dialogues()[0][0]["messages"][-1]["content"]
    assert task.processor.decode(learned) == f"what now ? </s> {last} </s>"


def test_slots_of_two_turns_are_named_in_dialogues_never_seen(tmp_path: Path) -> None:
    found = dialogues.learn(Chat.open(tinymodels.llama(tmp_path), max_new_tokens=6), epochs=60)
    assert found["before"]["slots"] <= 0.2
    assert found["after"]["slots"] >= 0.6, f"chance is .3: {found}"
    assert found["after"]["perplexity"] < 1.4 < found["before"]["perplexity"]
