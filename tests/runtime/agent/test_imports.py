"""What the agent imports before its settings ask for more: every module costs memory and time at the start."""

from __future__ import annotations

import subprocess
import sys

UNNEEDED = (
    "torch",
    "transformers",
    "learners.finetune",
    "learners.task_serving.runner",
    "learners.continual.trainer",
    "learners.rl",
    "peft",
)


def test_an_agent_imports_no_task_runner_no_fine_tuning_and_no_torch() -> None:
    """With tasks too: another process runs their models."""
    program = "import sys, runtime.agent.build, runtime.agent.jobs; print(*sorted(sys.modules))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    modules = done.stdout.split()
    assert {"runtime.inference.engine", "runtime.models.client"} <= set(modules)
    assert [name for name in modules if name.startswith(UNNEEDED)] == []
