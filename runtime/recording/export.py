"""`reflexd export`: what a daemon has learned and remembered, in the formats of other programs.

Reads a state folder, also one a daemon is writing to; changes nothing in it. Whatever is written is whole or not there.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import orjson

from learners.checkpoints.manifest import CheckpointRefused, LoadedCheckpoint
from learners.checkpoints.store import open_checkpoints
from learners.experience.episodes import CombinedReadings, Episodes, StoredReadings
from learners.experience.reader import Reader
from learners.export import onnx
from learners.export.lerobot_features import Layout, size_of
from learners.export.lerobot_writer import DatasetWriter, ExportNeeds
from learners.files import new_file, new_folder, write_atomically
from learners.ipc.policy_spec import read_policy_spec, spec_of_version
from learners.model.policy import build
from learners.model.spec import PolicySpec, SpecError
from runtime.config.schema import Config
from runtime.recording.export_mcap import OnProgress, TimeWindow, copy_recording, from_experience
from runtime.recording.reader import Recording, RecordingError
from runtime.recording.recorded_readings import RecordedReadings
from sensors.config import policy_fields_of


class NotExported(ValueError):  # noqa: N818 - reads as what happened
    """Nothing was written; `str` says why and what to do."""


@dataclass(frozen=True, slots=True)
class ExportOptions:
    """The options of an export, without the format."""

    out: Path
    version: str | None = None
    recording: str | None = None
    experience: bool = False
    """Take experience although there are recordings."""
    window: TimeWindow = field(default_factory=TimeWindow)
    pictures: bool = True
    task: str | None = None


def export(
    config: Config, form: str, options: ExportOptions, on_progress: OnProgress = lambda _done, _total: None
) -> str:
    """Write `options.out`; returns what was written, for a person.

    Raises:
        NotExported: there is nothing to export, or no room for it.
    """
    if not config.state_dir.is_dir():
        raise NotExported(
            f"{config.state_dir}: does not exist; `reflexd run` creates it, or correct state_dir in the settings"
        )
    if options.out.exists():
        raise NotExported(f"{options.out}: exists already; name another --out or delete it")
    options.out.parent.mkdir(parents=True, exist_ok=True)
    kinds: dict[str, Callable[[Config, ExportOptions, OnProgress], str]] = {
        "onnx": _onnx,
        "lerobot": _lerobot,
        "mcap": _mcap,
    }
    try:
        return kinds[form](config, options, on_progress)
    except (ExportNeeds, RecordingError, SpecError, onnx.OnnxExportFailed) as error:
        raise NotExported(str(error)) from None
    except sqlite3.Error as error:
        raise NotExported(
            f"{config.state_dir / 'experience'}: a database cannot be read: {error}; start the daemon once, it replaces a "
            "damaged one, or restore a backup"
        ) from None


def _onnx(config: Config, options: ExportOptions, _on_progress: OnProgress) -> str:
    checkpoints = open_checkpoints(config.state_dir, config.promotion)
    version = options.version or checkpoints.live().version
    if version is None:
        raise NotExported("no version is live: name one with --version; `reflexd checkpoints` lists them")
    try:
        loaded = checkpoints.load(version)
    except CheckpointRefused as refusal:
        raise NotExported(f"{refusal}; `reflexd checkpoints` lists what there is") from None
    spec = _spec(config, loaded)
    try:
        policy = build(spec, loaded.tensors["policy"])
    except RuntimeError as error:
        first = str(error).partition("\n")[0].rstrip(":")
        raise NotExported(f"{version}: its weights do not fit its spec ({first}); export another --version") from None
    manifest = options.out.with_suffix(".json")
    with new_file(options.out) as draft:
        facts = onnx.export(policy, draft, version=version, encoder_versions=dict(loaded.manifest.encoder_versions))
    facts["encoders"] = {
        name: config.encoders[s.encoder].model for name, s in config.streams.items() if s.encoder is not None
    }
    write_atomically(manifest, orjson.dumps(facts, option=orjson.OPT_INDENT_2))
    return f"{version}: differs from torch by {facts['difference']:.1g} at most; {options.out}, {manifest}"


def _spec(config: Config, loaded: LoadedCheckpoint) -> PolicySpec:
    """Return the version's own spec, else the one of the agent."""
    spec = spec_of_version(loaded) or read_policy_spec(config.state_dir)
    if spec is None:
        raise NotExported("no policy spec is stored; run the daemon once, it writes the spec")
    return spec


