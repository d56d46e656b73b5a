"""Find what an agent on graphs starts with, and let a process prepare what is missing. Imports no torch.

Prepared are encoders (a description, their graph, and what they need to read text or sound) and the untrained weights of a
policy with their graph. They lie in the cache that all daemons of this user share; where it cannot be written, in `state_dir`.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from importlib.metadata import version as installed_version
from pathlib import Path
from typing import IO, Any

import numpy as np
import orjson
import structlog
from numpy.typing import NDArray

from learners.checkpoints.arrays import WeightsRefused, unpack_arrays
from learners.config import EncoderSettings
from learners.files import private_folder, write_atomically
from learners.model.backends.calibration_cache import Calibrations
from learners.model.backends.choice import CPU, BackendSettings, NotCompiled, in_float32
from learners.model.backends.openvino import OpenVinoRun, graph_of
from learners.model.encoders.endpoints import utterance_tokens
from learners.model.encoders.packages import MODULATION, PACKAGES, PREFIX, UTTERANCE
from learners.model.spec import Modality, PolicySpec
from runtime.inference.arrays import inputs as array_inputs
from runtime.process.child import with_parent_death
from sensors.readings import Frame, Reading, Sound, Text

_LOG = structlog.get_logger(__name__)
FORMAT = 1
"""Raised when a description has other fields."""
FOLDER = "prepared"
RECORD, TOKENIZER, FILTERS = "encoder.json", "tokenizer.json", "filters.npy"
MOST_PREPARED = 48
"""Encoders and untrained weights in one folder; the oldest go, and are prepared again where they are needed."""
FREQUENCIES, BANDS = 24, 40
"""Of the built-in modulation spectrum: frequencies, and the least number of mel bands."""


class NotPrepared(Exception):  # noqa: N818 - reads as what happened
    """Something cannot run without torch; `str` says what and why."""


@dataclass(frozen=True, slots=True)
class EncoderRecord:
    """The description of a prepared encoder."""

    kind: str
    """`picture`, `mel`, `waveform` or `text`: what its graph reads."""
    modality: Modality
    version: str
    tokens: int
    width: int
    columns: int = 0
    size: tuple[int, int] = (0, 0)
    """Of a picture: height and width."""
    samples: int = 0
    """Of a sound."""
    limit: int = 0
    """Of a text in ids."""
    pad: int = 0
    """The id behind a text's end."""
    flips: bool = False
    """Whether the channels of a picture are blue, green, red."""
    normalises: bool = True
    """Whether samples have mean 0 and deviation 1."""


@dataclass(slots=True)
class ArrayEncoder:
    """An encoder without torch: numpy makes the inputs, a graph makes the tokens."""

    modality: Modality
    version: str
    tokens: int
    width: int
    columns: int

    def encode(self, readings: Sequence[Reading]) -> NDArray[np.float32]:
        """Return tokens B,T,W of readings of this modality."""
        raise NotImplementedError


@dataclass(slots=True)
class GraphEncoder(ArrayEncoder):
    """A pretrained encoder."""

    record: EncoderRecord
    run: OpenVinoRun
    filters: NDArray[Any] | None = None
    tokenizer: Any = None

    def encode(self, readings: Sequence[Reading]) -> NDArray[np.float32]:
        """Return tokens B,T,W of readings of this modality.

        Raises:
            ValueError: a sound is not sampled at 16 kHz.
        """
        tokens_BTW: NDArray[np.float32] = self.run.arrays(*self.inputs(readings))
        return tokens_BTW

    def inputs(self, readings: Sequence[Reading]) -> tuple[NDArray[Any], ...]:
        """Return the graph's inputs for readings of this modality."""
        one = self.record
        if one.kind == "picture":
            pixels_BCYX = array_inputs.resize([r.image for r in readings if isinstance(r, Frame)], one.size)
            return (np.ascontiguousarray(pixels_BCYX[:, ::-1]) if one.flips else pixels_BCYX,)
        if one.kind == "text":
            texts = [r.text for r in readings if isinstance(r, Text)]
            return array_inputs.tokenize(self.tokenizer, texts, one.limit, one.pad)
        sounds = [r for r in readings if isinstance(r, Sound)]
        if wrong := next((s for s in sounds if s.rate_hz != array_inputs.RATE_HZ), None):
            raise ValueError(f"{wrong.stream}: sound at {wrong.rate_hz} Hz; the encoder hears {array_inputs.RATE_HZ}")
        sound_BN = array_inputs.window([s.samples for s in sounds], one.samples)
        if self.filters is None:
            return (array_inputs.normalised(sound_BN) if one.normalises else sound_BN,)
        return (array_inputs.log_mel(sound_BN, self.filters),)


@dataclass(slots=True)
class ArrayModulationEncoder(ArrayEncoder):
    """`builtin:modulation-spectrum` in numpy."""

    samples: int = 0

    def encode(self, readings: Sequence[Reading]) -> NDArray[np.float32]:
        """Return tokens B,T,W of the last window of each sound."""
        bands = self.width // FREQUENCIES * self.tokens
        sounds = array_inputs.window([r.samples for r in readings if isinstance(r, Sound)], self.samples)
        energies_BML = array_inputs.log_mel(sounds, array_inputs.mel_filters(bands))
        return array_inputs.modulation_spectrum(energies_BML, self.tokens, FREQUENCIES)


