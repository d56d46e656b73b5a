"""Every verb refuses what people give it by mistake: lines with place and remedy, exit code 2, and never a traceback."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import learning
import orjson
import pytest
import tinymodels
import torch
from click.testing import CliRunner, Result

from learners.checkpoints.store import open_checkpoints
from runtime.cli.main import main
from runtime.config.loader import load

CSV = "text,label\n" + "go now,move\nstop now,halt\n" * 6
CONLL = "anna B-x\nworks O\n\nin O\nParis B-y\n"


def invoke(*arguments: str | Path) -> Result:
    done = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exc_info
    assert "Traceback" not in done.output
    return done


def refused(*arguments: str | Path) -> str:
    done = invoke(*arguments)
    assert done.exit_code == 2, done.output
    assert done.output.strip(), "a reason"
    return done.output


def put(path: Path, content: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tinymodels.bert(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory, model: Path) -> Path:
    folder = tmp_path_factory.mktemp("tuned")
    good = put(folder / "good.csv", CSV)
    done = invoke(
        "finetune", "--task", "text-classification", "--model", model, "--train", good, "--validation", good, "--out", folder / "o",
        "--mode", "frozen", "--epochs", "1",
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    return folder / "o"


def state_of(folder: Path) -> Path:
    """Settings of a daemon with its state below `folder`."""
    return put(
        folder / "robot.yaml",
        f"""agent: robot