def _lerobot(config: Config, options: ExportOptions, on_progress: OnProgress) -> str:
    spec = read_policy_spec(config.state_dir)
    if spec is None:
        raise NotExported("no policy spec is stored; run the daemon once, it writes the spec")
    cameras = frozenset(s.name for s in spec.streams if s.modality == "image")
    words = tuple(s.name for s in spec.streams if s.modality == "text")
    with Reader(config.state_dir / "experience") as reader:
        wanted = cameras.union(words)
        recorded = RecordedReadings(config.state_dir / "recordings", wanted)
        readings = CombinedReadings((StoredReadings(reader, wanted), recorded))
        shown = cameras & readings.streams if options.pictures else frozenset[str]()
        layout = Layout(spec.actions, _fields(config), spec.names, {}, words)
        window = (options.window.start_s, options.window.stop_s)
        episodes = Episodes(reader, readings, shown, on_progress, layout.fits, window=window)
        walk = iter(episodes)
        first = next(walk, None)
        if first is None:
            raise NotExported(_nothing(episodes, shown))
        sizes = {}
        for name in sorted(shown):
            picture = first[0].seen[name]
            assert isinstance(picture, bytes)
            sizes[name] = size_of(picture)
        layout = replace(layout, cameras=sizes)
        with new_folder(options.out) as draft:
            task = options.task or f"what {config.agent} does"
            writer = DatasetWriter(draft, layout, max(1, round(config.tick.rate_hz)), config.agent, task)
            writer.add(first)
            for episode in walk:
                writer.add(episode)
            writer.close()
    left = sorted(cameras - shown) if options.pictures else []
    hint = f"; no pictures of {', '.join(left)} are stored; `reflexd record on` records them" if left else ""
    hint += writer.uneven
    hint += "".join(f"; {name}: {problem}" for name, problem in sorted(recorded.damage.items()))
    return f"{writer.episodes} episodes, {episodes.tally}{hint}; {options.out}"


def _nothing(episodes: Episodes, shown: frozenset[str]) -> str:
    if episodes.tally.no_picture:
        return f"pictures of {', '.join(sorted(shown))} are not stored for any of these ticks; --no-pictures exports the rest"
    if episodes.tally.other_settings:
        return (
            f"{episodes.tally.other_settings} ticks, and none has the fields and actuators of these settings: give the file that they "
            "were made with"
        )
    if episodes.tally.rows:
        return (
            f"{episodes.tally.rows} ticks, and no action was executed in any: arm the agent, or leave the mode shadow"
        )
    return "there is no experience in this state_dir and window of time: run the daemon, or widen --since and --until"


def _fields(config: Config) -> dict[str, tuple[str, ...]]:
    return {name: policy_fields_of(s) for name, s in config.streams.items() if policy_fields_of(s)}


def _mcap(config: Config, options: ExportOptions, on_progress: OnProgress) -> str:
    folder = config.state_dir / "recordings"
    if options.recording is not None or (not options.experience and any(folder.glob("*.mcap"))):
        source = _recording(folder, options.recording)
        recording = Recording(source)
        with new_file(options.out) as draft:
            count = copy_recording(recording, draft, options.window, on_progress)
            ending = recording.ending("its last chunk")
            if count == 0:
                why = f"; it is {ending}" if ending is not None else ""
                raise NotExported(f"{source.name}: no decision in this window of time: widen --since and --until{why}")
        note = f"; {ending}" if ending is not None else ""
        return f"{source.name}{'' if count < 0 else f', {count} decisions'}{note}; {options.out}"
    with Reader(config.state_dir / "experience") as reader, new_file(options.out) as draft:
        count = from_experience(
            reader, draft, options.window, agent=config.agent, fields=_fields(config), on_progress=on_progress
        )
        if count == 0:
            raise NotExported(
                "there is no experience in this window of time: run the daemon, or widen --since and --until"
            )
    return f"{count} decisions from experience; {options.out}"


def _recording(folder: Path, name: str | None) -> Path:
    found = sorted(folder.glob("*.mcap"))
    if name is not None:
        match = [path for path in found if name in (path.name, path.stem)] or [p for p in (Path(name),) if p.is_file()]
        if not match:
            raise NotExported(f"{name}: no such recording; there are {', '.join(p.name for p in found) or 'none'}")
        return match[0]
    if len(found) > 1:
        names = ", ".join(path.name for path in found)
        raise NotExported(f"several recordings: choose one with --recording, or --experience; there are {names}")
    return found[0]
