"""Decide what is trusted where no state of experiments is known: it was never written, or it is broken."""

from __future__ import annotations

from pathlib import Path

import orjson

from learners.checkpoints.experiment_records import PROBATION_FILE
from learners.checkpoints.store import Live
from runtime.deploy.experiments.trusted_version import TRUSTED_BY, Trust, trust_reason


def trust_what_is_live(trust: Trust, live: Live, state_dir: Path) -> None:
    """Trust the live version, unless it went live without a proof.

    Args:
        trust: is changed.
        live: what LIVE says.
        state_dir: state folder of the agent.
    """
    reason = None if live.version is None else trust_reason(live.by)
    if live.version is None or reason is None:
        return
    before = _on_probation(state_dir)
    trust.choose(live.version, reason)
    trust.previous = before if before != live.version and before not in live.failed else None
    trust.note(live.version, TRUSTED_BY[reason])


def _on_probation(state_dir: Path) -> str | None:
    """Return the trusted version of a state that an earlier program left in `probation.json`."""
    try:
        body = orjson.loads((state_dir / PROBATION_FILE).read_bytes())
        trial = body.get("trial") or {}
        good = trial.get("before") or body.get("good")
    except (OSError, orjson.JSONDecodeError, AttributeError):
        return None
    return good if isinstance(good, str) else None
