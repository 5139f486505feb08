"""Text from the model itself: one loop, greedy or sampling with its own random generators."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from betaedit.models.chat import turn_end
from betaedit.models.load import LanguageModel
from betaedit.models.lookup import pad_rows, pad_token_id
from betaedit.models.prompt_hook import prompt_lengths

Choose = Callable[[Tensor], Tensor]
"""From the logits of the next token ``(n, vocabulary)`` to the tokens taken ``(n,)``."""

IsFinished = Callable[[list[int]], bool]
"""Whether a row ends after these new tokens."""


@torch.no_grad()
def continue_rows(
    model: LanguageModel,
    rows: Sequence[Sequence[int]],
    n_tokens: Sequence[int],
    choose: Choose,
    *,
    is_finished: IsFinished = lambda new: False,
    n_prompt: Sequence[int] | None = None,
) -> list[list[int]]:
    """The tokens that continue each row.

    Rows of different length share passes: padded on the left, the padding masked and not counted as positions, so a
    row's text is (up to rounding) what it would be alone.

    Args:
        model: Its positions bound the length: a row that reaches the last one ends there.
        rows: Token ids, at least one a row.
        n_tokens: The most tokens to add to each row.
        choose: Picks the next token of every row, those that have ended among them.
        is_finished: Told a row's new tokens after each of them; a true answer ends the row.
        n_prompt: How many tokens of each row are its prompt, where it begins with a part of the answer, too.
    """
    anatomy = model.anatomy
    fed, mask = (part.to(model.device) for part in pad_rows(rows, pad_token_id(model.tokenizer), "left"))
    positions = (mask.cumsum(dim=1) - 1).clamp(min=0)
    cache = DynamicCache()
    limits = [min(n, model.max_length - len(row)) for n, row in zip(n_tokens, rows, strict=True)]
    going = {row for row, limit in enumerate(limits) if limit > 0}
    new: list[list[int]] = [[] for _ in rows]
    while going:
        with prompt_lengths(n_prompt):
            hidden = anatomy.body(
                input_ids=fed, attention_mask=mask, position_ids=positions, past_key_values=cache, use_cache=True
            ).last_hidden_state
        chosen = choose(anatomy.head_logits(hidden[:, -1]).float()).to(model.device)
        for row, token in enumerate(chosen.tolist()):
            if row in going:
                new[row].append(token)
                if len(new[row]) == limits[row] or is_finished(new[row]):
                    going.remove(row)
        fed = chosen[:, None]
        mask = torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1)
        positions = (positions[:, -1:] + 1).clamp(max=model.max_length - 1)  # rows that have ended run along
    return new


def most_likely(logits: Tensor) -> Tensor:
    """Greedy choice: ``(n,)`` tokens, the lower id where two are equal; the first NaN, if there is one."""
    return logits.argmax(dim=-1)


def draw_top_k(top_k: int, generators: Sequence[torch.Generator]) -> Choose:
    """Top-k sampling at temperature 1 in which row ``i`` uses only ``generators[i]``.

    A row whose probabilities are no numbers takes the greedy token: a collapsed model says something, and is measured.
    """

    def choose(logits: Tensor) -> Tensor:
        shares, choices = _top_shares(logits, top_k)
        pairs = zip(shares, generators, strict=True)
        return _picked(choices, torch.stack([torch.multinomial(share, 1, generator=own) for share, own in pairs]))

    return choose


def sample(model: LanguageModel, start: Tensor, n_tokens: int, *, top_k: int, generator: torch.Generator) -> Tensor:
    """``(n, width + n_tokens)`` token ids: ``start`` ``(n, width)`` continued by top-k sampling at temperature 1.

    All rows have the same length and one generator: the same seed gives the same text on the same machine,
    independent of other random numbers. If probabilities are NaN, tokens are greedy.
    """

    def choose(logits: Tensor) -> Tensor:
        shares, choices = _top_shares(logits, top_k)
        return _picked(choices, torch.multinomial(shares, 1, generator=generator))

    new = continue_rows(model, start.tolist(), [n_tokens] * len(start), choose)
    return torch.cat([start, torch.tensor(new, dtype=start.dtype, device=start.device)], dim=1).to(model.device)


def _top_shares(logits: Tensor, top_k: int) -> tuple[Tensor, Tensor]:
    """Probabilities of the likeliest tokens, on the CPU where generators live, and the tokens.

    Where the probabilities are no numbers, all choices are the greedy token, with equal shares.
    """
    scores, choices = logits.topk(min(top_k, logits.shape[-1]))
    shares = scores.softmax(dim=-1)
    collapsed = ~shares.isfinite().all(dim=-1, keepdim=True)
    choices = choices.where(~collapsed, most_likely(logits)[:, None])
    return shares.masked_fill(collapsed, 1.0).cpu(), choices


def _picked(choices: Tensor, drawn: Tensor) -> Tensor:
    return choices.gather(1, drawn.to(choices.device))[:, 0]


def end_tokens(model: LanguageModel) -> frozenset[int]:
    """The tokens with which the model says that its text, or its turn in a chat, is over."""
    named = getattr(model.model.generation_config, "eos_token_id", None)
    listed = [*(named if isinstance(named, list) else [named]), model.tokenizer.eos_token_id]
    return frozenset(token for token in (*listed, *turn_end(model.tokenizer)) if isinstance(token, int))


@torch.no_grad()
def complete(model: LanguageModel, prompt: str, n_tokens: int = 8) -> str:
    """What the model says next, greedily: at most ``n_tokens`` tokens, ending at the end-of-text token."""
    ids = torch.tensor(model.encode([prompt]), device=model.device)
    generate: Any = model.model.generate
    out = generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=n_tokens,
        do_sample=False,
        pad_token_id=model.tokenizer.eos_token_id,
    )
    return str(model.tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True))
