"""What a hypernetwork learns from: a fact, another wording of it, and a prompt that it has nothing to do with."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from betaedit.editors.asked import plan_fact
from betaedit.editors.hypernet.complete import check_complete
from betaedit.errors import FactError
from betaedit.evaluation.scoring import Continuation
from betaedit.facts.fact import EvaluationCase
from betaedit.models.load import LanguageModel


@dataclass(frozen=True, slots=True)
class Example:
    """Token ids of one record.

    Args:
        edit: The fact's prompt with its new target.
        rephrased: Its other wordings with the same target, at least one.
        unrelated: Other prompts with their own answers, at least one.
    """

    edit: Continuation
    rephrased: tuple[Continuation, ...]
    unrelated: tuple[Continuation, ...]

    def asked(self, round_: int) -> tuple[Continuation, Continuation]:
        """The rephrase and the unrelated prompt whose turn it is in a round through all examples."""
        return self.rephrased[round_ % len(self.rephrased)], self.unrelated[round_ % len(self.unrelated)]


def encode_examples(model: LanguageModel, cases: Sequence[EvaluationCase]) -> list[Example]:
    """The records as token ids, in order.

    Raises:
        FactError: ``check_complete`` refuses them, or one is longer than the model's positions.
        LookupTokenError: A target has no tokens.
    """
    check_complete(cases)
    return [_encode(model, case) for case in cases]


def fingerprint_examples(examples: Sequence[Example]) -> str:
    """A hash of all token ids and their order."""
    return f"sha256:{hashlib.sha256(repr(examples).encode()).hexdigest()}"


def shuffled(n: int, round_: int, seed: int) -> list[int]:
    """The order of ``n`` examples in the round of that number: it follows from the seed, and needs no state."""
    generator = torch.Generator().manual_seed(seed * 1_000_003 + round_)
    return torch.randperm(n, generator=generator).tolist()


def _encode(model: LanguageModel, case: EvaluationCase) -> Example:
    fact = case.fact
    plan_fact(model, fact)
    rephrased = Continuation.encode(model, [(text, fact.target_new) for text in case.paraphrases])
    unrelated = Continuation.encode(model, [(probe.prompt, probe.target) for probe in case.neighbors if probe.target])
    for one in (*rephrased, *unrelated):
        if len(one.prompt) + len(one.target) - 1 > model.max_length:
            raise FactError(
                f"a rephrase or unrelated prompt of {fact.id or fact.text} is longer than the model's "
                f"{model.max_length} positions.",
                hint="Shorten it or leave the record out.",
            )
    (edit,) = Continuation.encode(model, [(fact.text, fact.target_new, fact.joint)])
    return Example(edit, tuple(rephrased), tuple(unrelated))
