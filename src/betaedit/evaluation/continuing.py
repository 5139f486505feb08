"""Continues many prompts in batches; results are in the order of the prompts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

from betaedit.models.generate import IsFinished, continue_rows, end_tokens, most_likely
from betaedit.models.load import LanguageModel
from betaedit.progress import Progress, SilentProgress

BATCH_SIZE = 32

T = TypeVar("T")


def in_batches(
    lengths: Sequence[int],
    batch_size: int,
    work: Callable[[list[int]], Sequence[T]],
    *,
    progress: Progress | None = None,
    label: str,
) -> list[T]:
    """What ``work`` makes of each item, in order.

    Args:
        lengths: Length in tokens of each item: those of similar length are worked on together.
        batch_size: How many at most.
        work: Told the indices of a batch's items; returns one result each.
        progress: Hears of every item.
        label: What to call the work.
    """
    order = sorted(range(len(lengths)), key=lambda index: lengths[index], reverse=True)
    found: dict[int, T] = {}
    with (progress or SilentProgress()).task(label, len(order), "prompts") as task:
        for at in range(0, len(order), batch_size):
            batch = order[at : at + batch_size]
            found.update(zip(batch, work(batch), strict=True))
            task.advance(len(batch))
    return [found[index] for index in range(len(lengths))]


def continue_greedily(
    model: LanguageModel,
    prompts: Sequence[str],
    n_tokens: int,
    *,
    is_finished: IsFinished = lambda new: False,
    keep_end: bool = False,
    batch_size: int = BATCH_SIZE,
    progress: Progress | None = None,
    label: str = "generating",
) -> list[tuple[int, ...]]:
    """New token ids of each prompt by greedy decoding, in order.

    A text ends after ``n_tokens``, where ``is_finished``, or at the model's own end token, which is left out unless
    ``keep_end``. A prompt asked twice is run once.
    """
    ends = end_tokens(model)
    asked = list(dict.fromkeys(prompts))
    rows = model.encode(asked)

    def work(batch: list[int]) -> list[tuple[int, ...]]:
        new = continue_rows(
            model,
            [rows[index] for index in batch],
            [n_tokens] * len(batch),
            most_likely,
            is_finished=lambda ids: ids[-1] in ends or is_finished(ids),
        )
        return [tuple(ids[:-1] if ids and ids[-1] in ends and not keep_end else ids) for ids in new]

    said = in_batches([len(row) for row in rows], batch_size, work, progress=progress, label=label)
    by_prompt = dict(zip(asked, said, strict=True))
    return [by_prompt[prompt] for prompt in prompts]


def complete_greedily(
    model: LanguageModel, prompts: Sequence[str], n_tokens: int, *, progress: Progress | None = None, label: str
) -> list[str]:
    """What the model says after each prompt, in order: the texts of ``continue_greedily``."""
    said = continue_greedily(model, prompts, n_tokens, progress=progress, label=label)
    return [str(model.tokenizer.decode(list(ids), skip_special_tokens=True)) for ids in said]
