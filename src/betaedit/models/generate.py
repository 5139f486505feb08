"""Text from the model itself: a plain sampling loop with its own random generator."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from betaedit.models.load import LanguageModel
from betaedit.models.lookup import tokenize


@torch.no_grad()
def sample(model: LanguageModel, start: Tensor, n_tokens: int, *, top_k: int, generator: torch.Generator) -> Tensor:
    """``(n, width + n_tokens)`` token ids: ``start`` ``(n, width)`` continued by top-k sampling at temperature 1.

    All rows have the same length, so nothing is padded. The random stream is the generator's alone: the same seed
    gives the same text on the same machine, whatever else has drawn random numbers.
    """
    anatomy = model.anatomy
    cache = DynamicCache()
    ids = fed = start.to(model.device)
    for _ in range(n_tokens):
        hidden = anatomy.body(input_ids=fed, past_key_values=cache, use_cache=True).last_hidden_state
        logits = anatomy.head_logits(hidden[:, -1]).float()
        scores, choices = logits.topk(min(top_k, logits.shape[-1]))
        drawn = torch.multinomial(scores.softmax(dim=-1).cpu(), 1, generator=generator)
        fed = choices.gather(1, drawn.to(choices.device))
        ids = torch.cat([ids, fed.to(ids.device)], dim=1)
    return ids


@torch.no_grad()
def complete(model: LanguageModel, prompt: str, n_tokens: int = 8) -> str:
    """What the model says next, greedily: at most ``n_tokens`` tokens, ending at the end-of-text token."""
    ids = torch.tensor([tokenize(model.tokenizer, prompt)], device=model.device)
    generate: Any = model.model.generate
    out = generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=n_tokens,
        do_sample=False,
        pad_token_id=model.tokenizer.eos_token_id,
    )
    return str(model.tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True))
