"""Efficacy, generality and specificity, in the two forms the papers use (metrics.md G.1).

``probability``: the wanted target is more probable per token than the other one; needs both targets, and a tie is a
failure. ``argmax``: every token of the wanted target is the most probable one. Means are taken per record, then over
the records that have the figure.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from betaedit.evaluation.interval import Estimate, estimate
from betaedit.evaluation.scoring import Score, score_targets
from betaedit.facts.fact import EvaluationCase
from betaedit.models.chat import chat_prompt
from betaedit.models.load import LanguageModel
from betaedit.progress import Progress


@dataclass(frozen=True, slots=True)
class PromptOutcome:
    """One prompt of one record: the target that counts as success and the one it is compared with."""

    wanted: Score
    other: Score | None

    @property
    def probability(self) -> bool | None:
        """Whether the wanted target is strictly more probable; ``None`` without another target."""
        return None if self.other is None else self.wanted.nll < self.other.nll


@dataclass(frozen=True, slots=True)
class CaseOutcome:
    """Everything measured on one record; one that a later fact corrects counts for no mean but specificity's."""

    rewrite: tuple[PromptOutcome, ...]
    paraphrases: tuple[PromptOutcome, ...]
    neighbors: tuple[PromptOutcome, ...]
    corrected: bool = False


@dataclass(frozen=True, slots=True)
class Figure:
    """One metric in both forms, as shares from 0 to 1; ``None`` if no record has the prompts for it."""

    probability: float | None
    argmax: float | None


@dataclass(frozen=True)
class EditMeasures:
    """The three edit metrics over a list of records.

    Args:
        efficacy: The edit prompt says the new target.
        generality: Paraphrases say the new target.
        specificity: Neighbors keep their own answer.
        outcomes: What the figures were computed from, one entry a record.
    """

    efficacy: Figure
    generality: Figure
    specificity: Figure
    outcomes: tuple[CaseOutcome, ...]

    def estimates(self) -> dict[str, dict[str, Estimate | None]]:
        """The metrics by name and form, each with the number of records and its interval."""
        kinds = {"efficacy": "rewrite", "generality": "paraphrases", "specificity": "neighbors"}
        return {
            name: {form: estimate(means) for form, means in _record_means(self.outcomes, kind).items()}
            for name, kind in kinds.items()
        }


def measure_edits(
    model: LanguageModel,
    cases: Sequence[EvaluationCase],
    *,
    chat: bool = False,
    corrected: Sequence[bool] | None = None,
    progress: Progress | None = None,
    label: str = "evaluating",
) -> EditMeasures:
    """The three edit metrics of ``cases`` on the model as it is now.

    Args:
        model: The model as it is now.
        cases: The records.
        chat: Whether every prompt is put as a user's request in the model's chat template, where targets follow at
            once; a prompt with typed special tokens is asked as it stands.
        corrected: For each record, whether another one written later wants another answer
            (``facts.corrections.corrected_later``): it is measured, and left out of efficacy and generality. None is,
            when not given.
        progress: Hears of every prompt and target.
        label: What to call the work.

    Raises:
        ModelError: ``chat`` is asked for and the model has no chat template, or it refuses a request.
    """
    plans = [_Plan.of(case) for case in cases]
    pairs = [pair for plan in plans for pair in plan.pairs()]
    if chat:
        asked = {prompt: chat_prompt(model.tokenizer, prompt) for prompt, _, _ in pairs}
        pairs = [(asked[prompt], target, joint if asked[prompt] == prompt else "") for prompt, target, joint in pairs]
    scores = iter(score_targets(model, pairs, progress=progress, label=label))
    marks = [False] * len(plans) if corrected is None else corrected
    return summarize(
        replace(plan.outcome(scores.__next__), corrected=mark) for plan, mark in zip(plans, marks, strict=True)
    )


def summarize(outcomes: Iterable[CaseOutcome]) -> EditMeasures:
    """The figures of recorded outcomes; needs no model."""
    kept = tuple(outcomes)
    return EditMeasures(
        efficacy=_figure(kept, "rewrite"),
        generality=_figure(kept, "paraphrases"),
        specificity=_figure(kept, "neighbors"),
        outcomes=kept,
    )


@dataclass(frozen=True)
class _Plan:
    """The ``(prompt, wanted, other)`` triples of one record, by kind."""

    rewrite: tuple[tuple[str, str, str | None], ...]
    paraphrases: tuple[tuple[str, str, str | None], ...]
    neighbors: tuple[tuple[str, str, str | None], ...]
    joint: str | None

    @classmethod
    def of(cls, case: EvaluationCase) -> _Plan:
        fact = case.fact
        known = [(probe.prompt, probe.target, fact.target_new) for probe in case.neighbors if probe.target]
        return cls(
            rewrite=((fact.text, fact.target_new, fact.target_true),),
            paraphrases=tuple((text, fact.target_new, fact.target_true) for text in case.paraphrases),
            neighbors=tuple(known),
            joint=fact.joint,
        )

    def _all(self) -> tuple[tuple[str, str, str | None], ...]:
        return (*self.rewrite, *self.paraphrases, *self.neighbors)

    def pairs(self) -> list[tuple[str, str, str | None]]:
        """The pairs to be scored, wanted before other."""
        return [
            (prompt, t, self.joint) for prompt, wanted, other in self._all() for t in (wanted, other) if t is not None
        ]

    def outcome(self, take: Callable[[], Score]) -> CaseOutcome:
        """The record's outcome, taking scores in the order of ``pairs``."""

        def read(group: tuple[tuple[str, str, str | None], ...]) -> tuple[PromptOutcome, ...]:
            return tuple(PromptOutcome(take(), None if other is None else take()) for _, _, other in group)

        return CaseOutcome(read(self.rewrite), read(self.paraphrases), read(self.neighbors))


def _figure(outcomes: Sequence[CaseOutcome], kind: str) -> Figure:
    means = _record_means(outcomes, kind)
    return Figure(**{form: sum(values) / len(values) if values else None for form, values in means.items()})


def _record_means(outcomes: Sequence[CaseOutcome], kind: str) -> dict[str, list[float]]:
    """The mean of every record that has the figure, in both forms."""
    counted = [case for case in outcomes if kind == "neighbors" or not case.corrected]
    groups: list[tuple[PromptOutcome, ...]] = [getattr(case, kind) for case in counted]
    known = [[o.probability for o in group if o.probability is not None] for group in groups]
    argmax = [[o.wanted.argmax for o in group] for group in groups]
    return {
        form: [sum(values) / len(values) for values in lists if values]
        for form, lists in (("probability", known), ("argmax", argmax))
    }


def before_and_after(before: Figure, after: Figure) -> dict[str, Any]:
    """``{"probability": {"before", "after"}, "argmax": {"before", "after"}}``."""
    return {
        "probability": {"before": before.probability, "after": after.probability},
        "argmax": {"before": before.argmax, "after": after.argmax},
    }
