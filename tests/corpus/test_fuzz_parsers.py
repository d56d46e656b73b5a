"""Mutated inputs of every parser: a refusal or a value, in less than a second, with less than 200 MB, and never another error.

`FUZZ_SECONDS` is the time for each parser (`make fuzz` takes 25), `FUZZ_SEED` the seed. A finding prints the parser, the
seed and the input; the input belongs into the corpus with its mending.
"""

from __future__ import annotations

import io
import os
import random
import resource
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import learning
import numpy as np
import orjson
import pytest
import soundfile
import torch
import yaml
from PIL import Image
from pydantic import TypeAdapter

from actuators.config import AnyActuator
from actuators.device import parse_command
from actuators.expressions import Expression, ExpressionError
from actuators.safety.decisions import Proposal
from actuators.wire import WireError, parse_state, state_payload
from learners.checkpoints import manifest as manifests
from learners.checkpoints.manifest import CheckpointRefused
from learners.checkpoints.store import Checkpoints
from learners.data_error import DataError
from learners.finetune.labelled_files import datasets
from learners.finetune.labelled_files.example_fields import check
from learners.gym import demonstrations
from learners.gym.demonstrations import DemonstrationEpisode
from learners.model.spec import PolicySpec, SpecError
from learners.tasks.task_classes import known
from runtime.backup.contents import BackupError
from runtime.backup.create import create
from runtime.backup.restore import restore
from runtime.config import loader
from runtime.gate import ipc
from runtime.mqtt import topics
from runtime.recording.reader import Recording, RecordingError
from runtime.recording.recorder import Recorder, TickRecord
from sensors.base import PayloadRefused
from sensors.codecs.images import decode_file, decode_image
from sensors.codecs.sounds import decode_sound
from sensors.config import AnyStream
from sensors.readings import Frame, Sound, Telemetry, Text
from sensors.streams.registry import build

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
SECONDS = float(os.environ.get("FUZZ_SECONDS", "0.2"))
SEED = int(os.environ.get("FUZZ_SEED", "0"))
MAX_S = 1.0
MAX_BYTES = 200 * 2**20
TOKENS = [
    b"0", b"-1", b"1e999", b"NaN", b"null", b"true", b"{}", b"[]", b'""', b"\xff", b"\0", b"\xef\xbb\xbf", b"\r\n", b",", b";",
    b'"', b"'", b"\t", b"18446744073709551616", b"-9223372036854775809", b"\x7f\xff\xff\xff", b"\xff\xff\xff\xff", b"\0\0\0\0",
    "\u0000\u2028\U0001f600".encode(), b"[" * 200, b'{"a":' * 100, b"A" * 5_000, b"&a [*a]", b"<<: *a", b"!!python/none",
]  # fmt: skip
"""What parsers like least."""


def mutated(rng: random.Random, seeds: list[bytes]) -> bytes:
    """A seed with a few bytes or pieces changed, doubled, moved or cut; or two seeds joined."""
    data = bytearray(rng.choice(seeds))
    for _ in range(rng.choice([1, 1, 2, 4, 8])):
        at = rng.randrange(len(data) + 1)
        length = min(rng.choice([1, 2, 4, 16, 64]), len(data) - at)
        match rng.randrange(8):
            case 0:
                data[at : at + length] = rng.randbytes(length)
            case 1:
                del data[at : at + length]
            case 2:
                data[at:at] = rng.choice(TOKENS)
            case 3:
                data[at : at + length] = rng.choice(TOKENS)
            case 4:
                data[at:at] = data[at : at + length] * rng.choice([1, 2, 50])
            case 5 if data:
                data[at % len(data)] ^= 1 << rng.randrange(8)
            case 6:
                del data[at:]
            case _:
                other = rng.choice(seeds)
                start = rng.randrange(len(other) + 1)
                data[at : at + length] = other[start : start + rng.choice([4, 64, 1_000])]
    return bytes(data)


@dataclass(frozen=True)
class Parser:
    """One parser: seeds, what reads them, and the refusals that it may raise."""

    seeds: list[bytes]
    read: Callable[[bytes, Path], object]
    refusals: tuple[type[Exception], ...] = field(default=())


