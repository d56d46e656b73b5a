"""The list of failed tests at the end of `make test`."""

from pathlib import Path

from failures import summary

PASSED = '<testsuites><testsuite><testcase classname="tests.test_a" name="test_x" time="1.0"/></testsuite></testsuites>'
FAILED = (
    '<testsuites><testsuite><testcase classname="tests.test_b" name="test_y" time="2.4">'
    '<failure message="m">first\nE   assert 1 == 2</failure></testcase></testsuite></testsuites>'
)


def test_failures_and_runs_without_an_end_are_named(tmp_path: Path) -> None:
    for name, text in (("a", PASSED), ("b", FAILED), ("c", FAILED[:60])):
        (tmp_path / f"{name}.xml").write_text(text)
    lines = summary([tmp_path / f"{name}.xml" for name in "abcd"])
    assert lines[:3] == ["FAILED tests.test_b::test_y after 2 s", "    first", "    E   assert 1 == 2"]
    assert [line.split(":")[1].strip() for line in lines[3:]] == ["c.xml", "d.xml"]
    assert summary([tmp_path / "a.xml"]) == []
