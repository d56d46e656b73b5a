"""What a model lacks: no padding token, few positions, a head for other labels, texts that are too long."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import architectures
import numpy as np
import orjson
import pytest
import tinymodels
import torch
import transformers as hf

from learners.config.tasks import FinetuneSettings, TaskSettings
from learners.continual.candidate_training import CandidateTrainer
from learners.finetune.build import build
from learners.finetune.labelled_files.splits import Splits, cuts
from learners.finetune.run import finetune
from learners.finetune.trainable_layers import lora_targets
from learners.finetune.trainer import Trainer, TrainerSettings
from learners.task_serving.options import options_of
from learners.tasks.task_classes import open_task

WORDS = tinymodels.WORDS[:15]


def text(count: int, seed: int = 0) -> str:
    return " ".join(random.Random(seed).choices(WORDS, k=count))


def jsonl(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_bytes(b"\n".join(orjson.dumps(row) for row in rows))
    return path


@pytest.mark.parametrize("architecture", ["BERT", "RoBERTa", "GPT-2"])
def test_a_length_above_the_positions_is_lowered_and_reported(tmp_path: Path, architecture: str) -> None:
    source = architectures.ARCHITECTURES[architecture](tmp_path / "model")
    task = open_task("text-classification", source, labels=("a", "b"), max_length=500)
    assert task.options.max_length == 64  # RoBERTa has 65 and begins behind the number of its padding
    assert task.notes == ["max_length 500 is above the 64 positions of the model, which are used"]
    long = {"text": text(300)}
    assert len(task.features(long)) > 4
    assert 0 < (task.predict([long])[0].confidence or 0) <= 1


def test_a_model_without_a_padding_token_classifies_batches(tmp_path: Path) -> None:
    source = architectures.ARCHITECTURES["Llama"](tmp_path / "model")
    task = open_task("text-classification", source, labels=("a", "b"))
    examples = [{"text": text(n)} for n in (2, 20, 9)]
    together, alone = task.predict(examples), [task.predict([one])[0] for one in examples]
    assert [p.probabilities["a"] for p in together] == pytest.approx([p.probabilities["a"] for p in alone], abs=1e-5)
    task.save(tmp_path / "out")
    assert hf.AutoConfig.from_pretrained(tmp_path / "out").pad_token_id is not None


@pytest.mark.parametrize(
    ("architecture", "kind"),
    [("XLNet", "text-classification"), ("Funnel", "token-classification"), ("BERT", "text-classification")],
)
def test_texts_share_a_batch_by_equal_length_where_padding_changes_the_outputs(
    tmp_path: Path, architecture: str, kind: str
) -> None:
    """XLNet classifies by the last place, and Funnel pools neighbours, whether these are padding or not."""
    source = architectures.ARCHITECTURES[architecture](tmp_path / "model")
    task = open_task(kind, source, labels=("O", "B-X"))
    with torch.no_grad():
        for parameter in task.model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(3)
    rows = [{"text": text(n), "label": "O", "tokens": text(n).split(), "tags": ["O"] * n} for n in (2, 20, 9, 20, 7, 3)]
    blank = [{"text": row["text"]} for row in rows]
    together, alone = task.predict(blank), [task.predict([one])[0] for one in blank]
    assert [p.confidence for p in together] == pytest.approx([p.confidence for p in alone], abs=1e-5)
    assert task.pads_change_outputs == (architecture != "BERT")
    del task.__dict__["pads_change_outputs"]
    task.model.train()
    next(task.model.children()).eval()
    modes = [module.training for module in task.model.modules()]
    assert task.pads_change_outputs == (architecture != "BERT")
    assert [module.training for module in task.model.modules()] == modes, "frozen parts go on resting"
    trainer = Trainer(task, task.model, rows, [], TrainerSettings(batch=4))
    batches = [{len(trainer._feature(0, unit)["input_ids"]) for unit in batch} for batch in trainer._batches(0)]
    assert sorted(map(len, batches)) == ([1] * 5 if task.pads_change_outputs else sorted(map(len, batches)))


def test_a_question_longer_than_the_model_leaves_room_for_the_context(tmp_path: Path) -> None:
    task = open_task("question-answering", tinymodels.bert(tmp_path / "model"))
    example = {"question": text(300), "context": text(200), "answers": [{"text": text(200).split()[0]}]}
    features = task.features(example)
    assert all(len(feature["input_ids"]) <= 64 for feature in features)
    assert any(feature["labels"] != [0, 0] for feature in features)
    assert task.predict([example])[0].value


def test_a_relation_in_a_long_text_is_read_around_its_marks(tmp_path: Path) -> None:
    task = open_task("relation-extraction", tinymodels.bert(tmp_path / "model"), labels=("x", "y"), max_length=30)
    marked = "<e1> paris </e1> the a <e2> anna </e2>"
    around = {"text": f"{text(100)} {marked} {text(100, 1)}"}
    (feature,) = task.features(around)
    assert len(feature["input_ids"]) <= 30
    tokens = task.processor.convert_ids_to_tokens(feature["input_ids"])
    assert [tokens[at] for at in feature["places"]] == ["[CLS]", "$", "#"]
    assert tokens.count("$") == tokens.count("#") == 2
    for side in (f"{marked} {text(100)}", f"{text(100)} {marked}"):
        assert len(task.features({"text": side})) == 1
    for first, second in (("e1", "e2"), ("e2", "e1")):
        apart = f"{text(40)} <{first}> paris </{first}> {text(100)} <{second}> anna </{second}> {text(40, 1)}"
        (feature,) = task.features({"text": apart})
        assert len(feature["input_ids"]) <= 30
        tokens = task.processor.convert_ids_to_tokens(feature["input_ids"])
        assert [tokens[at] for at in feature["places"]] == ["[CLS]", "$", "#"]
        words = task.processor.decode(feature["input_ids"])
        assert "paris" in words and "anna" in words  # noqa: PT018 - one fact
        assert task.unread({"text": apart}) > 0.5


def test_a_foreign_head_keeps_its_labels_in_another_order(tmp_path: Path) -> None:
    base = tinymodels.bert(tmp_path / "base")
    names = {0: "pos", 1: "neg", 2: "none"}
    made = hf.BertForSequenceClassification.from_pretrained(base, num_labels=3)
    made.config.id2label, made.config.label2id = names, {name: i for i, name in names.items()}
    made.save_pretrained(tmp_path / "foreign")
    hf.AutoTokenizer.from_pretrained(base).save_pretrained(tmp_path / "foreign")
    own = open_task("text-classification", tmp_path / "foreign", labels=("pos", "neg", "none"))
    other = open_task("text-classification", tmp_path / "foreign", labels=("none", "neg", "pos"))
    example = [{"text": "go left now"}]
    assert other.predict(example)[0].probabilities == pytest.approx(own.predict(example)[0].probabilities, abs=1e-6)
    assert not other.new_head
    unlike = open_task("text-classification", tmp_path / "foreign", labels=("a", "b", "c"))
    assert unlike.new_head
    assert not torch.equal(unlike.model.classifier.weight, made.classifier.weight), "rows of other labels are not used"


def test_a_folder_of_several_labels_opens_as_one(tmp_path: Path) -> None:
    """Also where the settings do not repeat it, and where transformers wrote the folder."""
    base = tinymodels.bert(tmp_path / "base")
    task = open_task("text-classification", base, labels=("a", "b", "c"), multi_label=True, threshold=0.25)
    task.save(tmp_path / "out")
    assert orjson.loads((tmp_path / "out" / "config.json").read_bytes())["problem_type"] == "multi_label_classification"
    settings = TaskSettings(kind="text-classification", model=str(tmp_path / "out"), stream="o")
    live = open_task("text-classification", tmp_path / "out", **options_of(settings))
    assert live.options.multi_label
    assert live.options.threshold == 0.25
    assert isinstance(live.predict([{"text": "go"}])[0].value, tuple)
    (tmp_path / "out" / "task.json").unlink()
    foreign = open_task("text-classification", tmp_path / "out", labels=("a", "b", "c"))
    assert foreign.options.multi_label
    single = open_task("text-classification", base, labels=("a", "b"))
    assert single.model.config.problem_type == "single_label_classification"


def test_convolutions_over_time_get_adapters(tmp_path: Path) -> None:
    wav2vec2 = open_task("audio-classification", tinymodels.wav2vec2(tmp_path / "v"), labels=("a", "b"))
    assert any("feature_extractor" in name for name in lora_targets(wav2vec2.model))
    gpt = open_task("text-generation", architectures.ARCHITECTURES["GPT-2"](tmp_path / "g"))
    assert any(name.endswith("attn.c_attn") for name in lora_targets(gpt.model))


@pytest.mark.parametrize("kind", ["text-classification", "relation-extraction"])
def test_whole_numbers_are_labels(tmp_path: Path, kind: str) -> None:
    model = tinymodels.bert(tmp_path / "model")
    texts = ("<e1> go </e1> <e2> now </e2>", "<e1> stop </e1> <e2> now </e2>")
    rows = jsonl(tmp_path / "rows.jsonl", [{"text": texts[i % 2], "label": i % 2} for i in range(12)])
    report = finetune(
        task=kind, model=str(model), train=rows, validation=rows, test=rows, out=tmp_path / "out", epochs=1
    )
    assert set(report["metrics"]["test"]) >= {"accuracy"}
    assert open_task(kind, tmp_path / "out").labels == ("0", "1")


def test_accumulated_batches_weigh_by_their_targets(tmp_path: Path) -> None:
    """Two sentences of very different length: one batch of both equals two accumulated batches of one each."""
    rows = [{"tokens": text(n).split(), "tags": ["B-X" if i % 3 == 0 else "O" for i in range(n)]} for n in (2, 18)]
    found = []
    for batch, accumulate in ((2, 1), (1, 2)):
        torch.manual_seed(0)
        task = open_task("token-classification", tinymodels.bert(tmp_path / "model"), labels=("O", "B-X", "I-X"))
        settings = TrainerSettings(
            epochs=2, batch=batch, accumulate=accumulate, optimizer="sgd", learning_rate=0.1, precision="float32"
        )
        Trainer(task, task.model, rows, rows, settings).run()
        found.append(torch.cat([parameter.detach().flatten() for parameter in task.model.parameters()]))
    assert torch.allclose(found[0], found[1], atol=1e-6)


def test_a_generated_text_may_be_as_long_as_the_longest_target(tmp_path: Path) -> None:
    model = tinymodels.t5(tmp_path / "model")
    rows = [{"source": "go now", "target": text(150)}, {"source": "stop", "target": text(3)}]
    task, _, _ = build("translation", str(model), rows, "lora", {})
    assert task.options.max_new_tokens == 159
    task.save(tmp_path / "out")
    again, _, _ = build(
        "translation", str(tmp_path / "out"), [*rows, {"source": "go", "target": text(200)}], "lora", {}
    )
    assert again.options.max_new_tokens == 209, "a folder's limit is raised, never lowered"
    given, _, _ = build("translation", str(model), rows, "lora", {"max_new_tokens": 5})
    assert given.options.max_new_tokens == 5
    short, _, _ = build("translation", str(model), rows[1:], "lora", {})
    assert short.options.max_new_tokens == 64


def test_a_dialogue_and_a_transcript_are_generated_to_their_end(tmp_path: Path) -> None:
    turns = [{"role": "user", "content": "go"}, {"role": "assistant", "content": text(90)}]
    model = tinymodels.llama(tmp_path / "model")
    chat, _, _ = build("text-generation", str(model), [{"messages": turns}], "lora", {})
    assert chat.options.max_new_tokens >= len(chat.processor(text(90))["input_ids"])
    heard = [{"sound": np.zeros(16_000, np.float32), "target": text(90)}]
    speech, _, _ = build("automatic-speech-recognition", str(tinymodels.speech(tmp_path / "s")), heard, "lora", {})
    assert speech.options.max_new_tokens >= 90


def test_settings_without_a_limit_take_that_of_the_folder_or_of_the_labels(tmp_path: Path) -> None:
    """A live task generates what it was trained on, whatever the default length is."""
    model = str(tinymodels.t5(tmp_path / "model"))
    settings = TaskSettings(kind="translation", model=model)
    assert not {"max_new_tokens", "system"} & set(options_of(settings))
    rows = [{"source": "go now", "target": text(100)}]
    task = CandidateTrainer(settings, FinetuneSettings(), 0, {})._open(None, rows)
    assert task.options.max_new_tokens > 100
    task.save(tmp_path / "out")
    assert open_task("translation", tmp_path / "out", **options_of(settings)).options.max_new_tokens > 100
    short = settings.model_copy(update={"max_new_tokens": 5})
    assert CandidateTrainer(short, FinetuneSettings(), 0, {})._open(None, rows).options.max_new_tokens == 5
    asked = TaskSettings(kind="question-answering", model=str(tinymodels.bert(tmp_path / "bert")))
    none: list[dict[str, Any]] = [{"question": "what is", "context": "go", "answers": []}]
    assert CandidateTrainer(asked, FinetuneSettings(), 0, {})._open(None, none).options.unanswerable


def test_a_limit_that_cuts_says_how_much(tmp_path: Path) -> None:
    rows = [{"source": text(299), "target": "go"}, {"source": "stop", "target": text(3)}]
    task = open_task("translation", tinymodels.t5(tmp_path / "t5"), max_length=100)
    assert cuts(task, Splits(rows, []), {"train": "train.csv"}) == [
        "train.csv: 1 of 2 examples are longer than the task reads; on average 67% of each is cut"
    ]
    assert cuts(task, Splits(rows[1:], []), {"train": "train.csv"}) == []
    pairs = open_task("text-classification", tinymodels.bert(tmp_path / "bert"), labels=("a", "b"), max_length=40)
    assert pairs.unread({"text": text(100)}) == 0, "read in windows"
    assert pairs.unread({"text": text(30), "text_pair": text(47)}) == pytest.approx(0.5)
    assert pairs.unread({"text": text(5_000)}) > 0.3
    assert len(pairs.features({"text": text(5_000)})) == 64
    turns = [{"role": "user", "content": text(100)}, {"role": "assistant", "content": "go"}]
    chat = open_task("text-generation", tinymodels.llama(tmp_path / "llama"), max_length=53)
    assert chat.unread({"messages": turns}) == pytest.approx(0.5, abs=0.02)
    assert np.isfinite(chat.predict([{"messages": turns}])[0].value["loss"])