def stream(**more: Any) -> Any:
    return TypeAdapter[AnyStream](AnyStream).validate_python({"source": "topic", **more})


def sensed(**more: Any) -> Callable[[bytes, Path], object]:
    return lambda data, _: build("it", stream(**more)).decode(data, 1.0)  # type: ignore[union-attr] # a topic sensor


def as_file(name: str, read: Callable[[Path], object]) -> Callable[[bytes, Path], object]:
    def written(data: bytes, folder: Path) -> object:
        path = folder / name
        path.write_bytes(data)
        return read(path)

    return written


def table(suffix: str, kind: str) -> Callable[[bytes, Path], object]:
    task = known()[kind]
    return as_file(f"any{suffix}", lambda path: check(datasets.read(path, task), task))


def rows(suffix: str) -> list[bytes]:
    cases = yaml.safe_load((HERE / "tables.yaml").read_text(encoding="utf-8"))
    return [c["text"].encode(c.get("encoding", "utf-8")) for c in cases if c["name"].endswith(suffix)]


def payloads(kind: str) -> list[bytes]:
    cases = yaml.safe_load((HERE / "payloads.yaml").read_text(encoding="utf-8"))
    return [bytes.fromhex(c["hex"]) if "hex" in c else c["bytes"].encode() for c in cases if c["kind"] == kind]


def pictures() -> list[bytes]:
    colour = np.random.default_rng(0).integers(0, 256, (16, 12, 4), np.uint8)
    made = []
    for kind, mode in [
        ("PNG", "RGBA"),
        ("PNG", "P"),
        ("PNG", "1"),
        ("PNG", "LA"),
        ("JPEG", "RGB"),
        ("JPEG", "CMYK"),
        ("JPEG", "L"),
    ]:
        exif = Image.Exif()
        exif[0x0112] = 6
        out = io.BytesIO()
        Image.fromarray(colour).convert(mode).save(out, kind, exif=exif)
        made.append(out.getvalue())
    out = io.BytesIO()
    Image.fromarray(colour[..., :3]).save(out, "JPEG", progressive=True)
    return [*made, out.getvalue()]


def more_pictures() -> list[bytes]:
    made = []
    for kind in ("WEBP", "BMP", "GIF", "TIFF", "PPM"):
        out = io.BytesIO()
        Image.new("RGB", (16, 12), (200, 10, 90)).save(out, kind)
        made.append(out.getvalue())
    return [*pictures(), *made]


def sounds() -> list[bytes]:
    tone = np.sin(np.arange(1_600) / 7).astype(np.float32)
    made = []
    for kind, subtype in [
        ("WAV", "PCM_16"),
        ("WAV", "FLOAT"),
        ("WAV", "ULAW"),
        ("WAV", "IMA_ADPCM"),
        ("FLAC", "PCM_16"),
        ("OGG", "VORBIS"),
        ("AIFF", "PCM_16"),
        ("W64", "PCM_16"),
    ]:
        out = io.BytesIO()
        soundfile.write(out, tone, 16_000, format=kind, subtype=subtype)
        made.append(out.getvalue())
    return made


def recordings(folder: Path) -> list[bytes]:
    path = folder / "seed.mcap"
    recorder = Recorder(path=path, metadata={"session": "s"}, max_bytes=1 << 30)
    recorder.start({"state": b"\x01\x02"})
    tone = np.sin(np.arange(1_600) / 7).astype(np.float32)
    for tick in range(4):
        readings = (
            Frame("front", tick * 0.1, tick, np.full((8, 9, 3), tick, np.uint8)),
            Sound("room", tick * 0.1, tick, tone),
            Text("orders", tick * 0.1, tick, "go left"),
            Telemetry("joints", tick * 0.1, tick, ("q1", "q2"), np.array([0.5, -1.0], np.float32)),
        )
        assert recorder.put(TickRecord(tick * 10**8, readings, {"id": f"s-{tick}", "tick": tick, "actions": {}}))
    recorder.close()
    return [path.read_bytes()]


def replayed(path: Path) -> None:
    recording = Recording(path)
    recording.metadata()
    recording.attachments()
    for _ in recording.ticks():
        pass


