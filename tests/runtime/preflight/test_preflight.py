"""What `check` accepts, `run` runs: settings with which no daemon could start are refused by both, with line, path and remedy."""

from __future__ import annotations

import socket
import sys
from importlib.util import find_spec
from pathlib import Path

import architectures
import numpy as np
import pytest
import soundfile
from click.testing import CliRunner, Result

from learners.files import exclusive_lock
from runtime.cli.main import main

GOOD = """\
agent: lamp
state_dir: {state}
mqtt: {{url: "mqtt://127.0.0.1:1883"}}
streams:
  motion: {{kind: telemetry, source: "topic:hall", fields: [occupancy], max_age_s: 60, required: true}}
  orders: {{kind: text, source: topic, encoder: language}}
encoders: {{language: {{model: "bundled:minilm-l6"}}}}
actuators:
  lamp: {{kind: choice, choices: [OFF, ON], safe: OFF}}
"""

BROKEN = [
    ("fields: [occupancy]", 'fields: ["/a~2b"]', 5, "streams.motion.fields", "JSON pointer"),
    ("topic:hall", "zigbee2mqtt/hall", 5, "streams.motion.source", "topic:NAME"),
    ("topic:hall", "topic:a/+/b", 5, "streams.motion", "without + or #"),
    ("kind: text, source: topic", "kind: text, source: orders.txt", 6, "streams.orders.source", "file:PATH"),
    ("kind: text, source: topic", "kind: camera, source: 'rtsp://a:b@cam:99999/x'", 6, "streams.orders.source", "65535"),
    ("kind: text, source: topic", "kind: camera, source: 'rtsp://a:b@/x'", 6, "streams.orders.source", "names no host"),
    ("kind: text, source: topic", "kind: plugin, plugin: nope", 6, "streams.orders.plugin", "nope"),
    ("bundled:minilm-l6", "bundled:nope", 7, "encoders.language.model", "bundled are"),
    ("bundled:minilm-l6", "builtin:nope", 7, "encoders.language.model", "built in are"),
    ("bundled:minilm-l6", "/nowhere/model", 7, "encoders.language.model", "no such folder"),
    ("bundled:minilm-l6", "bundled:efficientnet-lite0", 6, "streams.orders.encoder", "is a model for image"),
    ('model: "bundled:minilm-l6"', 'model: "bundled:minilm-l6", plugin: nope', 7, "encoders.language.plugin", "nope"),
    ("safe: OFF", "safe: OFF, payload: '{{\"state\": ${{value}}}}'", 9, "actuators.lamp.payload", "not JSON"),
    ("safe: OFF", "safe: OFF, state_value: /a~2", 9, "actuators.lamp.state_value", "JSON pointer"),
    ("", "policy: {{width: 100, heads: 3}}\n", 10, "policy", "multiple"),
    ("", "policy: {{fusion: low-rank-bilinear}}\n", 10, "policy.fusion", "camera"),
    ("", "policy: {{algorithm: bandit}}\n", 10, "policy.algorithm", "gamma: 0"),
    ("", "rewards: [{{name: r, kind: plugin, plugin: nope}}]\n", 10, "rewards.0.plugin", "nope"),
    ("", "learner: {{mirror_augmentation: [nope]}}\n", 10, "learner.mirror_augmentation", "lamp, motion"),
    ("", "  arm: {{kind: continuous, low: [-1], high: [3]}}\nlearner: {{mirror_augmentation: [arm]}}\n", 10, "actuators.arm.low", "let high be -low"),
    ("", "plant: {{environment: NoSuch-v0}}\n", 10, "plant.environment", "NoSuch"),
    ("", "plant: {{environment: Blackjack-v1}}\n", 10, "plant.environment", "observation space"),
    ("", "tasks: {{t: {{kind: text-classification, model: 'bundled:nope'}}}}\n", 10, "tasks.t.model", "bundled are"),
    ("state_dir: {state}", "state_dir: /dev/null/x", 2, "state_dir", "is a file"),
    ('mqtt://127.0.0.1:1883"', 'mqtts://127.0.0.1:1883", ca: nowhere.pem', 3, "mqtt.ca", "nowhere.pem"),
    ('mqtt://127.0.0.1:1883"', 'mqtts://127.0.0.1:1883", ca: /etc/passwd', 3, "mqtt.ca", "PEM"),
    ('mqtt://127.0.0.1:1883"', 'mqtts://127.0.0.1:1883", key: /etc/passwd', 3, "mqtt.key", "add mqtt.cert"),
    ('mqtt://127.0.0.1:1883"', 'mqtts://127.0.0.1:1883", key: /etc/passwd, cert: /etc/passwd', 3, "mqtt.key", "unencrypted"),
]  # fmt: skip


