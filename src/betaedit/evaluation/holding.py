"""Whether a model holds a written fact, judged by its free text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from betaedit.evaluation.continuing import complete_greedily
from betaedit.evaluation.scoring import Continuation, read_targets, score_targets
from betaedit.facts.fact import Fact
from betaedit.models.load import LanguageModel
from betaedit.models.lookup import pad_token_id

Status = Literal["held", "runs on", "by probability", "missed"]
STATUSES: tuple[Status, ...] = ("missed", "runs on", "by probability", "held")
_BEYOND = 4


@dataclass(frozen=True, slots=True)
class Holding:
    """How a model holds one fact, measured on its own prompt.

    Args:
        status: ``held``: its greedy text begins with the whole answer and then ends it: no letter or digit follows.
            ``runs on``: it begins with the answer, but the last word or number continues. ``by probability``: it says
            something else, but gives the new target a higher probability per token than the true one. ``missed``: none
            of these.
        probability: Mean probability of the target's tokens, under teacher forcing.
        said: The greedy text, a little longer than the answer; empty if the answer is held.
    """

    status: Status
    probability: float
    said: str = ""


@dataclass(frozen=True, slots=True)
class _Reading:
    """One target under teacher forcing: mean probability, whether it is the greedy text, and the next token."""

    probability: float
    greedy: bool
    following: int


def measure_holding(model: LanguageModel, facts: Sequence[Fact]) -> list[Holding]:
    """How ``model`` holds ``facts``, in order: one pass over all, and greedy text for facts that are not held."""
    tokenizer = model.tokenizer
    asked = Continuation.encode(model, [(fact.text, fact.target_new, fact.joint) for fact in facts])
    # One more position, for the token after the answer; its own token is not used.
    longer = [Continuation(one.prompt, (*one.target, pad_token_id(tokenizer))) for one in asked]
    readings = read_targets(model, longer, _read)
    found = [Holding("held", reading.probability) for reading in readings]
    unsaid = [
        at
        for at, (one, reading) in enumerate(zip(asked, readings, strict=True))
        if not reading.greedy or _goes_on(tokenizer, one.target, reading.following)
    ]
    if unsaid:
        n_tokens = max(len(asked[at].target) for at in unsaid) + _BEYOND
        texts = complete_greedily(model, [facts[at].text for at in unsaid], n_tokens, label="asking")
        for at, text in zip(unsaid, texts, strict=True):
            found[at] = Holding(_status(model, facts[at], text), readings[at].probability, text.strip())
    return found


def says(text: str, answer: str) -> Literal["held", "runs on"] | None:
    """Whether ``text`` begins with ``answer`` (leading white space is ignored), and whether the answer ends there."""
    text, answer = text.lstrip(), answer.strip()
    if not text.startswith(answer):
        return None
    return "runs on" if text[len(answer) : len(answer) + 1].isalnum() else "held"


def _status(model: LanguageModel, fact: Fact, said: str) -> Status:
    if (heard := says(said, fact.target_new)) is not None:
        return heard
    if fact.target_true is None:
        return "missed"
    pairs = [(fact.text, target, fact.joint) for target in (fact.target_new, fact.target_true)]
    new, true = score_targets(model, pairs)
    return "by probability" if new.nll < true.nll else "missed"


def _read(logs: Tensor, target: tuple[int, ...]) -> _Reading:
    wanted = torch.tensor(target[:-1], device=logs.device)
    probability = logs[:-1].gather(1, wanted[:, None]).exp().mean().item()
    best = logs.argmax(dim=1)
    return _Reading(probability, bool((best[:-1] == wanted).all()), int(best[-1]))


def _goes_on(tokenizer: PreTrainedTokenizerBase, target: Sequence[int], following: int) -> bool:
    """Whether the token ``following`` continues the last word or number of ``target``."""
    if following in tokenizer.all_special_ids:
        return False
    before = str(tokenizer.decode(list(target)))
    behind = str(tokenizer.decode([*target, following]))[len(before) :]
    return behind[:1].isalnum() or behind[:1] == "\ufffd"