state_dir: {folder / "state"}
mqtt: {{url: "mqtt://127.0.0.1:1"}}
streams: {{joints: {{kind: telemetry, source: topic, fields: [a], max_age_s: 1}}}}
actuators: {{head: {{kind: choice, choices: [left, stay, right], safe: stay}}}}
""",
    )


FILES: dict[str, tuple[str, str | bytes, str]] = {
    "latin1": ("a.csv", "text,label\nschön,a\n".encode("latin-1"), "a.csv:2: byte 0xf6"),
    "empty": ("a.csv", b"", "no examples"),
    "header only": ("a.csv", b"text,label\n", "no examples"),
    "binary": ("a.csv", bytes(range(256)), "a.csv:"),
    "open quote": ("a.csv", CSV + '"open,a\n', "a.csv:14: "),
    "no label": ("a.csv", "text,sentiment\nx,a\ny,b\n", "a.csv:1: no column `label`"),
    "one class": ("a.csv", "text,label\nx,a\ny,a\n", "all 2 examples have the label 'a'"),
    "broken line": ("a.jsonl", b'{"text": "x", "label": "a"}\n{"text', "a.jsonl:2: not JSON"),
    "no split": ("a.json", b'{"train": []}', "name one of its splits: a.json#train"),
    "columns": ("a.conll", CONLL, "no `text`, only `tokens`, `tags`"),
    "other suffix": ("a.xlsx", b"PK", ".xlsx is not read"),
    "pictures": ("p/cat/1.png", b"\x89PNG\r\n\x1a\n", "picture"),
}


@pytest.mark.parametrize("name", list(FILES))
def test_finetune_and_evaluate_refuse_a_file(tmp_path: Path, model: Path, tuned: Path, name: str) -> None:
    file, content, reason = FILES[name]
    path = put(tmp_path / file, content)
    path = tmp_path / "p" if file.startswith("p/") else path
    good = put(tmp_path / "good.csv", CSV)
    common = ("finetune", "--task", "text-classification", "--model", model, "--out", tmp_path / "o", "--epochs", "1")
    if name != "pictures":  # a model of texts cannot be opened for them
        assert reason in refused(*common, "--train", path, "--validation", good)
    if name != "one class":
        assert reason in refused(*common, "--train", good, "--validation", path)
        assert reason in refused(*common, "--train", good, "--validation", good, "--test", path)
        assert reason in refused("evaluate", "--task", "text-classification", "--model", tuned, "--test", path)
    assert not (tmp_path / "o" / "report.json").exists()


@pytest.mark.parametrize("part", ["--validation", "--test"])
def test_a_label_that_training_lacks_counts_as_wrong_and_is_listed(tmp_path: Path, model: Path, part: str) -> None:
    good, unseen = put(tmp_path / "good.csv", CSV), put(tmp_path / "unseen.csv", CSV + "what,odd\n")
    files = {"--train": good, "--validation": good, "--test": good} | {part: unseen}
    given = [argument for pair in files.items() for argument in pair]
    done = invoke(
        "finetune", "--task", "text-classification", "--model", model, "--out", tmp_path / "o", "--mode", "frozen", "--epochs", "1",
        *given,
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    report = json.loads((tmp_path / "o" / "report.json").read_bytes())
    assert report["unknown_labels"] == {part.removeprefix("--"): ["odd"]}
    assert report["metrics"][part.removeprefix("--")]["accuracy"] < 1


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda folder: (folder / "config.json").write_text("{"), "cannot be opened"),
        (lambda folder: (folder / "task.json").write_text("{"), "cannot be opened"),
        (lambda folder: (folder / "task.json").write_text("[1]"), "cannot be opened"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"\0" * 50), "cannot be opened"),
        (lambda folder: (folder / "model.safetensors").unlink(), "cannot be opened"),
        (lambda folder: (folder / "tokenizer.json").write_text("{"), "cannot be opened"),
    ],
)
def test_a_damaged_model_is_refused(tmp_path: Path, tuned: Path, damage: Callable[[Path], object], reason: str) -> None:
    import shutil

    shutil.copytree(tuned, tmp_path / "m")
    damage(tmp_path / "m")
    good = put(tmp_path / "good.csv", CSV)
    assert reason in refused("evaluate", "--task", "text-classification", "--model", tmp_path / "m", "--test", good)
    given = ("--train", good, "--validation", good, "--out", tmp_path / "o", "--epochs", "1")
    assert reason in refused("finetune", "--task", "text-classification", "--model", tmp_path / "m", *given)


def test_models_and_options_that_cannot_be_used(tmp_path: Path, model: Path, tuned: Path) -> None:
    good = put(tmp_path / "good.csv", CSV)
    given = ("--train", good, "--validation", good, "--out", tmp_path / "o")
    assert "unknown; bundled are" in refused(
        "finetune", "--task", "text-classification", "--model", "bundled:nope", *given
    )
    assert "no such folder" in refused(
        "finetune", "--task", "text-classification", "--model", tmp_path / "nowhere", *given
    )
    assert "no such file" in refused(
        "evaluate", "--task", "text-classification", "--model", tuned, "--test", tmp_path / "gone.csv"
    )
    assert "not for token-classification" in refused(
        "evaluate", "--task", "token-classification", "--model", tuned, "--test", good
    )
    assert "fine-tuned for nothing" in refused(
        "evaluate", "--task", "text-classification", "--model", model, "--test", good
    )
    for option, value in {"--epochs": "0", "--batch": "-1", "--learning-rate": "nan", "--patience": "0"}.items():
        assert option in refused("finetune", "--task", "text-classification", "--model", model, *given, option, value)
    (tmp_path / "o").write_text("a file")
    assert "is a file" in refused("finetune", "--task", "text-classification", "--model", model, *given)


def test_evaluate_says_what_the_reader_noted(tmp_path: Path, tuned: Path) -> None:
    table = put(tmp_path / "a.csv", "text,label,split\ngo now,move,train\nstop now,halt,test\n")
    done = invoke(
        "evaluate", "--task", "text-classification", "--model", tuned, "--test", table, "--out", tmp_path / "o"
    )
    assert (done.exit_code, "all splits are read (test, train)" in done.stderr) == (0, True), done.output
    assert json.loads((tmp_path / "o" / "report.json").read_bytes())["notes"][0].startswith("all splits are read")


def test_a_pipe_or_a_device_is_refused_and_never_read(tmp_path: Path) -> None:
    settings, out = state_of(tmp_path), tmp_path / "o"
    pipe = tmp_path / "pipe.csv"
    os.mkfifo(pipe)
    tune = ("finetune", "--task", "text-classification", "--model", "bundled:minilm-l6", "--out", out)
    for place, what in {pipe: "is a pipe", Path("/dev/zero"): "is a device"}.items():
        for verb in (
            ("check", place),
            ("status", place),
            ("replay", place, settings),
            ("restore", place, settings),
            ("backup", place, settings),
            ("export", settings, "--format", "mcap", "--out", place),
            ("plant", "CartPole-v1", "--settings", place),
            ("train", "CartPole-v1", "--out", place),
            ("checkpoints", "--config", settings, "import", place),
            ("compare", place),
            ("new", place),
            (*tune, "--train", place, "--validation", place),
            ("evaluate", "--task", "text-classification", "--model", "m", "--test", place),
        ):
            assert what in refused(*verb), verb


def test_settings_that_name_a_pipe_for_a_secret_or_a_certificate(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    good = state_of(tmp_path).read_text()
    secret = put(tmp_path / "a.yaml", good.replace("agent: robot", "agent: ${file:pipe}"))
    assert f"{secret}:1: agent: cannot read pipe" in refused("check", secret)
    pem = put(tmp_path / "b.yaml", good.replace('{url: "mqtt', f'{{ca: {tmp_path}/pipe, url: "mqtts'))
    assert "pipe cannot be read" in refused("check", pem)


@pytest.mark.parametrize("content", [b"", b"junk", b"\x89MCAP0\r\n", b"\x89MCAP0\r\n" + bytes(200)])
def test_replay_refuses_what_is_no_recording(tmp_path: Path, content: bytes) -> None:
    assert "a.mcap" in refused("replay", put(tmp_path / "a.mcap", content))


def test_files_that_are_not_there(tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    for verb in (
        ("replay", gone),
        ("check", gone),
        ("explain", "x", "--config", gone),
        ("export", gone, "--format", "onnx", "--out", tmp_path / "x"),
    ):
        assert str(gone) in refused(*verb)
    assert "no checkpoint in it" in refused("checkpoints", "import", tmp_path)


@pytest.mark.parametrize("content", [b"", b"\xff\xfe", b"a: [", b"- 1\n", b"agent: x\n\tb: 1", b"a: &a [*a]", b"\0"])
def test_settings_that_are_no_settings(tmp_path: Path, content: bytes) -> None:
    path = put(tmp_path / "a.yaml", content)
    for verb in (
        ("check", path),
        ("status", path),
        ("explain", "x", "--config", path),
        ("plant", "CartPole-v1", "--settings", path),
    ):
        assert f"{path}:1" in refused(*verb) or f"{path}:2" in refused(*verb)


def test_demonstrations_that_are_no_episodes(tmp_path: Path) -> None:
    for name, content in {"a.npz": b"junk", "b.npz": b"PK\x03\x04", "c.npz": b""}.items():
        path = put(tmp_path / name, content)
        assert name in refused("train", "CartPole-v1", "--out", tmp_path / "o", "--demonstrations", path)
    assert "Nowhere" in refused("train", "Nowhere-v0", "--out", tmp_path / "o")


KEYS = [b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n", None]
"""What is in place of the signing key; None is a folder."""


@pytest.mark.parametrize("key", KEYS)
def test_a_signing_key_that_cannot_be_used(tmp_path: Path, key: bytes | None) -> None:
    config, place = state_of(tmp_path), tmp_path / "state" / "keys" / "checkpoint-key.pem"
    if key is None:
        place.mkdir(parents=True)
    else:
        put(place, key)
    place.chmod(0o600 if key is not None else 0o700)
    for verb in (
        ("check", config),
        ("checkpoints", "--config", config),
        ("checkpoints", "--config", config, "promote", "000001-00000000"),
        ("checkpoints", "--config", config, "import", tmp_path),
        ("export", config, "--format", "onnx", "--out", tmp_path / "x.onnx"),
    ):
        assert "checkpoint-key.pem" in refused(*verb)


def test_a_database_of_experience_that_is_damaged(tmp_path: Path) -> None:
    config = state_of(tmp_path)
    learning.fill(tmp_path / "state", 0, 20)
    (tmp_path / "state" / "experience" / "raw.db").write_bytes(b"junk" * 1_000)
    reported = refused("export", config, "--format", "mcap", "--out", tmp_path / "x.mcap")
    assert "experience: a database cannot be read: file is not a database; " in reported
    assert not (tmp_path / "x.mcap").exists()


def test_a_signed_version_with_weights_of_another_shape(tmp_path: Path) -> None:
    config = state_of(tmp_path)
    versions = open_checkpoints(tmp_path / "state", load(config).config.promotion)
    spec = orjson.loads(learning.SPEC.to_json())
    versions.promote(versions.save({"policy": {"w": torch.zeros(2)}}, {"spec": spec}))
    reported = refused("export", config, "--format", "onnx", "--out", tmp_path / "x.onnx")
    assert "its weights do not fit its spec" in reported


def test_a_version_that_is_not_there(tmp_path: Path) -> None:
    config = state_of(tmp_path)
    for version in ("000001-00000000", "live"):
        assert version in refused("checkpoints", "--config", config, "promote", version)
    assert refused("checkpoints", "--config", config, "rollback").count("\n") == 1


def test_numbers_and_names_that_no_verb_can_use(tmp_path: Path) -> None:
    out = ("--out", tmp_path / "o")
    for given in (("--steps", "0"), ("--steps", "-5"), ("--seed", "-1"), ("--seed", "9" * 20)):
        assert "is not in the range" in refused("train", "CartPole-v1", *out, *given)
    for rate in ("0", "-1", "nan", "inf", "1e-300", "1e300"):
        for more in ((), ("--config",)):
            assert "is not between" in refused("plant", "CartPole-v1", "--rate", rate, *more)
    for agent in ("", "a/b", "+", "#", "É", "x" * 65):
        assert "is not a valid name" in refused("plant", "CartPole-v1", "--agent", agent, "--config")


def test_a_report_that_is_damaged(tmp_path: Path, tuned: Path) -> None:
    import shutil

    shutil.copytree(tuned, tmp_path / "m")
    (tmp_path / "m" / "report.json").write_bytes(orjson.dumps([1]))
    good = put(tmp_path / "good.csv", CSV)
    assert "cannot be opened" in refused(
        "evaluate", "--task", "text-classification", "--model", tmp_path / "m", "--test", good
    )


@pytest.mark.parametrize(
    ("verb", "option", "value"),
    [
        *[("finetune", name, value) for name in ("--learning-rate", "--threshold", "--window-s", "--temperature") for value in ("nan", "-1", "inf")],
        *[("finetune", name, value) for name in ("--epochs", "--batch", "--lora-rank", "--max-length", "--tiles", "--max-new-tokens") for value in ("0", "-3")],
        ("finetune", "--lora-rank", "100000"), ("finetune", "--threshold", "2"), ("finetune", "--patience", "-1"),
        ("discover", "--seconds", "nan"), ("discover", "--seconds", "-1"), ("discover", "--seconds", "1e999"),
        ("discover", "--filter", "a/#/b"), ("discover", "--filter", "a+"), ("discover", "--filter", ""),
        ("compare", "--least", "nan"),
    ],
)  # fmt: skip
def test_a_number_that_no_verb_can_use_is_refused_by_its_option(verb: str, option: str, value: str) -> None:
    assert option in refused(verb, f"{option}={value}")


def test_what_new_refuses_is_named_by_the_file_that_was_asked_for(tmp_path: Path) -> None:
    out = tmp_path / "robot.yaml"
    output = refused(
        "new", out, "--agent", "a", "--mqtt", "embedded://127.0.0.1:1883", "--sensor", "s", "--fields", "a,a",
        "--switch", "w", "--reward", "",
    )  # fmt: skip
    assert output.startswith(f"{out}:")
    assert not out.exists()


@pytest.mark.parametrize("written", [r'"a\nb"', r'"\e[2J"', '"' + "x" * 50_000 + '"'])
def test_a_problem_is_one_short_line_whatever_the_settings_say(tmp_path: Path, written: str) -> None:
    path = put(tmp_path / "new\nline.yaml", f"agent: a\nstreams: {{s: {{kind: {written}}}}}\nactuators: {{}}\n")
    lines = refused("check", path).splitlines()
    assert len([line for line in lines if "streams.s" in line]) == 1
    assert all(len(line) < 3_000 and line.isprintable() for line in lines)
