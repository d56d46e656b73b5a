"""The settings on the page: secrets never leave the machine, only what passes the check is written, and nothing is lost."""

from __future__ import annotations

from pathlib import Path

import pytest

from runtime.config.schema import DashboardSettings
from runtime.dashboard.__main__ import may_edit
from runtime.dashboard.settings_file import SettingsFile, SettingsRefused
from runtime.dashboard.task_settings import with_class

TEXT = """\
agent: demo  # a comment that stays
state_dir: {folder}/state
mqtt: {{url: "mqtt://127.0.0.1:1", username: u, password: very-secret-one}}
streams: {{joints: {{kind: telemetry, fields: [a]}}}}
actuators: {{head: {{kind: choice, choices: [a, b], safe: a}}}}
dashboard: {{token: another-secret-of-32-letters}}
"""


@pytest.fixture
def file(tmp_path: Path) -> SettingsFile:
    path = tmp_path / "robot.yaml"
    path.write_text(TEXT.format(folder=tmp_path))
    path.chmod(0o640)
    return SettingsFile(path, editable=True)


async def test_secrets_become_marks_and_return_on_saving(file: SettingsFile) -> None:
    read = await file.read()
    assert "very-secret-one" not in read["text"]
    assert "another-secret" not in read["text"]
    assert "a comment that stays" in read["text"]
    saved = await file.save(read["text"].replace("safe: a", "safe: b"), read["digest"])
    text = file.path.read_text()
    assert "safe: b" in text
    assert "password: very-secret-one" in text
    assert "token: another-secret-of-32-letters" in text
    assert file.path.stat().st_mode & 0o777 == 0o640
    previous = file.path.with_name("robot.previous.yaml")
    assert saved["previous"] == str(previous)
    assert "safe: a" in previous.read_text()
    assert previous.stat().st_mode & 0o777 == 0o640
    assert sorted(path.name for path in file.path.parent.iterdir()) == ["robot.previous.yaml", "robot.yaml"]


async def test_problems_have_their_lines_and_nothing_is_written(file: SettingsFile) -> None:
    read = await file.read()
    before = file.path.read_text()
    wrong = read["text"].replace("kind: telemetry", "kind: telemetrie")
    found = await file.check(wrong)
    assert found["problems"][0]["line"] == 4
    with pytest.raises(SettingsRefused, match="not saved: line 4"):
        await file.save(wrong, read["digest"])
    assert file.path.read_text() == before


async def test_a_file_that_another_person_changed_is_not_overwritten(file: SettingsFile) -> None:
    read = await file.read()
    file.path.write_text(file.path.read_text() + "# by hand\n")
    with pytest.raises(SettingsRefused, match="changed by someone else"):
        await file.save(read["text"], read["digest"])
    assert "# by hand" in file.path.read_text()


async def test_a_file_with_an_error_or_without_permission_is_not_shown(file: SettingsFile) -> None:
    closed = SettingsFile(file.path, editable=False)
    with pytest.raises(SettingsRefused, match=r"dashboard\.edit_settings is off"):
        await closed.read()
    file.path.write_text("agent: [")
    with pytest.raises(SettingsRefused, match="is not shown"):
        await file.read()


def test_editing_is_on_where_only_this_machine_reaches_the_page() -> None:
    assert may_edit(DashboardSettings(listen="127.0.0.1:8080"))
    assert not may_edit(DashboardSettings(listen="0.0.0.0:8080"))
    assert may_edit(DashboardSettings(listen="0.0.0.0:8080", edit_settings=True))
    assert not may_edit(DashboardSettings(edit_settings=False))


async def test_line_ends_of_windows_and_a_symbolic_link_stay(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    real, link = tmp_path / "real/robot.yaml", tmp_path / "robot.yaml"
    real.write_bytes(TEXT.format(folder=tmp_path).replace("\n", "\r\n").encode())
    link.symlink_to(real)
    file = SettingsFile(link, editable=True)
    read = await file.read()
    assert "\r" not in read["text"]
    await file.save(read["text"].replace("safe: a", "safe: b"), read["digest"])
    assert link.is_symlink()
    content = real.read_bytes()
    assert b"safe: b" in content
    assert content.count(b"\n") == content.count(b"\r\n") == TEXT.count("\n")
    assert b"safe: a" in (tmp_path / "real/robot.previous.yaml").read_bytes()


@pytest.mark.parametrize(
    ("one", "other"),
    [("{kind: K, stream: orders, model: M, labels: &x [one, two]}", "{kind: K, stream: orders, model: M, labels: *x}"),
     ("&x {kind: K, stream: orders, model: M, labels: [one, two]}", "{<<: *x, query_confidence: .3}"),
     ("&x {kind: K, stream: orders, model: M, labels: [one, two]}", "*x")],
)  # fmt: skip
async def test_a_class_is_not_added_to_what_an_alias_shares(file: SettingsFile, one: str, other: str) -> None:
    tasks = f"tasks:\n  a: {one}\n  b: {other}\n".replace("K", "text-classification").replace(
        "M", "'bundled:minilm-l6'"
    )
    text = file.path.read_text() + tasks
    file.path.write_text(
        text.replace(
            "fields: [a]}}",
            "fields: [a]}, orders: {kind: text, encoder: words}}\nencoders: {words: {model: 'bundled:minilm-l6'}}",
        )
    )
    before = file.path.read_text()
    with pytest.raises(SettingsRefused, match="shared by a YAML alias"):
        await file.edit_task(lambda text, config: with_class(text, config, "a", "three"))
    assert file.path.read_text() == before
