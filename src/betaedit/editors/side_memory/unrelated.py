"""Prompts of the model's own, for facts to leave alone."""

from __future__ import annotations

import torch

from betaedit.models.generate import sample
from betaedit.models.load import LanguageModel
from betaedit.models.lookup import document_start, tokenize

_OPENINGS = ("The", "What", "Who", "In", "When", "A", "Where", "How")
_TIMES, _LENGTH, _TOP_K = 4, 10, 20


def sample_prompts(model: LanguageModel, seed: int) -> tuple[str, ...]:
    """A few openings of sentences and questions, as ``model`` goes on with them; those that come twice once."""
    generator = torch.Generator().manual_seed(seed)
    texts = []
    for opening in _OPENINGS:
        start = torch.tensor([document_start(model.tokenizer) + tokenize(model.tokenizer, opening)] * _TIMES)
        for ids in sample(model, start, _LENGTH, top_k=_TOP_K, generator=generator):
            text = str(model.tokenizer.decode(ids, skip_special_tokens=True))
            texts.append(" ".join(text.split()))
    return tuple(dict.fromkeys(text for text in texts if text))
