"""Tiny random models of many architectures, and what must be true of each with each kind of task."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tinymodels
import torch
import transformers as hf
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from learners.finetune.build import build
from learners.finetune.labelled_files.splits import Splits
from learners.finetune.trainer import Stopped
from learners.finetune.trainer_state import State
from learners.finetune.training_phases import tune
from learners.task_kinds import KINDS, TaskKind
from learners.tasks.base import Task
from learners.tasks.relation_extraction import mark
from learners.tasks.task_classes import open_task, task_class, unfit_reason

WORDS = tinymodels.WORDS
SIZE = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
CAUSAL = {**SIZE, "num_key_value_heads": 2, "max_position_embeddings": 64}
Maker = Callable[[Path], Path]


def tokenizer(*, first: bool, pad: bool = True, types: bool = False, end: bool = False) -> Any:
    """Whole words, with a first token like BERT's, or an end like T5's, or neither."""
    special = ["<pad>", "</s>", "<unk>", "<s>"]
    made = Tokenizer(models.WordLevel({word: i for i, word in enumerate([*special, *WORDS])}, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    if first:
        pair = "<s> $A </s> $B:1 </s>:1" if types else "<s> $A </s> $B </s>"
        made.post_processor = processors.TemplateProcessing("<s> $A </s>", pair, [("<s>", 3), ("</s>", 1)])
    if end:
        made.post_processor = processors.TemplateProcessing("$A </s>", "$A </s> $B </s>", [("</s>", 1)])
    names = {"unk_token": "<unk>", "eos_token": "</s>", "bos_token": "<s>"} | ({"pad_token": "<pad>"} if pad else {})
    names |= {"cls_token": "<s>", "sep_token": "</s>"} if first else {}
    found = hf.PreTrainedTokenizerFast(tokenizer_object=made, **names)
    found.model_input_names = ["input_ids", *(["token_type_ids"] if types else []), "attention_mask"]
    return found


def ids(**more: Any) -> dict[str, Any]:
    return {"vocab_size": 4 + len(WORDS), "pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 3, **more}


def texts(cls: Any, config: Any, *, first: bool = True, **how: bool) -> Maker:
    return lambda folder: tinymodels.save(folder, cls(config), tokenizer(first=first, **how))


def byte_pairs() -> Any:
    """Bytes without merges: transformers reads the tokenizers of this architecture as its own class."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate(["<|endoftext|>", *alphabet])}
    return hf.Qwen2Tokenizer(vocab=vocabulary, merges=[])


def pictures(cls: Any, config: Any, processor: Any) -> Maker:
    return lambda folder: tinymodels.save(folder, cls(config), processor)


def sounds(cls: Any, config: Any, extractor: Any, words: Any = None) -> Maker:
    """Write a model that hears; with `words`, also the tokenizer of a model that writes."""

    def make(folder: Path) -> Path:
        if words is not None:
            words.save_pretrained(folder)
        return tinymodels.save(folder, cls(config), extractor)

    return make


