"""Which sources of labels to suspect when what was learned from them is worse: those that agree least with what was known before.

Suspicion only: `online.py` trains again without the suspect, and only if that passes is the source to blame. A source alone is never
suspected, as without it nothing would be left to learn from.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

from learners.labels import Labelled

LEAST = 8
"""Labels a source must have brought; fewer say little."""
MOST = 2
"""Suspects that are tried: each costs a fine-tune."""


def suspects(labels: Sequence[Labelled], agrees: Callable[[Sequence[dict[str, Any]]], float]) -> list[str]:
    """Sources to try without, the least agreeing first.

    Args:
        labels: the new ones.
        agrees: how well examples agree with what was learned before; more is better.
    """
    by_source: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for label in labels:
        by_source[label.source].append(label.example)
    if len(by_source) < 2:
        return []
    ranked = {source: agrees(examples) for source, examples in by_source.items() if len(examples) >= LEAST}
    return sorted(ranked, key=lambda source: ranked[source])[:MOST]
