"""Count the words that speech to text invents in minutes of silence, noise and music, which are all synthesised.

Run `python tests/benchmarks/bench_speech.py --help`.
"""

from __future__ import annotations

import argparse

import numpy as np
import torch
from numpy.typing import NDArray

from learners.model.encoders.silero_vad import RATE_HZ
from learners.speech.transcription import Transcriber
from learners.speech.utterance_cutting import UtteranceCutter, VoiceActivity

NOTES_HZ = (220, 262, 294, 330, 392, 440, 523)


def music(count: int, rng: np.random.Generator) -> NDArray[np.float32]:
    """Return chords of three notes that fade, two a second."""
    out = np.zeros(count, np.float32)
    for start in range(0, count, RATE_HZ // 2):
        t = np.arange(min(RATE_HZ, count - start)) / RATE_HZ
        for note in rng.choice(NOTES_HZ, 3):
            tones = sum(0.06 / h * np.sin(2 * np.pi * note * h * t) for h in (1, 2, 3))
            out[start : start + len(t)] += (tones * np.exp(-3 * t)).astype(np.float32)
    return out


def main() -> None:
    """Print one line for each sound."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=int, default=10, help="length of each sound")
    parser.add_argument("--seed", type=int, default=0, help="seed of noise and music")
    parser.add_argument("--model", default="bundled:whisper-tiny.en", help="the model that transcribes")
    given = parser.parse_args()
    torch.set_num_threads(1)
    rng, count = np.random.default_rng(given.seed), given.minutes * 60 * RATE_HZ
    transcriber = Transcriber(given.model)
    sounds = {
        "silence": np.zeros(count, np.float32),
        "white noise": (0.1 * rng.standard_normal(count)).astype(np.float32),
        "music": music(count, rng),
    }
    for name, sound in sounds.items():
        cutter = UtteranceCutter(VoiceActivity(), 15.0)
        cut = [
            one
            for at in range(0, count, RATE_HZ)
            for one in cutter.add(sound[at : at + RATE_HZ], (at + RATE_HZ) / RATE_HZ)
        ]
        words = sum(len(transcriber.transcribe(one.samples).text.split()) for one in [*cut, *cutter.flush()])
        print(f"{name}: {words} words in {given.minutes} minutes, {len(cut)} utterances", flush=True)


if __name__ == "__main__":
    main()
