"""A verb that is started without outputs ends as it would with them, and no file takes their numbers."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
import os, sys
from runtime.cli.main import main
try: main(sys.argv[1:])
except SystemExit as ended: code = ended.code
with open("opened", "w") as file: file.write(f"{code} {file.fileno()}")
"""


@pytest.mark.parametrize(
    ("arguments", "code"), [(["check", "absent.yaml"], 2), (["checkpoints", "--config", "absent.yaml"], 2)]
)
def test_a_verb_without_outputs_has_its_exit_code(tmp_path: Path, arguments: list[str], code: int) -> None:
    done = subprocess.run(
        ["/bin/sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh", sys.executable, "-c", PROGRAM, *arguments],
        check=False, timeout=60, cwd=tmp_path, env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )  # fmt: skip
    assert done.returncode == 0
    ended, number = (tmp_path / "opened").read_text().split()
    assert int(ended) == code
    assert int(number) > 2
