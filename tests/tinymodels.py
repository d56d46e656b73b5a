"""Small real architectures with random weights and word vocabularies, as folders: tests need no download and no minutes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import orjson
import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import (
    BertConfig,
    BertModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    T5Config,
    T5ForConditionalGeneration,
    Wav2Vec2Config,
    Wav2Vec2FeatureExtractor,
    Wav2Vec2Model,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
    WhisperModel,
)

WORDS = "go stop left right up down red green blue the a now please Paris anna works in $ # ? . what is".lower().split()
TURN = "{% for m in messages %}<{{ m.role }}> {{ m.content }} </s> {% endfor %}{% if add_generation_prompt %}<assistant> {% endif %}"


def tokenizer(special: Sequence[str], words: Sequence[str], template: tuple[str, str] | None, **names: str) -> Any:
    vocabulary = {word: i for i, word in enumerate(dict.fromkeys([*special, *words]))}
    made = Tokenizer(models.WordLevel(vocabulary, unk_token=names["unk_token"]))
    made.normalizer = normalizers.Lowercase()
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    if template is not None:
        used = [(t, vocabulary[t]) for t in special if t in template[1]]
        made.post_processor = processors.TemplateProcessing(*template, used)
    return PreTrainedTokenizerFast(tokenizer_object=made, **names)


def save(folder: Path, model: Any, processor: Any) -> Path:
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def bert(
    folder: Path, words: Sequence[str] = WORDS, *, width: int = 32, length: int = 64, dropout: float = 0.0
) -> Path:
    torch.manual_seed(0)
    names = {"unk_token": "[UNK]", "pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    made = tokenizer(
        ("[PAD]", "[UNK]", "[CLS]", "[SEP]"), words, ("[CLS] $A [SEP]", "[CLS] $A [SEP] $B:1 [SEP]:1"), **names
    )
    made.model_input_names = ["input_ids", "token_type_ids", "attention_mask"]
    config = BertConfig(
        vocab_size=len(made), hidden_size=width, num_hidden_layers=3, num_attention_heads=2, intermediate_size=2 * width,
        max_position_embeddings=length, hidden_dropout_prob=dropout, attention_probs_dropout_prob=dropout,
    )  # fmt: skip
    return save(folder, BertModel(config), made)


def t5(folder: Path, words: Sequence[str] = WORDS) -> Path:
    torch.manual_seed(0)
    names = {"unk_token": "<unk>", "pad_token": "<pad>", "eos_token": "</s>"}
    made = tokenizer(("<pad>", "</s>", "<unk>"), words, ("$A </s>", "$A </s> $B </s>"), **names)
    config = T5Config(  # type: ignore[call-arg]
        vocab_size=len(made), d_model=32, d_kv=8, d_ff=64, num_layers=2, num_decoder_layers=2, num_heads=4,
        dropout_rate=0.0, decoder_start_token_id=0, pad_token_id=0, eos_token_id=1,
    )  # fmt: skip
    return save(folder, T5ForConditionalGeneration(config), made)


def llama(folder: Path, words: Sequence[str] = WORDS) -> Path:
    torch.manual_seed(0)
    names = {"unk_token": "<unk>", "pad_token": "<pad>", "eos_token": "</s>"}
    made = tokenizer(("<pad>", "</s>", "<unk>", "<user>", "<assistant>", "<system>"), words, None, **names)
    made.chat_template = TURN
    config = LlamaConfig(
        vocab_size=len(made), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, max_position_embeddings=128, pad_token_id=0, eos_token_id=1, bos_token_id=None,
        tie_word_embeddings=True,
    )  # fmt: skip
    return save(folder, LlamaForCausalLM(config), made)


def spelling(folder: Path, kind: str, texts: Sequence[str] = ()) -> Path:
    """A model with random weights that spells: `llama` with a byte-level tokenizer, `t5` with one that marks spaces, as they have."""
    torch.manual_seed(0)
    special = ["<pad>", "</s>", "<unk>"]
    if kind == "t5":
        made = Tokenizer(models.Unigram())
        made.pre_tokenizer, made.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
        signs = [chr(code) for code in range(33, 127)]
        unigrams = trainers.UnigramTrainer(
            vocab_size=160, special_tokens=special, unk_token="<unk>", initial_alphabet=signs
        )
        made.train_from_iterator([*texts, *signs], unigrams)
        made.post_processor = processors.TemplateProcessing("$A </s>", "$A </s> $B </s>", [("</s>", 1)])
    else:
        made = Tokenizer(models.BPE())
        made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        pairs = trainers.BpeTrainer(vocab_size=300, special_tokens=special, initial_alphabet=alphabet)
        made.train_from_iterator(texts, pairs)
    fast = PreTrainedTokenizerFast(tokenizer_object=made, unk_token="<unk>", pad_token="<pad>", eos_token="</s>")
    if kind == "t5":
        encoder_decoder = T5Config(  # type: ignore[call-arg]
            vocab_size=len(fast), d_model=32, d_kv=8, d_ff=64, num_layers=1, num_decoder_layers=1, num_heads=4,
            dropout_rate=0.0, decoder_start_token_id=0, pad_token_id=0, eos_token_id=1,
        )  # fmt: skip
        return save(folder, T5ForConditionalGeneration(encoder_decoder), fast)
    config = LlamaConfig(
        vocab_size=len(fast) + 3, hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2, max_position_embeddings=512, pad_token_id=0, eos_token_id=1, bos_token_id=None,
    )  # fmt: skip
    return save(folder, LlamaForCausalLM(config), fast)


def whisper(folder: Path) -> Path:
    torch.manual_seed(0)
    config = WhisperConfig(
        vocab_size=64, num_mel_bins=80, d_model=32, encoder_layers=2, decoder_layers=1, encoder_attention_heads=2,
        decoder_attention_heads=2, encoder_ffn_dim=64, decoder_ffn_dim=64, max_source_positions=1500,
        max_target_positions=16, pad_token_id=0, bos_token_id=1, eos_token_id=2, decoder_start_token_id=1,
        suppress_tokens=None, begin_suppress_tokens=None,
    )  # fmt: skip
    return save(folder, WhisperModel(config), WhisperFeatureExtractor())


def speech(folder: Path, words: Sequence[str] = WORDS) -> Path:
    """A Whisper that hears one second and writes words."""
    torch.manual_seed(0)
    names = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    made = tokenizer(tuple(names.values()), words, None, **names)
    config = WhisperConfig(
        vocab_size=len(made), num_mel_bins=80, d_model=32, encoder_layers=2, decoder_layers=1, encoder_attention_heads=2,
        decoder_attention_heads=2, encoder_ffn_dim=64, decoder_ffn_dim=64, max_source_positions=50,
        max_target_positions=16, pad_token_id=0, bos_token_id=1, eos_token_id=2, decoder_start_token_id=1,
        suppress_tokens=None, begin_suppress_tokens=None,
    )  # fmt: skip
    made.save_pretrained(folder)
    return save(folder, WhisperForConditionalGeneration(config), WhisperFeatureExtractor(chunk_length=1))


def wav2vec2(folder: Path) -> Path:
    torch.manual_seed(0)
    config = Wav2Vec2Config(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, conv_dim=(16, 16, 16),
        conv_kernel=(10, 8, 4), conv_stride=(5, 8, 4), num_conv_pos_embeddings=16, num_conv_pos_embedding_groups=2,
        hidden_dropout=0.0, attention_dropout=0.0, activation_dropout=0.0, feat_proj_dropout=0.0, final_dropout=0.0,
        layerdrop=0.0, apply_spec_augment=False, classifier_proj_size=16,
    )  # fmt: skip
    extractor = Wav2Vec2FeatureExtractor(sampling_rate=16_000, do_normalize=True, return_attention_mask=False)
    return save(folder, Wav2Vec2Model(config), extractor)


def efficientnet(folder: Path) -> Path:
    import learners.model.encoders.bundled_weights  # noqa: F401 - registers the architecture
    from learners.model.encoders.efficientnet_lite import EfficientNetLiteConfig, EfficientNetLiteForImageClassification

    torch.manual_seed(0)
    stages = ((1, 3, 1, 1, 8), (2, 3, 2, 2, 16))
    config = EfficientNetLiteConfig(stages=stages, stem=8, hidden_size=32, image_size=32, dropout=0.0)
    model = EfficientNetLiteForImageClassification(config)
    norms = [module for module in model.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = 1.0  # one batch gives the statistics a trained network would have
    with torch.no_grad():
        model.train()(torch.randn(16, 3, 32, 32))
    model.save_pretrained(folder)
    size = {"height": 32, "width": 32}
    (folder / "preprocessor_config.json").write_bytes(
        orjson.dumps({"size": size, "image_mean": [0.5] * 3, "image_std": [0.5] * 3})
    )
    return folder


def orders(count: int, seed: int, intents: dict[str, str]) -> list[dict[str, str]]:
    """Texts of three words, one of which decides the label."""
    import random

    generator = random.Random(seed)
    filler = ["the", "a", "now", "please", "is", "in"]
    rows = []
    for i in range(count):
        word, label = list(intents.items())[i % len(intents)]
        parts = [word, *generator.choices(filler, k=4)]
        generator.shuffle(parts)
        rows.append({"text": " ".join(parts), "label": label})
    return rows


def held_out(path: Path, count: int, intents: dict[str, str], seed: int = 9) -> Path:
    """Orders in a file of the operator's: what `tasks.X.eval_file` names."""
    path.write_bytes(b"\n".join(orjson.dumps(row) for row in orders(count, seed, intents)))
    return path
