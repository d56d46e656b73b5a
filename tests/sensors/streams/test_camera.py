"""Real video: a file at its own pace, an HTTP MJPEG server, and what is missing or broken."""

from __future__ import annotations

import os
import resource
import signal
import socket
import struct
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from sensing import Running, Start, children, descriptors, eventually

from fakes import Contention
from sensors.base import Sensor, SensorLost
from sensors.config import CameraSettings, public_source, secrets_in
from sensors.drivers import opencv
from sensors.drivers.opencv import CaptureJob, FrameRateLimit, SourceClock
from sensors.drivers.watchdog import Absent
from sensors.readings import Frame
from sensors.streams.camera import CameraSensor, connectable, probe

VTEST = Path("/usr/share/doc/opencv-doc/examples/data/vtest.avi")
TREE = VTEST.with_name("tree.avi")
needs_video = pytest.mark.skipif(not VTEST.exists(), reason="apt-get install opencv-doc")


def camera(source: int | str, **more: object) -> CameraSensor:
    return CameraSensor("front", CameraSettings.model_validate({"kind": "camera", "source": source, **more}))


class Sink:
    """Takes what `capture` offers; stops it after `enough` frames."""

    def __init__(self, enough: int) -> None:
        self.stop = threading.Event()
        self.stamps: list[float] = []
        self.images: list[NDArray[np.uint8]] = []
        self.fps = -1.0
        self.drops: list[str] = []
        self._enough = enough

    def frame(self, stamp_s: float, image: NDArray[np.uint8]) -> None:
        self.stamps.append(stamp_s)
        self.images.append(image)
        if len(self.images) >= self._enough:
            self.stop.set()

    def opened(self, fps: float) -> None:
        self.fps = fps

    def drop(self, cause: str) -> None:
        self.drops.append(cause)
        self.stop.set()


def short_video(path: Path, frames: int, fps: float = 50.0) -> Path:
    """Frames of growing brightness, written by OpenCV itself."""
    cv2 = opencv.load()
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), fps, (64, 48))
    for number in range(frames):
        writer.write(np.full((48, 64, 3), 8 * number, np.uint8))
    writer.release()
    return path


@needs_video
async def test_a_file_plays_at_its_own_pace_and_rate_hz_says_how_many_are_seen(running: Running) -> None:
    sensor = camera(str(TREE), rate_hz=5)
    assert isinstance(sensor, Sensor)
    contention = Contention()
    async with running(sensor) as witness:
        await witness.until(lambda: len(witness.readings) >= 6)
    frames = [reading for reading in witness.readings if isinstance(reading, Frame)]
    assert frames[0].image.shape == (240, 320, 3)
    assert frames[0].image.dtype == np.uint8
    assert [frame.seq for frame in frames[:6]] == [1, 2, 3, 4, 5, 6]
    gaps = np.diff([frame.stamp_s for frame in frames[:6]])
    assert gaps.mean() == pytest.approx(0.2, abs=0.05 + contention.s / 5)
    assert max(np.subtract(witness.arrivals_s, [frame.stamp_s for frame in frames])) < 0.5 + contention.s


@needs_video
async def test_a_rate_above_the_files_own_does_not_hurry_it(running: Running) -> None:
    contention = Contention()
    async with running(camera(str(VTEST), rate_hz=50)) as witness:
        await witness.until(lambda: len(witness.readings) >= 8)
        assert witness.lost == []
    gaps = np.diff([reading.stamp_s for reading in witness.readings])
    assert np.median(gaps) == pytest.approx(0.1, abs=0.02 + contention.s / 7)


async def test_a_file_ends_or_loops(tmp_path: Path, running: Running) -> None:
    path = short_video(tmp_path / "short.avi", 10)
    async with running(camera(str(path), rate_hz=50)) as witness:
        await witness.until(lambda: bool(witness.lost))
        assert "has ended" in witness.lost[0][1]
        assert 1 <= len(witness.readings) <= 10
    async with running(camera(f"file:{path}", rate_hz=50, loop=True)) as witness:
        await witness.until(lambda: len(witness.readings) >= 25)
        assert witness.lost == []