def _makers() -> dict[str, Maker]:
    bert = {**SIZE, **ids(), "max_position_embeddings": 64}
    square = {"height": 32, "width": 32}
    seq2seq = {
        "d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 2, "decoder_attention_heads": 2,
        "encoder_ffn_dim": 64, "decoder_ffn_dim": 64,
    }  # fmt: skip
    clip = {**SIZE, "image_size": 32, "patch_size": 8}
    return {
        "BERT": texts(hf.BertModel, hf.BertConfig(**bert), types=True),
        "DistilBERT": texts(
            hf.DistilBertModel,
            hf.DistilBertConfig(**ids(), dim=32, n_layers=2, n_heads=2, hidden_dim=64, max_position_embeddings=64),
        ),
        "RoBERTa": texts(hf.RobertaModel, hf.RobertaConfig(**bert | {"max_position_embeddings": 65})),
        "DeBERTa-v2": texts(
            hf.DebertaV2Model,
            hf.DebertaV2Config(**bert, relative_attention=True, pos_att_type=["p2c", "c2p"], position_buckets=16),  # type: ignore[call-arg]
        ),
        "ALBERT": texts(hf.AlbertModel, hf.AlbertConfig(**bert, embedding_size=16), types=True),
        "XLNet": texts(
            hf.XLNetModel, hf.XLNetConfig(**ids(), d_model=32, n_layer=2, n_head=2, d_inner=64), first=False, end=True
        ),
        "Funnel": texts(
            hf.FunnelModel,
            hf.FunnelConfig(vocab_size=4 + len(WORDS), block_sizes=[1, 1], d_model=32, n_head=2, d_head=16, d_inner=64),
            types=True,
        ),
        "T5": texts(
            hf.T5ForConditionalGeneration,
            hf.T5Config(  # type: ignore[call-arg]
                **ids(), d_model=32, d_kv=16, d_ff=64, num_layers=2, num_heads=2, decoder_start_token_id=0
            ),
            first=False, end=True,
        ),
        "BART": texts(
            hf.BartForConditionalGeneration,
            hf.BartConfig(**ids(), **seq2seq, max_position_embeddings=64, decoder_start_token_id=1, forced_eos_token_id=1),
        ),
        "GPT-2": texts(
            hf.GPT2LMHeadModel,
            hf.GPT2Config(**ids(pad_token_id=None), n_embd=32, n_layer=2, n_head=2, n_positions=64),
            first=False, pad=False,
        ),
        "Llama": texts(
            hf.LlamaForCausalLM, hf.LlamaConfig(**CAUSAL, **ids(pad_token_id=None)), first=False, pad=False
        ),
        "Mamba": texts(
            hf.MambaForCausalLM,
            hf.MambaConfig(**ids(), hidden_size=32, num_hidden_layers=2, state_size=4),
            first=False,
        ),
        "Qwen2": lambda folder: tinymodels.save(
            folder,
            hf.Qwen2ForCausalLM(
                hf.Qwen2Config(**CAUSAL | {"max_position_embeddings": 512}, vocab_size=260, pad_token_id=0, eos_token_id=0)
            ),
            byte_pairs(),
        ),
        "ViT": pictures(
            hf.ViTModel, hf.ViTConfig(**SIZE, image_size=32, patch_size=8), hf.ViTImageProcessorPil(size=square)
        ),
        "ConvNeXT": pictures(
            hf.ConvNextModel,
            hf.ConvNextConfig(depths=[1, 1], hidden_sizes=[8, 16], num_stages=2, image_size=32),
            hf.ConvNextImageProcessorPil(size={"shortest_edge": 32}),
        ),
        "MobileViT": pictures(
            hf.MobileViTModel,
            hf.MobileViTConfig(
                image_size=64, hidden_sizes=[16, 24, 32], neck_hidden_sizes=[8, 8, 16, 16, 24, 32, 64], num_attention_heads=2
            ),
            hf.MobileViTImageProcessorPil(size={"shortest_edge": 72}, crop_size={"height": 64, "width": 64}),
        ),
        "EfficientNet": pictures(
            hf.EfficientNetModel,
            hf.EfficientNetConfig(
                image_size=32, width_coefficient=0.25, depth_coefficient=0.25, hidden_dim=320,
            ),
            hf.EfficientNetImageProcessorPil(size=square, crop_size=square),
        ),
        "CLIP": pictures(
            hf.CLIPModel,
            hf.CLIPConfig(
                text_config={**SIZE, **ids(), "max_position_embeddings": 16}, vision_config=clip, projection_dim=16
            ),
            hf.CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size=square),
        ),
        "Whisper": sounds(
            hf.WhisperModel,
            hf.WhisperConfig(
                **seq2seq, **ids(), num_mel_bins=80, max_source_positions=1500, max_target_positions=16,
                decoder_start_token_id=3, suppress_tokens=None, begin_suppress_tokens=None,
            ),
            hf.WhisperFeatureExtractor(),
            tokenizer(first=False),
        ),
        "wav2vec2": sounds(
            hf.Wav2Vec2Model,
            hf.Wav2Vec2Config(
                **SIZE, conv_dim=(16, 16, 16), conv_kernel=(10, 8, 4), conv_stride=(5, 8, 4), num_conv_pos_embeddings=16,
                num_conv_pos_embedding_groups=2, layerdrop=0.0, classifier_proj_size=16, mask_time_length=4,
            ),
            hf.Wav2Vec2FeatureExtractor(do_normalize=True, return_attention_mask=False),
        ),
        "AST": sounds(
            hf.ASTModel,
            hf.ASTConfig(**SIZE, max_length=128, num_mel_bins=32, patch_size=16, frequency_stride=16, time_stride=16),
            hf.ASTFeatureExtractor(max_length=128, num_mel_bins=32),
        ),
    }  # fmt: skip


