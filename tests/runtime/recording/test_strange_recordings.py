"""Recordings of other programs, of other settings and with damaged messages: read rightly, or named; nothing is left out without a word."""

from __future__ import annotations

import base64
import io
import json
import resource
import struct
import tracemalloc
from pathlib import Path
from typing import Any

import lz4.frame
import numpy as np
import pytest
import zstandard
from export_world import config, export, image, lived, recorded
from mcap.reader import make_reader
from mcap.writer import CompressionType, Writer
from PIL import Image

from learners.export.lerobot_features import fitted, size_of
from runtime.recording.reader import Recording
from runtime.recording.recorder import DIGEST, digest_of
from sensors.codecs.images import decode_image
from sensors.drivers import opencv
from sensors.readings import Telemetry

__all__ = ["config"]
SINCE = ("--since", "1970-01-01 00:00:01")
Message = tuple[str, str, bytes]


def message(topic: str, schema: str, **body: Any) -> Message:
    return topic, schema, json.dumps({"timestamp": {"sec": 1_000, "nsec": 0}} | body).encode()


def decision(**more: Any) -> Message:
    return message("/decision", "reflexd.Decision", **{"id": "s-0", "tick": 0, "used": {}} | more)


def reading(stream: str, schema: str, **more: Any) -> Message:
    return message(f"/in/{stream}", schema, **{"seq": 0, "stamp_s": 0.5} | more)


def telemetry(**more: Any) -> Message:
    return reading("joints", "reflexd.Telemetry", **{"fields": ["q1", "q2"], "values": [1, 2.5]} | more)


def sound(**more: Any) -> Message:
    data = base64.b64encode(bytes(8)).decode()
    body = {"format": "pcm-s16", "sample_rate": 16_000, "number_of_channels": 1, "window": 4, "data": data}
    return reading("room", "foxglove.RawAudio", **body | more)


def picture(data: object) -> Message:
    return reading("front", "foxglove.CompressedImage", data=data)


def write(
    path: Path, messages: list[Message], *, name: str = "reflexd", encoding: str = "json", chunks: bool = True,
    compression: CompressionType = CompressionType.ZSTD, form: str = "1",
) -> Path:  # fmt: skip
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        writer = Writer(file, use_chunking=chunks, compression=compression, chunk_size=2_000)
        writer.start()
        writer.add_metadata(name, {"spec": "x", "format": form})
        channels: dict[str, int] = {}
        for topic, schema, data in messages:
            if topic not in channels:
                channels[topic] = writer.register_channel(
                    topic, encoding, writer.register_schema(schema, "jsonschema", b"{}")
                )
            writer.add_message(channels[topic], 10**12, data, 10**12)
        writer.finish()  # type: ignore[no-untyped-call]
    return path


DAMAGED = {
    "no JSON": ([("/decision", "reflexd.Decision", b"{")], "a message on /decision is not JSON"),
    "no object": ([("/decision", "reflexd.Decision", b"[1]")], "not a JSON object"),
    "no time": ([("/decision", "reflexd.Decision", b'{"id": "s-0"}')], "the timestamp None, which is none"),
    "time of words": ([decision(timestamp={"sec": "x", "nsec": 0})], "which is none"),
    "time as text": ([decision(timestamp="2026-01-01")], "which is none"),
    "time before 1970": ([decision(timestamp={"sec": -5, "nsec": 0})], "which is none"),
    "time beyond 2262": ([decision(timestamp={"sec": 10**18, "nsec": 0})], "which is none"),
    "time of a note": ([message("/x", "reflexd.Message", timestamp={"sec": 10**12, "nsec": 0}), decision()], "on /x"),
    "used null": ([decision(used=None)], "a decision with the readings None"),
    "used number": ([decision(used=5)], "a decision with the readings 5"),
    "word as number": ([telemetry(values=["x", 1]), decision()], "joints: a damaged reading"),
    "number short": ([telemetry(values=[1]), decision()], "1 numbers for 2 fields"),
    "nested": ([telemetry(values=[[1, 2]]), decision()], "joints: a damaged reading"),
    "field twice": ([telemetry(fields=["q1", "q1"]), decision()], "2 numbers for 1 fields"),
    "truth as number": ([telemetry(values=[True, 1]), decision()], "joints: a damaged reading"),
    "stamp": ([telemetry(stamp_s="a"), decision()], "joints: a damaged reading"),
    "stamp source": ([telemetry(stamp_source=["x"]), decision()], "joints: a damaged reading"),
    "number": ([telemetry(seq=0.5), decision()], "joints: a damaged reading"),
    "rate": ([sound(sample_rate=0), decision()], "1 channels at 0 Hz"),
    "stereo": ([sound(number_of_channels=2), decision()], "2 channels at 16000 Hz"),
    "window": ([sound(window=2.7), decision()], "room: a damaged reading"),
    "sound format": ([sound(format="pcm-f64"), decision()], "sound of the format 'pcm-f64'"),
    "text": ([reading("orders", "reflexd.Text", text=5), decision()], "orders: a damaged reading"),
    "schema": ([reading("x", "foo.Bar"), decision()], "no reading has the schema 'foo.Bar'"),
}  # fmt: skip


