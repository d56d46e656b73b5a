"""What the agent imports before its settings ask for more: every module costs memory and time at the start."""

from __future__ import annotations

import subprocess
import sys

UNNEEDED = ("learners.finetune", "learners.continual.serving", "learners.continual.trainer", "learners.rl", "peft")


def test_an_agent_without_tasks_imports_no_task_runner_and_no_fine_tuning() -> None:
    program = "import sys, runtime.agent.build, runtime.agent.jobs; print(*sorted(sys.modules))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    modules = done.stdout.split()
    assert "runtime.inference.engine" in modules
    assert [name for name in modules if name.startswith(UNNEEDED)] == []