ARCHITECTURES = _makers()
"""Name -> what writes a folder with a tiny random model and its processor."""
SLOW = frozenset({"ALBERT"})
"""One repeated layer learns little from random weights at the rates of the others."""
CAUSES = ("trains", "equals transformers", "batch equals single", "loads", "resumes")


def rows(kind: TaskKind, count: int, seed: int) -> list[dict[str, Any]]:
    """Examples of a kind, of several lengths, that a tiny model can learn a little of."""
    rng, generator = random.Random(seed), np.random.default_rng(seed)
    found: list[dict[str, Any]] = []
    for i in range(count):
        words = rng.choices(WORDS[:15], k=rng.randint(3, 12))
        words[rng.randrange(len(words))] = ("go", "stop")[i % 2]
        text, label = " ".join(words), "ab"[i % 2]
        start = len(" ".join([*words[:1], ""]))
        found.append(
            {
                "text-classification": {"text": text, "label": label},
                "text-pair-classification": {"text": ("go go go", "stop stop stop")[i % 2], "text_pair": " ".join(words[:3]), "label": label},
                "token-classification": {"tokens": words, "tags": ["B-X" if w in ("go", "stop") else "O" for w in words]},
                "relation-extraction": {"text": f"<e1> {words[0]} </e1> {text} <e2> now </e2> the", "label": f"{label}(e1,e2)"},
                "question-answering": {
                    "question": "what is", "context": text, "answers": [{"text": words[1], "start": start}]
                },
                "translation": {"source": text, "target": words[0]},
                "summarization": {"source": text, "target": words[0]},
                "text-generation": {
                    "messages": [{"role": "user", "content": text}, {"role": "assistant", "content": "go stop"}]
                },
                "automatic-speech-recognition": {
                    "sound": np.sin(np.arange(16_000) * (0.05, 0.5)[i % 2]).astype(np.float32) * 0.2,
                    "target": ("go", "stop")[i % 2],
                },
                "image-classification": {
                    "picture": generator.integers(0, 100, (40 + i, 50, 3), dtype=np.uint8) + np.uint8(100 * (i % 2)),
                    "label": label,
                },
                "audio-classification": {
                    "sound": (generator.standard_normal(8000 + 900 * i) * 0.05).astype(np.float32)
                    + np.sin(np.arange(8000 + 900 * i) * (0.05, 0.5)[i % 2]).astype(np.float32) * 0.2,
                    "label": label,
                },
            }[kind]
        )  # fmt: skip
    return found


def verify(folder: Path, architecture: str, kind: TaskKind, mode: str = "lora") -> str:
    """Return `ok`, or the sentence with which `check` refuses the pair.

    Raises:
        AssertionError: the pair does neither; the message says what failed.
    """
    source = folder / "model"
    if not source.is_dir():
        torch.manual_seed(0)
        ARCHITECTURES[architecture](source)
    if (reason := unfit_reason(kind, source)) is not None:
        return reason
    train, validation = rows(kind, 12, 0), rows(kind, 6, 1)
    options: dict[str, Any] = {"epochs": 6, "batch": 4, "seed": 0, "max_new_tokens": 4}
    # beside adapters these heads learn ten times as fast
    heads = kind in ("text-classification", "text-pair-classification") and mode == "lora"
    options["learning_rate"] = 5e-4 if heads and architecture not in SLOW else 5e-3
    if KINDS[kind].modality == "text":
        options["max_length"] = 400 if architecture == "Qwen2" else 60

    def run(state: State | None, stop: Callable[[], bool] | None = None) -> tuple[Task, list[float]]:
        task, settings, extra = build(kind, str(source), train, mode, options)  # type: ignore[arg-type]
        made = tune(task, Splits(train, validation), settings, mode, rank=extra["lora_rank"], state=state, stop=stop)  # type: ignore[arg-type]
        return task, made.run.losses

    task, losses = run(None)
    assert np.isfinite(losses).all(), f"losses {losses}"
    assert min(losses[1:]) < losses[0], f"the loss does not fall: {losses}"
    _resumes(folder, run, task, mode)
    _equals(folder, task, validation)
    return "ok"