@pytest.mark.parametrize("kind", DAMAGED)
def test_a_damaged_message_is_named_and_never_guessed(config: Path, kind: str) -> None:
    """A slice is refused; a dataset leaves the recording out and says so, if it needs what is damaged."""
    messages, reason = DAMAGED[kind]
    lived(config, 2)
    write(config.parent / "state" / "recordings" / "r.mcap", messages)
    code, out = export(config, "mcap", "part.mcap", *SINCE)
    assert (code, reason in out) == (2, True), out
    assert not (config.parent / "part.mcap").exists()
    if kind.startswith(("no ", "used ")) and kind != "no time":  # decisions are found by their tick
        code, out = export(config, "lerobot", "d")
        assert (code, reason in out) == (0, True), out


@pytest.mark.parametrize("encoding", ["protobuf", "cdr", "ros1"])
def test_recordings_of_other_programs_are_refused_by_what_they_are(config: Path, encoding: str) -> None:
    lived(config, 2)
    write(config.parent / "state" / "recordings" / "r.mcap", [decision()], encoding=encoding)
    code, out = export(config, "mcap", "part.mcap", *SINCE)
    assert (code, f"in '{encoding}', not in JSON" in out) == (2, True), out
    write(config.parent / "state" / "recordings" / "r.mcap", [decision()], name="other")
    assert "not one that reflexd recorded" in export(config, "lerobot", "d")[1]
    write(config.parent / "state" / "recordings" / "r.mcap", [decision()], form="2")
    assert "a recording of format 2; this program reads 1" in export(config, "lerobot", "e")[1]


@pytest.mark.parametrize(
    ("compression", "chunks"),
    [(CompressionType.LZ4, True), (CompressionType.NONE, True), (CompressionType.NONE, False)],
)
def test_a_recording_that_another_program_compressed_is_the_same(
    config: Path, compression: CompressionType, *, chunks: bool
) -> None:
    path = recorded(lived(config))
    with path.open("rb") as file:
        found = make_reader(file).iter_messages(log_time_order=False)
        messages = [(channel.topic, schema.name if schema else "", one.data) for schema, channel, one in found]
    again = Recording(write(config.parent / "again.mcap", messages, compression=compression, chunks=chunks))
    for (fresh, body), (same, as_before) in zip(Recording(path).ticks(), again.ticks(), strict=True):
        assert body == as_before
        assert [(one.stream, one.stamp_s) for one in fresh] == [(one.stream, one.stamp_s) for one in same]


