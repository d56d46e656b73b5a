"""Summaries with a sequence-to-sequence model; scored with ROUGE F-measures (Lin 2004), stemmed."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from rouge_score.rouge_scorer import RougeScorer

from learners.tasks.base import Example, Prediction
from learners.tasks.rewrite import Rewrite

KINDS = ("rouge1", "rouge2", "rougeL")


class Summarize(Rewrite):
    """`source` -> `target`, the shorter text."""

    kind = "summarize"
    selection = "rougeL"

    def metrics(self, examples: Sequence[Example], predictions: Sequence[Prediction]) -> dict[str, float]:
        """Mean ROUGE-1, -2 and -L."""
        scorer = RougeScorer(list(KINDS), use_stemmer=True)
        scores = [scorer.score(str(e["target"]), str(p.value)) for e, p in zip(examples, predictions, strict=True)]
        return {kind: float(np.mean([score[kind].fmeasure for score in scores])) for kind in KINDS}
