"""Transcribe speech with any AutoModelForSpeechSeq2Seq, such as Whisper and Moonshine: sounds in, words and their confidence out.

Decoding is greedy. Where the model has a token for it, the first step also computes the probability of no speech (Radford et al.
2022, section 4.5). Training counts the words of the transcript and its
end; the tokens for language and task are given.

Shapes: B batch, T tokens, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from transformers import AutoFeatureExtractor, AutoModelForSpeechSeq2Seq, AutoTokenizer
from transformers.models.whisper.english_normalizer import BasicTextNormalizer

from learners.data_error import DataError
from learners.task_kinds import TaskKind
from learners.tasks.augmentation.sounds import changed, masked
from learners.tasks.base import (
    IGNORED,
    SPARE,
    Batch,
    EncodedMedia,
    Example,
    Feature,
    Options,
    Prediction,
    Recipe,
    Task,
    pad,
)
from learners.tasks.inputs.sounds import read_sound
from learners.tasks.text_base import cross_entropy, positions
from sensors.codecs.resampling import RATE_HZ, resampled

NOT_SPOKEN = ("<|nocaptions|>", "<|nospeech|>")
"""Names of Whisper's token for a sound without speech."""
UNFINISHED = "\ufffd"
"""What a tokenizer decodes from some of the bytes of a sign."""
TOKENS_PER_S = 16
"""Largest number of tokens of one second of speech; a decoder that loops makes more."""


@dataclass(frozen=True, slots=True)
class SpeechProcessor:
    """The feature extractor and the tokenizer of a model, which a folder holds side by side."""

    features: Any
    tokenizer: Any

    def save_pretrained(self, folder: Path) -> None:
        """Write both."""
        self.features.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)