def with_chunk(path: Path, claims: int, compression: str, body: bytes) -> Recording:
    """A recording with one chunk more, which claims a size."""
    head = struct.pack("<QQQII", 0, 1, claims, 0, len(compression)) + compression.encode()
    chunk = head + struct.pack("<Q", len(body)) + body
    data = write(path, []).read_bytes()
    at = data.index(b"\x0f" + struct.pack("<Q", 4))  # the end of the data
    path.write_bytes(data[:at] + b"\x06" + struct.pack("<Q", len(chunk)) + chunk + data[at:])
    return Recording(path)


def zeros(compression: str, megabytes: int) -> bytes:
    blocks = (bytes(1 << 20) for _ in range(megabytes))
    if compression == "zstd":
        packed = zstandard.ZstdCompressor().compressobj()
        return b"".join(map(packed.compress, blocks)) + packed.flush()
    made = lz4.frame.LZ4FrameCompressor()
    return made.begin() + b"".join(map(made.compress, blocks)) + made.flush()


@pytest.mark.parametrize(
    ("claims", "compression", "megabytes", "says"),
    [
        (800 << 20, "zstd", 800, "a chunk claims 838860800 bytes"),
        (100, "zstd", 800, "a chunk claims 100 bytes and has more"),
        (100, "lz4", 800, "a chunk claims 100 bytes and has more"),
        (100 << 20, "zstd", 1, "a chunk claims 104857600 bytes and has 1048576"),
        (100 << 20, "lz4", 1, "a chunk claims 104857600 bytes and has 1048576"),
        (1 << 20, "br", 0, "a chunk in the compression 'br'"),
        (7, "", 0, "a chunk claims 7 bytes and has 0"),
    ],
)
def test_a_small_file_does_not_fill_the_memory(
    tmp_path: Path, claims: int, compression: str, megabytes: int, says: str
) -> None:
    """800 MB of zeros are 25 kB in a chunk, whatever it claims."""
    body = zeros(compression, megabytes) if megabytes else b""
    recording = with_chunk(tmp_path / "r.mcap", claims, compression, body)
    del body
    tracemalloc.start()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        assert list(recording.messages()) == []
        assert tracemalloc.get_traced_memory()[1] < 200 << 20
    finally:
        tracemalloc.stop()
    assert says in str(recording.ending("its begin"))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 150_000, "kB"


def test_a_size_in_the_frame_itself_is_not_believed(tmp_path: Path) -> None:
    """One-shot decompression takes the memory that the frame claims, here 3 GB."""
    frame = zstandard.ZstdCompressor().compress(bytes(1 << 20))
    assert frame[:4] == b"\x28\xb5\x2f\xfd"
    lying = frame[:4] + b"\xa0" + struct.pack("<I", 3 << 30) + frame[9:]
    recording = with_chunk(tmp_path / "r.mcap", 1 << 20, "zstd", lying)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert list(recording.messages()) == []
    assert recording.damage
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 150_000, "kB"


@pytest.mark.parametrize("behind", [("metadata",), ("attachments",), ("metadata", "attachments")])
def test_what_another_program_has_put_behind_the_messages_is_found(tmp_path: Path, behind: tuple[str, ...]) -> None:
    path, snapshot = tmp_path / "r.mcap", b"a snapshot"
    noted = {"spec": "x", "format": "1", f"{DIGEST}state": digest_of(snapshot)}
    with path.open("wb") as file:
        writer = Writer(file, chunk_size=100)
        writer.start()

        def put(*kinds: str) -> None:
            if "metadata" in kinds:
                writer.add_metadata("reflexd", noted)
            if "attachments" in kinds:
                writer.add_attachment(0, 0, "state", "application/octet-stream", snapshot)

        put(*{"metadata", "attachments"}.difference(behind))
        channel = writer.register_channel("/decision", "json", 0)
        for n in range(20):
            writer.add_message(channel, n, decision(id=f"s-{n}")[2], n)
        put(*behind)
        writer.finish()  # type: ignore[no-untyped-call]
    recording = Recording(path)
    assert recording.metadata() == noted
    assert recording.attachments() == {"state": snapshot}
    assert [body["id"] for _, body in recording.ticks()] == [f"s-{n}" for n in range(20)]


