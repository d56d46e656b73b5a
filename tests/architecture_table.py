"""Write the table of packages in docs/architecture.md from the packages' docstrings: `python tests/architecture_table.py`."""

from __future__ import annotations

import ast
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "architecture.md"
BEGIN, END = "<!-- packages: written by tests/architecture_table.py -->", "<!-- end of packages -->"
FLOW = (
    "sensors", "sensors/drivers", "sensors/codecs", "sensors/streams", "actuators", "actuators/safety", "actuators/sim",
    "learners", "learners/config", "learners/rewards", "learners/experience", "learners/model", "learners/model/encoders", "learners/model/backends",
    "learners/rl", "learners/rl/tokens", "learners/tasks", "learners/tasks/layers", "learners/tasks/inputs", "learners/tasks/generation", "learners/tasks/augmentation", "learners/finetune", "learners/finetune/labelled_files", "learners/finetune/example_checks", "learners/finetune/error_analysis", "learners/finetune/few_labels", "learners/speech", "learners/goal_models", "learners/continual", "learners/task_serving", "learners/reencoding",
    "learners/checkpoints", "learners/promotion", "learners/promotion/ope", "learners/experiment_statistics", "learners/safeguards",
    "learners/ipc",
    "learners/worker", "learners/gym", "learners/export", "learners/fleet_data", "learners/fleet_data/storage", "learners/fleet_data/merging",
    "learners/fleet_data/trust", "runtime", "runtime/process", "runtime/config",
    "runtime/backup", "runtime/mqtt", "runtime/gate", "runtime/gate/stop", "runtime/supervisor", "runtime/control", "runtime/inference",
    "runtime/inference/numpy_policy", "runtime/feedback", "runtime/drift", "runtime/deliberation", "runtime/models", "runtime/fleet", "runtime/fleet/stop",
    "runtime/deploy", "runtime/deploy/experiments", "runtime/recording", "runtime/monitoring", "runtime/requests", "runtime/agent",
    "runtime/dashboard", "runtime/dashboard/access", "runtime/console", "runtime/discovery", "runtime/mcp_server", "runtime/preflight", "runtime/cli", "runtime/cli/on_ray",
)  # fmt: skip
"""Packages in the order in which data flows."""


def packages() -> set[str]:
    """Find every package of the four trees, as paths."""
    trees = ("sensors", "actuators", "learners", "runtime")
    return {str(path.parent.relative_to(ROOT)) for tree in trees for path in (ROOT / tree).rglob("__init__.py")}


def table() -> str:
    """Format one row a package, with the first line of its docstring."""
    rows = ["| package | what |", "|---|---|"]
    for package in FLOW:
        text = ast.get_docstring(ast.parse((ROOT / package / "__init__.py").read_text())) or ""
        rows.append(f"| `{package}/` | {text.splitlines()[0].rstrip('.')} |")
    return "\n".join(rows)


def rewritten(page: str) -> str:
    """Replace the table between the markers of a page."""
    before, rest = page.split(BEGIN)
    return f"{before}{BEGIN}\n\n{table()}\n\n{END}{rest.split(END)[1]}"


if __name__ == "__main__":
    PAGE.write_text(rewritten(PAGE.read_text()))
