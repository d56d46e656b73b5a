"""Data and tiny models of the fine-tuning benchmark: paths of shared data, manifests of sounds and pictures, rule-made pairs.

Rule-made sets are split by their content: no sentence of the test split is in training.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import orjson
import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import (
    BertConfig,
    BertForQuestionAnswering,
    BertModel,
    PreTrainedTokenizerFast,
    T5Config,
    T5ForConditionalGeneration,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperModel,
)

SHARED = Path(os.environ.get("REFLEXD_DATA", Path(__file__).resolve().parents[3] / "shared" / "data"))
STAMPS = Path("/usr/share/tuxpaint/stamps")
SPEAKERS = ("george", "jackson", "nicolas", "theo", "yweweler")
T5_OPTIONS: dict[str, Any] = {"epochs": 12, "batch": 32, "learning_rate": 2e-3, "max_new_tokens": 16, "patience": 3}
SPAN_OPTIONS: dict[str, Any] = {"epochs": 25, "batch": 32, "learning_rate": 1e-3, "max_length": 64, "patience": 6}
Paths = tuple[str, str, str]


def wnut(_: Path) -> Paths:
    """WNUT 2017 in its three files."""
    folder = SHARED / "wnut17"
    return str(folder / "train.conll"), str(folder / "dev.conll"), str(folder / "test.conll")


def clinc(_: Path) -> Paths:
    """CLINC150 in scope."""
    path = SHARED / "clinc150" / "data_full.json"
    return f"{path}#train", f"{path}#val", f"{path}#test"


def clinc_pairs(out: Path) -> Paths:
    """Two sentences of CLINC150 with one intent or with two: 100 intents train, 20 others validate, and 30 others are tested."""
    from learners.finetune.labelled_files.datasets import read

    path = SHARED / "clinc150" / "data_full.json"
    intents = sorted({row["label"] for row in read(f"{path}#train")})
    random.Random(0).shuffle(intents)
    parts = (("train", intents[:100], 6_000), ("train", intents[100:120], 600), ("test", intents[120:], 2_000))
    return _splits(out, "pairs", *(_pairs(read(f"{path}#{split}"), some, count) for split, some, count in parts))


def _pairs(rows: Sequence[dict[str, Any]], intents: Sequence[str], count: int) -> list[dict[str, Any]]:
    """Pairs of different sentences; every second one is of one intent."""
    generator = random.Random(len(intents))
    by_intent = {intent: sorted({row["text"] for row in rows if row["label"] == intent}) for intent in intents}
    found = []
    for number in range(count):
        first, other = generator.sample(intents, 2)
        if number % 2:
            text, text_pair = generator.sample(by_intent[first], 2)
        else:
            text, text_pair = generator.choice(by_intent[first]), generator.choice(by_intent[other])
        found.append({"text": text, "text_pair": text_pair, "label": "same" if number % 2 else "different"})
    return found


def semeval(out: Path) -> Paths:
    """SemEval-2010 Task 8; every tenth training example is validation."""
    from learners.finetune.labelled_files.datasets import read

    folder = SHARED / "semeval2010_task8"
    examples = read(folder / "train.txt")
    held = [example for i, example in enumerate(examples) if i % 10 == 0]
    rest = [example for i, example in enumerate(examples) if i % 10]
    return _lines(out / "semeval-train.jsonl", rest), _lines(out / "semeval-val.jsonl", held), str(folder / "test.txt")


def spoken_digits(out: Path) -> Paths:
    """FSDD by its own rule: recordings 0 to 4 are test; of the rest 5 to 9 are validation."""
    rows = _recordings()
    pick = lambda wanted: [row for _, number, row in rows if wanted(number)]  # noqa: E731 - three uses, one line each
    return _splits(out, "digits", pick(lambda n: n > 9), pick(lambda n: 5 <= n <= 9), pick(lambda n: n < 5))


def without(speaker: str) -> Callable[[Path], Paths]:
    """FSDD with one speaker only in test, and recordings 5 to 9 of the others as validation."""

    def make(out: Path) -> Paths:
        rows = _recordings()
        train = [row for who, number, row in rows if who != speaker and number > 9]
        held = [row for who, number, row in rows if who != speaker and 5 <= number <= 9]
        return _splits(out, f"without-{speaker}", train, held, [row for who, _, row in rows if who == speaker])

    return make


def _recordings() -> list[tuple[str, int, dict[str, str]]]:
    found = []
    for path in sorted((SHARED / "fsdd" / "recordings").glob("*.wav")):
        digit, speaker, number = path.stem.split("_")
        found.append((speaker, int(number), {"sound": str(path), "label": digit}))
    return found


def stamps(out: Path, fold: int = 0) -> Paths:
    """Tux Paint's stamps by their top folder; classes of at least 20, split 60/20/20 with a fixed seed.

    Five folds: each picture is tested in one of them.
    """
    by_class: dict[str, list[Path]] = {}
    for path in sorted(STAMPS.rglob("*.png")):
        if not path.stem.endswith(("_mirror", "_flip")):
            by_class.setdefault(path.relative_to(STAMPS).parts[0], []).append(path)
    splits: tuple[list[Any], list[Any], list[Any]] = ([], [], [])
    generator = random.Random(0)
    for label, paths in sorted(by_class.items()):
        if len(paths) >= 20:
            generator.shuffle(paths)
            for i, path in enumerate(paths):
                part = (i + fold) % 5
                splits[0 if part < 3 else part - 2].append({"picture": str(path), "label": label})
    return _splits(out, f"stamps-{fold}" if fold else "stamps", *splits)


VERBS = {"bring": "apporte", "take": "prends", "find": "trouve", "paint": "peins", "wash": "lave", "lift": "lève"}
NUMBERS = {"one": "un", "two": "deux", "three": "trois", "four": "quatre", "five": "cinq"}
COLOURS = {"red": "rouge", "green": "vert", "blue": "bleu", "black": "noir", "white": "blanc"}
THINGS = {"cup": "gobelet", "ball": "ballon", "book": "livre", "chair": "fauteuil", "box": "carton", "coat": "manteau"}


def _orders() -> list[tuple[str, str, str, str]]:
    found = [(v, n, c, t) for v in VERBS for n in NUMBERS for c in COLOURS for t in THINGS]
    random.Random(0).shuffle(found)
    return found


def orders_translated(out: Path) -> Paths:
    """English orders into French ones, with the adjective after the noun: `bring two red cup` -> `apporte deux gobelet rouge`."""
    rows = [
        {"source": " ".join(o), "target": f"{VERBS[o[0]]} {NUMBERS[o[1]]} {THINGS[o[3]]} {COLOURS[o[2]]}"}
        for o in _orders()
    ]
    return _splits(out, "translate", rows[:700], rows[700:800], rows[800:])


def orders_summarized(out: Path) -> Paths:
    """Wordy orders into their verb and thing."""
    wordy = "please {v} the {n} {c} {t} now because the {c} {t} is wanted"
    rows = [{"source": wordy.format(v=v, n=n, c=c, t=t), "target": f"{v} {n} {t}"} for v, n, c, t in _orders()]
    return _splits(out, "summarize", rows[:700], rows[700:800], rows[800:])


def order_questions(out: Path) -> Paths:
    """Find the word of a kind in a context of words in any order: `what colour` of `cup two now bring red`."""
    generator = random.Random(1)
    rows = []
    for verb, number, colour, thing in _orders():
        words = [verb, number, colour, thing, "please", "now"]
        generator.shuffle(words)
        kind, answer = generator.choice([("number", number), ("colour", colour), ("thing", thing)])
        context = " ".join(words)
        start = len(" ".join(words[: words.index(answer)])) + (words[0] != answer)
        rows.append({"question": f"what {kind}", "context": context, "answers": [{"text": answer, "start": start}]})
    return _splits(out, "answer", rows[:700], rows[700:800], rows[800:])


def words_tokenizer(special: Sequence[str], *, bert: bool) -> PreTrainedTokenizerFast:
    """A tokenizer with the words of the rule-made sets as its vocabulary."""
    other = ["please", "the", "now", "because", "is", "wanted", "what", "number", "colour", "thing"]
    words = [
        *VERBS,
        *VERBS.values(),
        *NUMBERS,
        *NUMBERS.values(),
        *COLOURS,
        *COLOURS.values(),
        *THINGS,
        *THINGS.values(),
        *other,
    ]
    vocabulary = {word: i for i, word in enumerate(dict.fromkeys([*special, *words]))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>" if not bert else "[UNK]"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    if bert:
        ends = [(name, vocabulary[name]) for name in ("[CLS]", "[SEP]")]
        tokenizer.post_processor = processors.TemplateProcessing("[CLS] $A [SEP]", "[CLS] $A [SEP] $B:1 [SEP]:1", ends)
        return PreTrainedTokenizerFast(
            tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]",
            model_input_names=["input_ids", "token_type_ids", "attention_mask"],
        )  # fmt: skip
    tokenizer.post_processor = processors.TemplateProcessing(
        "$A </s>", "$A </s> $B </s>", [("</s>", vocabulary["</s>"])]
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>")


def tiny_t5(out: Path) -> str:
    """A T5 of two layers with random weights, and its tokenizer, as a folder."""
    torch.manual_seed(0)
    tokenizer = words_tokenizer(("<pad>", "</s>", "<unk>"), bert=False)
    config = T5Config(  # type: ignore[call-arg] # of transformers' own base class
        vocab_size=len(tokenizer), d_model=64, d_kv=16, d_ff=128, num_layers=2, num_decoder_layers=2, num_heads=4,
        dropout_rate=0.0, decoder_start_token_id=0, pad_token_id=0, eos_token_id=1,
    )  # fmt: skip
    return _folder(out / "tiny-t5", T5ForConditionalGeneration(config), tokenizer)


def tiny_bert(out: Path) -> str:
    """A BERT of three layers with random weights, and its tokenizer, as a folder."""
    torch.manual_seed(0)
    tokenizer = words_tokenizer(("[PAD]", "[UNK]", "[CLS]", "[SEP]"), bert=True)
    config = BertConfig(
        vocab_size=len(tokenizer), hidden_size=64, num_hidden_layers=3, num_attention_heads=4, intermediate_size=128,
        max_position_embeddings=64, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    return _folder(out / "tiny-bert", BertForQuestionAnswering(config), tokenizer)


def small_bert(out: Path) -> str:
    """BERT's architecture, small and with random weights, on the vocabulary of a real one."""
    from transformers import AutoTokenizer

    from learners.model.encoders.bundled_weights import resolve

    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(resolve("bundled:minilm-l6"))
    config = BertConfig(
        vocab_size=len(tokenizer), hidden_size=128, num_hidden_layers=2, num_attention_heads=2, intermediate_size=512
    )
    return _folder(out / "small-bert", BertModel(config), tokenizer)


def small_whisper(out: Path) -> str:
    """Whisper's architecture, small and with random weights; its mels need no weights."""
    torch.manual_seed(0)
    config = WhisperConfig(
        vocab_size=64, d_model=128, encoder_layers=3, decoder_layers=1, encoder_attention_heads=4,
        decoder_attention_heads=4, encoder_ffn_dim=256, decoder_ffn_dim=64, max_target_positions=16, pad_token_id=0,
        bos_token_id=1, eos_token_id=2, decoder_start_token_id=1, suppress_tokens=None, begin_suppress_tokens=None,
    )  # fmt: skip
    return _folder(out / "small-whisper", WhisperModel(config), WhisperFeatureExtractor())


def _folder(path: Path, model: Any, tokenizer: Any) -> str:
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return str(path)


def _splits(out: Path, name: str, *splits: list[dict[str, Any]]) -> Paths:
    train, held, test = (
        _lines(out / f"{name}-{part}.jsonl", rows) for part, rows in zip(("train", "val", "test"), splits, strict=True)
    )
    return train, held, test


def _lines(path: Path, rows: Sequence[dict[str, Any]]) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"\n".join(orjson.dumps(row) for row in rows))
    return str(path)
