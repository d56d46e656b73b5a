"""The corpus of faults by kinds: every input is read as intended, or refused with place and reason; never anything else."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import orjson
import pytest
import yaml
from gate_model import World
from pydantic import TypeAdapter

from learners.data_error import DataError
from learners.finetune.labelled_files import datasets
from learners.finetune.labelled_files.example_fields import check
from learners.tasks.task_classes import known
from runtime.preflight.preflight import problems_and_warnings
from sensors.base import PayloadRefused, SensorLost
from sensors.config import AnyStream
from sensors.drivers import opencv
from sensors.drivers.opencv import CaptureJob
from sensors.streams.registry import build

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent


def corpus(name: str) -> Any:
    return yaml.safe_load((HERE / f"{name}.yaml").read_text(encoding="utf-8"))


MESSAGES, PAYLOADS, TABLES, SETTINGS = map(corpus, ("messages", "payloads", "tables", "settings"))
KINDS: dict[int, dict[str, Any]] = corpus("kinds")


@pytest.mark.parametrize("number", range(1, 22))
def test_every_kind_of_fault_has_its_tests(number: int) -> None:
    """Most kinds are tested where the code is; `kinds.yaml` says where."""
    for test in KINDS[number]["tests"]:
        file, _, name = test.partition("::")
        assert f"def {name}(" in (ROOT / "tests" / file).read_text(encoding="utf-8"), test


# Kind 1: what may mean stop is a stop; what moves must be exact.


class Listening(World):
    """A world that keeps the gate's answers."""

    def __init__(self, **more: Any) -> None:
        self.answers: list[bytes] = []
        super().__init__(**more)

    def _answered(self, *args: Any) -> None:
        self.answers.append(bytes(args[1]))
        super()._answered(*args)

    def ask(self, topic: str, payload: str) -> bytes:
        """The answer to a request."""
        before = len(self.answers)
        requested = SimpleNamespace(ResponseTopic="reflexd/model/response/me", CorrelationData=b"c")
        self.arrive(self.requests, f"reflexd/model/{topic}", payload.encode(), properties=requested)
        self.wait(0.05)
        assert len(self.answers) == before + 1
        return self.answers[-1]


@pytest.fixture
def world() -> Iterator[Listening]:
    made = Listening(arm="request")
    for name, value in {"arm": [0.0], "wheel": [0.0], "heater": "OFF", "fan": "OFF", "lamp": "OFF"}.items():
        made.report(name, value)
    for _ in range(10):
        made.propose({})
        made.wait(0.05)
    yield made
    made.close()


@pytest.mark.parametrize("payload", MESSAGES["stops"])
def test_kind_1_a_message_that_may_mean_stop(world: Listening, payload: str) -> None:
    world.stop(payload.encode())
    assert world.host.gate.stopped
    assert "stopped" in world.event_types


@pytest.mark.parametrize("payload", MESSAGES["releases"])
def test_kind_1_a_release(world: Listening, payload: str) -> None:
    world.stop(b"ON")
    world.stop(payload.encode())
    assert not world.host.gate.stopped
    assert not world.host.gate.armed


@pytest.mark.parametrize("payload", MESSAGES["arms"])
def test_kind_1_exact_requests_arm(world: Listening, payload: str) -> None:
    world.granted = True
    assert b'"error"' not in world.ask("request/arm", payload)
    world.propose({})
    assert world.host.gate.armed


@pytest.mark.parametrize(
    ("topic", "payload"),
    [
        *(("request/arm", payload) for payload in MESSAGES["arms_not"]),
        *(("request/mode", payload) for payload in MESSAGES["modes_not"]),
        *(("override/arm", payload) for payload in MESSAGES["overrides_not"]),
        ("override/nose", '{"value": [0.5]}'),
        ("request/arm_now", "{}"),
        ("request/Arm", "{}"),
    ],
)
def test_kind_1_whatever_moves_is_refused_unless_it_is_exactly_right(
    world: Listening, topic: str, payload: str
) -> None:
    if not topic.startswith("request/arm"):
        world.granted = True
        world.ask("request/arm", "{}")
        world.propose({})
    armed, modes = world.host.gate.armed, world.host.gate.modes
    answer = orjson.loads(world.ask(topic, payload))
    assert answer["status"] == "error" or (answer["data"]["sent"], bool(answer["data"]["rule"])) == (False, True)
    assert (world.host.gate.armed, world.host.gate.modes) == (armed, modes)
    assert world.devices["arm"] == (0.0,)


@pytest.mark.parametrize("verb", MESSAGES["stop_verbs"])
def test_kind_1_a_verb_that_may_mean_stop(world: Listening, verb: str) -> None:
    """There is no such verb, and the answer says so; the stop engages all the same."""
    answer = orjson.loads(world.ask(f"request/{verb}", "{}"))
    assert answer["status"] == "error"
    assert "unknown verb" in answer["error"]
    assert "publish stops on `stop`" in answer["error"]
    assert world.host.gate.stopped


# Kinds 3, 7, 13 and 20: payloads of sensors.

STREAMS: dict[str, dict[str, Any]] = {
    "telemetry": {"fields": ["value"]},
    "text": {"encoder": "e"},
    "camera": {"encoder": "e"},
    "microphone": {"encoder": "e"},
}


