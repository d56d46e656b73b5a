"""Thirty broken settings files, each refused with file, line, path and remedy; and what a good one gives."""

from __future__ import annotations

import bz2
import gzip
import lzma
import re
import subprocess
import sys
from pathlib import Path

import canaries
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from learners.config.policy import ExplorationSettings
from runtime.config import loader
from runtime.preflight.preflight import problems_and_warnings

GOOD = """\
agent: demo
state_dir: state
streams:
  front: {kind: camera, source: topic, encoder: vision}
  joints: {kind: telemetry, fields: [q1]}
encoders:
  vision: {model: "bundled:efficientnet-lite0"}
actuators:
  head: {kind: choice, choices: [left, right], safe: left}
  arm: {kind: continuous, low: [-1], high: [1]}
"""

# what is replaced, by what, the line it must name, the path it must name, a word of the remedy
BROKEN = [
    ("agent: demo", "agent: De mo", 1, "agent", "pattern"),
    ("agent: demo\n", "", 1, "agent", "add `agent:`"),
    ("agent: demo", "agent: demo\nagent: other", 2, "agent", "keep one"),
    ("agent: demo", "agent: [", 1, "", "indentation"),
    ("agent: demo", "agent: demo\n\tmode: x", 2, "", "spaces instead of tabs"),
    ("agent: demo", "agent: demo\nagnet: x", 2, "agnet", "did you mean `agent`"),
    ("agent: demo", "agent: demo\nmode: fast", 2, "mode", "autonomous"),
    ("agent: demo", "agent: demo\npolicy: {exploration: {final: 2}}", 2, "policy.exploration.final", "1"),
    ("agent: demo", "agent: demo\ntick: {rate_hz: 251}", 2, "tick.rate_hz", "250"),
    ("agent: demo", "agent: demo\ntick: {rate_hz: .inf}", 2, "tick.rate_hz", "number"),
    ("agent: demo", "agent: demo\ntick: 10", 2, "tick", "key: value"),
    ("agent: demo", "agent: demo\nmqtt: {url: 'http://x'}", 2, "mqtt.url", "embedded://"),
    ("agent: demo", "agent: demo\nmqtt: {url: 'mqtt://u:" + canaries.MQTT + "@x'}", 2, "mqtt.url", "username"),
    ("agent: demo", "agent: demo\nmqtt: {password: '${env:REFLEXD_NO_SUCH}'}", 2, "mqtt.password", "export"),
    ("agent: demo", "agent: demo\nmqtt: {password: '${file:nothing}'}", 2, "mqtt.password", "create the file"),
    ("agent: demo", "agent: demo\ndevice: gpu", 2, "device", "pattern"),
    ("kind: camera", "kind: cam", 4, "streams.front", "kinds"),
    ("kind: camera, ", "", 4, "streams.front", "kind"),
    ("encoder: vision}", "encoder: sight}", 4, "streams.front.encoder", "vision"),
    (", encoder: vision}", "}", 4, "streams.front.encoder", "needs one of"),
    ("source: topic", "source: topic, rate_hz: -1", 4, "streams.front.rate_hz", "greater"),
    ("source: topic", "source: topic, rat_hz: 1", 4, "streams.front.rat_hz", "rate_hz"),
    ("  front:", "  Front!:", 4, "streams.Front!", "pattern"),
    ("fields: [q1]", "fields: [q1, q1]", 5, "streams.joints.fields", "listed twice"),
    ("fields: [q1]", "fields: q1", 5, "streams.joints.fields", "list"),
    ("[left, right]", "[1, 2]", 9, "actuators.head.choices", "quotes"),
    ("[left, right]", "[true, left]", 9, "actuators.head.choices", "quotes"),
    ("[q1]}", "[q1], max_age_s: 1:30}", 5, "streams.joints.max_age_s", "plain number"),
    ("[q1]}", "[q1], max_age_s: 1_000.5x}", 5, "streams.joints.max_age_s", "plain number"),
    ("[q1]}", "[q1], max_age_s: 2024-01-01}", 5, "streams.joints.max_age_s", "plain number"),
    ("[q1]}", "[q1], required: maybe}", 5, "streams.joints.required", "true or false"),
    ("state_dir: state", "state_dir: ''", 2, "state_dir", "the path is empty"),
    ("state_dir: state", "state_dir:", 2, "state_dir", "write a path"),
    ("state_dir: state", "state_dir: ~", 2, "state_dir", "write a path"),
    ("{model:", "{<<: 1, model:", 7, "encoders.vision", "`<<: *name`"),
    ("{model:", "!new {model:", 7, "encoders.vision", "delete it"),
    ('"bundled:efficientnet-lite0"', '""', 7, "encoders.vision.model", "at least 1"),
    ('"bundled:efficientnet-lite0"', "!!python/name:os.system ''", 7, "encoders.vision.model", "quoted strings"),
    ("[left, right]", "[left]", 9, "actuators.head.choices", "at least 2"),
    ("safe: left", "safe: up", 9, "actuators.head", "choices"),
    ("safe: left", "safe: left, topic: a/#", 9, "actuators.head.topic", "#"),
    ("safe: left", "safe: left, payload: '${nope}'", 9, "actuators.head.payload", "value"),
    ("low: [-1]", "low: [-1, 0]", 10, "actuators.arm", "each component"),
    ("low: [-1]", "low: [2]", 10, "actuators.arm", "below"),
    ("high: [1]", "high: [1], safe: [7]", 10, "actuators.arm", "between"),
    ("high: [1]", "high: [1], ttl_ms: many", 10, "actuators.arm.ttl_ms", "whole number"),
    ("high: [1]", "high: [1], requires: [nobody]", 10, "actuators.arm.requires", "streams"),
    ("high: [1]}", "high: [1]}\n  say: {kind: text, task: talk}", 11, "actuators.say.task", "tasks"),
    ("high: [1]}", "high: [1]}\ngate: {forbid: ['lamp ==']}", 11, "gate.forbid.0", ""),
    ("high: [1]}", "high: [1]}\ngate: {forbid: [\"lamp == 'x'\"]}", 11, "gate.forbid.0", "head"),
    ("high: [1]}", "high: [1]}\ngate: {forbid: [\"head == 'left'\"]}", 11, "gate.forbid.0", "choose other safe values"),
    (
        "high: [1]}",
        "high: [1]}\ngate: {forbid: [\"head == 'left' and arm[0] > 0.5\"]}",
        11,
        "gate.forbid.0",
        "give arm a safe value",
    ),
    ("high: [1]}", "high: [1]}\ngate: {forbid: [\"head == 'Left'\"]}", 11, "gate.forbid.0", "'Left'; its choices are"),
    ("high: [1]}", "high: [1]}\ngate: {forbid: [\"'up' != head\"]}", 11, "gate.forbid.0", "never 'up'"),
    ("high: [1]}", "high: [1]}\ngate: {forbid: ['arm[0] > 1']}", 11, "gate.forbid.0", "can never hold"),
    ("high: [1]}", "high: [1]}\ngate: {forbid: ['arm[0] <= 1']}", 11, "gate.forbid.0", "always holds"),
    (
        "high: [1]}",
        "high: [1]}\ngate: {forbid: [\"head == 'left' and head == 'right'\"]}",
        11,
        "gate.forbid.0",
        "can never",
    ),
    ("high: [1]}", "high: [1]}\ngate: {forbid: ['head > 3']}", 11, "gate.forbid.0", "never 3"),
    ("high: [1]}", "high: [1]}\ngate: {forbid: ['head + 1']}", 11, "gate.forbid.0", "never has a value"),
    ("high: [1]}", "high: [1]}\ngate: {forbid: ['1 > 0']}", 11, "gate.forbid.0", "always holds"),
    (
        "high: [1]}",
        "high: [1]}\nrewards: [{name: r, kind: expression, value: \"head == 'Left'\"}]",
        11,
        "rewards.0.value",
        "Left",
    ),
    ("high: [1]}", "high: [1]}\nmetrics: {listen: 'x:99999'}", 11, "metrics.listen", "65535"),
    ("high: [1]}", "high: [1]}\nmetrics: {listen: 'x:1883'}", 11, "metrics.listen", "already used by mqtt.url"),
    (
        "high: [1]}",
        "high: [1]}\nrewards: [{name: r, kind: expression, value: 'joints.q9'}]",
        11,
        "rewards.0.value",
        "joints has ['q1']",
    ),
]