def verb(*arguments: str | Path) -> Result:
    done = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exc_info
    return done


def written(tmp_path: Path, old: str = "", new: str = "") -> Path:
    assert old in GOOD
    file = tmp_path / "lamp.yaml"
    file.write_text((GOOD.replace(old, new, 1) if old else GOOD + new).format(state=tmp_path / "state"))
    return file


@pytest.mark.parametrize(("old", "new", "line", "path", "word"), BROKEN)
def test_check_and_run_refuse_what_no_daemon_could_start_with(
    tmp_path: Path, old: str, new: str, line: int, path: str, word: str
) -> None:
    file = written(tmp_path, old, new)
    for name in ("check", "run"):
        done = verb(name, file)
        assert done.exit_code == 2, done.output
        reported = next((each for each in done.stderr.splitlines() if f"{file}:{line}: {path}: " in each), None)
        assert reported is not None, done.stderr
        assert word in reported
        assert "good" not in done.output
    assert not (tmp_path / "state").exists(), "nothing was begun"


def test_a_gpu_that_is_not_there_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = tmp_path / "python"
    fake.write_text("#!/bin/sh\necho 2\n")
    fake.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(fake))
    assert verb("check", written(tmp_path, "", "device: cuda:1\n")).exit_code == 0
    done = verb("check", written(tmp_path, "", "device: cuda:2\n"))
    assert done.exit_code == 2
    assert "device: cuda:2: torch finds 2 GPUs; write auto or cpu" in done.stderr


FITTING = [
    ("BERT", "translation", "bert has no head for translation; it can do question-answering, "),
    ("BERT", "text-generation", "bert reads texts in both directions, and text-generation needs a causal model"),
    ("BART", "text-generation", "bart is an encoder with a decoder, and text-generation needs a decoder alone"),
    ("BERT", "text-classification", ""),
    ("", "summarization", "bundled:minilm-l6 cannot do summarization; it can do text-classification, "),
]


def test_an_architecture_that_cannot_do_a_task_is_refused(tmp_path: Path) -> None:
    """All in one file: each `check` of tasks starts a process that imports transformers."""
    models = {name: str(architectures.ARCHITECTURES[name](tmp_path / name)) for name in ("BERT", "BART")}
    lines = ["tasks:\n"]
    for number, (architecture, kind, _) in enumerate(FITTING):
        model = models.get(architecture, "bundled:minilm-l6")
        lines.append(f"  t{number}: {{{{kind: {kind}, model: '{model}', stream: orders}}}}\n")
    done = verb("check", written(tmp_path, "", "".join(lines)))
    assert done.exit_code == 2, done.output
    for number, (_, _, wanted) in enumerate(FITTING):
        place = f":{11 + number}: tasks.t{number}.kind: "
        reported = [line for line in done.stderr.splitlines() if place in line]
        assert len(reported) == bool(wanted), done.stderr
        assert all(wanted in line for line in reported), done.stderr