def episodes(folder: Path) -> list[bytes]:
    made = DemonstrationEpisode([np.zeros(2)] * 4, [np.int64(1)] * 3, [1.0] * 3, [False, False, True])
    demonstrations.save(folder / "seed.npz", [made, made])
    return [(folder / "seed.npz").read_bytes()]


def backups(folder: Path) -> list[bytes]:
    state = folder / "state"
    (state / "keys").mkdir(parents=True)
    (state / "keys" / "key").write_bytes(bytes(32))
    (state / "latches.json").write_bytes(b'{"stopped": false}')
    create(state, "a", folder / "seed.backup")
    return [(folder / "seed.backup").read_bytes()]


ACTUATOR = TypeAdapter[AnyActuator](AnyActuator).validate_python(
    {"kind": "continuous", "low": [-1, 0], "high": [1, 2], "safe": [0, 0]}
)
COMMAND = b'{"value": [0.5, 1], "decision": "d", "boot": "b", "seq": 3, "stamp": 1.5, "ttl_ms": 300, "policy": "p"}'
PROPOSAL = Proposal(3, "d3", "p1", 1.5, {"head": "left", "arm": (0.5,)}, ("room",), readings={"window": {"open": 1.0}})


def signed_manifest(folder: Path) -> Parser:
    """A manifest that this installation has signed, whatever it says, beside the files of a version."""
    versions = Checkpoints(folder / "versions", learning.KEY)
    name = versions.save({"policy": {"w": torch.zeros(2)}}, {"spec": orjson.loads(learning.SPEC.to_json())})
    version = folder / "versions" / name

    def read(data: bytes, _: Path) -> object:
        (version / "manifest.json").write_bytes(data)
        (version / "manifest.sig").write_bytes(learning.KEY.sign(data))
        return manifests.load(version, learning.KEY.public_key())

    return Parser([(version / "manifest.json").read_bytes()], read, (CheckpointRefused,))


def parsers(folder: Path) -> dict[str, Parser]:
    """Every parser of bytes or text that comes from outside."""
    refused, wire, data = (PayloadRefused,), (topics.Refused,), (DataError,)
    settings = [path.read_bytes() for path in sorted((ROOT / "configs").glob("*.yaml"))]
    gate = yaml.safe_load((HERE / "messages.yaml").read_text(encoding="utf-8"))
    messages = [text.encode() for texts in gate.values() for text in texts]
    reward = b'{"value": 0.5, "done": false, "decision": "d-1", "source": "me", "stamp": 1.5}'
    label = b'{"task": "t", "label": "cat", "decision": "d-1", "source": "me", "confidence": 0.5}'
    forbid = [
        b"heater == 'ON' and window.open",
        b"0 < arm[0] < sqrt(arm[1]) or not lamp",
        b"min(a, b, 1) if c else -d ** 2",
    ]
    classify, tag = "text-classification", "token-classification"
    jsonl = b'{"tokens": ["Anna", "ran"], "tags": ["B-x", "O"]}\n'
    return {
        "telemetry": Parser(
            [*payloads("telemetry"), b'{"value": 1, "a": [2]}'],
            sensed(kind="telemetry", fields=["value", "/a/0"]),
            refused,
        ),
        "bare telemetry": Parser(payloads("telemetry"), sensed(kind="telemetry", fields=["value"]), refused),
        "text": Parser(payloads("text"), sensed(kind="text", encoder="e"), refused),
        "camera": Parser(pictures() + payloads("camera"), sensed(kind="camera", encoder="e"), refused),
        "microphone": Parser(
            [b"\x10\x00\xf0\xff" * 800, *sounds(), *payloads("microphone")],
            sensed(kind="microphone", encoder="e"),
            refused,
        ),
        "reward": Parser([reward], lambda d, _: topics.decode(topics.Reward, d), wire),
        "label": Parser([label], lambda d, _: topics.decode(topics.LabelPayload, d), wire),
        "override": Parser(messages, lambda d, _: topics.decode(topics.Override, d), wire),
        "stop": Parser(messages, lambda d, _: topics.decode(topics.Stop, d), wire),
        "report": Parser([state_payload((0.5, 1.0), 3, "b")], lambda d, _: parse_state(ACTUATOR, d), (WireError,)),
        "command": Parser([COMMAND], lambda d, _: parse_command(d), (WireError,)),
        "proposal": Parser([ipc.pack(PROPOSAL)], lambda d, _: ipc.unpack(d), (ValueError,)),
        "rule": Parser(forbid, lambda d, _: Expression(d.decode("utf-8", "replace")), (ExpressionError,)),
        "settings": Parser(settings, as_file("any.yaml", loader.load), (loader.ConfigError,)),
        "csv": Parser(rows(".csv"), table(".csv", classify), data),
        "tsv": Parser([text.replace(b",", b"\t") for text in rows(".csv")], table(".tsv", classify), data),
        "json lines": Parser(rows(".jsonl"), table(".jsonl", classify), data),
        "json lines of tags": Parser([jsonl], table(".jsonl", tag), data),
        "json": Parser([b'[{"text": "x", "label": "a"}, {"text": "y", "label": "b"}]'], table(".json", classify), data),
        "conll": Parser(rows(".conll"), table(".conll", tag), data),
        "wav": Parser(sounds(), lambda d, _: decode_sound(d), refused),
        "picture": Parser(pictures(), lambda d, _: decode_image(d, 1_000_000), refused),
        "picture file": Parser(more_pictures(), lambda d, _: decode_file(d, 1_000_000), refused),
        "recording": Parser(recordings(folder), as_file("any.mcap", replayed), (RecordingError,)),
        "manifest": signed_manifest(folder),
        "policy spec": Parser([learning.SPEC.to_json()], lambda d, _: PolicySpec.from_json(d), (SpecError,)),
        "episodes": Parser(episodes(folder), as_file("any.npz", demonstrations.load), (ValueError,)),
        "backup": Parser(backups(folder), restored, (BackupError,)),
    }


