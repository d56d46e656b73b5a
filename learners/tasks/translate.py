"""Translation with a sequence-to-sequence model; scored with sacrebleu (Post 2018), 0 to 100."""

from __future__ import annotations

from collections.abc import Sequence

import sacrebleu

from learners.tasks.base import Example, Prediction
from learners.tasks.rewrite import Rewrite


class Translate(Rewrite):
    """`source` -> `target`."""

    kind = "translate"
    selection = "bleu"

    def metrics(self, examples: Sequence[Example], predictions: Sequence[Prediction]) -> dict[str, float]:
        """Corpus BLEU, and the share of exact matches."""
        wanted = [str(example["target"]) for example in examples]
        found = [str(prediction.value) for prediction in predictions]
        exact = sum(w == f for w, f in zip(wanted, found, strict=True)) / max(len(wanted), 1)
        return {"bleu": float(sacrebleu.corpus_bleu(found, [wanted]).score), "exact_match": exact}
