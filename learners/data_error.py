"""The error of examples that cannot be used."""

from __future__ import annotations


class DataError(ValueError):
    """Examples cannot be used; `str` says which, why and what would be right."""