async def test_what_is_not_there_is_reported_and_found_when_it_comes(tmp_path: Path, running: Running) -> None:
    path = tmp_path / "later.avi"
    async with running(camera(str(path), rate_hz=50, loop=True)) as witness:
        await witness.until(lambda: bool(witness.lost))
        assert "no such file" in witness.lost[0][1]
        short_video(tmp_path / "ready.avi", 10).rename(path)
        await witness.until(lambda: bool(witness.recovered))


async def test_a_driver_that_is_frozen_or_killed_is_replaced_and_leaks_nothing(
    tmp_path: Path, running: Running
) -> None:
    sensor = camera(str(short_video(tmp_path / "short.avi", 10)), rate_hz=50, loop=True)
    before = children()
    async with running(sensor) as witness:
        await witness.until(lambda: len(witness.readings) > 3)
        held = descriptors()
        for kind in (signal.SIGSTOP, signal.SIGKILL):
            (driver,) = children() - before
            os.kill(driver, kind)
            await witness.until(lambda: not witness.well)
            await eventually(lambda driver=driver: driver not in children())
            seen = len(witness.readings)
            await witness.until(lambda seen=seen: witness.well and len(witness.readings) > seen)
            assert descriptors() == held
        assert sensor.counts["replaced"] >= 1
    await eventually(lambda: children() <= before)


@pytest.mark.device
async def test_http_mjpeg(tmp_path: Path, port: int, start: Start, running: Running) -> None:
    files = []
    for name, colour in (("red", (255, 0, 0)), ("blue", (0, 0, 255))):
        files.append(tmp_path / f"{name}.jpg")
        files[-1].write_bytes(opencv.encode(np.full((48, 64, 3), colour, np.uint8)))
    server = start(sys.executable, Path(__file__).with_name("mjpeg_server.py"), str(port), "20", *files)
    sensor = camera(f"http://127.0.0.1:{port}/", rate_hz=20)
    async with running(sensor) as witness:
        await witness.until(lambda: len(witness.readings) >= 10)
        colours = {tuple(int(v > 128) for v in reading.image[24, 32]) for reading in witness.readings}  # type: ignore[union-attr]
        assert colours == {(1, 0, 0), (0, 0, 1)}
        server.kill()
        await witness.until(lambda: bool(witness.lost))
        start(sys.executable, Path(__file__).with_name("mjpeg_server.py"), str(port), "20", *files)
        await witness.until(lambda: bool(witness.recovered))