def _resumes(folder: Path, run: Any, task: Task, mode: str) -> None:
    state, steps = State(folder / "state", mode), itertools.count(1)
    try:
        run(state, lambda: next(steps) == 5)
        raise AssertionError("the run was not stopped")
    except Stopped:
        pass
    again, _ = run(State(folder / "state", mode))
    state.clear()
    wanted, found = task.model.state_dict(), again.model.state_dict()
    moved = [name for name in wanted if not torch.equal(wanted[name], found[name])]
    assert not moved, f"a resumed run ends elsewhere: {moved[:3]}"


def _equals(folder: Path, task: Task, examples: Sequence[dict[str, Any]]) -> None:
    """Compare predictions alone and in a batch, and the model's outputs with those of plain transformers."""
    blank = [{k: v for k, v in row.items() if k not in ("label", "tags", "answers", "target")} for row in examples]
    together, alone = task.predict(blank), [task.predict([one])[0] for one in blank]
    assert [one.value for one in together] == [one.value for one in alone] or task.kind == "text-generation"
    for one, two in zip(together, alone, strict=True):
        if one.confidence is not None:
            assert abs(one.confidence - (two.confidence or 0)) < 1e-5, "a batch changes a prediction"
    task.model.cpu()
    out = folder / "out"
    task.save(out)
    auto = getattr(hf, task_class(task.kind).auto.__name__)
    model = auto.from_pretrained(out).eval()
    again = open_task(task.kind, out)
    assert again.labels == task.labels
    if task.labels and KINDS[task.kind].output != "tags" and task.kind != "relation-extraction":
        assert tuple(model.config.id2label.values()) == task.labels
    features = [task.features(row)[0] for row in (blank if KINDS[task.kind].target != "messages" else examples)]
    with torch.no_grad():
        for row, feature in zip(examples, features, strict=True):
            given = reference(out, task.kind, row, feature)
            wanted = outputs(model(**given))
            lengths = task.length(feature)
            fitting = [one for one in features if not task.pads_change_outputs or task.length(one) == lengths]
            batch = task.collate([feature, *fitting])
            found = outputs(task.model(**accepted(batch, given)))
            for name, tensor in wanted.items():
                own = found[name][0]
                own = own[: tensor.shape[1]] if tensor.dim() == 3 or name.endswith("_logits") else own
                gap = float((own - tensor[0]).abs().max())
                assert gap < 1e-5, f"{name} is {gap:.2g} from transformers'"
            other = outputs(again.model(**given))
            assert all(torch.equal(other[name], tensor) for name, tensor in wanted.items()), (
                "a saved folder opens otherwise"
            )


def accepted(batch: dict[str, Any], given: dict[str, Any]) -> dict[str, Any]:
    stored = {name: batch[name] for name in batch if name in given or name == "attention_mask"}
    return stored | {
        name: value.expand(len(next(iter(stored.values()))), -1)
        for name, value in given.items()
        if name.startswith("decoder")
    }


def outputs(made: Any) -> dict[str, torch.Tensor]:
    return {name: made[name].float() for name in ("logits", "start_logits", "end_logits") if name in made}


def reference(folder: Path, kind: TaskKind, row: dict[str, Any], feature: dict[str, Any]) -> dict[str, Any]:
    """The inputs that plain transformers makes of an example."""
    auto: Any
    if kind == "image-classification":
        auto = hf.AutoImageProcessor.from_pretrained(folder, backend="pil")
        return dict(auto(Image.fromarray(row["picture"]), return_tensors="pt"))
    if "sound" in row:
        auto = hf.AutoFeatureExtractor
        made = auto.from_pretrained(folder)(row["sound"], sampling_rate=16_000, return_tensors="pt")
        return dict(made) | ({"decoder_input_ids": torch.tensor([[3, 5, 6]])} if "target" in row else {})
    auto = hf.AutoTokenizer.from_pretrained(folder)
    match kind:
        case "text-classification":
            made = auto(row["text"], return_tensors="pt")
        case "text-pair-classification":
            made = auto(row["text"], row["text_pair"], return_tensors="pt")
        case "token-classification":
            made = auto(row["tokens"], is_split_into_words=True, return_tensors="pt")
        case "relation-extraction":
            made = auto(mark(row["text"])[0], return_tensors="pt")
        case "question-answering":
            made = auto(row["question"], row["context"], return_tensors="pt")
        case "text-generation":
            made = {"input_ids": torch.tensor([feature["input_ids"]])}
        case _:
            made = auto(row["source"], return_tensors="pt")
            made["decoder_input_ids"] = torch.tensor([[1, 5, 6]])
            made.pop("token_type_ids", None)
    return dict(made)
