"""Probabilities of given continuations: the forward pass behind every teacher-forced metric."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from betaedit.models.load import LanguageModel
from betaedit.models.lookup import pad_rows, pad_token_id
from betaedit.models.prompt_hook import prompt_lengths
from betaedit.progress import Progress, SilentProgress

_TOKENS_PER_FORWARD = 1024

T = TypeVar("T")
Pair = tuple[str, str] | tuple[str, str, str | None]
"""A prompt, a target, and the text between them; ``None`` for ``joint_between``."""


@dataclass(frozen=True, slots=True)
class Score:
    """One target after one prompt.

    Args:
        nll: Mean negative log-likelihood per target token (natural logarithm).
        argmax: Whether every target token is the most probable one, the ones before it given.
    """

    nll: float
    argmax: bool


@dataclass(frozen=True, slots=True)
class Continuation:
    """Token ids of a prompt and of the target that is read after it, at least one each."""

    prompt: tuple[int, ...]
    target: tuple[int, ...]

    @classmethod
    def encode(cls, model: LanguageModel, pairs: Sequence[Pair]) -> list[Continuation]:
        """Each target after its prompt, in order.

        Raises:
            LookupTokenError: A target has no tokens.
        """
        whole = [(pair[0], pair[1], pair[2] if len(pair) == 3 else None) for pair in pairs]  # noqa: PLR2004
        return [cls(tuple(prompt), tuple(target)) for prompt, target in model.encode_pairs(whole)]


@dataclass(frozen=True)
class _Row:
    """Token ids to run, how many of them are the prompt, and the target ids of each continuation."""

    ids: tuple[int, ...]
    n_prompt: int
    asked: list[tuple[int, tuple[int, ...]]]


def score_targets(
    model: LanguageModel,
    pairs: Sequence[Pair],
    *,
    progress: Progress | None = None,
    label: str = "evaluating",
) -> list[Score]:
    """The score of each pair of prompt and target, in order (metrics.md G.1).

    Pairs of one prompt whose input is the same (one-token targets) share one row; rows of similar length share one
    forward pass. Neither changes a result.
    """
    return score_continuations(model, Continuation.encode(model, pairs), progress=progress, label=label)


def score_continuations(
    model: LanguageModel,
    continuations: Sequence[Continuation],
    *,
    progress: Progress | None = None,
    label: str = "evaluating",
) -> list[Score]:
    """``score_targets`` for token ids."""
    return read_targets(model, continuations, _score, progress=progress, label=label)


def read_targets(
    model: LanguageModel,
    continuations: Sequence[Continuation],
    read: Callable[[Tensor, tuple[int, ...]], T],
    *,
    progress: Progress | None = None,
    label: str = "evaluating",
) -> list[T]:
    """What ``read`` makes of each target under teacher forcing, in order.

    Args:
        model: The model as it is now.
        continuations: Prompts and targets.
        read: Told the log-probabilities ``(n_target_tokens, vocabulary)`` at the target's places and its token ids.
        progress: Hears of every continuation.
        label: What to call the work.
    """
    rows = _rows(continuations)
    found: dict[int, T] = {}
    with (progress or SilentProgress()).task(label, len(continuations), "prompts") as task:
        for batch in _batches(rows):
            for index, target, logs in _run_batch(model, batch):
                found[index] = read(logs, target)
                task.advance()
    return [found[index] for index in range(len(continuations))]


def _score(logs: Tensor, target: tuple[int, ...]) -> Score:
    wanted = torch.tensor(target, device=logs.device)
    nll = -logs.gather(1, wanted[:, None]).mean().item()
    return Score(nll, bool((logs.argmax(dim=1) == wanted).all()))


def _rows(continuations: Sequence[Continuation]) -> list[_Row]:
    rows: dict[tuple[tuple[int, ...], int], _Row] = {}
    for index, continuation in enumerate(continuations):
        ids, n_prompt = (*continuation.prompt, *continuation.target[:-1]), len(continuation.prompt)
        rows.setdefault((ids, n_prompt), _Row(ids, n_prompt, [])).asked.append((index, continuation.target))
    return sorted(rows.values(), key=lambda row: len(row.ids), reverse=True)


def _batches(rows: list[_Row]) -> list[list[_Row]]:
    batches: list[list[_Row]] = []
    for row in rows:
        if batches and len(batches[-1][0].ids) * (len(batches[-1]) + 1) <= _TOKENS_PER_FORWARD:
            batches[-1].append(row)
        else:
            batches.append([row])
    return batches


@torch.inference_mode()
def _run_batch(model: LanguageModel, batch: list[_Row]) -> list[tuple[int, tuple[int, ...], Tensor]]:
    """Index, target ids and the log-probabilities at their places, for everything asked of a batch."""
    ids, mask = pad_rows([row.ids for row in batch], pad_token_id(model.tokenizer))
    body = model.anatomy.body
    with prompt_lengths([row.n_prompt for row in batch]):
        hidden = body(
            input_ids=ids.to(model.device), attention_mask=mask.to(model.device), use_cache=False
        ).last_hidden_state
    needed = [(r, position) for r, row in enumerate(batch) for position in range(_first(row), len(row.ids))]
    where = torch.tensor(needed, device=hidden.device)
    logs = model.anatomy.head_logits(hidden[where[:, 0], where[:, 1]]).float().log_softmax(dim=-1)
    place = {pair: at for at, pair in enumerate(needed)}
    found = []
    for r, row in enumerate(batch):
        for index, target in row.asked:
            begin = place[r, len(row.ids) - len(target)]
            found.append((index, target, logs[begin : begin + len(target)]))
    return found


def _first(row: _Row) -> int:
    return len(row.ids) - max(len(target) for _, target in row.asked)
