"""Logging: one shape for all records, and no secret in any of them."""

from __future__ import annotations

import io
import logging
import os
from collections.abc import Iterator
from pathlib import Path

import canaries
import orjson
import pytest
import structlog
from canaries import ODD

from runtime.process import log


@pytest.fixture
def out() -> Iterator[io.StringIO]:
    stream = io.StringIO()
    before, level = logging.getLogger().handlers[:], logging.getLogger().level
    try:
        yield stream
    finally:
        logging.getLogger().handlers[:] = before
        logging.getLogger().setLevel(level)
        structlog.reset_defaults()


def records(out: io.StringIO) -> list[dict[str, object]]:
    return [orjson.loads(line) for line in out.getvalue().splitlines()]


def test_structlog_and_the_standard_library_look_alike(out: io.StringIO) -> None:
    log.configure(stream=out)
    structlog.get_logger("a").info("ours", n=1)
    logging.getLogger("b").warning("theirs %d", 2)
    structlog.get_logger("a").debug("hidden")
    ours, theirs = records(out)
    assert (ours["event"], ours["n"], ours["level"]) == ("ours", 1, "info")
    assert (theirs["event"], theirs["logger"], theirs["level"]) == ("theirs 2", "b", "warning")
    assert str(ours["timestamp"]).endswith("Z")


@pytest.mark.parametrize(
    "value",
    [
        ODD,
        f"rtsp://u:{ODD}@cam/1",
        f"rtsp://u:{canaries.IN_A_URL}@cam/1",
        {"deep": [{ODD: (ODD, 1)}]},
        {ODD},
        ValueError(ODD),
        ODD.encode(),
    ],
)
def test_secrets_are_scrubbed_wherever_they_stand(out: io.StringIO, value: object) -> None:
    log.configure(stream=out, secrets={ODD})
    structlog.get_logger().info(f"event {ODD}", value=value)
    logging.getLogger("b").error("record %s", value)
    assert canaries.MARK not in out.getvalue()
    assert len(records(out)) == 2


def test_tracebacks_are_scrubbed(out: io.StringIO) -> None:
    log.configure(stream=out, secrets={ODD})
    try:
        int(f"login {ODD} failed")
    except ValueError:
        structlog.get_logger().exception("ours")
        logging.getLogger("b").exception("theirs")
    assert canaries.MARK not in out.getvalue()
    assert out.getvalue().count("ValueError") >= 2


def test_secrets_may_come_later_and_short_ones_hide_only_themselves(out: io.StringIO) -> None:
    scrubber = log.configure(stream=out)
    scrubber.add(["later-secret", "7", ""])
    structlog.get_logger().info("e", whole="7", part="17", late="x later-secret y")
    record = records(out)[0]
    assert (record["whole"], record["part"], record["late"]) == ("***", "17", "x *** y")


def test_only_texts_are_scrubbed_where_numbers_must_stay_numbers() -> None:
    data = {"reason": "login 1234 refused", "n": 1234, "list": ["x", ("1234", None)], "deep": {"1234": 1234.5}}
    assert log.Scrubber(["1234"]).strings(data) == {
        "reason": "login *** refused",
        "n": 1234,
        "list": ["x", ["***", None]],
        "deep": {"***": 1234.5},
    }


def test_a_longer_secret_is_hidden_whole(out: io.StringIO) -> None:
    scrubber = log.Scrubber(["secret", "secret-and-more"])
    assert scrubber.text("a secret-and-more b") == "a *** b"


def test_very_deep_values_are_cut(out: io.StringIO) -> None:
    value: object = ODD
    for _ in range(30):
        value = [value]
    assert canaries.MARK not in str(log.Scrubber([ODD]).value(value))


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_gets_words(out: io.StringIO) -> None:
    terminal = Terminal()
    log.configure(stream=terminal, verbose=True, secrets=[ODD])
    structlog.get_logger().debug("shown", key=ODD)
    assert "shown" in terminal.getvalue()
    assert canaries.MARK not in terminal.getvalue()
    assert not terminal.getvalue().startswith("{")


def test_an_output_that_takes_nothing_costs_the_lines_alone(
    out: io.StringIO, capfd: pytest.CaptureFixture[str]
) -> None:
    """A log on a full disk ended the gate; a reader of a pipe that ended did so too."""
    del out
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w", encoding="utf-8") as pipe, Path("/dev/full").open("w", encoding="utf-8") as full:
        for stream in (full, pipe):
            log.configure(stream=stream)
            structlog.get_logger("a").info("ours")
            logging.getLogger("b").warning("theirs")
    assert capfd.readouterr().err == "", "logging prints a traceback of an error that its handler met"


def test_lost_lines_are_counted_when_lines_can_be_written_again(
    out: io.StringIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    log.configure(stream=out)
    with monkeypatch.context() as patch:
        patch.setattr(out, "write", lambda _text: (_ for _ in ()).throw(OSError(28, "No space left on device")))
        for _ in range(3):
            structlog.get_logger("a").info("ours")
    structlog.get_logger("a").info("back")
    lost, back = records(out)
    assert (lost["event"], lost["count"], back["event"]) == ("log.lines_lost", 3, "back")


def test_a_process_without_an_output_logs_nothing(out: io.StringIO, monkeypatch: pytest.MonkeyPatch) -> None:
    del out
    monkeypatch.setattr("sys.stderr", None)
    log.configure()
    structlog.get_logger("a").info("ours")
