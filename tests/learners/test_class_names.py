"""One spelling for one class, and a note where spellings are nearly one."""

from __future__ import annotations

import pytest

from learners.class_names import alike, class_name


@pytest.mark.parametrize(
    ("written", "name"),
    [
        ("cafe\u0301", "caf\u00e9"),
        ("\ufeff go\u200b ", "go"),
        ("\u202ego\u202c", "go"),
        ("Turn  left", "Turn  left"),
        ("\u00ad", ""),
    ],
)
def test_a_class_has_one_spelling(written: str, name: str) -> None:
    assert class_name(written) == name


def test_names_that_look_alike_are_noted_in_groups() -> None:
    assert alike(["go", "stop", "halt now"]) == []
    assert len(alike(["go", "Go", "x\u200by", "xy", "halt now", "halt\u00a0now", "left"])) == 3
