"""Rank labels by their probability, as results and questions name them."""

from __future__ import annotations

from collections.abc import Mapping

CANDIDATES = 5
"""Labels that a result and a question name with their probability."""


def likeliest(probabilities: Mapping[str, float], limit: int | None = CANDIDATES) -> dict[str, float]:
    """Return labels with their rounded probabilities, the most probable first; at most `limit` (None: all)."""
    found = sorted(probabilities.items(), key=lambda item: -item[1])[:limit]
    return {label: round(chance, 4) for label, chance in found}
