"""Rewrites the list of files in README.md from the first line of each module's docstring: `python tests/files_table.py`."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

FOLDERS = ("runtime", "runtime/dashboard", "sensors", "actuators", "learners", "learners/model", "learners/tasks")
BEGIN, END = "<!-- files: written by tests/files_table.py -->", "<!-- end of files -->"


def table() -> str:
    """One line a file, folder by folder."""
    lines: list[str] = []
    for folder in FOLDERS:
        lines += [f"\n**{folder}/**\n", "| file | what |", "|---|---|"]
        for path in sorted(Path(folder).glob("*.py")):
            text = ast.get_docstring(ast.parse(path.read_text())) or ""
            first = text.split("\n\n")[0].replace("\n", " ").split(". ")[0].split(": the only")[0].rstrip(".")
            if first and path.name != "__init__.py":
                lines.append(f"| `{path.name}` | {first.replace('|', '/')} |")
    return "\n".join(lines)


def rewritten(text: str) -> str:
    """README's text with the list of today."""
    before, rest = text.split(BEGIN)
    return f"{before}{BEGIN}\n{table()}\n\n{END}{rest.split(END)[1]}"


if __name__ == "__main__":
    readme = Path("README.md")
    current, wanted = readme.read_text(), rewritten(readme.read_text())
    if "--check" in sys.argv:
        sys.exit(0 if current == wanted else "README.md: the list of files is old; run python tests/files_table.py")
    readme.write_text(wanted)