@pytest.mark.parametrize(("old", "new", "line", "path", "word"), BROKEN)
def test_a_broken_file_names_file_line_path_and_remedy(
    tmp_path: Path, old: str, new: str, line: int, path: str, word: str
) -> None:
    assert GOOD.count(old) == 1
    file = tmp_path / "broken.yaml"
    file.write_text(GOOD.replace(old, new))
    with pytest.raises(loader.ConfigError) as caught:
        loader.load(file)
    problem = next((p for p in caught.value.problems if p.path.startswith(path)), None)
    assert problem is not None, str(caught.value)
    assert problem.line == line, str(problem)
    assert str(problem).startswith(f"{file}:{line}: ")
    assert word in str(problem)


PASSWORDS = [
    ("agent: demo", "agent: demo\nmqtt: {url: 'mqtt://me:MARK'}", "mqtt.url"),
    ("agent: demo", "agent: demo\nmqtt: {url: 'mqtt://me:MARK:x'}", "mqtt.url"),
    ("agent: demo", "agent: demo\nmqtt: {url: 'mqtt://me:MARK℀x@h'}", "mqtt.url"),
    ("agent: demo", "agent: demo\nmqtt: {url: 'mqtt://me:[MARK@h:1'}", "mqtt.url"),
    ("agent: demo", "agent: demo\nmqtt: {url: 'mqtt://me:MARK/MARK@h'}", "mqtt.url"),
    ("agent: demo", "agent: demo\nmqtt: {url: 'mqtt://me:a?MARK@h'}", "mqtt.url"),
    ("agent: demo", "agent: demo\nmqtt: {username: me, password: [MARK]}", "mqtt.password"),
    ("agent: demo", "agent: demo\nmqtt: {gate: {username: me, pasword: MARK}}", "mqtt.gate.pasword"),
    ("agent: demo", "agent: demo\nmqtt: {gate: 'me:MARK'}", "mqtt.gate"),
    ("agent: demo", "agent: demo\nfleet: {group: g, url: 'mqtts://me:MARK@h'}", "fleet.url"),
    ("agent: demo", "agent: demo\nfleet: {group: g, url: 'mqtts://me:MARK'}", "fleet.url"),
    ("agent: demo", "agent: demo\nfleet: {group: g, url: 'mqtt://h', password: MARK}", "fleet.password"),
    ("agent: demo", "agent: demo\ndashboard: {token: [MARK]}", "dashboard.token"),
    ("source: topic", "source: 'rtsp:/me:MARK@h/x'", "streams.front.source"),
    ("source: topic", "source: 'rtsp//me:MARK@h/x'", "streams.front.source"),
    ("source: topic", "source: 'rtspt://me:MARK@h/x'", "streams.front.source"),
    ("source: topic", "source: ['rtsp://me:MARK@h/x']", "streams.front.source"),
    ("fields: [q1]", "fields: [q1], source: 'mqtt://me:MARK@h/x'", "streams.joints.source"),
]