class Transcribe(Task):
    """`sound` (a path or float32 samples, with `rate_hz` unless 16 kHz) -> `target`, the words."""

    kind: ClassVar[TaskKind] = "automatic-speech-recognition"
    selection = "word_accuracy"
    auto: ClassVar[Any] = AutoModelForSpeechSeq2Seq
    recipe = Recipe(
        epochs=5,
        batch=8,
        rates={"top": 1e-4, "lora": 5e-4, "full": 2e-5},
        options={"max_length": 192},
    )

    def __init__(self, source: Path | str, options: Options, labels: Sequence[str] = ()) -> None:
        super().__init__(source, options, labels)
        config = self.model.generation_config
        self.end = _first(config.eos_token_id, self.processor.tokenizer.eos_token_id)
        self.banned = sorted(set(config.suppress_tokens or ()))
        self.banned_first = sorted({*self.banned, *(config.begin_suppress_tokens or ())})
        vocabulary = self.processor.tokenizer.get_vocab()
        self.not_spoken = next((vocabulary[name] for name in NOT_SPOKEN if name in vocabulary), None)
        self.languages: dict[str, int] = dict(getattr(config, "lang_to_id", None) or {})
        self.positions = getattr(self.model.config, "max_target_positions", None) or positions(self.model)
        if self.positions is not None and self.options.max_length > self.positions:
            self.notes.append(
                f"max_length {self.options.max_length} is above the {self.positions} positions of the model, which are used"
            )
            self.options = replace(self.options, max_length=self.positions)

    def load_processor(self, source: Path | str) -> SpeechProcessor:
        """Load the feature extractor and the tokenizer.

        Raises:
            ValueError: the model needs another rate than 16 kHz.
        """
        extractor: Any = AutoFeatureExtractor
        features = extractor.from_pretrained(source, trust_remote_code=False)
        if features.sampling_rate != RATE_HZ:
            raise ValueError(f"{source}: wants {features.sampling_rate} Hz; models at {RATE_HZ} Hz are supported")
        return SpeechProcessor(features, AutoTokenizer.from_pretrained(source, trust_remote_code=False))

    @classmethod
    def fitting_new_tokens(cls, source: Path | str, examples: Sequence[Example]) -> int:
        """Return the tokens of the longest transcript, and some more."""
        tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
        texts = [str(example["target"]) for example in examples if "target" in example]
        longest = max((len(tokenizer(text, add_special_tokens=False)["input_ids"]) for text in texts), default=0)
        return min(longest + SPARE, int(cls.recipe.options["max_length"]))

    @property
    def varying(self) -> bool:
        """Whether sounds are changed a little in every epoch."""
        return bool(self.augmentations)

    @property
    def pads_change_outputs(self) -> bool:
        """Models of raw samples hear the silence that pads a sound."""
        return bool(self.processor.features.model_input_names[0] == "input_values")

    def prefix(self, language: str | None = None) -> list[int]:
        """Return the tokens before the words: start, language, task and no timestamps, as far as the model has them.

        Raises:
            DataError: the model knows several languages and not this one, or none is given.
        """
        config = self.model.generation_config
        ids = [_first(config.decoder_start_token_id, self.model.config.decoder_start_token_id)]
        if self.languages:
            token = f"<|{language}|>"
            if language is None:
                raise DataError("the model knows several languages; give --language, or tasks.X.language, as `en`")
            if token not in self.languages:
                known = ", ".join(sorted(name.strip("<|>") for name in self.languages))
                raise DataError(f"language {language!r} is none of the model's; write one of {known}")
            ids += [self.languages[token], config.task_to_id["transcribe"]]
        if (plain := getattr(config, "no_timestamps_token_id", None)) is not None:
            ids.append(int(plain))
        return ids

    def features(self, example: Example, *, rng: np.random.Generator | None = None) -> list[Feature]:
        """Return one feature; the target, if there is one, as ids.

        Raises:
            DataError: there is no sound, or it cannot be read.
        """
        sound, rate_hz = example.get("sound"), example.get("rate_hz", RATE_HZ)
        if isinstance(sound, EncodedMedia):
            decoded = sound.decode()
            sound, rate_hz = decoded["sound"], decoded.get("rate_hz", RATE_HZ)
        if sound is None:
            raise DataError("an example without `sound`")
        samples = read_sound(Path(sound)) if isinstance(sound, str | Path) else resampled(np.asarray(sound), rate_hz)
        if rng is not None and self.augmentations:
            samples, _, _ = changed(samples, rng, len(samples), self.augmentations)
        made = self.processor.features(samples, sampling_rate=RATE_HZ, return_tensors="pt")
        name = self.processor.features.model_input_names[0]
        inputs = made[name][0]
        if rng is not None and "spec_augment" in self.augmentations:
            # Whisper's window is 30 s, whatever the length of the sound
            window = getattr(self.processor.features, "n_samples", None) or len(samples)
            inputs = masked(inputs, rng, (0.0, min(1.0, len(samples) / window)))
        feature: Feature = {name: inputs, "duration_s": len(samples) / RATE_HZ}
        if "target" in example:
            before = self.prefix(self.options.language)
            words = self._pieces(example)[: self._room(len(before))]
            feature["decoder_input_ids"] = [*before, *words]
            feature["labels"] = [IGNORED] * (len(before) - 1) + [*words, self.end]
        return [feature]

    def _pieces(self, example: Example) -> list[int]:
        """Return the tokens of the words of an example."""
        return list(self.processor.tokenizer(str(example["target"]), add_special_tokens=False)["input_ids"])

    def _room(self, before: int) -> int:
        """Return the tokens of words that a transcript can have behind as many others, with its end."""
        return max(1, self.options.max_length - before - 1)

    def unread(self, example: Example) -> float:
        """Return the share of a sound behind the 30 s that Whisper reads, or of a transcript above `max_length`, whichever is larger."""
        cut = 0.0
        if "target" in example:
            count = len(self._pieces(example))
            cut = max(0, count - self._room(len(self.prefix(self.options.language)))) / max(count, 1)
        most = getattr(self.processor.features, "n_samples", None)
        sound = example.get("sound")
        if most is None or not isinstance(sound, str | Path):
            return cut
        heard = len(read_sound(Path(sound)))
        return max(cut, max(0, heard - int(most)) / max(heard, 1))

    def length(self, feature: Feature) -> int:
        """Return the number of samples or frames, by which batches are grouped."""
        return int(feature[self.processor.features.model_input_names[0]].shape[-1])

    def collate(self, features: Sequence[Feature]) -> Batch:
        """Return inputs, padded with zeros at the end, durations [B] in seconds and, if present, ids and targets [B, T]."""
        name = self.processor.features.model_input_names[0]
        longest = max(feature[name].shape[-1] for feature in features)
        rows = [nn.functional.pad(f[name], (0, longest - f[name].shape[-1])) for f in features]
        batch = {name: torch.stack(rows).float(), "duration_s": torch.tensor([f["duration_s"] for f in features])}
        if "labels" in features[0]:
            batch["decoder_input_ids"] = pad([f["decoder_input_ids"] for f in features], self.end)
            batch["labels"] = pad([f["labels"] for f in features], IGNORED)
        return batch

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Cross-entropy over the words of the transcript and its end."""
        name = self.processor.features.model_input_names[0]
        logits_BTV = model(**{name: batch[name]}, decoder_input_ids=batch["decoder_input_ids"]).logits
        return cross_entropy(logits_BTV.flatten(0, 1), batch["labels"].flatten(), self.options.label_smoothing)

    def outputs(self, model: Any, batch: Batch) -> list[Any]:
        """Return ids, their log-probabilities and the probability of no speech, for each sound."""
        name = self.processor.features.model_input_names[0]
        encoded = model.get_encoder()(batch[name])
        languages = [self.options.language] * len(batch[name])
        if self.languages and self.options.language is None:
            languages = self._detected(model, encoded)
        ids_BT = torch.tensor([self.prefix(language) for language in languages], device=self.device)
        longest = self.options.max_new_tokens
        if self.positions is not None:  # nothing is placed behind the last token
            longest = max(1, min(longest, self.positions - ids_BT.shape[1] + 1))
        most = [min(longest, max(4, math.ceil(TOKENS_PER_S * seconds))) for seconds in batch["duration_s"].tolist()]
        made: list[list[int]] = [[] for _ in most]
        logs: list[list[float]] = [[] for _ in most]
        silent = [0.0] * len(most)
        done, cache = [False] * len(most), None
        while not all(done):
            out = model(encoder_outputs=encoded, decoder_input_ids=ids_BT, past_key_values=cache, use_cache=True)
            cache, logits_BV = out.past_key_values, out.logits[:, -1].float()
            if not any(made) and self.not_spoken is not None:
                silent = out.logits[:, 0].float().softmax(-1)[:, self.not_spoken].tolist()
            logits_BV[:, self.banned if any(made) else self.banned_first] = -math.inf
            best_B = logits_BV.log_softmax(-1).max(-1)
            for row, (log, token) in enumerate(zip(best_B.values.tolist(), best_B.indices.tolist(), strict=True)):
                if not done[row]:
                    made[row].append(token)
                    logs[row].append(log)
                    done[row] = token == self.end or len(made[row]) >= most[row]
            ids_BT = best_B.indices.unsqueeze(1)
        return list(zip(made, logs, silent, strict=True))

    def _detected(self, model: Any, encoded: Any) -> list[str | None]:
        """Return the language that each sound is most probably in."""
        start = _first(self.model.generation_config.decoder_start_token_id, self.model.config.decoder_start_token_id)
        starts_BT = torch.full((encoded[0].shape[0], 1), start, device=self.device)
        logits_BV = model(encoder_outputs=encoded, decoder_input_ids=starts_BT).logits[:, -1]
        names, tokens = list(self.languages), list(self.languages.values())
        return [names[at].strip("<|>") for at in logits_BV[:, tokens].argmax(-1).tolist()]

    def prediction(self, example: Example, features: Sequence[Feature], outputs: Sequence[Any]) -> Prediction:
        """Return the words; the confidence is the mean probability of a token, as a geometric mean."""
        del example, features
        ids, logs, silent = outputs[0]
        text = self.processor.tokenizer.decode(ids, skip_special_tokens=True).strip()
        details = {"words": self._words(ids, logs), "no_speech": silent}
        return Prediction(text, math.exp(sum(logs) / max(len(logs), 1)), details=details)

    def _words(self, ids: Sequence[int], logs: Sequence[float]) -> list[dict[str, Any]]:
        """Return each word with the probability of its least probable token."""
        found: list[dict[str, Any]] = []
        special = set(self.processor.tokenizer.all_special_ids)
        plain = [(token, log) for token, log in zip(ids, logs, strict=True) if token not in special]
        text, least = "", 0.0
        for at, (_, log) in enumerate(plain, 1):
            whole = self.processor.tokenizer.decode([token for token, _ in plain[:at]])
            least = min(least, log)
            if whole.endswith(UNFINISHED) and at < len(plain):
                continue  # the next token has the other bytes of the sign
            piece, text = whole[len(text) :], whole
            if not found or piece[:1].isspace():
                found.append({"word": "", "confidence": 1.0})
            found[-1]["word"] += piece.strip()
            found[-1]["confidence"] = min(found[-1]["confidence"], math.exp(least))
            least = 0.0
        return [one for one in found if one["word"]]

    def tie_break(self, examples: Sequence[Example], predictions: Sequence[Prediction]) -> float:
        """Return the negative character error rate: word accuracy is 0 for every model with as many errors as words, or more."""
        return -self.metrics(examples, predictions)["character_error_rate"]

    def metrics(self, examples: Sequence[Example], predictions: Sequence[Prediction]) -> dict[str, float]:
        """Word and character error rates, and the word accuracy, which is 1 minus the word error rate and at least 0."""
        normalise = BasicTextNormalizer()
        pairs = [
            (normalise(str(example["target"])), normalise(str(one.value)))
            for example, one in zip(examples, predictions, strict=True)
        ]
        words = error_rate([(wanted.split(), found.split()) for wanted, found in pairs])
        letters = error_rate([(list(wanted.strip()), list(found.strip())) for wanted, found in pairs])
        return {
            "word_error_rate": words,
            "character_error_rate": letters,
            "word_accuracy": max(0.0, 1.0 - words),
        }


def error_rate(pairs: Sequence[tuple[Sequence[str], Sequence[str]]]) -> float:
    """Return insertions, deletions and substitutions for each wanted word (or letter), over all pairs of wanted and found."""
    total = sum(len(wanted) for wanted, _ in pairs)
    return sum(edits(wanted, found) for wanted, found in pairs) / max(total, 1)


def edits(wanted: Sequence[str], found: Sequence[str]) -> int:
    """Return the smallest number of insertions, deletions and substitutions between two sequences (Levenshtein 1966)."""
    row = list(range(len(found) + 1))
    for at, one in enumerate(wanted, 1):
        last, row[0] = row[0], at
        for place, other in enumerate(found, 1):
            last, row[place] = row[place], min(row[place] + 1, row[place - 1] + 1, last + (one != other))
    return row[-1]


def _first(*ids: Any) -> int:
    """Return the first id that is given; the first of a list."""
    for one in ids:
        if one is not None:
            return int(one[0] if isinstance(one, list) else one)
    raise ValueError("the model names no token at which a text starts or ends")