@pytest.mark.device
async def test_a_lying_mjpeg_camera_harms_only_its_driver(
    tmp_path: Path, port: int, start: Start, running: Running
) -> None:
    """Pictures that claim 40,000 x 40,000 pixels: never a frame, and neither process takes the 5 GB."""
    honest = opencv.encode(np.zeros((48, 64, 3), np.uint8))
    at = honest.index(b"\xff\xc0") + 5
    (tmp_path / "liar.jpg").write_bytes(honest[:at] + struct.pack(">HH", 40_000, 40_000) + honest[at + 4 :])
    server = Path(__file__).with_name("mjpeg_server.py")
    start(sys.executable, server, str(port), "20", tmp_path / "liar.jpg")
    mine, theirs = (resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    async with running(camera(f"http://127.0.0.1:{port}/", rate_hz=20)) as witness:
        await witness.until(lambda: bool(witness.lost))
        assert witness.readings == []
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - mine < 50_000
    assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss - theirs < 1_000_000


async def test_an_http_server_without_video_is_reported(
    tmp_path: Path, port: int, start: Start, running: Running
) -> None:
    server = (
        "import http.server,sys;s=http.server.ThreadingHTTPServer(('127.0.0.1',int(sys.argv[1])),"
        "http.server.BaseHTTPRequestHandler);print('ready',flush=True);s.serve_forever()"
    )
    start(sys.executable, "-c", server, str(port))
    async with running(camera(f"http://127.0.0.1:{port}/")) as witness:
        await witness.until(lambda: bool(witness.lost))
        assert "cannot be opened" in witness.lost[0][1]


@pytest.mark.parametrize("source", [250, "/nowhere.avi", "rtsp://127.0.0.1:1/x", "rtsp:///x"])
def test_absent_sources_are_found_out_cheaply(source: int | str) -> None:
    with pytest.raises(Absent):
        probe(source)


def test_capture_keeps_the_pace_and_the_order_of_a_file(tmp_path: Path) -> None:
    sink = Sink(8)
    job = CaptureJob(str(short_video(tmp_path / "short.avi", 30)), 50.0, True, None, None, 10_000)
    contention = Contention()
    opencv.capture(job, sink, sink.stop)
    assert sink.fps == 50.0
    brightness = [int(image.mean()) for image in sink.images]
    assert brightness == sorted(brightness)
    assert np.median(np.diff(sink.stamps)) == pytest.approx(0.02, abs=0.01 + contention.s / 7)


def test_capture_refuses_large_pictures_and_files_without_any(tmp_path: Path) -> None:
    path = str(short_video(tmp_path / "short.avi", 3))
    sink = Sink(1)
    with pytest.raises(SensorLost, match="max_pixels"):
        opencv.capture(CaptureJob(path, 50.0, True, None, None, 100), sink, sink.stop)
    (tmp_path / "text.avi").write_text("no video")
    with pytest.raises(SensorLost, match="cannot be opened"):
        opencv.capture(CaptureJob(str(tmp_path / "text.avi"), 50.0, False, None, None, 100), sink, sink.stop)
    with pytest.raises(SensorLost, match="cannot be opened"):
        opencv.capture(CaptureJob(250, 50.0, False, 640, 480, 10_000), sink, sink.stop)


class Device:
    """A camera driver's object that misbehaves: what `cv2.VideoCapture` may do, by the book."""

    def __init__(self, pictures: list[NDArray[np.uint8] | None]) -> None:
        self.pictures = pictures
        self.wanted: dict[int, float] = {}

    def isOpened(self) -> bool:  # noqa: N802 - OpenCV's name
        return True

    def get(self, key: int) -> float:
        return {5: 90_000.0}.get(key, 0.0)

    def set(self, key: int, value: float) -> bool:
        self.wanted[key] = value
        return True

    def grab(self) -> bool:
        return bool(self.pictures)

    def retrieve(self) -> tuple[bool, NDArray[np.uint8] | None]:
        picture = self.pictures.pop(0)
        return picture is not None, picture

    def release(self) -> None:
        self.pictures = []


def test_capture_counts_bad_pictures_of_a_device_and_says_when_it_stops(monkeypatch: pytest.MonkeyPatch) -> None:
    cv2 = opencv.load()
    grey = np.full((4, 6), 7, np.uint8)
    device = Device([None, np.zeros((200, 200, 3), np.uint8), np.zeros((0, 0, 3), np.uint8), grey])
    monkeypatch.setattr(cv2, "VideoCapture", lambda *_: device)
    sink = Sink(99)
    with pytest.raises(SensorLost, match="stopped delivering"):
        opencv.capture(CaptureJob(0, 1e6, False, 640, 480, 10_000), sink, threading.Event())
    assert sink.drops == ["undecodable", "too_many_pixels", "undecodable"]
    assert [image.shape for image in sink.images] == [(4, 6, 3)]
    assert sink.fps == 0.0
    assert device.wanted == {38: 1, 3: 640, 4: 480}


@pytest.mark.parametrize(
    ("source_hz", "rate_hz", "received_hz"), [(30, 10, 10), (15, 10, 10), (10, 10, 10), (5, 10, 5)]
)
def test_the_pace_keeps_as_many_as_asked(source_hz: float, rate_hz: float, received_hz: float) -> None:
    pace, generator = FrameRateLimit(rate_hz), np.random.default_rng(3)
    stamps = np.arange(0, 20, 1 / source_hz) + generator.normal(0, 0.003, 20 * int(source_hz))
    assert sum(pace.due(stamp) for stamp in stamps) / 20 == pytest.approx(received_hz, rel=0.05)


def test_a_burst_after_a_stall_keeps_its_true_stamps() -> None:
    clock = SourceClock()
    taken = [0.1 * number for number in range(1, 11)]
    arrived = [100.4, 100.45, *(100.2 + t for t in taken[2:5]), 101.5, 101.5, 101.5, 101.5, 101.2 + 0.3]
    stamps = [clock.stamp_s(t, a) for t, a in zip(taken, arrived, strict=True)]
    assert stamps[2:] == pytest.approx([100.2 + t for t in taken[2:]], abs=0.002)
    assert all(stamp <= arrival for stamp, arrival in zip(stamps, arrived, strict=True))


def test_a_source_without_stamps_is_stamped_at_arrival_and_a_drifting_one_followed() -> None:
    clock = SourceClock()
    assert [clock.stamp_s(0.0, now) for now in (5.0, 6.0, 8.0)] == [5.0, 6.0, 8.0]
    drifting = SourceClock()
    late = [now - drifting.stamp_s(now * (1 - 1e-4), now) for now in np.arange(1.0, 3_600.0, 0.1)]
    assert max(late) < 0.001


@pytest.mark.parametrize(("true_hz", "stated_hz"), [(30 / 1.001, 30.0), (60 / 1.001, 60.0), (30.0, 30 / 1.001)])
def test_pictures_of_a_camera_with_nominal_stamps_do_not_grow_old(true_hz: float, stated_hz: float) -> None:
    clock = SourceClock()
    late = [n / true_hz - clock.stamp_s(n / stated_hz, n / true_hz) for n in range(1, round(1_800 * true_hz))]
    assert max(late) < 0.002


@pytest.mark.parametrize(
    ("suffix", "codec"), [("mp4", "mp4v"), ("mkv", "mp4v"), ("webm", "VP80"), ("webm", "VP90"), ("ts", "mp4v")]
)
def test_every_frame_of_a_video_file_is_delivered(tmp_path: Path, suffix: str, codec: str) -> None:
    cv2 = opencv.load()
    path = tmp_path / f"film.{suffix}"
    writer = cv2.VideoWriter(str(path), cv2.CAP_FFMPEG, cv2.VideoWriter_fourcc(*codec), 100.0, (64, 48))
    for number in range(30):
        writer.write(np.full((48, 64, 3), 8 * number, np.uint8))
    writer.release()
    sink = Sink(enough=1_000)
    opencv.capture(CaptureJob(str(path), 1_000_000.0, False, None, None, 10_000), sink, sink.stop)
    assert [len(sink.images), sink.drops] == [30, []]


def test_every_frame_of_a_gif_is_delivered(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (64, 48), (8 * number, 0, 0)) for number in range(30)]
    frames[0].save(tmp_path / "film.gif", save_all=True, append_images=frames[1:], duration=20)
    sink = Sink(enough=1_000)
    opencv.capture(CaptureJob(str(tmp_path / "film.gif"), 1_000_000.0, False, None, None, 10_000), sink, sink.stop)
    assert len(sink.images) == 30


