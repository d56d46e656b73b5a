"""Find the sources of labels that lowered the held-out metric, by ablation and a significance test.

When a candidate fails, the suspects are those of its sources that agree least with the version before. Another candidate is
trained without a suspect (in the end, without all of them). If that candidate passes, it goes live.

A source is blamed in two cases. The sign test on the operator's held-out examples finds the candidate with it worse (`ALPHA`).
Or its labels are shown to agree with the passing candidate less than chance (upper bound). If all labels come from one source, no
training without it is possible, and the version before takes the place of the passing candidate. A source with fewer than `MIN_LABELS` labels is not
blamed, but the candidate is still rejected.
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
    """Return the examples of each source."""
    found: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for label in labels:
        found[label.source].append(label.example)
    return dict(found)


def sources_to_ablate(
    labels: Sequence[Labelled], agrees: Callable[[Sequence[dict[str, Any]]], float]
) -> list[tuple[str, ...]]:
    """Return the groups of sources to train without: the least agreeing ones singly, then all of them if others remain.

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
    """Return the only source of all labels, if there are enough of them; None if there are several sources."""
    found = by_source(labels)
    return next(iter(found)) if len(found) == 1 and len(labels) >= MIN_LABELS else None