@pytest.mark.parametrize(("old", "new", "path"), PASSWORDS)
def test_a_password_in_the_wrong_place_is_refused_and_not_repeated(
    tmp_path: Path, old: str, new: str, path: str
) -> None:
    file = tmp_path / "broken.yaml"
    file.write_text(GOOD.replace(old, new.replace("MARK", canaries.MARK), 1), encoding="utf-8")
    problems, _, _ = problems_and_warnings(file, ports=False)
    found = next(problem for problem in problems if problem.path.startswith(path))
    assert found.remedy or ";" in found.message or "under username" in found.message, str(found)
    assert "known here: ;" not in f"{found};"
    assert canaries.received(str(problems)) is None


@pytest.mark.parametrize(
    "content", [b"", b"- a", b"\xff\xfe\x00", b"a: &a [*a]", b"x" * 2_000_000, b"a: " + b"[" * 5000, b"? [1]\n: 2"]
)
def test_files_that_are_no_settings_are_refused(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "no.yaml"
    file.write_bytes(content)
    with pytest.raises(loader.ConfigError) as caught:
        loader.load(file)
    assert str(caught.value).startswith(f"{file}:")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(loader.ConfigError, match="readable"):
        loader.load(tmp_path / "none.yaml")


def test_aliases_cannot_make_a_short_file_endless(tmp_path: Path) -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 9)]
    file = tmp_path / "bomb.yaml"
    file.write_text("\n".join(lines))
    with pytest.raises(loader.ConfigError, match="aliases"):
        loader.load(file)


def test_secrets_come_from_environment_and_file_and_are_remembered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REFLEXD_TEST_PASSWORD", canaries.ENVIRONMENT)
    (tmp_path / "token").write_text(canaries.FILE + "\n")
    file = tmp_path / "good.yaml"
    file.write_text(
        GOOD + "mqtt: {username: me, password: '${env:REFLEXD_TEST_PASSWORD}'}\ndashboard: {token: '${file:token}'}\n"
    )
    loaded = loader.load(file)
    user = loaded.config.mqtt.credentials("gate")
    assert user is not None
    assert user.password is not None
    assert user.password.get_secret_value() == canaries.ENVIRONMENT
    assert loaded.secrets == {canaries.ENVIRONMENT, canaries.FILE}
    assert canaries.received(repr(loaded.config)) is None


