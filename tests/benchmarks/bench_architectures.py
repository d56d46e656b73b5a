"""Verify every architecture with every kind of task on tiny random models, and print the table; `--write` puts it into the docs.

A pair trains, equals plain transformers alone and in a batch, loads in plain transformers with equal outputs and resumes bit for bit,
or `reflexd check` refuses it in one sentence. Run `python tests/benchmarks/bench_architectures.py --help`.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parents[2]))

import architectures

from learners.task_kinds import KINDS

PAGE = Path(__file__).parents[2] / "docs" / "benchmarks.md"
BEGIN, END = "<!-- architectures -->", "<!-- end of architectures -->"
SHORT = {
    "text-classification": "text", "text-pair-classification": "pair", "image-classification": "image", "audio-classification": "audio",
    "token-classification": "tokens", "relation-extraction": "relation", "question-answering": "answer",
    "translation": "translation", "summarization": "summary", "text-generation": "generation",
    "automatic-speech-recognition": "speech",
}  # fmt: skip


def table(names: list[str], mode: str) -> tuple[str, int]:
    """Return the table in Markdown, and how many pairs failed."""
    rows = [f"| | {' | '.join(SHORT[kind] for kind in KINDS)} |", f"|---|{'---|' * len(KINDS)}"]
    failed = 0
    for name in names:
        cells = []
        for kind in KINDS:
            with tempfile.TemporaryDirectory() as folder:
                try:
                    found = architectures.verify(Path(folder), name, kind, mode)
                except Exception as error:  # noqa: BLE001 - the table names each failure
                    found, failed = f"FAILED: {type(error).__name__}: {error}", failed + 1
            print(f"{name}, {kind}: {found}", flush=True)
            cells.append({"ok": "yes"}.get(found, "failed" if found.startswith("FAILED") else "refused"))
        rows.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(rows), failed


def main() -> None:
    """Verify the pairs, print the table, and write it where that is wanted."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--only", default=",".join(architectures.ARCHITECTURES), help="architectures, separated by commas"
    )
    parser.add_argument("--mode", default="lora", choices=["lora", "full", "top"], help="which weights train")
    parser.add_argument("--write", action="store_true", help="write the table into docs/benchmarks.md")
    given = parser.parse_args()
    made, failed = table(given.only.split(","), given.mode)
    print(made)
    if given.write:
        page = PAGE.read_text()
        before, after = page.split(BEGIN)[0], page.split(END)[1]
        PAGE.write_text(f"{before}{BEGIN}\n{made}\n{END}{after}")
    sys.exit(failed > 0)


if __name__ == "__main__":
    main()