@dataclass(slots=True)
class ArrayUtteranceEncoder(ArrayEncoder):
    """`builtin:utterance`: numpy as in `learners.model.encoders.utterance`, with the spectrum of `array_inputs`."""

    samples: int = 0

    def encode(self, readings: Sequence[Reading]) -> NDArray[np.float32]:
        """Return tokens B,T,W of the newest utterance of each sound."""
        sounds = array_inputs.window([r.samples for r in readings if isinstance(r, Sound)], self.samples)
        filters_KM = array_inputs.mel_filters(BANDS)
        return np.stack([
            utterance_tokens(row_N, self.tokens, lambda x_N: array_inputs.log_mel(x_N[None], filters_KM)[0])
            for row_N in sounds
        ])  # fmt: skip


def built_in(model: str, tokens: int, window_s: float) -> ArrayEncoder | None:
    """Return an encoder that has no weights; None for any other model."""
    samples = round(window_s * array_inputs.RATE_HZ)
    if model == MODULATION:
        bands = -(-BANDS // tokens) * tokens
        version = _short(f"{MODULATION} 1 {tokens} {samples} {bands} {FREQUENCIES}")
        return ArrayModulationEncoder("audio", version, tokens, bands // tokens * FREQUENCIES, tokens, samples)
    if model == UTTERANCE:
        version = _short(f"{UTTERANCE} 1 {tokens} {samples} {BANDS}")
        return ArrayUtteranceEncoder("audio", version, tokens, BANDS + 2, tokens, samples)
    return None


def _short(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _source(model: str) -> Any:
    """Return what changes when the files of a model change."""
    if model.startswith(PREFIX):
        known = PACKAGES.get(model.removeprefix(PREFIX))
        return None if known is None else known.sha256
    folder = Path(model)
    if not folder.is_dir():
        from huggingface_hub import try_to_load_from_cache  # noqa: PLC0415 - only some models come from there

        found = try_to_load_from_cache(model, "config.json")
        if not isinstance(found, str):
            return None
        folder = Path(found).parent
    files = sorted(path for path in folder.iterdir() if path.is_file())
    return [str(folder), [[path.name, path.stat().st_size, path.stat().st_mtime_ns] for path in files]]


@dataclass(slots=True)
class Preparation:
    """Reads what is prepared; a process of its own prepares the rest. Close it after use.

    Args:
        state_dir: the daemon's folder.
        shared: the folder of all daemons of this user.
        calibrations: reads choices and graphs.
    """

    state_dir: Path
    shared: Path
    calibrations: Calibrations
    _process: subprocess.Popen[bytes] | None = field(default=None, init=False)

    def close(self) -> None:
        """End the process, and remove what was not prepared lately."""
        for place in (self.state_dir, self.shared):
            with suppress(OSError):  # another daemon tidies too
                known = sorted((place / FOLDER).iterdir(), key=lambda path: path.stat().st_mtime, reverse=True)
                for old in known[MOST_PREPARED:]:
                    shutil.rmtree(old) if old.is_dir() else old.unlink()
        if self._process is not None:
            for stream in (self._process.stdin, self._process.stdout):
                if stream is not None:
                    stream.close()
            self._process.wait()

    def encoder(self, name: str, settings: EncoderSettings, tokens: int, window_s: float) -> ArrayEncoder:
        """Return an encoder.

        Raises:
            NotPrepared: it runs in torch only.
        """
        found = built_in(settings.model, tokens, window_s) if settings.plugin is None else None
        if found is not None:
            return found
        for _ in range(2):
            key = self._key("encoder", settings.model_dump(mode="json"), tokens, window_s, _source(settings.model))
            for place in (self.state_dir, self.shared):
                try:
                    return self._read(place / FOLDER / key)
                except (FileNotFoundError, NotCompiled):
                    continue
                except Exception as error:  # noqa: BLE001 - of several libraries: a damaged file is named and made again
                    _LOG.warning(
                        "engine.prepared_file_damaged", encoder=name, reason=f"{type(error).__name__}: {error}"
                    )
                    continue
            self._run({
                "prepare": "encoder", "encoder": settings.model_dump(mode="json"), "tokens": tokens, "window_s": window_s,
            }, key)  # fmt: skip
        raise NotPrepared(f"encoder {name}: its files change while they are read, or no cache folder can be written")

    def untrained(self, spec: PolicySpec, seed: int) -> dict[str, NDArray[Any]]:
        """Return the weights a daemon starts with.

        Raises:
            NotPrepared: they cannot be made.
        """
        key = self._key("untrained", spec.to_json().decode(), seed)
        for _ in range(2):
            for place in (self.state_dir, self.shared):
                try:
                    return unpack_arrays((place / FOLDER / f"{key}.safetensors").read_bytes())
                except (OSError, WeightsRefused):
                    continue
            self._run({"prepare": "untrained", "spec": spec.to_json().decode(), "seed": seed}, key)
        raise NotPrepared("the untrained weights cannot be stored: no cache folder can be written")

    def compile_untrained(self, spec: PolicySpec, seed: int) -> None:
        """Convert the fused part of the untrained weights.

        Raises:
            NotPrepared: it runs in torch only.
        """
        key = self._key("untrained", spec.to_json().decode(), seed)
        self._run({"prepare": "untrained", "spec": spec.to_json().decode(), "seed": seed}, key)

    def _key(self, *parts: Any) -> str:
        versions = [installed_version(name) for name in ("reflexd", "torch", "transformers", "openvino")]
        return _short(orjson.dumps([FORMAT, *parts, versions]).decode())

    def _read(self, folder: Path) -> ArrayEncoder:
        body = orjson.loads((folder / RECORD).read_bytes())
        record = EncoderRecord(**body | {"size": tuple(body["size"])})
        run = encoder_run(self.calibrations, record.version)
        filters = np.load(folder / FILTERS, allow_pickle=False) if record.kind == "mel" else None
        tokenizer = None
        if record.kind == "text":
            from tokenizers import Tokenizer  # noqa: PLC0415 - only where a stream is text

            tokenizer = Tokenizer.from_file(str(folder / TOKENIZER))
            tokenizer.no_padding()
            tokenizer.enable_truncation(record.limit)
        run.warm_up(*_example(record, filters))
        return GraphEncoder(
            record.modality,
            record.version,
            record.tokens,
            record.width,
            record.columns,
            record,
            run,
            filters,
            tokenizer,
        )

    def _run(self, work: Mapping[str, Any], key: str) -> None:
        """Let the process do one thing.

        Raises:
            NotPrepared: it could not, with its reason.
        """
        places = [str(self.shared / FOLDER / key), str(self.state_dir / FOLDER / key)]
        body = {
            "state_dir": str(self.state_dir), "shared": str(self.shared), "places": places,
            "settings": asdict(self.calibrations.settings), **work,
        }  # fmt: skip
        if self._process is None:
            command = with_parent_death([sys.executable, "-m", "runtime.inference.compile_process"])
            self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)  # noqa: S603 - our own module
        answer = _asked(self._process.stdin, self._process.stdout, orjson.dumps(body))
        if answer:
            raise NotPrepared(answer)


def _asked(to: IO[bytes] | None, back: IO[bytes] | None, work: bytes) -> str:
    """Send one line and return the error in the answer; empty where there is none."""
    assert to is not None
    assert back is not None
    try:
        to.write(work + b"\n")
        to.flush()
        return str(orjson.loads(back.readline())["error"])
    except (OSError, orjson.JSONDecodeError, KeyError, TypeError):
        return "the compiler process ended without an answer"


def _example(record: EncoderRecord, filters: NDArray[Any] | None) -> tuple[NDArray[Any], ...]:
    """Return one input of a graph."""
    if record.kind == "picture":
        return (np.zeros((1, 3, *record.size), np.uint8),)
    if record.kind == "text":
        ids_BL = np.ones((1, array_inputs.LENGTHS[0]), np.int64)
        return ids_BL, ids_BL
    sound_BN = np.zeros((1, record.samples), np.float32)
    return (sound_BN,) if filters is None else (array_inputs.log_mel(sound_BN, filters),)


def encoder_run(calibrations: Calibrations, version: str) -> OpenVinoRun:
    """Return the graph of an encoder, ready to run.

    Raises:
        NotCompiled: no choice or no graph is stored, or it runs in torch.
    """
    choice = calibrations.recall(version, CPU)
    if choice is None or choice.backend != "openvino":
        raise NotCompiled(f"{version}: no graph was chosen for it")
    if choice.precision != "float32" and calibrations.settings.precision == "auto":
        choice = in_float32(choice)  # chosen by an older program, by numbers alone
    return OpenVinoRun(
        stored_graph(version, calibrations.folders(shared=True)), choice.precision, calibrations.settings.threads
    )


def stored_graph(version: str, folders: Sequence[Path]) -> Any:
    """Return a graph from the cache.

    Raises:
        NotCompiled: it is not there.
    """

    def missing() -> Any:
        raise NotCompiled(f"{version}: no graph of this version is on disk")

    return graph_of(version, folders, missing)


def graph_settings(engine: Any) -> BackendSettings:
    """Return the backend settings of an agent on graphs, from the settings under `engine`."""
    return BackendSettings("openvino", engine.precision, engine.threads, engine.tolerance)


def write_record(places: Sequence[Path], record: EncoderRecord, files: Mapping[str, bytes]) -> None:
    """Write the description of an encoder, and its files before it, into the first place that can be written.

    Raises:
        OSError: none can be.
    """
    problem: OSError | None = None
    for folder in places:
        try:
            private_folder(folder)
            for name, content in files.items():
                write_atomically(folder / name, content)
            write_atomically(folder / RECORD, orjson.dumps(asdict(record)))
        except OSError as error:
            problem = error
        else:
            return
    if problem is not None:
        raise problem
