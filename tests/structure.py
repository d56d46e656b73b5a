"""Measure the structure of the code and compare it with its bounds: `make structure`.

Prints one row a figure, and exits with code 1 when a bound is broken. Everything is computed from the files: imports by
grimp (lazy and type-checking imports included), docstrings by the syntax tree.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import grimp
import numpy as np
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("runtime", "learners", "sensors", "actuators")
MAX_MODULES = 15
MAX_README_LINES = 250
SHOWN = 5
"""Names printed for a broken bound."""

Edges = Iterable[tuple[str, str]]


@dataclass(frozen=True)
class Figure:
    """One measured figure; `limit` is its upper bound."""

    name: str
    value: int
    limit: int
    detail: str = ""

    @property
    def broken(self) -> bool:
        """Whether the value is above its bound."""
        return self.value > self.limit

    def row(self) -> str:
        """Format the figure as one line."""
        verdict = "BROKEN" if self.broken else "ok"
        return f"{self.name:<32}{self.value:>6}  (at most {self.limit})  {verdict}  {self.detail}".rstrip()


def cycles(edges: Edges) -> list[list[str]]:
    """Find the groups of names that reach each other: strongly connected components of two or more."""
    pairs = [(start, end) for start, end in edges if start != end]
    names = sorted({name for pair in pairs for name in pair})
    index = {name: number for number, name in enumerate(names)}
    rows, columns = ([index[pair[side]] for pair in pairs] for side in (0, 1))
    matrix = coo_matrix((np.ones(len(pairs)), (rows, columns)), shape=(len(names), len(names)))
    count, groups = connected_components(matrix, connection="strong") if names else (0, [])
    members: list[list[str]] = [[] for _ in range(count)]
    for name, group in zip(names, groups, strict=True):
        members[group].append(name)
    return [group for group in members if len(group) > 1]


def imports(packages: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Yield (importer, imported) for every module of the packages; folders of the same name in tests/ are not theirs."""
    before = sys.path[:]
    sys.path[:] = [str(ROOT), *(path for path in before if Path(path).resolve() != ROOT / "tests")]
    try:
        graph = grimp.build_graph(*packages, cache_dir=None)
    finally:
        sys.path[:] = before
    for module in graph.modules:
        for imported in graph.find_modules_directly_imported_by(module):
            yield module, imported


def package_of(module: str, folders: frozenset[str]) -> str:
    """Return the folder of a module, dotted; an `__init__` belongs to its folder.

    An `api` module is a package of its own: it only names what lies below it, for plug-ins, and nothing of ours imports it.
    """
    return module if module in folders or module.endswith(".api") else module.rpartition(".")[0]


def modules(root: Path) -> list[Path]:
    """List the Python files of the four packages."""
    return sorted(path for package in PACKAGES for path in (root / package).rglob("*.py"))


def without_docstring(paths: Iterable[Path]) -> list[Path]:
    """List the files without a module docstring."""
    return [path for path in paths if not ast.get_docstring(ast.parse(path.read_text()))]


def shared_class_names(paths: Iterable[Path]) -> list[str]:
    """List the names of public classes that stand in more than one file, each with its files."""
    where: dict[str, list[str]] = {}
    for path in paths:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                where.setdefault(node.name, []).append(path.name)
    return [f"{name} ({', '.join(files)})" for name, files in sorted(where.items()) if len(files) > 1]


def largest_folder(paths: Iterable[Path]) -> tuple[Path, int]:
    """Return the folder with the most modules, `__init__` not counted, and how many it has."""
    counts = Counter(path.parent for path in paths if path.name != "__init__.py")
    return counts.most_common(1)[0]


def figures(root: Path = ROOT) -> list[Figure]:
    """Measure everything that has a bound."""
    files = modules(root)
    edges = list(imports(PACKAGES))
    folders = frozenset(".".join(path.parent.relative_to(root).parts) for path in files)
    by_module = cycles(edges)
    by_package = cycles((package_of(start, folders), package_of(end, folders)) for start, end in edges)
    folder, largest = largest_folder(files)
    silent = without_docstring(files)
    shared = shared_class_names(files)
    return [
        Figure("package cycles", len(by_package), 0, _first(map(", ".join, by_package))),
        Figure("module cycles", len(by_module), 0, _first(map(", ".join, by_module))),
        Figure("modules in the largest folder", largest, MAX_MODULES, str(folder.relative_to(root))),
        Figure("class names of two classes", len(shared), 0, _first(shared)),
        Figure("modules without a docstring", len(silent), 0, _first(str(path.relative_to(root)) for path in silent)),
    ]


def readme(root: Path = ROOT) -> Figure:
    """Count the lines of README.md; bounded as soon as docs/architecture.md holds what README held before."""
    lines = len((root / "README.md").read_text().splitlines())
    if (root / "docs" / "architecture.md").is_file():
        return Figure("README lines", lines, MAX_README_LINES)
    return Figure("README lines", lines, lines, f"{MAX_README_LINES} once docs/architecture.md exists")


def style(root: Path = ROOT) -> Figure | None:
    """Run the word list of the docs tests, where the project has it; 0 when it passes."""
    path = root / "tests" / "test_docs_style.py"
    if not path.is_file():
        return None
    command = [sys.executable, "-m", "pytest", "-q", "--no-header", "-p", "no:cacheprovider", str(path)]
    ran = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    return Figure("failed style tests", int(ran.returncode != 0), 0, (ran.stdout.splitlines() or [""])[-1].strip("= "))


def _first(names: Iterable[str]) -> str:
    return "; ".join(list(names)[:SHOWN])


def main() -> int:
    """Print every figure; return the exit code."""
    measured = [*figures(), readme(), *filter(None, [style()])]
    for figure in measured:
        print(figure.row())
    return int(any(figure.broken for figure in measured))


if __name__ == "__main__":
    sys.exit(main())