def test_secrets_of_plugins_and_in_addresses_are_remembered_and_other_words_are_not(tmp_path: Path) -> None:
    file = tmp_path / "good.yaml"
    file.write_text(
        f"""agent: a
state_dir: x
streams:
  one: {{kind: plugin, plugin: p, fields: [x], options: {{api_key: {canaries.PLUGIN}, login: 'http://u:{canaries.ODD[:6]}-x@h', key: angle, n: 3}}}}
  two: {{kind: camera, source: 'rtsp://cam:{canaries.RTSP}@h/1?channel=main&token={canaries.QUERY}', encoder: e}}
encoders: {{e: {{model: 'bundled:efficientnet-lite0'}}}}
actuators: {{head: {{kind: choice, choices: [a, b], safe: a}}}}
"""
    )
    loaded = loader.load(file)
    assert loaded.secrets == {canaries.PLUGIN, canaries.ODD[:6] + "-x", canaries.RTSP, canaries.QUERY}
    assert canaries.PLUGIN not in repr(loaded.config.streams["one"])


@given(st.text(max_size=300))
def test_any_text_is_settings_or_refused(text: str) -> None:
    path = Path("/dev/shm/reflexd-any.yaml")
    path.write_text(text, encoding="utf-8", errors="replace")
    with pytest.raises(loader.ConfigError):
        loader.load(path)


@pytest.mark.parametrize("name", ["demo", "video", "webcam", "rtsp", "robot", "home"])
def test_every_shipped_file_is_valid(name: str) -> None:
    assert loader.load(Path("configs") / f"{name}.yaml").config.agent


def test_check_refuses_with_exit_code_2_and_little_work(tmp_path: Path) -> None:
    file = tmp_path / "broken.yaml"
    file.write_text(GOOD.replace("kind: camera", "kind: cam"))
    command = [sys.executable, "-X", "importtime", "-m", "runtime.cli", "check", str(file)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert f"{file}:4: streams.front: " in done.stderr
    assert "Traceback" not in done.stderr
    imported = set(re.findall(r"^import time:.*\| +(\w+)$", done.stderr, re.MULTILINE))
    assert "yaml" in imported
    assert imported.isdisjoint({"torch", "transformers", "cv2", "openvino", "scipy"})


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ("010", 10.0), ("0010", 10.0), ("0o10", 8.0), ("0x1F", 31.0), ("1e1", 10.0), (".5", 0.5), ("+7", 7.0), ("'3'", 3.0), ("7.", 7.0),
    ],
)  # fmt: skip
def test_numbers_are_read_as_people_mean_them(tmp_path: Path, written: str, read: float) -> None:
    file = tmp_path / "good.yaml"
    file.write_text(GOOD.replace("fields: [q1]", f"fields: [q1], max_age_s: {written}"))
    assert loader.load(file).config.streams["joints"].max_age_s == read


@pytest.mark.parametrize("words", [("ON", "OFF"), ("on", "off"), ("yes", "no"), ("y", "n"), ("1:30", "2024-01-01")])
def test_words_stay_words_without_quotes(tmp_path: Path, words: tuple[str, str]) -> None:
    file = tmp_path / "good.yaml"
    file.write_text(
        GOOD.replace("[left, right], safe: left", f"[{', '.join(words)}], safe: {words[0]}")
        + "learner: {enabled: no}\nrecord: {enabled: yes}\ndiscovery: on\n"
    )
    config = loader.load(file).config
    assert config.actuators["head"].choices == words  # type: ignore[union-attr]
    assert (config.learner.enabled, config.record.enabled, config.discovery) == (False, True, True)


def test_merge_keys_bring_in_what_is_not_written(tmp_path: Path) -> None:
    file = tmp_path / "good.yaml"
    more = """\
  joints: &tele {kind: telemetry, fields: [q1], max_age_s: 5}
  hips:
    fields: [q2]
    <<: *tele
  knees: {<<: [*tele, {kind: text, required: true}], source: "topic:knees"}
  ankles: &ankles {<<: *tele, max_age_s: 7}
  toes: {<<: *ankles}
"""
    file.write_text(GOOD.replace("  joints: {kind: telemetry, fields: [q1]}\n", more))
    loaded = loader.load(file)
    streams = loaded.config.streams
    assert [(s.max_age_s, s.required) for s in streams.values()][1:] == [
        (5, False),
        (5, False),
        (5, True),
        (7, False),
        (7, False),
    ]
    assert streams["hips"].fields == ("q2",)  # type: ignore[union-attr]
    assert loaded.lines[("streams", "hips", "max_age_s")] == 5
    file.write_text(GOOD.replace("  joints: {kind", "  joints: &a {<<: *a, kind"))
    with pytest.raises(loader.ConfigError, match="merges mappings only"):
        loader.load(file)


