"""Re-encode stored raw readings with the newest version of their encoder.

After an encoder was swapped, stored tokens of the version before count as missing. If the raw reading is still stored
(`experience.raw_retention_s`), the learner encodes it with the present version. It does so in small slices between its updates,
with the same low priority, newest first; the control loop is not involved. Tokens without a raw reading remain missing. An encoder
is in memory only while there are readings to encode. It runs on the backend that the agent selected for it.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from numpy.typing import NDArray

from learners.experience.reader import Reader, Row
from learners.experience.reading_of_tick import raw_reading
from learners.experience.transition import Transition
from learners.model.encoders.base import Encoder
from learners.reencoding.token_store import StoredTokens, TokenStore
from learners.rl.replay_buffer import ReplayBuffer
from sensors.codecs.readings import decode_reading
from sensors.readings import Reading

CHUNK = 32
"""Rows read from the store at once."""
RETRY_S = 10.0
"""Pause after the disk refused tokens."""
CACHE = 64
"""Readings with cached tokens, because many ticks use the same reading."""
Tokens = NDArray[np.float16]


@dataclass(slots=True)
class Reencoder:
    """Encodes again what an encoder's swap left behind.

    Args:
        reader: of the experience.
        recoded: where the tokens go.
        encoder_of: the encoder of a stream in a version; None where that version is not to be had.
        clock: monotonic seconds.
    """

    reader: Reader
    recoded: TokenStore
    encoder_of: Callable[[str, str], Encoder | None]
    clock: Callable[[], float] = time.monotonic
    done: int = 0
    """Rows and streams encoded again."""
    without_raw: int = 0
    """Tokens without a stored raw reading; they remain missing."""
    waiting: int = 0
    """Those still to do."""
    failed: int = 0
    """Those that the disk refused; they are encoded again later."""
    _resume_s: float = -float("inf")
    _missed: dict[str, set[int]] = field(default_factory=dict)
    """Rows that cannot be done, by version."""
    _encoders: dict[tuple[str, str], Encoder | None] = field(default_factory=dict)
    _cache: OrderedDict[tuple[str, str, float], Tokens] = field(default_factory=OrderedDict)

    def step(self, replay: ReplayBuffer, until_s: float) -> int:
        """Work until a moment of the clock, at least one chunk; returns how many entries were written."""
        stale = {stream: self._open(stream, rows, replay.versions) for stream, rows in replay.stale().items()}
        self.waiting = sum(map(len, stale.values()))
        if not self.waiting:
            self._encoders.clear()  # an encoder may take hundreds of megabytes
            self._cache.clear()
            return 0
        written = 0
        for stream, rows in stale.items():
            for start in range(0, len(rows), CHUNK):
                if written and self.clock() >= until_s:
                    return written
                if self.clock() < self._resume_s:
                    return written
                written += self._chunk(stream, replay.versions[stream], rows[start : start + CHUNK])
        return written

    def renew(self, rows: Sequence[Row], versions: Mapping[str, str]) -> list[Transition]:
        """Return the transitions of rows with tokens of the given encoder versions, encoded now where none are stored.

        Tokens without a raw reading stay as they were logged.
        """
        renewed = self.recoded.renew(rows, versions)
        for number, transition in enumerate(renewed):
            there = transition.encoder_versions
            stale = [stream for stream, version in versions.items() if there.get(stream, version) != version]
            made = {stream: self._now(stream, versions[stream], rows[number].transition) for stream in stale}
            if found := {stream: tokens for stream, tokens in made.items() if tokens is not None}:
                renewed[number] = replace(
                    transition,
                    tokens={**transition.tokens, **found},
                    encoder_versions={**there, **{stream: versions[stream] for stream in found}},
                )
        return renewed

    def _now(self, stream: str, version: str, transition: Transition) -> Tokens | None:
        key = (stream, version)
        if key not in self._encoders:
            self._encoders[key] = self.encoder_of(stream, version)
        encoder = self._encoders[key]
        return None if encoder is None else self._tokens(stream, version, encoder, transition)

    def figures(self) -> dict[str, int]:
        """For `health.learner`."""
        return {"done": self.done, "without_raw": self.without_raw, "waiting": self.waiting, "failed": self.failed}

    def _open(self, stream: str, rows: list[int], versions: Mapping[str, str]) -> list[int]:
        missed = self._missed.get(f"{stream} {versions[stream]}", set())
        return [row for row in rows if row not in missed]

    def _chunk(self, stream: str, version: str, rows: list[int]) -> int:
        key = (stream, version)
        if key not in self._encoders:
            self._encoders[key] = self.encoder_of(stream, version)
        encoder = self._encoders[key]
        found = {} if encoder is None else {row.row: row.transition for row in self.reader.pick(rows)}
        made: list[StoredTokens] = []
        missed = self._missed.setdefault(f"{stream} {version}", set())
        for row in rows:
            tokens = self._tokens(stream, version, encoder, found[row]) if encoder and row in found else None
            if tokens is None:
                missed.add(row)
                self.without_raw += 1
            else:
                made.append(StoredTokens(row, stream, version, tokens))
        if not self.recoded.add(made):
            self.failed += len(made)
            self._resume_s = self.clock() + RETRY_S
            return 0
        self.done += len(made)
        self.waiting -= len(rows)
        return len(made)

    def _tokens(self, stream: str, version: str, encoder: Encoder, transition: Transition) -> Tokens | None:
        raw = raw_reading(self.reader, transition, stream)
        if raw is None:
            return None
        key = (stream, version, raw.stamp_s)
        if key not in self._cache:
            reading = decode_reading(raw.stream, raw.stamp_s, raw.encoding, raw.data)
            if reading is None:
                return None
            self._cache[key] = encode(encoder, reading)
            while len(self._cache) > CACHE:
                self._cache.popitem(last=False)
        return self._cache[key]


def encode(encoder: Encoder, reading: Reading) -> Tokens:
    """Return tokens float16 [T, W] of one reading, encoded alone, as they are stored."""
    with torch.inference_mode():
        tokens_TW = encoder.encode(encoder.prepare([reading]))[0]
    made: Tokens = tokens_TW.half().cpu().numpy()
    return made
