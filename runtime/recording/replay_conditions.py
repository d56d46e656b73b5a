"""Record what a decision depends on besides weights, readings and history: settings, backends, threads, libraries, processor.

A recording states it at its begin; a replay names what is different here before it compares decisions.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as installed_version

import orjson

from learners.model.backends.definitions import processor
from runtime.config.schema import Config
from runtime.inference.engine import UNTRAINED, Engine

LIBRARIES = ("torch", "numpy", "openvino", "onnxruntime", "transformers", "opencv-python", "soxr")
_SETTINGS = {"streams", "encoders", "actuators", "policy", "engine"}
_WORDS = {
    "agent": "the agent was renamed",
    "settings": f"the settings under {', '.join(sorted(_SETTINGS))} differ",
    "untrained": "the untrained weights differ (learner.seed, or the program's version)",
    "runtime": "other generators and rounding (engine.runtime)",
    "device": "another device",
    "threads": "another number of threads",
    "processor": "another machine: the processor differs",
    "telemetry": "telemetry is normalised in another way, so that small spreads and faulty readings count differently",
    "graph": "graphs that this program converts round in another way, so that last bits of decisions may differ",
}
ALONE, TOGETHER = "each telemetry stream alone", "telemetry streams of one width together"
SPREADS, ANY_UNIT = "spreads below .001 come out too small", "any unit alike"
FORMER = {"graph": ALONE, "telemetry": SPREADS}
"""What recordings mean that state conditions, but not these: programs of that time knew nothing else."""


def conditions(config: Config, engine: Engine) -> dict[str, str]:
    """Return what decisions of this engine depend on, by name."""
    found = {
        "agent": config.agent,
        "settings": _digest(config.model_dump_json(include=_SETTINGS, exclude={"engine": {"runtime"}}).encode()),
        "runtime": engine.runtime,
        "device": engine.device_name,
        "threads": str(engine.calibrations.settings.threads),
        "processor": processor(),
    }
    if engine.spec.telemetry_groups():
        found["graph"] = TOGETHER
    if engine.spec.telemetry:
        found["telemetry"] = ANY_UNIT
    if engine.version == UNTRAINED:
        found["untrained"] = engine.untrained_digest
    for name, choice in sorted(engine.choices.items()):
        found[f"backend of {name}"] = f"{choice.backend} {choice.precision}"
    for name in LIBRARIES:
        found[f"library {name}"] = _installed(name)
    return found


def differences(recorded: Mapping[str, str], here: Mapping[str, str]) -> list[str]:
    """Return what differs, in words.

    What one side does not state is not compared, but for `FORMER`.
    """
    if recorded:
        recorded = FORMER | dict(recorded)
    return [
        f"{_WORDS.get(name, name)} (recorded {value}, here {here[name]})"
        for name, value in recorded.items()
        if name in here and here[name] != value
    ]


def _installed(name: str) -> str:
    try:
        return installed_version(name)
    except PackageNotFoundError:
        return "none"


def _digest(data: bytes) -> str:
    return hashlib.sha256(orjson.dumps(orjson.loads(data), option=orjson.OPT_SORT_KEYS)).hexdigest()[:16]
