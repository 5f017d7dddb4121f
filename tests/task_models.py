"""Tiny models of texts, tokens and sounds with what makes their inputs, and samples for each."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from numpy.typing import NDArray
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import (
    ASTFeatureExtractor,
    DebertaV2Tokenizer,
    LlamaTokenizer,
    PreTrainedTokenizerBase,
    RobertaTokenizer,
    SeamlessM4TFeatureExtractor,
    Wav2Vec2FeatureExtractor,
    WhisperFeatureExtractor,
    XLMRobertaTokenizer,
)

from pwl_hf import PWLForAudioClassification, PWLForSequenceClassification, PWLForTokenClassification
from tests.modeling.texts import bert_tokenizer
from tests.modeling.types import network_config
from tests.once import made_once

# A model's class, the types of its teacher and student, its labels.
_LABELS = ("O", "B-PER", "I-PER", "B-LOC")
KINDS: dict[str, tuple[Any, str, str]] = {
    "texts": (PWLForSequenceClassification, "bert", "distilbert"),
    "tokens": (PWLForTokenClassification, "bert", "bert"),
    "waves": (PWLForAudioClassification, "wav2vec2", "wav2vec2"),
    "spectrograms": (PWLForAudioClassification, "audio-spectrogram-transformer", "audio-spectrogram-transformer"),
    "log-mel spectrograms": (PWLForAudioClassification, "whisper", "whisper"),
    "features of speech": (PWLForAudioClassification, "wav2vec2-bert", "wav2vec2-bert"),
}
OF_SOUND = ("waves", "spectrograms", "log-mel spectrograms", "features of speech")
NUM_STAGES = 2
TEXTS = ("good film", "a very bad film, badly w11 w12 w13!", "GOOD w20")
# More tokens than a tiny model takes.
LONG = " ".join(f"w{number % 39}" for number in range(70))
_CORPUS = ("a good film, a very bad film!", "naïve cafés 東京 ελληνικά", "the quick brown fox's 1,984 jumps")


def task_model(kind: str, folder: Path, **config: Any) -> Any:
    """A model of random weights, with a tokenizer or a feature extractor; what each stage says differs.

    Args:
        kind: One of `KINDS`.
        folder: Where what makes its inputs is made.
        config: Further fields of both networks.
    """
    model_class, *types = KINDS[kind]
    labels = _LABELS if kind == "tokens" else ("ant", "bee", "cat", "dog")
    named = {"id2label": dict(enumerate(labels)), "label2id": {name: i for i, name in enumerate(labels)}}
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        networks = []
        # Of two sizes are those of texts: networks of one size have one graph for each kind of block.
        for role, model_type in zip(("teacher" if kind == "texts" else "student", "student"), types, strict=True):
            # A layer a block.
            layers = "n_layers" if model_type == "distilbert" else "num_hidden_layers"
            made = network_config(model_type, role, **{layers: NUM_STAGES}, **config)
            made.update(named)
            network = getattr(transformers, model_class.task).from_config(made).eval()
            for parameter in network.parameters():
                parameter.add_(0.3 * torch.randn_like(parameter))
            networks.append(network)
        return model_class.from_teacher_student(
            *networks, num_blocks=NUM_STAGES, processing_class=processing(kind, folder)
        ).eval()


def exported_task_model(factory: pytest.TempPathFactory, kind: str) -> Path:
    """The folder of a tiny model with its graphs, made once for all tests; not to be written to."""
    from tests.exporting.traces import traced_once

    def make(folder: Path) -> None:
        with traced_once():
            task_model(kind, folder.parent / f"{folder.name}.words").export(folder)

    return made_once(factory, f"exported-{kind}", make)


def assert_alike(found: Any, expected: Any) -> None:
    """Answers are equal, but for the last digits of scores."""
    if isinstance(expected, list):
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            assert_alike(one, other)
        return
    assert {**found, "score": 0} == {**expected, "score": 0}
    assert type(found["score"]) is float
    # Logits are of any size.
    assert abs(found["score"] - float(expected["score"])) < 2e-5 * max(0.5, abs(float(expected["score"])))


def processing(kind: str, folder: Path) -> Any:
    """What makes a model's inputs."""
    if kind in ("texts", "tokens"):
        return bert_tokenizer(folder)
    if kind == "waves":
        return Wav2Vec2FeatureExtractor(sampling_rate=16000, do_normalize=True, return_attention_mask=True)
    if kind == "log-mel spectrograms":
        return WhisperFeatureExtractor(8, chunk_length=1, hop_length=666)
    if kind == "features of speech":
        return SeamlessM4TFeatureExtractor(3, num_mel_bins=3)
    return ASTFeatureExtractor(num_mel_bins=8, max_length=24)


