"""Pass the spec of the running policy from the agent to the learner, in `state_dir/learner/spec.json`.

Only the agent can write it, because the spec contains the widths of the encoders, and only the agent loads them.
"""

from __future__ import annotations

from pathlib import Path

import orjson

from learners.checkpoints.manifest import LoadedCheckpoint
from learners.files import private_folder, write_atomically
from learners.model.spec import PolicySpec, SpecError


def spec_path(state_dir: Path) -> Path:
    """Return the path of the spec."""
    return state_dir / "learner" / "spec.json"


def write_policy_spec(state_dir: Path, spec: PolicySpec) -> bool:
    """Leave the spec for the learner; False when it is there already."""
    path = spec_path(state_dir)
    content = spec.to_json()
    if path.exists() and path.read_bytes() == content:
        return False
    private_folder(path.parent)
    write_atomically(path, content)
    return True


def read_policy_spec(state_dir: Path) -> PolicySpec | None:
    """Return the spec of the agent; None if there is none that is readable."""
    try:
        return PolicySpec.from_json(spec_path(state_dir).read_bytes())
    except (FileNotFoundError, SpecError):
        return None


def spec_of_version(loaded: LoadedCheckpoint) -> PolicySpec | None:
    """Return the spec with which a version was saved; None if it has none.

    Raises:
        SpecError: the document is not a spec of ours.
    """
    document = loaded.documents.get("spec")
    return None if document is None else PolicySpec.from_json(orjson.dumps(document))
