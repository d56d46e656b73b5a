"""The structure of the code keeps its bounds, and `tests/structure.py` sees what breaks them."""

from __future__ import annotations

from pathlib import Path

import architecture_table
import structure


def test_code_keeps_its_bounds() -> None:
    broken = [figure.row() for figure in structure.figures() if figure.broken]
    assert broken == []


def test_cycle_is_found_and_chain_is_none() -> None:
    assert structure.cycles([("a", "b"), ("b", "c"), ("a", "a")]) == []
    assert structure.cycles([("a", "b"), ("b", "c"), ("c", "a"), ("c", "d")]) == [["a", "b", "c"]]
    assert structure.cycles([]) == []


def test_imports_follow_lazy_and_package_imports(tmp_path: Path, monkeypatch) -> None:  # noqa: ANN001 - pytest's own type
    package = tmp_path / "ring_of_two"
    package.mkdir()
    (package / "__init__.py").write_text('"""Two."""\n')
    (package / "one.py").write_text("def f():\n    from ring_of_two import two\n")
    (package / "two.py").write_text("import ring_of_two.one\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert structure.cycles(structure.imports(["ring_of_two"])) == [["ring_of_two.one", "ring_of_two.two"]]
    assert structure.without_docstring(sorted(package.glob("*.py"))) == [package / "one.py", package / "two.py"]
    assert structure.largest_folder(package.glob("*.py")) == (package, 2)


def test_package_of_module_and_of_init() -> None:
    folders = frozenset({"runtime", "runtime.gate"})
    assert structure.package_of("runtime.gate.host", folders) == "runtime.gate"
    assert structure.package_of("runtime.gate", folders) == "runtime.gate"
    assert structure.package_of("sensors.api", folders) == "sensors.api"
    assert structure.package_of("runtime.plant", folders) == "runtime"


def test_broken_bound_is_reported_in_its_row() -> None:
    assert structure.Figure("README lines", 251, 250).row().endswith("BROKEN")
    assert structure.Figure("README lines", 250, 250).row().endswith("ok")


def test_readme_is_bounded_once_architecture_page_exists(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("line\n" * 251)
    assert not structure.readme(tmp_path).broken
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "architecture.md").write_text("# Architecture\n")
    assert structure.readme(tmp_path).broken


def test_the_architecture_page_lists_every_package_as_its_docstring_says() -> None:
    assert set(architecture_table.FLOW) == architecture_table.packages()
    page = architecture_table.PAGE.read_text()
    assert page == architecture_table.rewritten(page), "run `python tests/architecture_table.py`"


def test_public_class_names_in_two_files_are_found(tmp_path: Path) -> None:
    (tmp_path / "camera.py").write_text("class Window: ...\nclass _Slot: ...\nclass Camera:\n    class Frame: ...\n")
    (tmp_path / "sound.py").write_text("class Window: ...\nclass _Slot: ...\n")
    (tmp_path / "video.py").write_text("class Frame: ...\n")
    found = structure.shared_class_names(sorted(tmp_path.glob("*.py")))
    assert found == ["Frame (camera.py, video.py)", "Window (camera.py, sound.py)"]