def test_a_number_that_was_not_finite_is_none_in_a_slice_too(config: Path) -> None:
    lived(config, 2)
    write(
        config.parent / "state" / "recordings" / "r.mcap", [telemetry(values=[None, 2]), decision(used={"joints": 0})]
    )
    assert export(config, "mcap", "part.mcap", *SINCE)[0] == 0
    ((fresh, _),) = Recording(config.parent / "part.mcap").ticks()
    assert isinstance(fresh[0], Telemetry)
    np.testing.assert_array_equal(fresh[0].values, [np.nan, 2])


def test_a_recording_that_was_cut_off_is_named(config: Path) -> None:
    path = recorded(lived(config))
    path.write_bytes(path.read_bytes()[:-9])
    for form, options in (("mcap", ()), ("mcap", SINCE), ("lerobot", ())):
        code, out = export(config, form, f"{form}{len(options)}", *options)
        assert (code, "cut off after" in out) == (0, True), out
    path.write_bytes(path.read_bytes()[:500])
    code, out = export(config, "mcap", "begin", *SINCE)
    assert (code, "cut off after its last chunk" in out) == (2, True), out
    assert "r.mcap: cut off after its begin" in export(config, "lerobot", "e")[1]


@pytest.mark.parametrize("data", ["!!!", "", 5, None, base64.b64encode(b"abc").decode()])
def test_a_damaged_picture_is_left_out_with_a_word(config: Path, data: object) -> None:
    lived(config, 2, raws=1)
    write(
        config.parent / "state" / "recordings" / "r.mcap",
        [picture(data), decision(id="s-1", tick=1, used={"front": 0})],
    )
    code, out = export(config, "lerobot", "d")
    assert (code, out.startswith("1 episodes, 1 of 2 ticks; 1 without a stored image")) == (0, True), out
    assert "r.mcap: front: a damaged reading" in out


def encoded(mode: str, form: str = "PNG", **more: Any) -> bytes:
    """A picture, 8 wide and 6 high, dark on its left half."""
    pixels = np.zeros((6, 8, 3), np.uint8)
    pixels[:, 4:] = 200
    out = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(out, form, **more)
    return out.getvalue()


def turned(orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encoded("RGB", "JPEG", exif=exif, quality=100)


@pytest.mark.parametrize(
    ("data", "size"),
    [
        (encoded("RGB"), (6, 8)), (encoded("L"), (6, 8)), (encoded("RGBA"), (6, 8)), (encoded("P"), (6, 8)), (encoded("1"), (6, 8)),
        (encoded("I;16"), (6, 8)), (encoded("CMYK", "JPEG", quality=100), (6, 8)), (turned(3), (6, 8)), (turned(6), (8, 6)),
    ],
)  # fmt: skip
def test_a_dataset_has_the_pictures_that_the_policy_saw(data: bytes, size: tuple[int, int]) -> None:
    """Other readers see grey, CMYK and turned pictures otherwise: such are stored as RGB; plain ones stay byte for byte."""
    assert size_of(data) == size
    out = fitted(data, size)
    with Image.open(io.BytesIO(out)) as image:
        assert (image.mode, image.size) == ("RGB", size[::-1])
        np.testing.assert_array_equal(np.asarray(image), decode_image(data, 1 << 20))
    assert (out == data) == (data == encoded("RGB"))


def test_a_rate_that_the_format_cannot_say_is_named(config: Path) -> None:
    """The format counts whole steps a second; the ticks of this experience are 0.1 s apart."""
    lived(config)
    config.write_text(config.read_text() + "tick: {rate_hz: 0.4}\n")
    assert "it counts 1 steps a second, in truth 10 (complementary_info.stamp_s)" in export(config, "lerobot", "d")[1]
    config.write_text(config.read_text().replace("0.4", "10"))
    assert "in truth" not in export(config, "lerobot", "e")[1]


def test_the_pictures_of_the_helpers_are_plain() -> None:
    assert fitted(opencv.encode(image(5)), (6, 8)) == opencv.encode(image(5))