def sounds(count: int = 3) -> list[NDArray[np.float32]]:
    """Waveforms of 16,000 samples a second and of different lengths."""
    generator = np.random.default_rng(0)
    return [generator.normal(0, 0.1, 3000 + 500 * number).astype(np.float32) for number in range(count)]


# --- Tokenizers of every kind ---------------------------------------------------------------------------------------

TOKENIZERS = ("wordpiece", "cased", "bytes", "unigram", "deberta", "llama", "extended")


def tokenizer_of(kind: str, folder: Path) -> PreTrainedTokenizerBase:
    """A tokenizer of fewer than 400 tokens."""
    folder.mkdir(parents=True, exist_ok=True)
    if kind == "wordpiece":
        return bert_tokenizer(folder)
    if kind == "cased":
        return bert_tokenizer(folder, (*_WORDS, "Good", "É", "é"), do_lower_case=False, strip_accents=False)
    if kind == "extended":
        # Tokens added by hand, and what tokenizer.json itself says of cutting and padding, which a call overrules.
        made = bert_tokenizer(folder)
        made.add_tokens(["<tag>", "film noir"])
        made.add_special_tokens({"additional_special_tokens": ["[EXTRA]"]})
        made.save_pretrained(folder)
        content = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
        content["truncation"] = {"max_length": 8, "strategy": "LongestFirst", "stride": 0, "direction": "Right"}
        content["padding"] = {
            "strategy": {"Fixed": 8},
            "direction": "Right",
            "pad_to_multiple_of": None,
            "pad_id": 0,
            "pad_type_id": 0,
            "pad_token": "[PAD]",
        }
        (folder / "tokenizer.json").write_text(json.dumps(content), encoding="utf-8")
        return transformers.AutoTokenizer.from_pretrained(folder, model_max_length=32)
    if kind == "bytes":
        vocabulary, merges = _byte_pairs()
        return RobertaTokenizer(vocab=vocabulary, merges=merges, model_max_length=32)
    pieces = [
        *((f"▁{word}", -2.0) for word in ("a", "good", "film", "the")),
        *((c, -6.0) for c in "▁abcdefgilmotvry'é"),
    ]
    if kind == "unigram":
        special = [(token, 0.0) for token in ("<s>", "<pad>", "</s>", "<unk>")]
        return XLMRobertaTokenizer(vocab=[*special, *pieces, ("<mask>", 0.0)], model_max_length=32)
    if kind == "deberta":
        special = [(token, 0.0) for token in ("[PAD]", "[CLS]", "[SEP]", "[UNK]")]
        return DebertaV2Tokenizer(vocab=[*special, *pieces, ("[MASK]", 0.0)], model_max_length=32)
    letters = sorted({character for text in _CORPUS for character in text if character != " "})
    tokens = ["<unk>", "<s>", "</s>", *letters, "▁", "fi", "▁g"]
    return LlamaTokenizer(
        vocab={token: number for number, token in enumerate(tokens)},
        merges=[("f", "i"), ("▁", "g")],
        pad_token="</s>",
        model_max_length=32,
    )


_WORDS: Sequence[str] = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "good", "film", "a")


def _byte_pairs() -> tuple[dict[str, int], list[tuple[str, str]]]:
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=330, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    trained.train_from_iterator(3 * _CORPUS, trainer)
    found = json.loads(trained.to_str())["model"]
    merges = [tuple(merge.split(" ")) if isinstance(merge, str) else tuple(merge) for merge in found["merges"]]
    return found["vocab"], merges
