"""Text from topics, standard input and followed files; bounded, never cut."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sensing import Running, eventually, outcome

from sensors.base import PayloadRefused, Sensor, TopicSensor
from sensors.readings import Reading, Text
from sensors.streams.text import FollowedText, Lines, StdinText, TopicText


def test_plain_and_json_texts_are_taken() -> None:
    orders = TopicText("orders", None, 20)
    assert isinstance(orders, TopicSensor)
    payloads = [b" turn left\n", b'{"text": "nach rechts", "by": "x"}', "größer".encode()]
    assert [orders.decode(payload, 2.0).text for payload in payloads] == ["turn left", "nach rechts", "größer"]
    assert orders.decode(b"again", 3.0) == Text("orders", 3.0, 4, "again")


@pytest.mark.parametrize(
    ("payload", "cause"),
    [
        (b"", "empty"),
        (b"  \n", "empty"),
        (b'{"text": ""}', "empty"),
        (b"\xff\xfe", "not_utf8"),
        (b'{"text": 3}', "no_text"),
        (b'{"word": "left"}', "no_text"),
        (b'{"text": "left"', "not_json"),
        (b"{left", "not_json"),
        (b"x" * 21, "too_long"),
        (orjson.dumps({"text": "x" * 21}), "too_long"),
        (b"x" * 10_000, "too_large"),
    ],
)
def test_bad_texts_are_refused_and_counted(payload: bytes, cause: str) -> None:
    orders = TopicText("orders", None, 20)
    with pytest.raises(PayloadRefused) as refusal:
        orders.decode(payload, 1.0)
    assert refusal.value.cause == cause
    assert orders.drops == {cause: 1}


@given(st.text(max_size=50))
def test_any_text_survives_as_json_or_is_refused(text: str) -> None:
    orders = TopicText("orders", None, 30)
    reading, cause = outcome(lambda: orders.decode(orjson.dumps({"text": text}), 1.0))
    wanted = text.strip()
    assert cause == ("empty" if not wanted else "too_long" if len(wanted) > 30 else None)
    assert reading is None or reading.text == wanted


@given(st.binary(max_size=300))
def test_any_bytes_are_a_bounded_text_or_refused(payload: bytes) -> None:
    orders = TopicText("orders", None, 30)
    reading, cause = outcome(lambda: orders.decode(payload, 1.0))
    assert orders.drops == {cause: 1} if reading is None else 0 < len(reading.text) <= 30


@given(st.lists(st.binary(max_size=12)), st.integers(1, 20))
def test_lines_do_not_depend_on_how_the_bytes_are_cut(pieces: list[bytes], limit: int) -> None:
    lines = Lines(limit)
    seen = [line for piece in pieces for line in lines.feed(piece)] + lines.flush()
    whole = b"".join(pieces).split(b"\n")
    expected = [line for line in whole[:-1] if len(line) <= limit] + [
        line for line in whole[-1:] if 0 < len(line) <= limit
    ]
    assert seen == expected
    assert lines.overlong == sum(len(line) > limit for line in whole)


async def test_standard_input_is_read_until_it_ends(running: Running) -> None:
    read, write = os.pipe()
    sensor = StdinText("typed", 10, descriptor=read)
    assert isinstance(sensor, Sensor)
    async with running(sensor) as witness:
        os.write(write, b"left\nri")
        await witness.until(lambda: len(witness.readings) == 1)
        os.write(write, b"ght\n\n" + b"x" * 100_000 + b"\n\xff\nend without newline"[:-16])
        await witness.until(lambda: len(witness.readings) == 2)
        os.close(write)
        await witness.until(lambda: bool(witness.lost))
    texts = [(reading.text, reading.seq) for reading in witness.readings if isinstance(reading, Text)]
    assert texts == [("left", 1), ("right", 2), ("end", 3)]
    assert sensor.drops == {"too_long": 1, "not_utf8": 1}
    assert "ended" in witness.lost[0][1]
    os.close(read)


async def test_standard_input_that_says_nothing_can_be_cancelled(running: Running) -> None:
    read, write = os.pipe()
    async with running(StdinText("typed", 10, descriptor=read)) as witness:
        os.write(write, b"one\n")
        await witness.until(lambda: len(witness.readings) == 1)
        assert [reading.text for reading in witness.readings if isinstance(reading, Text)] == ["one"]
    os.close(write)
    os.close(read)


async def test_an_unreadable_standard_input_is_lost(tmp_path: Path, running: Running) -> None:
    directory = os.open(tmp_path, os.O_RDONLY)
    async with running(StdinText("typed", 10, descriptor=directory)) as witness:
        await witness.until(lambda: bool(witness.lost))
        assert witness.readings == []
    os.close(directory)


@pytest.mark.parametrize(
    ("before", "appended", "texts", "cut"),
    [
        (b"do not ", b"move\nleft\n", ["left"], 1),
        (b"do not move", b"\nleft\n", ["left"], 1),
        (b"do not move\n", b"left\n", ["left"], 0),
        (b"", b"left\n", ["left"], 0),
        (b"x" * 500 + b"do not ", b"move\n", [], 1),
    ],
)
async def test_a_line_that_had_begun_before_the_file_was_followed_is_left_out(
    tmp_path: Path, running: Running, before: bytes, appended: bytes, texts: list[str], cut: int
) -> None:
    path = tmp_path / "orders.log"
    path.write_bytes(before)
    sensor = FollowedText("orders", path, 50, poll_s=0.01)
    async with running(sensor) as witness:
        await eventually(lambda: sensor.following)
        with path.open("ab") as file:
            file.write(appended + b"end\n")
        await witness.until(lambda: len(witness.readings) == len(texts) + 1)
    assert [reading.text for reading in witness.readings if isinstance(reading, Text)] == [*texts, "end"]
    assert sensor.drops["cut_line"] == cut


async def test_a_file_that_is_overwritten_with_more_is_read_from_its_beginning(
    tmp_path: Path, running: Running
) -> None:
    path = tmp_path / "orders.log"
    path.write_bytes(b"old\n")
    sensor = FollowedText("orders", path, 50, poll_s=0.01)
    async with running(sensor) as witness:
        await eventually(lambda: sensor.following)
        with path.open("rb+") as file:
            file.write(b"do not move to the left\n")
        await witness.until(lambda: bool(witness.readings))
    assert [reading.text for reading in witness.readings if isinstance(reading, Text)] == ["do not move to the left"]


async def test_a_file_that_is_overwritten_between_two_system_calls_is_read_from_its_beginning(tmp_path: Path) -> None:
    """The old check and the read after it were two calls: 17 of 400 overwrites gave a line without its begin."""
    for attempt in range(150):
        path = tmp_path / str(attempt)
        path.write_bytes(b"old\n")
        sensor, readings = FollowedText("orders", path, 50, poll_s=1e-5), list[Reading]()
        task = asyncio.create_task(sensor.run(readings.append, lambda _: None, lambda: None))
        while not sensor.following:  # noqa: ASYNC110 - the write must fall between two calls
            await asyncio.sleep(0)
        with path.open("rb+") as file:
            file.write(b"do not move to the left\n")
        while not readings:  # noqa: ASYNC110 - the write must fall between two calls
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task])
        assert [reading.text for reading in readings if isinstance(reading, Text)] == ["do not move to the left"]


async def test_a_followed_file_survives_rotation_and_truncation(tmp_path: Path, running: Running) -> None:
    path = tmp_path / "orders.log"
    path.write_text("old news\n")
    sensor = FollowedText("orders", path, 50, poll_s=0.01)

    def texts() -> list[str]:
        return [reading.text for reading in witness.readings if isinstance(reading, Text)]

    async with running(sensor) as witness:
        await eventually(lambda: sensor.following)
        with path.open("a") as file:
            file.write("first\n")
        await witness.until(lambda: texts() == ["first"])
        path.rename(tmp_path / "orders.log.1")
        with (tmp_path / "orders.log.1").open("a") as file:
            file.write("late\nunfinished")
        path.write_text("rotated\n")
        await witness.until(lambda: texts()[1:] == ["late", "unfinished", "rotated"])
        os.truncate(path, 0)
        path.write_text("short\n")
        await witness.until(lambda: texts()[-1] == "short")
        path.unlink()
        await witness.until(lambda: len(witness.lost) == 1)
        assert "waiting for the file" in witness.lost[0][1]
        path.write_text("back\n" + "y" * 1_000 + "\n")
        await witness.until(lambda: len(witness.recovered) == 1 and texts()[-1] == "back")
        with path.open("a") as file:
            file.write("z\n")
        await witness.until(lambda: texts()[-1] == "z")
    assert "old news" not in texts()
    assert sensor.drops == {"too_long": 1}


async def test_a_missing_file_is_lost_until_it_appears(tmp_path: Path, running: Running) -> None:
    path = tmp_path / "later.log"
    async with running(FollowedText("orders", path, 50, poll_s=0.01)) as witness:
        await witness.until(lambda: bool(witness.lost))
        path.write_text("hello\n")
        await witness.until(lambda: bool(witness.recovered) and len(witness.readings) == 1)
    assert witness.readings[0].text == "hello"
