"""Find what an agent on graphs starts with, and let a process prepare what is missing. Imports no torch.

Prepared are encoders (a description, their graph, and what they need to read text or sound) and the untrained weights of a
policy with their graph. They lie in the cache that all daemons of this user share; where it cannot be written, in `state_dir`,
else in a folder for temporary files. Each is sealed (`learners/checkpoints/sealed_folder.py`). What is not as it was sealed is removed
and prepared again.
"""

from __future__ import annotations

import hashlib
import io
import select
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from importlib.metadata import version as installed_version
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import orjson
from numpy.typing import NDArray

from learners.checkpoints.safetensors_numpy import unpack_arrays
from learners.checkpoints.sealed_folder import SealBroken, SealedFolder, check_seal, write_seal
from learners.config.policy import EncoderSettings
from learners.files import draft_folder, private_folder, publish_folder
from learners.model.backends.calibration_cache import Calibrations
from learners.model.backends.definitions import CPU, BackendSettings, NotCompiled, in_float32
from learners.model.backends.graph_libraries import graph_library, missing_reason
from learners.model.backends.graphs import GraphLibrary, GraphRun
from learners.model.encoders.bundled_packages import MODULATION, PACKAGES, PREFIX, UTTERANCE
from learners.model.encoders.utterance_bounds import utterance_tokens
from learners.model.spec import Modality, PolicySpec
from runtime.inference.numpy_policy import encoder_inputs as array_inputs
from runtime.process.child import with_parent_death
from sensors.readings import Frame, Reading, Sound, Text

FORMAT = 2
"""Raised when a description has other fields."""
FOLDER = "prepared"
RECORD, TOKENIZER, FILTERS, WEIGHTS = "encoder.json", "tokenizer.json", "filters.npy", "weights.safetensors"
MOST_PREPARED = 48
"""Encoders and untrained weights in one folder; the oldest go, and are prepared again where they are needed."""
PREPARE_S = 900.0
"""For one encoder or the untrained weights. A process that needs longer is ended; the largest model in the tests needs 60 s."""
FREQUENCIES, BANDS = 24, 40
"""Of the built-in modulation spectrum: frequencies, and the least number of mel bands."""


