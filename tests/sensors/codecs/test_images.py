"""Pictures from strangers: the header is judged first, a liar costs no memory, every outcome is a picture or a refusal."""

from __future__ import annotations

import contextlib
import io
import re
import resource
import struct
import time
import zlib
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image
from sensing import outcome

from sensors.base import PayloadRefused
from sensors.codecs.images import MAX_SCANS, Header, decode_file, decode_image, read_header
from sensors.codecs.jpeg_scans import ScanCoverage
from sensors.drivers import opencv
from sensors.streams.camera import TopicCamera

LIMIT = 1_000_000


def picture(height: int = 24, width: int = 40) -> NDArray[np.uint8]:
    """Left half red, right half blue."""
    image = np.zeros((height, width, 3), np.uint8)
    image[:, : width // 2, 0] = 255
    image[:, width // 2 :, 2] = 255
    return image


JPEG = opencv.encode(picture())
PNG = opencv.encode(picture(), ".png")


def lying(payload: bytes, width: int, height: int) -> bytes:
    """The same JPEG, claiming another size."""
    at = payload.index(b"\xff\xc0") + 5
    return payload[:at] + struct.pack(">HH", height, width) + payload[at + 4 :]


def lying_png(width: int, height: int) -> bytes:
    head = b"IHDR" + struct.pack(">II", width, height) + PNG[24:29]
    return PNG[:12] + head + struct.pack(">I", zlib.crc32(head)) + PNG[33:]


@pytest.mark.parametrize(("payload", "kind"), [(JPEG, "jpeg"), (PNG, "png")])
def test_a_picture_comes_out_as_rgb(payload: bytes, kind: str) -> None:
    assert read_header(payload) == Header(kind, 40, 24)  # type: ignore[arg-type]
    image = decode_image(payload, LIMIT)
    assert image.dtype == np.uint8
    assert image.shape == (24, 40, 3)
    assert np.abs(image[:, :16].mean(axis=(0, 1)) - (255, 0, 0)).max() < 12
    assert np.abs(image[:, 24:].mean(axis=(0, 1)) - (0, 0, 255)).max() < 12


@pytest.mark.parametrize("appended", [b"\0\0\0\x18ftypmp42" + b"\xff\xda\0\x08" * 100, JPEG, JPEG[:-2], b"\xff\xda"])
def test_a_jpeg_ends_where_its_picture_ends(appended: bytes) -> None:
    """Phones append films and second pictures, in which any bytes may be."""
    assert (decode_image(JPEG + appended, LIMIT) == decode_image(JPEG, LIMIT)).all()


def test_a_cut_jpeg_is_not_ended_by_its_thumbnail() -> None:
    exif = b"Exif\0\0" + JPEG
    with_thumbnail = JPEG[:2] + b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif + JPEG[2:]
    assert (decode_image(with_thumbnail, LIMIT) == decode_image(JPEG, LIMIT)).all()
    with pytest.raises(PayloadRefused) as refused:
        decode_image(with_thumbnail[:-2], LIMIT)
    assert refused.value.cause == "truncated"


def test_sixteen_bits_of_grey_with_a_transparent_one_are_not_clipped() -> None:
    grey = np.linspace(0, 65_535, 64).reshape(8, 8).astype(np.uint16)
    out = io.BytesIO()
    Image.fromarray(grey).save(out, "PNG", transparency=int(grey[2, 3]))
    image = decode_image(out.getvalue(), LIMIT)
    wanted = (grey >> 8).astype(np.uint8)
    wanted[2, 3] = 255
    assert (image == wanted[..., None]).all()


@pytest.mark.parametrize(
    ("kind", "data"), [("TIFF", b"II*\0"), ("HEIC", b"\0\0\0\x18ftypheic"), ("AVIF", b"\0\0\0\x18ftypavif")]
)
def test_a_file_of_another_kind_is_named_with_its_remedy(kind: str, data: bytes) -> None:
    with pytest.raises(PayloadRefused, match=f"but {kind}; convert it to JPEG or PNG"):
        decode_file(data + bytes(100), LIMIT)


def test_numbers_without_black_and_white_are_no_picture() -> None:
    with pytest.raises(PayloadRefused, match="no black and white"):
        decode_file(b"Pf\n2 1\n-1.0\n" + struct.pack("<ff", 0.0, 1.0), LIMIT)


@pytest.mark.parametrize("payload", [lying(JPEG, 40_000, 40_000), lying_png(40_000, 40_000), lying(JPEG, 65_535, 1)])
def test_a_lying_header_is_refused_before_memory_is_taken(payload: bytes) -> None:
    decode_image(JPEG, LIMIT)
    before_kb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(PayloadRefused) as refusal:
        decode_image(payload, 60_000)
    assert refusal.value.cause == "too_many_pixels"
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before_kb < 20_000


@pytest.mark.parametrize(
    ("payload", "cause"),
    [
        (b"", "not_an_image"),
        (b"GIF89a" + bytes(100), "not_an_image"),
        (JPEG[:3], "truncated"),
        (JPEG[:30], "truncated"),
        (JPEG[: JPEG.index(b"\xff\xc0") + 3], "truncated"),
        (JPEG[: JPEG.index(b"\xff\xc0") + 6], "truncated"),
        (JPEG[: len(JPEG) // 2], "truncated"),
        (PNG[:20], "truncated"),
        (PNG[:60], "truncated"),
        (lying(JPEG, 0, 24), "bad_header"),
        (lying_png(40, 0), "bad_header"),
        (PNG[:20] + b"\x7f" + PNG[21:], "bad_header"),
        (PNG[:12] + b"IDAT" + PNG[16:], "bad_header"),
        (b"\xff\xd8\xff\xd9", "bad_header"),
        (b"\xff\xd8\xff\xe0\x00\x01" + bytes(20), "bad_header"),
        (b"\xff\xd8\xff\xe0\x00\x03\x00\x99" + bytes(20), "bad_header"),
        (b"\xff\xd8\xff\x01\xff\xff\xff\xd0\xff", "truncated"),
        (JPEG[:-2] + b"\xff\xda\x00\x08\x01\x01\x00\x00\x3f\x00\x11" * MAX_SCANS + JPEG[-2:], "too_many_scans"),
        (JPEG[:-2] + b"\xff\xda" * MAX_SCANS + JPEG[-2:], "truncated"),
    ],
)
def test_bad_bytes_are_refused_with_their_cause(payload: bytes, cause: str) -> None:
    with pytest.raises(PayloadRefused) as refusal:
        decode_image(payload, LIMIT)
    assert refusal.value.cause == cause


def test_a_png_with_a_damaged_body_is_refused() -> None:
    at = PNG.index(b"IDAT") + 6
    with pytest.raises(PayloadRefused) as refusal:
        decode_image(PNG[:at] + bytes(8) + PNG[at + 8 :], LIMIT)
    assert refusal.value.cause == "undecodable"


def test_a_png_with_a_wrong_chunk_length_is_refused_at_once() -> None:
    at = PNG.index(b"IDAT") - 4
    start_s = time.thread_time()
    for length in (0, 7, 2**20, 2**31 - 1, 2**32 - 1):
        with pytest.raises(PayloadRefused):
            decode_image(PNG[:at] + struct.pack(">I", length) + PNG[at + 4 :], LIMIT)
    assert time.thread_time() - start_s < 0.5


def test_what_a_png_carries_besides_its_picture_is_left_out() -> None:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    bomb = chunk(b"zTXt", b"x\0\0" + zlib.compress(bytes(50_000_000), 9))
    animation = chunk(b"acTL", struct.pack(">II", 1, 0))
    start_s = time.thread_time()
    image = decode_image(PNG[:33] + bomb + animation + PNG[33:], LIMIT)
    assert np.array_equal(image, decode_image(PNG, LIMIT))
    assert time.thread_time() - start_s < 0.5


def test_an_orientation_in_the_exif_is_applied() -> None:
    tiff = b"II*\x00\x08\x00\x00\x00\x01\x00\x12\x01\x03\x00\x01\x00\x00\x00\x06\x00\x00\x00\x00\x00\x00\x00"
    exif = b"Exif\x00\x00" + tiff
    turned = JPEG[:2] + b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif + JPEG[2:]
    assert read_header(turned) == Header("jpeg", 40, 24)
    assert decode_image(turned, LIMIT).shape == (40, 24, 3)


@given(st.binary(max_size=300))
def test_any_bytes_are_refused_or_decoded(payload: bytes) -> None:
    for start in (b"", b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", PNG[:16]):
        image, cause = outcome(lambda start=start: decode_image(start + payload, 10_000))
        assert bool(cause) != (image is not None)


@settings(deadline=None)
@given(
    st.sampled_from([JPEG, PNG]),
    st.lists(st.tuples(st.integers(0, 5_000), st.integers(0, 255)), min_size=1, max_size=6),
)
def test_damaged_pictures_never_exceed_the_limit(payload: bytes, damage: list[tuple[int, int]]) -> None:
    data = bytearray(payload)
    for at, value in damage:
        data[at % len(data)] = value
    image, cause = outcome(lambda: decode_image(bytes(data), 2_000))
    assert cause if image is None else image.shape[0] * image.shape[1] <= 2_000


def test_a_topic_camera_counts_what_it_refuses() -> None:
    camera = TopicCamera("front", None, LIMIT)
    frames = [camera.decode(payload, stamp) for payload, stamp in ((JPEG, 1.0), (PNG, 2.0))]
    assert [(frame.stream, frame.seq, frame.stamp_s) for frame in frames] == [("front", 1, 1.0), ("front", 2, 2.0)]
    for payload in (b"x", lying(JPEG, 40_000, 40_000)):
        with pytest.raises(PayloadRefused):
            camera.decode(payload, 3.0)
    assert camera.drops == {"not_an_image": 1, "too_many_pixels": 1}


def test_a_missing_opencv_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    from sensors.base import SensorLost

    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(SensorLost, match="apt-get install libgl1"):
        opencv.load()


def landscape(seed: int = 0) -> NDArray[np.uint8]:
    """Soft colours, 61 x 83 pixels: no whole number of blocks."""
    small = np.random.default_rng(seed).integers(0, 255, (6, 8, 3), np.uint8)
    return np.asarray(Image.fromarray(small).resize((83, 61), Image.Resampling.BICUBIC))


def jpeg(image: NDArray[np.uint8], **options: Any) -> bytes:
    out = io.BytesIO()
    Image.fromarray(image).save(out, "JPEG", **options)
    return out.getvalue()


def ended(data: bytes, share: float) -> bytes:
    """The first part of a JPEG's coded data, with an end marker."""
    begin = data.index(b"\xff\xda")
    return data[: begin + int((len(data) - begin) * share)].rstrip(b"\xff") + b"\xff\xd9"


def orientation(number: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = number
    return exif


@pytest.mark.parametrize("share", [0.3, 0.6, 0.9, 0.98])
@pytest.mark.parametrize(
    "options",
    [
        {}, {"quality": 98, "subsampling": 0}, {"restart_marker_blocks": 2}, {"exif": orientation(3)}, {"exif": orientation(6)},
        {"exif": orientation(7)},
    ],
)  # fmt: skip
def test_a_jpeg_that_was_cut_and_ended_is_refused_and_shows_no_grey_rows(options: dict[str, Any], share: float) -> None:
    whole = jpeg(landscape(), **options)
    assert decode_image(whole, LIMIT).size == 61 * 83 * 3
    with pytest.raises(PayloadRefused) as refused:
        decode_image(ended(whole, share), LIMIT)
    assert refused.value.cause in {"truncated", "undecodable"}


@pytest.mark.parametrize("progressive", [False, True])
def test_damaged_exif_data_are_no_reason_for_a_warning_or_a_refusal(progressive: bool) -> None:
    """Both readers of a picture that may be cut meet them; the tests make errors of warnings."""
    exif = b"Exif\0\0MM\0*\0\0\0+\x11\x85\xcf\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0"
    grey = jpeg(np.full((61, 83, 3), 128, np.uint8), progressive=progressive)
    damaged = grey[:2] + b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif + grey[2:]
    assert decode_image(damaged, LIMIT).shape == (61, 83, 3)


def scan_starts(data: bytes) -> list[int]:
    """Where the scans of a JPEG without a thumbnail begin."""
    return [match.start() for match in re.finditer(rb"\xff\xda\0[\x08-\x0c]", data)]


PROGRESSIVE = [
    {"progressive": True}, {"progressive": True, "quality": 98, "subsampling": 0}, {"progressive": True, "quality": 40},
    {"progressive": True, "optimize": True, "restart_marker_blocks": 2}, {"progressive": True, "exif": orientation(6)},
]  # fmt: skip


@pytest.mark.parametrize("options", PROGRESSIVE)
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_a_progressive_jpeg_that_was_cut_and_ended_is_refused_wherever_it_was_cut(
    options: dict[str, Any], mode: str
) -> None:
    """Behind its first scan nothing is grey: it is blurred, or colours or fine lines are missing."""
    out = io.BytesIO()
    Image.fromarray(landscape()).convert(mode).save(out, "JPEG", **options)
    whole = out.getvalue()
    assert decode_image(whole, LIMIT).size == 61 * 83 * 3
    for at in scan_starts(whole)[1:]:
        with pytest.raises(PayloadRefused, match="others that belong to it are missing"):
            decode_image(whole[:at] + b"\xff\xd9", LIMIT)
    read = 0
    for share in np.linspace(0.05, 0.97, 24):
        with contextlib.suppress(PayloadRefused):
            decode_image(ended(whole, share), LIMIT)
            read += 1
    assert read == 0


def test_scans_of_one_component_each_belong_to_the_picture() -> None:
    """A sequential JPEG may have a scan for each colour; without the others it is grey."""
    whole = jpeg(landscape(), progressive=True)
    begin = whole.index(b"\xff\xc2")
    frame = b"\xff\xc0" + whole[begin + 2 :]  # only the headers are asked
    coverage = ScanCoverage()
    coverage.add_frame(0xC0, frame[4:19])
    assert not coverage.is_complete
    for component in (1, 2, 3):
        coverage.add_scan(bytes((1, component, 0, 0, 63, 0)))
        assert coverage.is_complete == (component == 3)


@pytest.mark.parametrize("kind", ["WEBP", "GIF"])
def test_a_file_with_a_cut_header_is_named_by_its_kind(kind: str) -> None:
    out = io.BytesIO()
    Image.fromarray(landscape()).save(out, kind)
    with pytest.raises(PayloadRefused, match=r"its header is cut or damaged") as refused:
        decode_file(out.getvalue()[:12], LIMIT)
    assert refused.value.cause == "undecodable"


def test_grey_jpegs_are_whole_although_they_look_like_missing_rows() -> None:
    grey = np.full((61, 83, 3), 128, np.uint8)
    partly = landscape().copy()
    partly[32:] = 128
    for image in (grey, partly, grey[:1, :1], grey[:9, :17]):
        for options in ({}, {"restart_marker_blocks": 2}, {"exif": orientation(6)}):
            assert decode_image(jpeg(image, **options), LIMIT).shape[2] == 3
    assert (decode_image(jpeg(grey), LIMIT) == 128).all()
    with pytest.raises(PayloadRefused):
        decode_image(ended(jpeg(partly), 0.9), LIMIT)
