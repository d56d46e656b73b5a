"""The labels that one run of the continual trainer uses: new ones, at most a number of each source, and earlier ones."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from learners.continual.labels import Labelled
from learners.finetune.example_checks.readable_examples import ReadableExamples
from learners.finetune.trainer import OnProgress


@dataclass(frozen=True, slots=True)
class LabelBatch:
    """The labels of one run, new and known before, and the run's callbacks."""

    new: Sequence[Labelled]
    known: Sequence[Labelled]
    number: int
    on_progress: OnProgress | None
    stop: Callable[[], bool] | None
    last: int
    """Number of the last new label, also of one that cannot be read."""
    readable: ReadableExamples

    def without(self, sources: Sequence[str]) -> LabelBatch:
        """Return the batch without some sources."""
        new = [one for one in self.new if one.source not in sources]
        return replace(self, new=new, known=[one for one in self.known if one.source not in sources])


def newest(labels: Sequence[Labelled], per_source: int) -> list[Labelled]:
    """Return the newest `per_source` labels of each source, in their order."""
    seen: Counter[str] = Counter()
    newest_first = []
    for one in reversed(labels):
        seen[one.source] += 1
        if seen[one.source] <= per_source:
            newest_first.append(one)
    return newest_first[::-1]
