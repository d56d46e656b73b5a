"""Which sources of labels lowered the held-out metric: found by leaving them out, and only where chance does not explain it.

When a candidate fails, those of its sources are suspected that agree least with what was known before. Another candidate is trained
without a suspect (at last without all of them): if that one passes, it goes live. The source is to blame if the sign test on the operator's
held-out examples says that the candidate with it is worse (`ALPHA`), or if its labels agree with what passed no better than chance.
A source that taught alone is held against the version before in the same way: nothing is left to train without it. Who brought fewer
than `MIN_LABELS` labels is not blamed: the candidate is rejected all the same.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

from learners.continual.labels import Labelled

MIN_LABELS = 8
"""Labels a source must have brought; fewer say little."""
MOST = 2
"""Suspects that are tried by themselves: each costs a fine-tune."""
ALPHA = 0.01


def by_source(labels: Sequence[Labelled]) -> dict[str, list[dict[str, Any]]]:
    """Each source's examples."""
    found: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for label in labels:
        found[label.source].append(label.example)
    return dict(found)


def sources_to_ablate(
    labels: Sequence[Labelled], agrees: Callable[[Sequence[dict[str, Any]]], float]
) -> list[tuple[str, ...]]:
    """Groups of sources to try without: the least agreeing one by one, then together, if anyone is left then.

    Args:
        labels: the new ones.
        agrees: how well examples agree with what was learned before; more is better.
    """
    found = by_source(labels)
    if len(found) < 2:
        return []
    ranked = {source: agrees(examples) for source, examples in found.items() if len(examples) >= MIN_LABELS}
    least = sorted(ranked, key=lambda source: ranked[source])[:MOST]
    groups: list[tuple[str, ...]] = [(source,) for source in least]
    return [*groups, tuple(least)] if len(least) > 1 and len(found) > len(least) else groups


def single_source(labels: Sequence[Labelled]) -> str | None:
    """The source that brought all labels, enough of them to say something; None where there are several."""
    found = by_source(labels)
    return next(iter(found)) if len(found) == 1 and len(labels) >= MIN_LABELS else None
