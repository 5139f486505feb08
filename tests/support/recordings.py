"""Prompts of random tokens, and what whole forward passes make of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Cache

from betaedit.models import Anatomy, EncodedPrompts
from betaedit.models.replay import LayerCall, layer_output
from support.families import HIDDEN
from support.tiny_tokenizers import VOCABULARY

TOLERANCE = {"atol": 1e-5, "rtol": 1e-5}


def random_prompts(lengths: tuple[int, ...], lookups: tuple[int, ...], seed: int = 3) -> EncodedPrompts:
    """Prompts of these lengths, right-padded, with these lookup tokens."""
    sizes, width = torch.tensor(lengths), max(lengths)
    ids = torch.randint(3, VOCABULARY, (len(lengths), width), generator=torch.Generator().manual_seed(seed))
    mask = (torch.arange(width) < sizes[:, None]).long()
    return EncodedPrompts(ids, mask, torch.tensor(lookups))


def random_changes(n: int, seed: int = 4) -> Tensor:
    """A change of its own for the hidden state of every prompt."""
    return torch.randn(n, HIDDEN, generator=torch.Generator().manual_seed(seed))


def real(prompts: EncodedPrompts) -> Tensor:
    """Where the batch holds tokens, not padding."""
    return prompts.attention_mask.bool()


def logits_with_change(anatomy: Anatomy, prompts: EncodedPrompts, layer: int, changes: Tensor | float) -> Tensor:
    """Logits of an ordinary forward pass in which ``changes`` join what enters block ``layer`` at the lookup tokens."""
    at = (torch.arange(len(prompts.lookup)), prompts.lookup)

    def moved(hidden: Tensor) -> Tensor:
        return hidden.index_put(at, hidden[at] + changes)

    def before(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if args:
            return (moved(args[0]), *args[1:]), kwargs
        return args, {**kwargs, "hidden_states": moved(kwargs["hidden_states"])}

    def after(_: nn.Module, __: Any, output: Any) -> Any:
        hidden = moved(layer_output(output))
        return (hidden, *output[1:]) if isinstance(output, tuple) else hidden

    if layer < anatomy.n_layers:
        handle = anatomy.layers[layer].register_forward_pre_hook(before, with_kwargs=True)
    else:
        handle = anatomy.layers[-1].register_forward_hook(after)
    try:
        return anatomy.model(input_ids=prompts.input_ids, attention_mask=prompts.attention_mask).logits
    finally:
        handle.remove()


def from_lookup_on(logits: Tensor, prompts: EncodedPrompts) -> list[Tensor]:
    """Of every prompt, what stands from its lookup token to its end."""
    rows = zip(logits, prompts.lookup.tolist(), prompts.lengths.tolist(), strict=True)
    return [row[start:end] for row, start, end in rows]


def assert_all_close(found: list[Tensor], expected: list[Tensor]) -> None:
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, **TOLERANCE)


def without_cache(calls: dict[int, LayerCall]) -> dict[int, LayerCall]:
    """Recorded calls as they can be made again: the recording's own cache holds their positions already."""
    return {index: call.map(lambda value: None if isinstance(value, Cache) else value) for index, call in calls.items()}


def count_runs(modules: list[nn.Module], work: Callable[[], Any]) -> list[int]:
    """How often each module ran to its end during ``work``."""
    counts = [0] * len(modules)

    def counter(index: int) -> Callable[..., None]:
        def hook(*_: Any) -> None:
            counts[index] += 1

        return hook

    handles = [module.register_forward_hook(counter(index)) for index, module in enumerate(modules)]
    work()
    for handle in handles:
        handle.remove()
    return counts