def test_live_options_are_for_live_sources_alone(tmp_path: Path) -> None:
    """FFmpeg with `nobuffer` finds no picture in some files; a live source needs it."""
    path = short_video(tmp_path / "film.avi", 2)
    sink = Sink(enough=1)
    opencv.capture(CaptureJob(str(path), 1_000.0, False, None, None, 10_000), sink, sink.stop)
    assert "nobuffer" not in os.environ["OPENCV_FFMPEG_CAPTURE_OPTIONS"]
    with pytest.raises(SensorLost, match="cannot be opened"):
        opencv.capture(CaptureJob("http://127.0.0.1:9/none", 1_000.0, False, None, None, 10_000), sink, sink.stop)
    assert "nobuffer" in os.environ["OPENCV_FFMPEG_CAPTURE_OPTIONS"]


@pytest.mark.parametrize(
    ("password", "escaped"),
    [
        ("sEcr#t1", "sEcr%23t1"),
        ("sEcr@t2", "sEcr%40t2"),
        ("sEcr/t3", "sEcr%2Ft3"),
        ("sEcr?t4", "sEcr%3Ft4"),
        ("sEcr%t5", "sEcr%25t5"),
        ("sEcr[t6", "sEcr%5Bt6"),
        ("sEcr:t7", "sEcr%3At7"),
        ("sEcr%23t8", "sEcr%23t8"),
        ("sEcr t9", "sEcr%20t9"),
        ("söcr€t", "s%C3%B6cr%E2%82%ACt"),
    ],
)
def test_password_of_any_characters_reaches_the_camera(password: str, escaped: str) -> None:
    source = f"rtsp://cam:{password}@127.0.0.1:554/stream?channel=1"
    assert connectable(source) == f"rtsp://cam:{escaped}@127.0.0.1:554/stream?channel=1"
    assert public_source(source) == "rtsp://127.0.0.1:554/stream"