@pytest.mark.parametrize(
    "case", PAYLOADS, ids=lambda case: f"{case['kind']} {case.get('bytes', case.get('hex'))[:30]!r}"
)
def test_kinds_3_7_13_and_20_a_payload_is_read_or_refused_with_field_and_reason(case: dict[str, Any]) -> None:
    payload = bytes.fromhex(case["hex"]) if "hex" in case else case["bytes"].encode()
    settings = TypeAdapter[AnyStream](AnyStream).validate_python(
        {"kind": case["kind"], "source": "topic", **STREAMS[case["kind"]]}
    )
    sensor = build("it", settings)
    reading: Any = None
    refusal: PayloadRefused | None = None
    try:
        reading = sensor.decode(payload, 1.0)  # type: ignore[union-attr] # a topic sensor
    except PayloadRefused as error:
        refusal = error
    if refusal is not None:
        assert refusal.cause == case.get("refused"), str(refusal)
        assert case["says"] in str(refusal)
        assert sensor.drops == {refusal.cause: 1}
        return
    assert "refused" not in case, reading
    seen = reading.values.tolist() if case["kind"] == "telemetry" else reading.text
    assert seen == case["reads"]
    assert not sensor.drops


# Kinds 4, 5, 8 and 15: settings.


def changed(case: dict[str, Any]) -> str:
    text: str = SETTINGS["good"]
    for key in ("put", "put2"):
        if key in case:
            old, new = case[key]
            assert text.count(old) == 1
            text = text.replace(old, new)
    return text + case.get("add", "") + "\n"


def at(config: Any, path: str) -> Any:
    for step in path.split("."):
        config = config[step] if isinstance(config, dict) else getattr(config, step)
    return config


@pytest.mark.parametrize(
    "case", [{}, *SETTINGS["cases"]], ids=lambda case: str(case.get("put", case.get("add", "good")))[:60]
)
def test_kinds_4_5_8_and_15_settings_mean_what_they_say_or_are_refused_with_their_place(
    tmp_path: Path, case: dict[str, Any]
) -> None:
    file = tmp_path / "corpus.yaml"
    file.write_text(changed(case), encoding="utf-8")
    problems, warned, loaded = problems_and_warnings(file, ports=False)
    if problems:
        path, says = case["refused"]
        found = next((p for p in problems if p.path.startswith(path) and says in str(p)), None)
        assert found is not None, str(problems)
        assert found.line > 0
        assert found.remedy or ";" in found.message or "without" in found.message, str(found)
        return
    assert "refused" not in case, "it was accepted"
    assert loaded is not None
    warnings = {problem.path: str(problem) for problem in warned}
    if "warned" in case:
        path, says = case["warned"]
        assert says in warnings[path]
    else:
        assert warnings == {}
    if "becomes" in case:
        path, value = case["becomes"]
        assert at(loaded.config, path) == value


# Kinds 10 and 11: tables and columns.


@pytest.mark.parametrize("case", TABLES, ids=lambda case: case["name"])
def test_kinds_10_and_11_a_table_is_read_as_meant_or_refused_by_its_line(tmp_path: Path, case: dict[str, Any]) -> None:
    path = tmp_path / case["name"]
    path.write_bytes(case["text"].encode(case.get("encoding", "utf-8")))
    columns = path.suffix == ".conll"
    task = known()["token-classification" if columns else "text-classification"]
    rows: list[Any] = []
    refusal = ""
    try:
        rows = list(datasets.read(path, task))
        check(datasets.read(path, task), task)
    except DataError as error:
        refusal = str(error)
    if refusal:
        line, says = case["refused"]
        assert refusal.startswith(f"{path}:{line}: ")
        assert says in refusal
        assert ";" in refusal, "a remedy"
        return
    assert "refused" not in case, rows
    keys = ("tokens", "tags") if columns else ("text", "label")
    assert [[row[key] for key in keys] for row in rows] == case["reads"]


# Kind 14: films.


class Frames:
    """Counts the frames of a film."""

    def __init__(self) -> None:
        self.count = 0
        self.last = -1
        self.drops: list[str] = []

    def frame(self, _stamp_s: float, image: Any) -> None:
        self.count, self.last = self.count + 1, int(image[0, -1, 0])

    def opened(self, _fps: float) -> None:
        pass

    def drop(self, cause: str) -> None:
        self.drops.append(cause)


@pytest.mark.parametrize("path", sorted((HERE / "videos").iterdir()), ids=lambda path: path.name)
def test_kind_14_every_frame_of_a_film_is_delivered_or_its_codec_is_named(path: Path) -> None:
    sink = Frames()
    job = CaptureJob(str(path), 1_000.0, False, None, None, 10_000)
    if path.name == "av1.webm":  # OpenCV's own FFmpeg has no decoder for it
        with pytest.raises(SensorLost, match="codec AV01"):
            opencv.capture(job, sink, threading.Event())
        return
    opencv.capture(job, sink, threading.Event())
    assert (sink.count, sink.drops) == (1 if path.stem == "one_frame" else 30, [])
    assert sink.count == 1 or sink.last == pytest.approx(232, abs=3), "the last frame is the brightest"
