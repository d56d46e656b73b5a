"""The driver process: its messages, its last words, and that it ends with its owner."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import orjson
import pytest
import soundfile
from sensing import children

from fakes import wait_for
from sensors.base import SensorLost
from sensors.drivers import opencv, process
from sensors.drivers.driver_handle import DriverProcess
from sensors.drivers.messages import HEADER, DriverMessage, MessageSender, read_message
from sensors.drivers.opencv import CaptureJob
from sensors.drivers.portaudio import PlayJob, RecordJob
from sensors.drivers.process import pack_job, serve, unpack_job

ROOT = Path(__file__).parents[3]


@pytest.fixture
def ends() -> Iterator[tuple[socket.socket, socket.socket]]:
    mine, theirs = socket.socketpair()
    with mine, theirs:
        yield mine, theirs


def everything(connection: socket.socket) -> list[DriverMessage]:
    messages = []
    while (message := read_message(connection)) is not None:
        messages.append(message)
        if message.kind in "EX":
            break
    return messages


@pytest.mark.parametrize(
    "job", [CaptureJob("rtsp://u:p@h/x", 10.0, False, None, 480, 99), RecordJob("mic", 48_000), PlayJob("a.wav", True)]
)
def test_jobs_survive_the_way(job: process.Job) -> None:
    line = pack_job(job)
    assert line.endswith(b"\n")
    assert unpack_job(line) == job


def test_the_newest_frame_wins_and_the_others_are_counted(ends: tuple[socket.socket, socket.socket]) -> None:
    mine, theirs = ends
    theirs.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4_096)
    mailbox = MessageSender(theirs)
    mailbox.opened(25.0)
    for number in range(5):  # the first one or two leave; the rest wait, for the reader sleeps
        mailbox.frame(float(number), np.full((100, 100, 3), number, np.uint8))
    closing = threading.Thread(target=mailbox.close)
    closing.start()
    messages = everything(mine)
    closing.join()
    frames = [message for message in messages if message.kind == "F"]
    assert frames[-1].stamp_s == 4.0
    assert np.frombuffer(frames[-1].body, np.uint8).reshape(100, 100, 3).max() == 4
    assert sum(message.kind == "D" and message.text == "superseded" for message in messages) == 5 - len(frames)
    assert [orjson.loads(message.body) for message in messages if message.kind == "O"] == [{"fps": 25.0}]
    assert messages[-1].kind == "X"


def test_no_one_listening_stops_the_mailbox() -> None:
    mine, theirs = socket.socketpair()
    mine.close()
    mailbox = MessageSender(theirs)
    mailbox.drop("undecodable")
    mailbox.close()
    theirs.close()
    assert not mailbox._thread.is_alive()


def test_a_lost_source_is_the_last_message(ends: tuple[socket.socket, socket.socket]) -> None:
    mine, theirs = ends
    hook = sys.excepthook
    try:
        serve(theirs, pack_job(PlayJob("/nowhere.wav", loop=False)))
    finally:
        sys.excepthook = hook
    (last,) = everything(mine)
    assert (last.kind, last.text) == ("E", "/nowhere.wav: no such file")


def test_a_video_and_a_sound_are_served_to_their_end(
    tmp_path: Path, ends: tuple[socket.socket, socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    cv2 = opencv.load()
    writer = cv2.VideoWriter(str(tmp_path / "v.avi"), cv2.VideoWriter_fourcc(*"MJPG"), 50.0, (64, 48))
    for _ in range(3):
        writer.write(np.full((48, 64, 3), 90, np.uint8))
    writer.release()
    soundfile.write(tmp_path / "s.wav", np.full(800, 0.5), 8_000)
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    mine, theirs = ends
    serve(theirs, pack_job(CaptureJob(str(tmp_path / "v.avi"), 50.0, False, None, None, 10_000)))
    kinds = [message.kind for message in everything(mine) if message.kind != "D"]
    assert kinds[-1] == "X"
    assert {"O", "F"} <= set(kinds)
    serve(theirs, pack_job(PlayJob(str(tmp_path / "s.wav"), loop=False)))
    sounds = [message for message in everything(mine) if message.kind == "S"]
    assert sum(len(message.body) for message in sounds) == 4 * 800
    assert {message.first for message in sounds} == {8_000}


def test_an_unforeseen_error_is_reported(
    ends: tuple[socket.socket, socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    mine, theirs = ends
    with pytest.raises(TypeError):
        serve(theirs, orjson.dumps({"job": "PlayJob", "wrong": 1}) + b"\n")
    sys.excepthook(TypeError, TypeError("wrong"), None)
    assert everything(mine)[-1].text == "TypeError: wrong"


def test_nonsense_from_a_driver_is_refused(ends: tuple[socket.socket, socket.socket]) -> None:
    mine, theirs = ends
    theirs.sendall(HEADER.pack(b"F", 0.0, 1, 1, 2**31))
    with pytest.raises(SensorLost, match="announced"):
        read_message(mine)


def test_a_message_cut_by_death_is_none(ends: tuple[socket.socket, socket.socket]) -> None:
    mine, theirs = ends
    theirs.sendall(HEADER.pack(b"F", 0.0, 1, 1, 300) + b"cut")
    theirs.close()
    assert read_message(mine) is None
    mine.close()
    assert read_message(mine) is None


def test_a_driver_that_was_stopped_before_it_began_says_nothing() -> None:
    process = DriverProcess("front", PlayJob("/nowhere.wav", loop=False))
    process.stop()
    assert list(process.messages()) == []
    process.stop()
    assert process.exit_status is not None


def test_a_driver_ends_with_its_owner(tmp_path: Path) -> None:
    """The owner is killed: the driver sees its socket close, or its parent die, and goes."""
    soundfile.write(tmp_path / "s.wav", np.zeros(800), 8_000)
    owner = (
        "import sys; from sensors.drivers.driver_handle import DriverProcess; from sensors.drivers.portaudio import PlayJob\n"
        "driver = DriverProcess('room', PlayJob(sys.argv[1], loop=True))\n"
        "for message in driver.messages(): print(driver._process.pid, flush=True)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", owner, str(tmp_path / "s.wav")], stdout=subprocess.PIPE, cwd=ROOT, env=os.environ
    )
    assert process.stdout is not None
    pid = int(process.stdout.readline())
    assert Path(f"/proc/{pid}").exists()
    process.kill()
    process.wait()
    process.stdout.close()
    wait_for(lambda: gone(pid), "the driver outlived its owner", 60.0)


def gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


def test_a_password_is_not_among_the_arguments() -> None:
    before = children()
    process = DriverProcess("front", CaptureJob("http://user:secret@127.0.0.1:9/", 1.0, False, None, None, 100))
    seen: list[bytes] = []
    reader = threading.Thread(target=lambda: [seen.append(b"") for _ in process.messages()])
    reader.start()
    wait_for(lambda: bool(children() - before), "no driver was started", 60.0)
    arguments = [Path(f"/proc/{pid}/cmdline").read_bytes() for pid in children() - before]
    process.stop()
    reader.join()
    assert arguments
    assert not any(b"secret" in line for line in arguments)


def test_main_reads_its_job_does_it_and_leaves(
    ends: tuple[socket.socket, socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In this process, so without its limits; the real process is used by every other test."""
    mine, theirs = ends
    left, watched = threading.Semaphore(0), threading.Event()
    monkeypatch.setattr(process, "_limit", lambda: None)
    monkeypatch.setattr(process.signal, "signal", lambda *_: None)
    monkeypatch.setattr(process.os, "_exit", lambda _status: left.release())
    monkeypatch.setattr(process, "_watch", lambda connection: watched.set())
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    job = pack_job(PlayJob("/nowhere.wav", loop=False))
    mine.sendall(job)
    process.main(["front", str(os.dup(theirs.fileno()))])
    assert left.acquire(timeout=60.0), "it leaves when the job is done"
    assert everything(mine)[-1].kind == "E"
    assert watched.wait(5.0)


def test_the_watch_leaves_when_the_owner_is_gone(
    ends: tuple[socket.socket, socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    mine, theirs = ends
    left: list[int] = []
    monkeypatch.setattr(process.os, "_exit", left.append)
    mine.sendall(b"not a word is expected")
    mine.close()
    process._watch(theirs)
    assert left == [0]


def test_main_without_a_job_does_nothing(
    ends: tuple[socket.socket, socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    mine, theirs = ends
    monkeypatch.setattr(process, "_limit", lambda: None)
    monkeypatch.setattr(process.signal, "signal", lambda *_: None)
    mine.sendall(b'{"job":')
    mine.close()
    played: list[object] = []
    monkeypatch.setattr(process, "serve", lambda *job: played.append(job))
    process.main(["front", str(os.dup(theirs.fileno()))])
    assert played == []


def test_a_recording_job_reaches_the_sound_device(
    ends: tuple[socket.socket, socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    mine, theirs = ends
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    monkeypatch.setitem(sys.modules, "sounddevice", None)
    serve(theirs, pack_job(RecordJob(None, 16_000)))
    assert "pip install" in everything(mine)[-1].text
