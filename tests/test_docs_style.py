"""The pages keep to the writing rules: no word that replaces a missing term, no sentence of more than 30 words."""

from __future__ import annotations

from pathlib import Path

import pytest
from docs_style import (
    MAX_WORDS,
    violations_in_docstrings,
    violations_in_names,
    violations_in_page,
    violations_in_script,
    violations_in_texts,
)

ROOT = Path(__file__).parents[1]
PAGES = sorted([ROOT / "README.md", ROOT / "CHANGELOG.md", *(ROOT / "docs").rglob("*.md")])
PACKAGES = ("actuators", "learners", "runtime", "sensors")
CODE = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
TESTS = sorted((ROOT / "tests").rglob("*.py"))
STATIC = sorted(
    path for path in (ROOT / "runtime/dashboard/static").iterdir() if path.suffix in {".js", ".html", ".css"}
)
CONFIGS = sorted(
    path for path in (ROOT / "configs").rglob("*") if path.suffix in {".yaml", ".yml", ".json", ".service", ".sh"}
)
GOAL = "the house is empty, nobody is at home"
"""A goal in the words of the people who write the orders: a sentence encoder compares them."""


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_a_page_keeps_to_the_writing_rules(page: Path) -> None:
    assert [str(each) for each in violations_in_page(page)] == []


def test_docstrings_keep_to_the_writing_rules() -> None:
    assert [str(each) for path in CODE for each in violations_in_docstrings(path)] == []


def test_errors_reasons_events_and_help_use_no_word_to_avoid() -> None:
    assert [str(each) for path in CODE for each in violations_in_texts(path)] == []


def test_names_and_comments_use_no_word_to_avoid() -> None:
    assert [str(each) for path in (*CODE, *TESTS) for each in violations_in_names(path)] == []


def test_the_page_of_the_dashboard_uses_no_word_to_avoid() -> None:
    assert len(STATIC) > 20
    assert [str(each) for path in STATIC for each in violations_in_script(path)] == []


def test_tests_and_settings_files_use_no_word_to_avoid() -> None:
    assert len(CONFIGS) > 10
    shipped = [each for path in (*CONFIGS, ROOT / "Makefile") for each in violations_in_script(path)]
    assert [str(each) for each in shipped if GOAL not in each.text] == []
    described = [each for path in TESTS for each in violations_in_docstrings(path)]
    assert [str(each) for each in described if each.problem.startswith("word to avoid")] == []


def test_words_and_long_sentences_are_found_with_their_lines(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    long = " ".join(["word"] * (MAX_WORDS + 1))
    page.write_text(
        f"# Title\n\nA short one. The gate was\ntold twice.\n\n- An item.\n- {long}.\n\n| cell | nobody |\n"
    )
    found = [(each.line, each.problem) for each in violations_in_page(page)]
    assert found == [
        (3, "word to avoid, 'told'"),
        (7, f"{MAX_WORDS + 1} words in a sentence, at most {MAX_WORDS}"),
        (9, "word to avoid, 'nobody'"),
    ]
    assert str(next(violations_in_page(page))) == f"{page}:3: word to avoid, 'told': The gate was told twice."


def test_code_comments_and_old_names_are_no_prose(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "The event `gave_up, said` is gone, and `taught\nor kept` too.\n\n```\nnobody said so\n```\n\n<!-- told -->\n"
        "<!-- old names -->\n| taught | demonstrations |\n<!-- end of old names -->\n\n"
        "The paper (Kumar et al. 2022) has " + " ".join(["`code here counts as one`"] * 20) + " words, e.g. these.\n"
    )
    assert list(violations_in_page(page)) == []


def test_every_old_name_table_is_closed() -> None:
    for page in PAGES:
        text = page.read_text()
        assert text.count("<!-- old names -->") == text.count("<!-- end of old names -->"), page


def test_docstrings_are_read_entry_by_entry(tmp_path: Path) -> None:
    half = " ".join(["word"] * (MAX_WORDS - 5))
    source = f'''"""A module. {half}.

More of it.
"""

NUMBER = 1
"""What nobody knows."""

def f(a, b):
    """Do it.

    Args:
        a: {half}
        b: {half}
            and {half}

    Raises:
        ValueError: it was said.
    """
'''
    path = tmp_path / "module.py"
    path.write_text(source)
    found = {(each.line, each.problem.partition(",")[0]) for each in violations_in_docstrings(path)}
    assert found == {(7, "word to avoid"), (14, f"{2 * MAX_WORDS - 8} words in a sentence"), (18, "word to avoid")}


def test_texts_names_and_comments_are_read(tmp_path: Path) -> None:
    path = tmp_path / "module.py"
    path.write_text(
        '"""Docstrings are apart: nobody."""\n\nkept_rows = {"kept": 1}\n'
        'raise ValueError(f"{kept_rows}: nobody listens; `told` is code")\n# what was said\n'
    )
    assert [(each.line, each.problem) for each in violations_in_texts(path)] == [(4, "word to avoid, 'nobody'")]
    assert [each.line for each in violations_in_names(path)] == [3, 5]
    script = tmp_path / "page.js"
    script.write_text('const shown = 1;\nsetText(note, "nobody answered");\n')
    assert [(each.line, each.problem) for each in violations_in_script(script)] == [(2, "word to avoid, 'nobody'")]