@pytest.mark.parametrize(
    "source",
    ["http://host/@user/video", "http://host:8080/@user/video", "http://host/video", "rtsp://[::1]:554/a", "film.mp4"],
)
def test_address_without_a_password_is_left_as_it_is(source: str) -> None:
    assert connectable(source) == source


def test_http_password_with_a_slash_is_escaped() -> None:
    assert connectable("http://cam:a/b@host:80/v") == "http://cam:a%2Fb@host:80/v"


@pytest.mark.parametrize(
    "source",
    [
        "rtsp://cam:sEcr#t1@127.0.0.1:9/test",
        "rtsp://cam:sEcr[t6@127.0.0.1:9/test",
        "rtsp://cam:sEcrt10@127.0.0.1:99999/test",
        "rtsp://cam:sEcr@",
        "rtsp://cam:sEcrt@no.such.host.invalid/test",
        "http://cam:sEcr/t@127.0.0.1:9/test",
        "rtsp://cam:sEcr@[::1/test",
        "rtsp://cam:sEcr@cam..local/test",
        f"rtsp://cam:sEcr@{'cam' * 30}.local/test",
        "rtsp://cam:sEcr@\udcff/test",
        "rtsp://cam:sEcr@h\0st/test",
        "RTSP://cam:12/3sEcr@127.0.0.1:9/test",
        "rtsp://cam:sEcr℀@127.0.0.1:9/test",
        "rtsp://cam:sEcr@127.0.0.1:\uff19\uff19/test",
        "rtsp://127.0.0.1:9/user=admin&password=sEcr&channel=1",
        "rtsp://127.0.0.1:9/user=admin_password=sEcr_channel=1_stream=0.sdp?real_stream",
        "http://127.0.0.1:9/video.cgi?loginuse=admin&loginpas=sEcr",
    ],
)
async def test_absent_camera_is_reported_again_and_again_without_its_password(source: str, running: Running) -> None:
    sensor = camera(source)
    async with running(sensor) as witness:
        await eventually(lambda: sensor.counts["failed"] >= 2, 60.0)
    assert len(witness.lost) == 1
    assert "sEcr" not in witness.lost[0][1]
    assert "bug" not in witness.lost[0][1]


