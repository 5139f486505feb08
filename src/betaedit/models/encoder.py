"""Encoders of sentences: one vector per text, by transformers alone."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn.functional import normalize
from transformers import AutoModel, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils.hub import cached_file

from betaedit.errors import ModelError, ModelNotFoundError
from betaedit.models.bundled import ENCODERS
from betaedit.models.places import find_place

_BATCH = 32


class SentenceEncoder:
    """Texts as vectors: the masked mean of the last layer, as sentence encoders and Contriever have it.

    Args:
        model: An encoder.
        tokenizer: Its tokenizer.
        normalized: Whether vectors have length 1, so that inner products are cosines.
        max_length: Tokens of a text that are read.
    """

    def __init__(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, *, normalized: bool, max_length: int
    ) -> None:
        self.model, self.tokenizer = model, tokenizer
        self.normalized, self.max_length = normalized, max_length

    @property
    def width(self) -> int:
        """Of a vector."""
        return int(self.model.config.hidden_size)

    @property
    def nbytes(self) -> int:
        """Bytes of its weights."""
        return int(self.model.get_memory_footprint())  # type: ignore[no-untyped-call] # transformers lacks the annotation

    @torch.inference_mode()
    def encode(self, texts: Sequence[str]) -> Tensor:
        """``(n, width)`` float32 vectors, in order. Texts of similar length share passes."""
        vectors = torch.zeros(len(texts), self.width)
        order = sorted(range(len(texts)), key=lambda at: len(texts[at]))
        for at in range(0, len(order), _BATCH):
            batch = order[at : at + _BATCH]
            tokens = self.tokenizer(
                [texts[index] for index in batch],
                padding=True,
                truncation=True,
                max_length=self.max_length,
                return_tensors="pt",
            ).to(self.model.device)
            hidden = self.model(**tokens).last_hidden_state.float()
            mask = tokens["attention_mask"][..., None].float()
            vectors[batch] = ((hidden * mask).sum(dim=1) / mask.sum(dim=1)).cpu()
        return normalize(vectors) if self.normalized else vectors


def load_encoder(name: str) -> SentenceEncoder:
    """The encoder of that name.

    Vectors are normalized where the encoder's own ``modules.json`` (sentence-transformers) says so, and not otherwise.

    Args:
        name: One of ``ENCODERS``, a local folder, or a Hugging Face id.

    Raises:
        ModelNotFoundError: There is nothing of that name.
        ModelError: It cannot be loaded, or pools otherwise than by the mean.
    """
    place = str(ENCODERS[name].folder() if name in ENCODERS else find_place(name) or name)
    try:
        model = AutoModel.from_pretrained(place, trust_remote_code=False)
        tokenizer = AutoTokenizer.from_pretrained(place, trust_remote_code=False)
    except Exception as error:
        raise ModelNotFoundError(
            f"the encoder {name!r} cannot be loaded: {str(error).partition(chr(10))[0]}",
            hint=f"Name a folder, a Hugging Face id, or one of {', '.join(ENCODERS)}.",
        ) from error
    if model.config.is_encoder_decoder or not hasattr(model.config, "hidden_size"):
        raise ModelError(f"{name!r} is no encoder of sentences.", hint="Give one such as facebook/contriever-msmarco.")
    pooling = _read(place, "1_Pooling/config.json")
    if pooling and not pooling.get("pooling_mode_mean_tokens"):
        raise ModelError(f"the encoder {name!r} does not pool by the mean.", hint="Give one that does.")
    modules = _read(place, "modules.json") or []
    positions = getattr(model.config, "max_position_embeddings", None) or tokenizer.model_max_length
    length = (_read(place, "sentence_bert_config.json") or {}).get("max_seq_length") or positions
    model.train(False)
    model.requires_grad_(False)
    return SentenceEncoder(
        cast(PreTrainedModel, model),
        tokenizer,
        normalized=any(str(module.get("type", "")).endswith("Normalize") for module in modules),
        max_length=min(length, positions, tokenizer.model_max_length),
    )


def _read(place: str, file: str) -> Any:
    """A JSON file of a model; ``None`` where it has none."""
    found = cached_file(
        place,
        file,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
        _raise_exceptions_for_gated_repo=False,
    )
    return None if found is None else json.loads(Path(found).read_text(encoding="utf-8"))
