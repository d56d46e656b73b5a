"""Convert readings, decisions and results to a recording's messages, as JSON for Foxglove, and back without loss.

Images are `foxglove.CompressedImage`: the original JPEG or PNG, else a PNG. Both always decode to the same pixels. Sound is
`foxglove.RawAudio` in 16 bits, where needed also in float32, with only the samples that are new since the last window. Knows no file.
"""

from __future__ import annotations

import base64
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar, get_args

import numpy as np
import orjson
from numpy.typing import NDArray

from sensors.codecs.images import decode_image
from sensors.drivers import opencv
from sensors.readings import Frame, Reading, Sound, StampSource, Telemetry, Text

PCM = 32_768
"""Full scale of 16-bit samples."""
MAX_PIXELS = 1 << 28
"""Of a picture in a recording."""
CANDIDATES = 256
"""Places at which an overlap is tried: digital silence would offer thousands."""

_TIME = {"type": "object", "properties": {"sec": {"type": "integer"}, "nsec": {"type": "integer"}}}
_BYTES = {"type": "string", "contentEncoding": "base64"}
_COMMON: dict[str, Any] = {"timestamp": _TIME, "seq": {"type": "integer"}, "stamp_s": {"type": "number"}}


def _schema(**properties: Any) -> bytes:
    return orjson.dumps({"type": "object", "properties": _COMMON | properties})


SCHEMAS: dict[str, bytes] = {
    "foxglove.CompressedImage": _schema(frame_id={"type": "string"}, format={"type": "string"}, data=_BYTES),
    "foxglove.RawAudio": _schema(
        format={"type": "string"}, sample_rate={"type": "integer"}, number_of_channels={"type": "integer"}, data=_BYTES
    ),
    "reflexd.Text": _schema(text={"type": "string"}),
    "reflexd.Telemetry": _schema(fields={"type": "array"}, values={"type": "array"}),
    "reflexd.Decision": _schema(),
    "reflexd.Message": _schema(),
}
SCHEMA_OF: dict[type, str] = {
    Frame: "foxglove.CompressedImage",
    Sound: "foxglove.RawAudio",
    Text: "reflexd.Text",
    Telemetry: "reflexd.Telemetry",
}


@dataclass(slots=True)
class ReadingCodec:
    """Turns the successive readings of all streams into message bodies and back; keeps the last sound of each stream."""

    _sounds: dict[str, NDArray[np.float32]] = field(default_factory=dict)

    def encode(self, reading: Reading) -> dict[str, Any]:
        """Return the body of a reading's message, without its timestamp."""
        common: dict[str, Any] = {"seq": reading.seq, "stamp_s": reading.stamp_s}
        if reading.stamp_source != "arrival":
            common["stamp_source"] = reading.stamp_source
        match reading:
            case Frame():
                return common | picture(reading.stream, reading.encoded or opencv.png(reading.image))
            case Sound():
                return common | self._encode_sound(reading)
            case Text():
                return common | {"text": reading.text}
            case Telemetry():
                return common | {"fields": list(reading.fields), "values": [float(v) for v in reading.values]}

    def decode(self, stream: str, schema: str, body: dict[str, Any]) -> Reading:
        """Return the reading from which a message of `schema` was made.

        Raises:
            ValueError: a message that is not one of ours.
        """
        try:
            reading = self._decode(stream, schema, body)
        except (LookupError, TypeError, AttributeError, OverflowError) as error:
            raise ValueError(f"{stream}: a damaged reading ({type(error).__name__}: {error})") from None
        source = body.get("stamp_source", "arrival")
        if source not in get_args(StampSource):
            raise ValueError(f"{stream}: a damaged reading (its stamp is of {str(source)[:60]!r})")
        return replace(reading, stamp_source=source)

    def _decode(self, stream: str, schema: str, body: dict[str, Any]) -> Reading:
        stamp_s, seq = float(_of((int, float), body["stamp_s"])), _of(int, body["seq"])
        match schema:
            case "foxglove.CompressedImage":
                data = base64.b64decode(body["data"], validate=True)
                return Frame(stream, stamp_s, seq, decode_image(data, MAX_PIXELS), data)
            case "foxglove.RawAudio":
                rate_hz = _of(int, body["sample_rate"])
                if rate_hz <= 0 or body.get("number_of_channels", 1) != 1:
                    raise TypeError(f"{body.get('number_of_channels')} channels at {rate_hz} Hz")
                return Sound(stream, stamp_s, seq, self._decode_sound(stream, body), rate_hz)
            case "reflexd.Text":
                return Text(stream, stamp_s, seq, _of(str, body["text"]))
            case "reflexd.Telemetry":
                return Telemetry(stream, stamp_s, seq, *_telemetry(body))
        raise ValueError(f"{stream}: no reading has the schema {schema!r}")

    def _encode_sound(self, sound: Sound) -> dict[str, Any]:
        new = new_samples(self._sounds.get(sound.stream), sound.samples)
        self._sounds[sound.stream] = sound.samples
        return {
            "format": "pcm-s16",
            "sample_rate": sound.rate_hz,
            "number_of_channels": 1,
            "window": len(sound.samples),
            **_pcm(sound.samples[len(sound.samples) - new :]),
        }

    def _decode_sound(self, stream: str, body: dict[str, Any]) -> NDArray[np.float32]:
        new = _samples(body)
        window = _of(int, body["window"])
        before = self._sounds.get(stream, np.empty(0, np.float32))
        samples = np.concatenate((before, new))[-window:] if window else np.empty(0, np.float32)
        if len(samples) != window:
            raise ValueError(f"{stream}: a sound refers to samples that are not in the recording")
        self._sounds[stream] = samples
        return samples


