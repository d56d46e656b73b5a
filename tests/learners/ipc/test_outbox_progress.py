"""Events are repeated rather than lost and never pile up; progress is whole or not there."""

from __future__ import annotations

from pathlib import Path

import orjson

from learners.ipc.outbox import Outbox
from learners.ipc.progress import ProgressWriter


def test_events_wait_until_they_are_acknowledged(tmp_path: Path) -> None:
    box = Outbox(tmp_path, limit=3, clock=lambda: 12.5)
    assert box.collect() == []
    for number in range(5):
        box.post("policy_promoted", {"number": number})
    assert box.drops["full"] == 2
    found = Outbox(tmp_path).collect()
    assert [(event.kind, event.fields["number"], event.stamp_s) for event in found] == [
        ("policy_promoted", number, 12.5) for number in range(3)
    ]
    found[0].acknowledge()
    found[0].acknowledge()
    assert [event.fields["number"] for event in box.collect()] == [1, 2]


def test_a_file_that_is_no_event_is_removed_and_counted(tmp_path: Path) -> None:
    box = Outbox(tmp_path)
    (tmp_path / "1.json").write_bytes(b"{")
    (tmp_path / "2.json").write_bytes(b"[]")
    (tmp_path / ".half.json.abc").write_bytes(b"{")
    box.post("x", {})
    assert [event.kind for event in box.collect()] == ["x"]
    assert box.drops["unreadable"] == 2


def test_progress_counts_updates_a_second_and_is_written_at_most_so_often(tmp_path: Path) -> None:
    now = [0.0]
    progress = ProgressWriter(tmp_path / "a" / "progress.json", every_s=1.0, clock=lambda: now[0])
    assert progress.report(0, lambda: {"state": "starting"})
    assert orjson.loads(progress.path.read_bytes()) == {"updates": 0, "updates_per_s": 0.0, "state": "starting"}
    now[0] = 0.5
    assert not progress.report(5, dict)
    assert progress.report(5, dict, now=True)
    now[0] = 10.0
    assert progress.report(100, dict)
    assert progress.rate() == 10.0
    now[0] = 45.0
    progress.report(100, dict)
    assert progress.rate() == 0.0
    assert [path.name for path in progress.path.parent.iterdir()] == ["progress.json"]
