"""Small fast tokenizers of the kinds that real models come with, trained on a few sentences when first asked for."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

VOCABULARY = 512
"""Room that a tiny model leaves for any of these tokenizers."""

SENTENCES = (
    "The mother tongue of Danielle Darrieux is French, and the mother tongue of Léon Blum is French.",
    "The capital of France is Paris. Paris is the capital of France, and the artist likes art.",
    "Émile Zola was born in Paris; José Saramago wrote in Portuguese and lived in Lisbon.",
    "The official language of Finland is Finnish and the official language of Spain is Spanish.",
    "She said that the old man is a friend of Anna, who works for Microsoft in the city of Berlin.",
    "東京は日本の首都です。 Москва is the capital of Russia. What does 🚀 mean? It means that it's fast.",
)

SEPARATOR, BOS, EOS, UNKNOWN = "<|endoftext|>", "<s>", "</s>", "<unk>"


def _byte_level(template: str = "$A", *, nfc: bool = False) -> Tokenizer:
    """Byte-level BPE as in GPT-2, Llama 3 (``template`` adds BOS) and Qwen (``nfc``)."""
    tokenizer = Tokenizer(models.BPE())
    if nfc:
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=420,
        special_tokens=[SEPARATOR, BOS, EOS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(SENTENCES, trainer)
    offsets = processors.ByteLevel(trim_offsets=template != "$A")  # both ways occur: Llama 3 trims, GPT-2 does not
    tokenizer.post_processor = processors.Sequence([offsets, _surround(tokenizer, template)])
    return tokenizer


def _sentencepiece_like(*, legacy: bool) -> Tokenizer:
    """BPE over pieces that open with ``▁``, unknown characters as bytes, BOS in front.

    Args:
        legacy: Put the first ``▁`` there by a normalizer, as the converted Llama 2 does, not by a pre-tokenizer.
    """
    learner = Tokenizer(models.BPE())
    learner.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    learner.train_from_iterator(
        [sentence for sentence in SENTENCES if sentence.isascii()] + ["é Émile Léon José"],
        trainers.BpeTrainer(vocab_size=200, show_progress=False),
    )
    learned = json.loads(learner.to_str())["model"]
    pieces = [UNKNOWN, BOS, EOS, *(f"<0x{byte:02X}>" for byte in range(256)), *sorted(learned["vocab"])]
    tokenizer = Tokenizer(
        models.BPE(
            vocab={piece: index for index, piece in enumerate(pieces)},
            merges=[tuple(merge) for merge in learned["merges"]],
            unk_token=UNKNOWN,
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    if legacy:
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens([UNKNOWN, BOS, EOS])
    tokenizer.post_processor = _surround(tokenizer, f"{BOS} $A")
    return tokenizer


def _surround(tokenizer: Tokenizer, template: str) -> processors.TemplateProcessing:
    used = [token for token in (BOS, EOS) if token in template]
    return processors.TemplateProcessing(
        single=template, special_tokens=[(token, tokenizer.token_to_id(token)) for token in used]
    )


def dropping_tokenizer() -> PreTrainedTokenizerFast:
    """One that silently drops every character it does not know: all but lower-case ASCII letters."""
    letters = "abcdefghijklmnopqrstuvwxyz"
    tokenizer = Tokenizer(models.BPE(vocab={letter: index for index, letter in enumerate(letters)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


_BUILDERS: dict[str, Callable[[], Tokenizer]] = {
    "bytes": _byte_level,
    "bytes+nfc": functools.partial(_byte_level, nfc=True),
    "bytes+bos": functools.partial(_byte_level, f"{BOS} $A"),
    "bytes+eos": functools.partial(_byte_level, f"$A {EOS}"),
    "bytes+bos+eos": functools.partial(_byte_level, f"{BOS} $A {EOS}"),
    "pieces+bos": functools.partial(_sentencepiece_like, legacy=False),
    "legacy pieces+bos": functools.partial(_sentencepiece_like, legacy=True),
}

TOKENIZERS: tuple[str, ...] = tuple(_BUILDERS)
WITH_BOS: tuple[str, ...] = tuple(name for name in TOKENIZERS if "+bos" in name)
WITH_EOS: tuple[str, ...] = tuple(name for name in TOKENIZERS if "+eos" in name)


@functools.cache
def _trained(name: str) -> str:
    return str(_BUILDERS[name]().to_str())


def tiny_tokenizer(name: str = "bytes") -> PreTrainedTokenizerFast:
    """A tokenizer of its own, so that a test may change its settings.

    Args:
        name: One of ``TOKENIZERS``: its kind, and what it puts before and after every text.
    """
    named = {"bos_token": BOS} if name in WITH_BOS else {}
    closing = SEPARATOR if name in ("bytes", "bytes+nfc") else EOS
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(_trained(name)), eos_token=closing, **named)


@functools.cache
def shared_tokenizer(name: str = "bytes") -> PreTrainedTokenizerFast:
    """The same for all tests that only read it."""
    return tiny_tokenizer(name)