def test_a_port_that_is_taken_is_a_warning_and_ends_run(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        file = written(tmp_path, "", f"metrics: {{{{listen: '127.0.0.1:{port}'}}}}\n")
        wanted = f"{file}:10: metrics.listen: cannot listen on 127.0.0.1:{port}: Address already in use; "
        done = verb("check", file)
        assert (done.exit_code, done.stderr.startswith(wanted)) == (0, True)
        done = verb("run", file)
        assert (done.exit_code, done.stderr.startswith(wanted)) == (1, True), "it may be free in a moment"
        with exclusive_lock(tmp_path / "state"):  # this daemon runs and holds its ports itself
            assert verb("check", file).stderr == ""
    assert verb("check", file).stderr == ""


def test_good_settings_are_good_and_torch_stays_away(tmp_path: Path) -> None:
    import subprocess

    code = f"import sys; from runtime.cli.main import main\ntry: main(['check', {str(written(tmp_path))!r}])\nexcept SystemExit as e: print(e.code, 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.splitlines()[-1] == "0 False", done
    assert done.stderr == ""


@pytest.mark.parametrize(
    ("actuator", "more", "words"),
    [
        (
            "{kind: choice, choices: [a, b], safe: hold, topic: house/boiler/set}",
            "",
            ["`hold` sends nothing", "boiler"],
        ),
        ("{kind: continuous, low: [0], high: [1]}", "", ["no max_rate"]),
        ("{kind: continuous, low: [0], high: [1], max_rate: [1], state_topic: x/leftMotor}", "", ["motor"]),
        ("{kind: choice, choices: [a, b], safe: a, requires: []}", "", ["an empty list"]),
        ("{kind: choice, choices: [a, b], safe: hold}", "", []),
        ("{kind: choice, choices: [a, b], safe: a}", ", required: true", ["arms without a person"]),
    ],
)
def test_dangerous_settings_are_warned_of_with_the_reason(
    tmp_path: Path, actuator: str, more: str, words: list[str]
) -> None:
    file = tmp_path / "lamp.yaml"
    text = GOOD.replace(
        "{{kind: choice, choices: [OFF, ON], safe: OFF}}", actuator.replace("{", "{{").replace("}", "}}")
    )
    file.write_text(text.replace(more or "\0", "").format(state=tmp_path / "state"))
    done = verb("check", file)
    assert done.exit_code == 0
    assert bool(done.stderr) == bool(words)
    assert all(word in done.stderr for word in words), done.stderr


def test_a_camera_of_one_token_is_not_mirrored(tmp_path: Path) -> None:
    file = written(
        tmp_path,
        "  orders:",
        "  front: {{kind: camera, source: topic, encoder: see}}\n  orders:",
    )
    text = file.read_text().replace("encoders: {", 'encoders: {see: {model: "bundled:efficientnet-lite0"}, ')
    for tokens, refused in ((1, True), (4, False)):
        file.write_text(f"{text}policy: {{tokens: {tokens}}}\nlearner: {{mirror_augmentation: [lamp]}}\n")
        assert ("no left and right" in verb("check", file).output) == refused


@pytest.mark.parametrize(
    ("engine", "absent", "path", "words"),
    [
        ("backend: openvino", "openvino", "engine.backend", "OpenVINO is not installed; pip install openvino, or write auto"),
        ("backend: onnxruntime", "onnxruntime", "engine.backend", "ONNX Runtime is not installed; pip install 'reflexd[onnx]'"),
        ("backend: onnxruntime", "onnxscript", "engine.backend", "onnxscript, which makes them, is not installed"),
        ("runtime: compiled", "openvino onnxruntime", "engine.runtime", "neither OpenVINO nor ONNX Runtime is installed"),
        ("precision: bfloat16", "openvino", "engine.precision", "ONNX Runtime computes in float32 on a CPU"),
        ("backend: onnxruntime, precision: bfloat16", "", "engine.precision", "ONNX Runtime computes in float32"),
        ("backend: onnxruntime", "openvino", "", ""),
        ("runtime: torch, precision: bfloat16", "openvino", "", ""),
        ("threads: 1", "openvino onnxruntime", "engine.backend", "the agent acts in torch, with more memory and a slower start"),
        ("threads: 1", "openvino onnxscript", "engine.backend", "(onnxscript): the agent acts in torch"),
        ("threads: 1", "openvino", "", ""),
    ],
)  # fmt: skip
def test_a_library_of_graphs_that_is_missing_is_named_with_its_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, engine: str, absent: str, path: str, words: str
) -> None:
    for module in ("runtime.preflight.model_checks", "runtime.config.lint"):
        monkeypatch.setattr(f"{module}.find_spec", lambda name: None if name in absent.split() else find_spec(name))
    done = verb("check", written(tmp_path, new=f"engine: {{{{{engine}}}}}\n"))
    assert done.exit_code == (2 if path and "acts in torch" not in words else 0), done.output
    assert (f"{path}: " in done.stderr and words in done.stderr) if words else done.stderr == "", done.stderr


def test_what_an_uplink_lacks_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    key = tmp_path / "none.pem"
    fleet = f'fleet: {{{{group: arms, url: "mqtt://127.0.0.1:1", key: {key}}}}}\n'
    monkeypatch.setattr("runtime.preflight.component_checks.find_spec", lambda _name: None)
    done = verb("check", written(tmp_path, new=fleet))
    assert done.exit_code == 2
    assert "the uplink needs pyarrow, which is not installed" in done.stderr
    assert "pip install 'reflexd[uplink]'" in done.stderr
    assert "none.pem: no key can be read" in done.stderr


def test_a_cut_sound_file_of_a_microphone_is_a_warning(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "room.wav", np.zeros(8_000, np.float32), 16_000, subtype="PCM_16")
    room = f"kind: microphone, source: {tmp_path / 'room.wav'}, encoder: ear"
    file = written(tmp_path, "kind: text, source: topic, encoder: language", room)
    file.write_text(
        file.read_text().replace(
            '{language: {model: "bundled:minilm-l6"}}', "{ear: {model: 'builtin:modulation-spectrum'}}"
        )
    )
    assert "its end is missing" not in verb("check", file).stderr
    (tmp_path / "room.wav").write_bytes((tmp_path / "room.wav").read_bytes()[:9_000])
    done = verb("check", file)
    assert (done.exit_code, f"{tmp_path / 'room.wav'}: its end is missing; copy the file" in done.stderr) == (0, True)
