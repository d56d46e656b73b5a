"""Define what translation and summarization share: a sequence-to-sequence model from `source` to `target`.

Shapes: B batch, T tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import sacrebleu
from rouge_score.rouge_scorer import RougeScorer
from torch import Tensor, nn
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

from learners.data_error import DataError
from learners.tasks.base import SPARE, Batch, Example, Feature, Options, Prediction, Recipe
from learners.tasks.generation.control import BatchControl, GenerationControl
from learners.tasks.text_base import TextTask, cross_entropy, end_tokens


class Rewrite(TextTask):
    """`source` -> `target`, greedily."""

    auto: ClassVar[Any] = AutoModelForSeq2SeqLM
    recipe = Recipe(
        epochs=10,
        batch=32,
        rates={"frozen": 1e-3, "top": 1e-3, "lora": 2e-3, "full": 5e-4},
        options={"max_length": 256},
    )

    def __init__(self, source: Path | str, options: Options, labels: Sequence[str] = ()) -> None:
        super().__init__(source, options, labels)
        ends = sorted(end_tokens(self.model, self.processor))
        self.control = GenerationControl(self.options, self.processor, self.model, ends, self.most)

    def features(self, example: Example, *, rng: np.random.Generator | None = None) -> list[Feature]:
        """Return one feature; the target, if there is one, as ids."""
        del rng
        if "source" not in example:
            raise DataError(f"an example without `source`: {dict(example)}")
        feature = self.text_feature(str(example["source"]))
        feature.pop("token_type_ids", None)
        if "target" in example:
            target = self.processor(
                text_target=str(example["target"]), truncation=True, max_length=self.options.max_length
            )
            feature["labels"] = target["input_ids"]
        return [feature]

    @classmethod
    def fitting_new_tokens(cls, source: Path | str, examples: Sequence[Example]) -> int:
        """Return the tokens of the longest target, and some more."""
        tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
        longest = max((len(tokenizer(text_target=str(e["target"]))["input_ids"]) for e in examples), default=0)
        return min(longest + SPARE, int(cls.recipe.options["max_length"]))

    def unread(self, example: Example) -> float:
        """Return the share of source and target above `max_length`."""
        counts = [self.pieces(str(example[name])) for name in ("source", "target") if name in example]
        return max(self.share_above(count, self.options.max_length) for count in counts)

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Cross-entropy over target tokens; the model shifts the targets itself."""
        logits_BTV = model(**batch).logits
        return cross_entropy(logits_BTV.flatten(0, 1), batch["labels"].flatten(), self.options.label_smoothing)

    @property
    def most(self) -> int:
        """The tokens of one generated text, at most."""
        asked = self.options.max_new_tokens
        return asked if self.positions is None else min(asked, self.positions - 1)

    def outputs(self, model: Any, batch: Batch) -> list[Any]:
        """Generated texts."""
        given = {name: batch[name] for name in ("input_ids", "attention_mask")}
        plain: dict[str, Any] = {"max_new_tokens": self.most, "do_sample": False, "num_beams": 1}
        if not self.control.active:
            return list(self.processor.batch_decode(model.generate(**given, **plain), skip_special_tokens=True))
        rows = zip(given["input_ids"], given["attention_mask"], strict=True)
        written = BatchControl(self.control, [ids_T[mask_T.bool()].tolist() for ids_T, mask_T in rows])
        return written.texts(model.generate(**given, **plain, logits_processor=[written]))

    def prediction(self, example: Example, features: Sequence[Feature], outputs: Sequence[Any]) -> Prediction:
        """Return the generated text."""
        del example, features
        return Prediction(outputs[0] if self.options.output else outputs[0].strip())


KINDS = ("rouge1", "rouge2", "rougeL")


class Summarize(Rewrite):
    """`source` -> `target`, the shorter text."""

    kind = "summarization"
    selection = "rougeL"

    def metrics(self, examples: Sequence[Example], predictions: Sequence[Prediction]) -> dict[str, float]:
        """Mean ROUGE-1, -2 and -L."""
        scorer = RougeScorer(list(KINDS), use_stemmer=True)
        scores = [scorer.score(str(e["target"]), str(p.value)) for e, p in zip(examples, predictions, strict=True)]
        return {kind: float(np.mean([score[kind].fmeasure for score in scores])) for kind in KINDS}


LONGEST_RUN = 4
"""Words of the longest runs that BLEU counts."""


def bleu(found: Sequence[str], wanted: Sequence[str]) -> float:
    """Return corpus BLEU in [0, 100], as SacreBLEU computes it.

    Where every wanted text has fewer than four words, it counts runs up to the longest of them. Runs of four are in none of these: a right
    translation had 0, and a wrong one that is too long had more.
    """
    tokenize = sacrebleu.BLEU().tokenizer
    longest = max((len(tokenize(text).split()) for text in wanted), default=0)
    metric = sacrebleu.BLEU(max_ngram_order=min(LONGEST_RUN, max(1, longest)))
    return float(metric.corpus_score(found, [wanted]).score)


class Translate(Rewrite):
    """`source` -> `target`."""

    kind = "translation"
    selection = "bleu"

    def tie_break(self, examples: Sequence[Example], predictions: Sequence[Prediction]) -> float:
        """Return the share of exact matches."""
        return self.metrics(examples, predictions)["exact_match"]

    def metrics(self, examples: Sequence[Example], predictions: Sequence[Prediction]) -> dict[str, float]:
        """Return corpus BLEU, and the share of exact matches."""
        wanted = [str(example["target"]) for example in examples]
        found = [str(prediction.value) for prediction in predictions]
        exact = sum(w == f for w, f in zip(wanted, found, strict=True)) / max(len(wanted), 1)
        return {"bleu": bleu(found, wanted), "exact_match": exact}