def restored(data: bytes, folder: Path) -> object:
    archive, target = folder / "any.backup", folder / "restored"
    archive.write_bytes(data)
    shutil.rmtree(target, ignore_errors=True)
    return restore(archive, target)


NAMES = [
    "telemetry", "bare telemetry", "text", "camera", "microphone", "reward", "label", "override", "stop", "report", "command",
    "proposal", "rule", "settings", "csv", "tsv", "json lines", "json lines of tags", "json", "conll", "wav", "picture",
    "picture file", "recording", "manifest", "policy spec", "episodes", "backup",
]  # fmt: skip


@pytest.fixture(scope="module")
def every(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Parser]:
    made = parsers(tmp_path_factory.mktemp("seeds"))
    assert list(made) == NAMES
    return made


@pytest.mark.parametrize("name", NAMES)
def test_a_mutated_input_is_read_or_refused_soon_and_in_little_memory(
    every: dict[str, Parser], name: str, tmp_path: Path
) -> None:
    parser, rng = every[name], random.Random(f"{SEED} {name}")
    seeds_read = sum(outcome(parser, seed, tmp_path) for seed in parser.seeds)  # what is loaded late is loaded now
    assert seeds_read > 0
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    end, cases, read, slowest = time.monotonic() + SECONDS, 0, 0, 0.0
    while time.monotonic() < end:
        data = mutated(rng, parser.seeds)
        begun = time.thread_time()
        try:
            read += outcome(parser, data, tmp_path)
        except Exception as error:
            error.add_note(f"{name}, seed {SEED}, case {cases}: {data[:2_000]!r}")
            raise
        took_s = time.thread_time() - begun
        slowest = max(slowest, took_s)
        assert took_s < MAX_S, f"{name}, seed {SEED}, case {cases}: {took_s:.1f} s: {data[:2_000]!r}"
        cases += 1
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1_024
    print(f"{name}: {cases} inputs, {read} read, slowest {slowest * 1e3:.0f} ms, {grown / 2**20:.0f} MB more")
    assert cases > 0
    assert grown < MAX_BYTES


def outcome(parser: Parser, data: bytes, folder: Path) -> bool:
    """Whether the parser read it; a refusal has a reason."""
    refusal = ""
    try:
        parser.read(data, folder)
    except parser.refusals as error:
        refusal = str(error)
        assert refusal, repr(error)  # noqa: PT017 - most inputs are refused, some are read
    return not refusal