def test_a_tilde_means_the_home_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    file = tmp_path / "good.yaml"
    file.write_text(
        GOOD.replace("state_dir: state", "state_dir: ~/state").replace("source: topic", "source: ~/clip.mp4")
    )
    config = loader.load(file).config
    assert config.state_dir == tmp_path / "state"
    assert config.streams["front"].source == str(tmp_path / "clip.mp4")  # type: ignore[union-attr]


@pytest.mark.parametrize(
    "rule",
    [
        "a[0] > a[1] and a[1] > a[2] and a[2] > a[3]",
        "a[0] == b[0]",
        "a[1] == b[0] and a[1] != 0.95",
        "a[0] < a[1] < a[2] < a[3]",
    ],
)
def test_components_that_are_compared_with_each_other_are_not_judged_by_samples(tmp_path: Path, rule: str) -> None:
    file = tmp_path / "good.yaml"
    arms = "  a: {kind: continuous, low: [0, 0, 0, 0], high: [1, 1, 1, 1]}\n  b: {kind: continuous, low: [0.9], high: [5]}\n"
    file.write_text(f'{GOOD}{arms}gate: {{forbid: ["{rule}"]}}\n')
    try:
        loader.load(file)
    except loader.ConfigError as error:
        assert "never hold" not in str(error)  # noqa: PT017 - a rule may forbid the safe values
        assert "always holds" not in str(error)  # noqa: PT017


@pytest.mark.parametrize(
    "rule",
    [
        "head == 'left' and arm[0] > 0.999999", "arm[0] * arm[0] > 0.5", "abs(arm[0]) > 0.5", "not (arm[0] < 1)", "head != 'left'",
        "arm[0] > 0 if head == 'right' else arm[0] < -0.9", "arm[0] / 10 < 0.02 or arm[0] / 10 > 0.03",
        "arm[0] * 18 + 32 < 33 or arm[0] * 18 + 32 > 34",
    ],
)  # fmt: skip
def test_rules_that_may_hold_are_accepted(tmp_path: Path, rule: str) -> None:
    file = tmp_path / "good.yaml"
    file.write_text(GOOD.replace("high: [1]", "high: [1], safe: hold") + f'gate: {{forbid: ["{rule}"]}}\n')
    try:
        loader.load(file)
    except loader.ConfigError as error:
        assert "hold within" not in str(error)  # noqa: PT017 - a rule may forbid the safe values
        assert "always holds" not in str(error)  # noqa: PT017


@pytest.mark.parametrize(
    ("over", "rate_hz", "decisions"),
    [(None, 50, 2_000), (None, 1, 600), (500, 1, 500), ("10 min", 1, 600), ("1.5h", 2, 10_800), ("20 s", 50, 1_000)],
)
def test_exploration_lasts_decisions_or_time(over: int | str | None, rate_hz: float, decisions: int) -> None:
    assert ExplorationSettings(over=over).decisions(rate_hz) == decisions


@pytest.mark.parametrize("over", [0, "soon", "10 days", "-5 s"])
def test_an_unknown_length_of_exploration_is_refused(over: int | str) -> None:
    with pytest.raises(ValidationError, match="over"):
        ExplorationSettings(over=over)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (gzip.compress(b"agent: a\n"), "a gzip file"),
        (bz2.compress(b"agent: a\n"), "a bzip2 file"),
        (lzma.compress(b"agent: a\n"), "a xz file"),
        (b"PK\x03\x04\0\0agent: a\n", "a ZIP file"),
        (b"%PDF-1.7\n%\xe2\xe3\n", "a PDF file"),
        (b"SQLite format 3\0", "a SQLite file"),
        ("agent: a\nstate_dir: x\n".encode("utf-16"), "text in UTF-16"),
        ("agent: a\nstate_dir: x\n".encode("utf-16-be"), "text in UTF-16"),
        ("agent: a\nstate_dir: x\n".encode("utf-32"), "text in UTF-32"),
        (bytes(4096), "4096 zero bytes, as a crash"),
        (b"agent: a\0\n", "a zero byte at 8"),
        (b"agent: K\xfcche\n", "not UTF-8"),
    ],
)
def test_a_file_that_is_no_text_in_utf_8_is_called_what_it_is(tmp_path: Path, content: bytes, reason: str) -> None:
    path = tmp_path / "a.yaml"
    path.write_bytes(content)
    with pytest.raises(loader.ConfigError) as refused:
        loader.load(path)
    (problem,) = refused.value.problems
    assert reason in str(problem)
    assert "UTF-8" in str(problem)