_Read = TypeVar("_Read")


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
    run: GraphRun
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
            raise ValueError(f"{wrong.stream}: sound at {wrong.rate_hz} Hz; the encoder needs {array_inputs.RATE_HZ}")
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
    """`builtin:utterance`: numpy as in `learners.model.encoders.utterance_encoder`, with the spectrum of `array_inputs`."""

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
        limit_s: for one encoder or the untrained weights; then the process is killed.
    """

    state_dir: Path
    shared: Path
    calibrations: Calibrations
    limit_s: float = PREPARE_S
    _process: subprocess.Popen[bytes] | None = field(default=None, init=False)

    def close(self) -> None:
        """End the process, and remove what was not prepared lately."""
        self.calibrations.drop_spare()
        for place in self._folders():
            with suppress(OSError):  # another daemon tidies too
                known = sorted(place.path.iterdir(), key=lambda path: path.stat().st_mtime, reverse=True)
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
        work = {"encoder": settings.model_dump(mode="json", exclude={"when"}), "tokens": tokens, "window_s": window_s}
        downloads: str | None = None
        for prepared in (False, True):
            source = _source(settings.model)
            key = self._key("encoder", *work.values(), source)
            for one in (key,) if downloads is None else (key, downloads):
                for place in self._folders():
                    if (encoder := self._sealed(place, one, self._read)) is not None:
                        return encoder
            if not prepared:
                downloads = key if source is None else None  # the process downloads the model, which changes its key
                self._run({"prepare": "encoder", **work}, key)
        raise NotPrepared(f"encoder {name}: its files change while they are read")

    def untrained(self, spec: PolicySpec, seed: int) -> dict[str, NDArray[Any]]:
        """Return the weights a daemon starts with.

        Raises:
            NotPrepared: they cannot be made.
        """
        key = self._key("untrained", spec.to_json().decode(), seed)
        for prepared in (False, True):
            for place in self._folders():
                weights = self._sealed(place, key, lambda folder: unpack_arrays((folder / WEIGHTS).read_bytes()))
                if weights is not None:
                    return weights
            if not prepared:
                self.compile_untrained(spec, seed)
        raise NotPrepared("the untrained weights change while they are read")

    def _folders(self) -> tuple[SealedFolder, ...]:
        return self.calibrations.sealed(FOLDER, shared=True)

    def _sealed(self, place: SealedFolder, key: str, read: Callable[[Path], _Read]) -> _Read | None:
        """Return what `read` makes of a sealed folder; None where it is absent, cannot be read now, or is damaged and now removed."""
        folder = place.path / key
        try:
            check_seal(folder, key, place.key)
            return read(folder)
        except (FileNotFoundError, NotCompiled):
            return None
        except (OSError, MemoryError) as error:  # such as too many open files: the folder may be good
            place.refused(str(folder), f"{type(error).__name__}: {error}"[:200])
            return None
        except Exception as error:  # noqa: BLE001 - of several libraries: a damaged file is named and made again
            name = "" if isinstance(error, SealBroken) else f"{type(error).__name__}: "
            place.refused(str(folder), f"{name}{error}"[:200])
            shutil.rmtree(folder, ignore_errors=True)
            return None

    def compile_untrained(self, spec: PolicySpec, seed: int) -> None:
        """Convert the fused part of the untrained weights.

        Raises:
            NotPrepared: it runs in torch only.
        """
        key = self._key("untrained", spec.to_json().decode(), seed)
        self._run({"prepare": "untrained", "spec": spec.to_json().decode(), "seed": seed}, key)

    def _key(self, *parts: Any) -> str:
        versions = [installed_version(name) for name in ("reflexd", "torch", "transformers")]
        library = self.calibrations.library
        if library is not None:
            versions.append(library.note.partition("-")[0])
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
        spare = self.calibrations.make_spare()
        body = {
            "state_dir": str(self.state_dir), "shared": str(self.shared), "spare": None if spare is None else str(spare),
            "key": key, "settings": asdict(self.calibrations.settings), **work,
        }  # fmt: skip
        if self._process is None:
            command = with_parent_death([sys.executable, "-m", "runtime.inference.compile_process"])
            try:
                self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0)  # noqa: S603 - our own module
            except OSError as error:
                raise NotPrepared(f"the compiler process cannot be started: {error.strerror}") from None
        answer = _asked(self._process, orjson.dumps(body), self.limit_s)
        if answer:
            raise NotPrepared(answer)


def _asked(process: subprocess.Popen[bytes], work: bytes, limit_s: float) -> str:
    """Send one line and return the error in the answer; empty where there is none. A process that is late is killed."""
    to, back = process.stdin, process.stdout
    assert to is not None
    assert back is not None
    deadline_s, line = time.monotonic() + limit_s, b""
    try:
        to.write(work + b"\n")
        while not line.endswith(b"\n"):
            ready, _, _ = select.select([back], [], [], max(0.0, deadline_s - time.monotonic()))
            if not ready:
                process.kill()
                return f"the compiler process did not answer within {limit_s:g} s"
            part = back.read(io.DEFAULT_BUFFER_SIZE)
            if not part:
                break
            line += part
        return str(orjson.loads(line)["error"])
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


def encoder_run(calibrations: Calibrations, version: str) -> GraphRun:
    """Return the graph of an encoder, ready to run.

    Raises:
        NotCompiled: no choice or no graph is stored, or it runs in torch.
    """
    library, choice = calibrations.library, calibrations.recall(version, CPU)
    if library is None or choice is None or choice.backend != library.name:
        raise NotCompiled(f"{version}: no graph was chosen for it")
    if choice.precision != "float32" and calibrations.settings.precision == "auto":
        choice = in_float32(choice)  # chosen by an older program, by numbers alone
    graph = stored_graph(library, version, calibrations.folders(shared=True))
    try:
        return library.run(graph, choice.precision, calibrations.settings.threads)
    except RuntimeError as error:
        raise NotCompiled(f"{version}: its graph does not run: {error}") from None


def stored_graph(library: GraphLibrary, version: str, folders: Sequence[SealedFolder]) -> Any:
    """Return a graph from the cache.

    Raises:
        NotCompiled: it is not there.
    """

    def missing() -> Any:
        raise NotCompiled(f"{version}: no graph of this version is on disk")

    return library.graph_of(version, folders, missing)


def graph_settings(engine: Any) -> BackendSettings:
    """Return the backend settings of an agent on graphs, from the settings under `engine`.

    Raises:
        NotPrepared: no library of graphs is installed.
    """
    library = graph_library(engine.backend)
    if library is None:
        raise NotPrepared(missing_reason(engine.backend))
    return BackendSettings(library.name, engine.precision, engine.threads, engine.tolerance)


def record_file(record: EncoderRecord) -> dict[str, bytes]:
    """Return the file that describes an encoder."""
    return {RECORD: orjson.dumps(asdict(record))}


def write_sealed(places: Sequence[SealedFolder], name: str, files: Mapping[str, bytes]) -> None:
    """Write a sealed folder into the first place that can be written; one of this name is replaced.

    Raises:
        OSError: none can be.
    """
    problem: OSError | None = None
    for place in places:
        try:
            private_folder(place.path)
            with draft_folder(place.path, name, mode=0o700) as draft:
                for file, content in files.items():
                    (draft / file).write_bytes(content)
                write_seal(draft, name, place.key)
                publish_folder(draft, place.path / name, replace=True)
        except OSError as error:
            problem = error
        else:
            return
    if problem is not None:
        raise problem
