"""The verdicts on policy versions outlive the daemon: bounded, readable after damage, and in the answer of `checkpoints`."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import orjson
from disks import small_disk

from runtime.deploy.promotion_history import FILE, MAX_ENTRIES, PromotionHistory


def test_verdicts_survive_a_restart_and_other_events_are_left_out(tmp_path: Path) -> None:
    sent: list[str] = []
    with ThreadPoolExecutor(1) as executor:
        history = PromotionHistory(tmp_path / FILE, executor, lambda: 100.0)
        history.start()
        emit = history.emitting(lambda kind, _data: sent.append(kind))
        emit("policy_rejected", {"version": "1", "step": "ope", "steps": {"ope": {"passed": False, "lower": -0.2}}})
        emit("sensor_lost", {"stream": "front"})
        emit("policy_promoted", {"version": "2"})
    assert sent == ["policy_rejected", "sensor_lost", "policy_promoted"]
    with (tmp_path / FILE).open("ab") as file:
        file.write(b'{"type": "policy_promoted", "stamp": "x", "data": {}}\n[1]\n{"type": "poli')  # a crash, and others
    again = PromotionHistory(tmp_path / FILE, executor)
    again.start()
    assert [entry["data"]["version"] for entry in again.newest(10)] == ["1", "2"]
    assert again.newest(1)[0] == {"type": "policy_promoted", "stamp": 100.0, "data": {"version": "2"}}


def test_the_file_is_bounded_and_a_large_verdict_loses_its_figures(tmp_path: Path) -> None:
    with ThreadPoolExecutor(1) as executor:
        history = PromotionHistory(tmp_path / FILE, executor, lambda: 1.0)
        for number in range(MAX_ENTRIES + 50):
            history.note("policy_promoted", {"version": str(number)})
        history.note("policy_rejected", {"version": "large", "step": "ope", "steps": {"ope": "x" * 10_000}})
    again = PromotionHistory(tmp_path / FILE, executor)
    again.start()
    assert len((tmp_path / FILE).read_bytes().splitlines()) == MAX_ENTRIES
    assert orjson.loads((tmp_path / FILE).read_bytes().splitlines()[-1])["data"] == {"version": "large", "step": "ope"}


def test_a_disk_that_refuses_is_counted_and_the_verdict_stays_in_memory(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with ThreadPoolExecutor(1) as executor:
        history = PromotionHistory(tmp_path / "file" / FILE, executor)
        history.note("policy_trusted", {"version": "3"})
    assert history.lost == 1
    assert history.newest(5)[0]["data"] == {"version": "3"}


def test_verdicts_that_a_full_disk_refused_are_written_whole_with_the_next_one(tmp_path: Path) -> None:
    """The full disk takes lines up to the end of a page, half a line among them."""
    with small_disk(tmp_path / "disk", "size=256k") as disk, ThreadPoolExecutor(1) as executor:
        path = disk.folder / FILE
        history = PromotionHistory(path, executor)
        history.note("policy_promoted", {"version": "0"})
        executor.submit(int).result()
        disk.fill()
        for number in range(1, 100):
            history.note("policy_promoted", {"version": str(number)})
        executor.submit(int).result()
        assert 0 < history.lost < 99
        assert path.read_bytes().endswith(b"}\n"), "no half line is left"
        disk.free()
        history.note("policy_promoted", {"version": "100"})
        executor.submit(int).result()
        assert history.lost == 0
        written = [orjson.loads(line)["data"]["version"] for line in path.read_bytes().splitlines()]
        assert written == [str(number) for number in range(101)]
