"""How probable a model finds given continuations: the one measurement behind every edit metric."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from betaedit.models.load import LanguageModel
from betaedit.models.lookup import encode_target, pad_rows, pad_token_id, tokenize
from betaedit.progress import Progress, SilentProgress

_TOKENS_PER_FORWARD = 1024


@dataclass(frozen=True, slots=True)
class Score:
    """One target after one prompt.

    Args:
        nll: Mean negative log-likelihood per target token (natural logarithm).
        argmax: Whether every target token is the most probable one, the ones before it given.
    """

    nll: float
    argmax: bool


@dataclass(frozen=True)
class _Row:
    """Token ids to run, and for each pair asked of it where its target begins."""

    ids: tuple[int, ...]
    asked: list[tuple[int, list[int]]]


def score_targets(
    model: LanguageModel,
    pairs: Sequence[tuple[str, str]],
    *,
    progress: Progress | None = None,
    label: str = "evaluating",
) -> list[Score]:
    """The score of each ``(prompt, target)`` pair, in order (methods.md G.1).

    Targets follow their prompt after one space. Pairs whose input is the same (one-token targets of one prompt) share
    one row; rows of similar length share one forward pass. Neither changes a result.
    """
    rows = _rows(model, pairs)
    scores: list[Score | None] = [None] * len(pairs)
    with (progress or SilentProgress()).task(label, len(pairs), "prompts") as task:
        for batch in _batches(rows):
            for index, score in _score_batch(model, batch):
                scores[index] = score
                task.advance()
    return [score for score in scores if score is not None]


def _rows(model: LanguageModel, pairs: Sequence[tuple[str, str]]) -> list[_Row]:
    rows: dict[tuple[int, ...], _Row] = {}
    for index, (prompt, target) in enumerate(pairs):
        target_ids = encode_target(model.tokenizer, prompt, target)
        ids = (*tokenize(model.tokenizer, prompt), *target_ids[:-1])
        rows.setdefault(ids, _Row(ids, [])).asked.append((index, target_ids))
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
def _score_batch(model: LanguageModel, batch: list[_Row]) -> list[tuple[int, Score]]:
    ids, mask = pad_rows([row.ids for row in batch], pad_token_id(model.tokenizer))
    body = model.anatomy.body
    hidden = body(
        input_ids=ids.to(model.device), attention_mask=mask.to(model.device), use_cache=False
    ).last_hidden_state
    needed = [(r, position) for r, row in enumerate(batch) for position in range(_first(row), len(row.ids))]
    where = torch.tensor(needed, device=hidden.device)
    logs = model.anatomy.head_logits(hidden[where[:, 0], where[:, 1]]).float().log_softmax(dim=-1)
    place = {pair: at for at, pair in enumerate(needed)}
    scores = []
    for r, row in enumerate(batch):
        for index, target in row.asked:
            begin = place[r, len(row.ids) - len(target)]
            chosen = logs[begin : begin + len(target)]
            wanted = torch.tensor(target, device=logs.device)
            nll = -chosen.gather(1, wanted[:, None]).mean().item()
            scores.append((index, Score(nll, bool((chosen.argmax(dim=1) == wanted).all()))))
    return scores


def _first(row: _Row) -> int:
    return len(row.ids) - max(len(target) for _, target in row.asked)