T = TypeVar("T")


def _of(kind: type[T] | tuple[type[T], ...], value: Any) -> T:
    """Return a value of a message that has the type it must have; a truth value is no number.

    Raises:
        TypeError: it has another one.
    """
    if isinstance(value, bool) or not isinstance(value, kind):
        raise TypeError(f"{str(value)[:60]!r} is a {type(value).__name__}")
    return value


def _telemetry(body: dict[str, Any]) -> tuple[tuple[str, ...], NDArray[np.float64]]:
    """Return the fields and their numbers; one that was not finite was recorded as null.

    Raises:
        TypeError: there is not one number for each field.
    """
    fields = tuple(_of(str, name) for name in body["fields"])
    values = [np.nan if value is None else float(_of((int, float), value)) for value in body["values"]]
    if len(values) != len(fields) or len(set(fields)) != len(fields):
        raise TypeError(f"{len(values)} numbers for {len(set(fields))} fields")
    return fields, np.array(values, np.float64)


def picture(stream: str, data: bytes) -> dict[str, Any]:
    """Return the body of an encoded image, without the fields that all readings have."""
    kind = "jpeg" if data[:2] == b"\xff\xd8" else "png"
    return {"frame_id": stream, "format": kind, "data": _to_text(data)}


def new_samples(before: NDArray[np.float32] | None, now: NDArray[np.float32]) -> int:
    """Return how many samples at the end of `now` are not in `before`, so that the rest of it is the end of `before`.

    Looks for the last 32 samples of `before`; where the overlap is not exact, everything is new.
    """
    if before is None or len(before) != len(now) or len(now) < 32:
        return len(now)
    if np.array_equal(before, now):
        return 0
    key = before[-32:]
    for start in np.flatnonzero(now[: len(now) - 31] == key[0])[::-1][:CANDIDATES]:
        new = len(now) - int(start) - 32
        if new > 0 and np.array_equal(now[start : start + 32], key) and np.array_equal(before[new:], now[:-new]):
            return new
    return len(now)


def _pcm(samples: NDArray[np.float32]) -> dict[str, str]:
    """The samples as 16-bit PCM, the one format of `foxglove.RawAudio`; where that loses anything, also as float32."""
    whole = np.clip(np.round(samples * PCM), -PCM, PCM - 1).astype("<i2")
    body = {"data": _to_text(whole.tobytes())}
    if not np.array_equal(_floats(whole), samples):
        body["float32"] = _to_text(samples.astype("<f4").tobytes())
    return body


def _samples(body: dict[str, Any]) -> NDArray[np.float32]:
    """The samples of a message, exactly as they were."""
    if "float32" in body or body["format"] == "pcm-f32":  # the first recordings had no other format
        data = body.get("float32", body["data"])
        return np.frombuffer(base64.b64decode(data, validate=True), "<f4").astype(np.float32)
    if body["format"] != "pcm-s16":
        raise TypeError(f"sound of the format {str(body['format'])[:60]!r}")
    return _floats(np.frombuffer(base64.b64decode(body["data"], validate=True), "<i2"))


def _floats(whole: NDArray[np.int16]) -> NDArray[np.float32]:
    return whole.astype(np.float32) / np.float32(PCM)


def _to_text(data: bytes) -> str:
    return base64.b64encode(data).decode()