@pytest.mark.parametrize(
    ("source", "shown"),
    [
        ("rtsp://h/user=admin&password=sEcr&channel=1", "rtsp://h/***"),
        ("rtsp://h/user=admin_password=sEcr_channel=1_stream=0.sdp?real_stream", "rtsp://h/***"),
        ("http://h/v.cgi?loginuse=admin&loginpas=sEcr", "http://h/v.cgi"),
        ("http://h/v.cgi?user=admin&pwd=sEcr", "http://h/v.cgi"),
        ("rtsp://h/Streaming/Channels/101", "rtsp://h/Streaming/Channels/101"),
        ("rtsp://h/cam/realmonitor?channel=1&subtype=0", "rtsp://h/cam/realmonitor"),
    ],
)
def test_a_password_that_the_address_names_elsewhere_is_a_secret_and_not_shown(source: str, shown: str) -> None:
    assert public_source(source) == shown
    assert secrets_in(source) == ({"sEcr"} if "sEcr" in source else set())


def test_a_file_that_cannot_be_looked_for_is_named(tmp_path: Path) -> None:
    with pytest.raises(Absent, match="File name too long"):
        probe(str(tmp_path / ("a" * 300 + ".mp4")))


@pytest.mark.parametrize(
    "source", ["rtsp/clip.mp4", "http.mp4", "file:///films/a.mp4", "C:/a.mp4", " rtsp://h/x", "RTSPS://h/x"]
)
def test_sources_that_can_be_opened_are_accepted(source: str) -> None:
    assert camera(source).name


def answering(status: str, method: str) -> int:
    """Serve RTSP on a free port until the process ends: everything is fine but `method`, which gets `status`."""
    listener = socket.create_server(("127.0.0.1", 0))
    sdp = b"v=0\r\no=- 0 0 IN IP4 127.0.0.1\r\ns=x\r\nt=0 0\r\nm=video 0 RTP/AVP 26\r\na=control:track1\r\n"

    def answer(request: bytes) -> bytes:
        lines = request.split(b"\r\n")
        sequence = next(line for line in lines if line.lower().startswith(b"cseq"))
        if lines[0].startswith(method.encode()):
            login = b'WWW-Authenticate: Basic realm="cam"\r\n' if status.startswith("401") else b""
            return b"RTSP/1.0 " + status.encode() + b"\r\n" + sequence + b"\r\n" + login + b"\r\n"
        head = b"RTSP/1.0 200 OK\r\n" + sequence + b"\r\n"
        if lines[0].startswith(b"DESCRIBE"):
            return head + b"Content-Type: application/sdp\r\nContent-Length: %d\r\n\r\n" % len(sdp) + sdp
        return head + b"Public: DESCRIBE, SETUP, PLAY\r\n\r\n"

    def serve() -> None:
        while True:
            connection, _ = listener.accept()
            with connection:
                waiting = b""
                while data := connection.recv(4_096):
                    waiting += data
                    while b"\r\n\r\n" in waiting:
                        request, _, waiting = waiting.partition(b"\r\n\r\n")
                        connection.sendall(answer(request))

    threading.Thread(target=serve, daemon=True).start()
    return int(listener.getsockname()[1])


@pytest.mark.parametrize(
    ("status", "method", "reason"),
    [
        ("401 Unauthorized", "DESCRIBE", "refuses the login (401); check user and password"),
        ("404 Not Found", "DESCRIBE", "no such path (404)"),
        ("461 Unsupported Transport", "SETUP", "no transport over TCP (461)"),
        ("503 Service Unavailable", "DESCRIBE", "status 503"),
    ],
)
async def test_refusals_of_a_camera_are_distinguished(status: str, method: str, reason: str, running: Running) -> None:
    port = answering(status, method)
    async with running(camera(f"rtsp://cam:sEcr/t@127.0.0.1:{port}/1")) as witness:
        await witness.until(lambda: bool(witness.lost), within_s=20.0)
    assert reason in witness.lost[0][1]
    assert "sEcr" not in witness.lost[0][1]
