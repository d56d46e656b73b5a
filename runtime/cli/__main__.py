"""`python -m runtime.cli`, for where the script `reflexd` is not on the path."""

from __future__ import annotations

from runtime.cli.main import program

program()
