"""Token accuracy on ZsRE (metrics.md G.2), and token-level locality of other answers (G.4)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import zip_longest
from typing import Any

from torch import Tensor

from betaedit.evaluation.continuing import BATCH_SIZE, continue_greedily
from betaedit.evaluation.interval import Estimate, estimate
from betaedit.evaluation.scoring import Continuation, Pair, read_targets
from betaedit.models.load import LanguageModel
from betaedit.progress import Progress

Ids = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class TokenOutcome:
    """The tokens of one target and the model's own choice at each of their places, the right ones before it given."""

    target: Ids
    chosen: Ids

    @property
    def accuracy(self) -> float:
        """Share of the target's tokens that are the most probable one at their place."""
        return sum(a == b for a, b in zip(self.target, self.chosen, strict=True)) / len(self.target)

    @property
    def strict(self) -> bool:
        """Whether all of them are."""
        return self.target == self.chosen


@dataclass(frozen=True, slots=True)
class TokenAccuracy:
    """ZsRE's token accuracy over records, and its strict form; ``None`` without a record."""

    tokens: Estimate | None
    strict: Estimate | None

    def to_dict(self) -> dict[str, Any]:
        """The figures as plain data."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class TokenAgreement:
    """How far tokens before and after an edit agree; ``None`` without a query.

    Args:
        match_ratio: Mean over queries of the share of positions with the same token.
        exact_match: Share of queries whose tokens are all the same.
    """

    match_ratio: Estimate | None
    exact_match: Estimate | None

    def to_dict(self) -> dict[str, Any]:
        """The figures as plain data."""
        return asdict(self)


def choose_tokens(
    model: LanguageModel,
    pairs: Sequence[Pair],
    *,
    bos_bug: bool = False,
    progress: Progress | None = None,
    label: str = "evaluating",
) -> list[TokenOutcome]:
    """The most probable token at every place of each pair's target, in order.

    Args:
        model: The model as it is now.
        pairs: Prompts as they stand, with targets, as ``score_targets`` takes them.
        bos_bug: For comparison with published figures only. The official scripts tokenize the *neighbor's* answer
            together with the BOS token of Llama's tokenizers: one more position, whose target BOS the model never
            says, and BOS in the middle of the input to the later ones. Give it for neighbors alone; tokenizers
            without BOS do not differ.
        progress: Hears of every pair.
        label: What to call the work.

    Raises:
        LookupTokenError: A target has no tokens.
    """
    continuations = Continuation.encode(model, pairs)
    if bos_bug:
        opening = _opening(model)
        continuations = [Continuation(each.prompt, opening + each.target) for each in continuations]
    return read_targets(model, continuations, _read, progress=progress, label=label)


def _read(logs: Tensor, target: Ids) -> TokenOutcome:
    return TokenOutcome(target, tuple(logs.argmax(dim=1).tolist()))


def _opening(model: LanguageModel) -> Ids:
    """The BOS token, where the tokenizer puts it before every text."""
    first, bos = model.tokenizer("a")["input_ids"][0], model.tokenizer.bos_token_id
    return (first,) if first == bos else ()


def token_accuracy(outcomes: Sequence[TokenOutcome]) -> TokenAccuracy:
    """ZsRE's figures over records with one target each (metrics.md G.2): the mean over tokens first, then records."""
    return TokenAccuracy(
        tokens=estimate([outcome.accuracy for outcome in outcomes]),
        strict=estimate([float(outcome.strict) for outcome in outcomes]),
    )


def greedy_tokens(
    model: LanguageModel,
    prompts: Sequence[str],
    n_tokens: int = 50,
    *,
    batch_size: int = BATCH_SIZE,
    progress: Progress | None = None,
) -> list[Ids]:
    """What the model says freely after each prompt: at most ``n_tokens`` ids, without the end token."""
    return continue_greedily(model, prompts, n_tokens, batch_size=batch_size, progress=progress, label="generating")


def token_agreement(before: Sequence[Ids], after: Sequence[Ids]) -> TokenAgreement:
    """Token-level locality: whether queries get the same tokens after an edit as before it (metrics.md G.4).

    Either ``TokenOutcome.chosen`` of the dataset's answers (teacher-forced, the published form) or ``greedy_tokens``.
    Positions count over the longer of the two, so tokens that only one of them has are unequal; two empty texts agree.
    """
    shares = [equal_share(first, second) for first, second in zip(before, after, strict=True)]
    return TokenAgreement(
        match_ratio=estimate(shares),
        exact_match=estimate([float(first == second) for first, second in zip(before, after, strict=True)]),
    )


def equal_share(first: Ids, second: Ids) -> float:
    """Share of positions with the same token, over the longer of the two."""
    pairs = list(zip_longest(first, second))
    return sum(a == b for a, b in pairs) / len(pairs) if pairs else 1.0
