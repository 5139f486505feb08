"""Reliability, generalization, portability and locality from free-text questions, answers and a judge (G.4)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from betaedit.evaluation.answers import PLAIN, AnswerStyle, greedy_answers
from betaedit.evaluation.continuing import BATCH_SIZE
from betaedit.evaluation.interval import Estimate, estimate
from betaedit.evaluation.judge import Judge, normalize
from betaedit.facts.fact import LOCALITY, PORTABILITY
from betaedit.models.load import LanguageModel
from betaedit.progress import Progress, SilentProgress


@dataclass(frozen=True, slots=True)
class QuestionOutcome:
    """One question of one record.

    Args:
        prompt: The question.
        golds: Its right answers; empty where the dataset has none.
        group: What it tests, such as ``reliability`` or ``portability/Reasoning``.
        answer: What the model said.
        right: The judge's verdict; ``None`` without a right answer to judge by.
        agrees: Whether the answer before the edit was the same after ``normalize``; ``None`` when not asked.
    """

    prompt: str
    golds: tuple[str, ...]
    group: str
    answer: str
    right: bool | None
    agrees: bool | None = None


@dataclass(frozen=True)
class QuestionMeasures:
    """The figures over records; ``None`` or absent if no record has the prompts for them.

    Args:
        groups: Share judged right, by group.
        portability: Judged right, over a record's portability questions of all sub-keys together.
        locality_gold: Judged right, over its locality questions: the papers' tables.
        locality_agree: Same answer as before the edit, over its locality questions: the papers' formula.
        outcomes: What the figures were computed from, by record.
    """

    groups: dict[str, Estimate]
    portability: Estimate | None
    locality_gold: Estimate | None
    locality_agree: Estimate | None
    outcomes: tuple[tuple[QuestionOutcome, ...], ...]

    @property
    def answers(self) -> list[list[str]]:
        """What the model said, by record: ``answers_before`` of a later measurement."""
        return [[outcome.answer for outcome in record] for record in self.outcomes]

    def to_dict(self) -> dict[str, Any]:
        """The figures as plain data, without the outcomes."""
        data = asdict(self)
        del data["outcomes"]
        return data


def measure_questions(
    model: LanguageModel,
    prompts: Sequence[Sequence[str]],
    answers: Sequence[Sequence[Sequence[str]]],
    groups: Sequence[Sequence[str]],
    judge: Judge,
    *,
    answers_before: Sequence[Sequence[str]] | None = None,
    style: AnswerStyle = PLAIN,
    batch_size: int = BATCH_SIZE,
    progress: Progress | None = None,
) -> QuestionMeasures:
    """The figures of every group of questions, on the model as it is now.

    All arguments of questions are nested alike, one list per record. The fact's own prompt and its paraphrases are
    questions as well, with the new target as their answer, in groups of their own (``reliability``,
    ``generalization``).

    Args:
        model: The model as it is now.
        prompts: The questions; ``style`` says how they are put to the model.
        answers: Right answers of each; empty strings are dropped, and a question without one is not judged.
        groups: What each tests. The pooled figures take those below ``portability/`` and ``locality/`` and, by their
            bare names, the papers' sub-keys (``PORTABILITY``, ``LOCALITY``), in capitals or not.
        judge: Decides what is right.
        answers_before: What the unedited model said: ``answers`` of an earlier measurement of the same questions.
        style: How questions are asked and answers are read.
        batch_size: How many questions are answered together.
        progress: Hears of every question answered and of every question judged.
    """
    flat = [prompt for record in prompts for prompt in record]
    said = greedy_answers(model, flat, style=style, batch_size=batch_size, progress=progress)
    earlier = [answer for record in answers_before for answer in record] if answers_before is not None else None
    outcomes = iter(
        _judged(
            flat,
            [tuple(gold for gold in golds if gold.strip()) for record in answers for golds in record],
            [group for record in groups for group in record],
            said,
            earlier,
            judge,
            progress or SilentProgress(),
        )
    )
    return summarize_questions([tuple(next(outcomes) for _ in record) for record in prompts])


def _judged(
    prompts: Sequence[str],
    golds: Sequence[tuple[str, ...]],
    groups: Sequence[str],
    said: Sequence[str],
    earlier: Sequence[str] | None,
    judge: Judge,
    progress: Progress,
) -> list[QuestionOutcome]:
    before: Sequence[str | None] = [None] * len(prompts) if earlier is None else earlier
    outcomes = []
    with progress.task("judging", len(prompts), "answers") as task:
        for prompt, right, group, answer, old in zip(prompts, golds, groups, said, before, strict=True):
            verdict = judge.judge(prompt, right, answer) if right else None
            agrees = None if old is None else normalize(answer) == normalize(old)
            outcomes.append(QuestionOutcome(prompt, right, group, answer, verdict, agrees))
            task.advance()
    return outcomes


def summarize_questions(outcomes: Sequence[tuple[QuestionOutcome, ...]]) -> QuestionMeasures:
    """The figures of recorded outcomes; needs no model.

    Means are taken over a record's questions, then over the records that have any.
    """
    names = dict.fromkeys(outcome.group for record in outcomes for outcome in record)
    by_group = {name: _mean(outcomes, lambda each, name=name: each.group == name, _right) for name in names}  # type: ignore[misc] # mypy cannot infer a lambda with a default
    return QuestionMeasures(
        groups={name: found for name, found in by_group.items() if found is not None},
        portability=_mean(outcomes, lambda each: _belongs(each.group, "portability", PORTABILITY), _right),
        locality_gold=_mean(outcomes, _is_local, _right),
        locality_agree=_mean(outcomes, _is_local, lambda each: each.agrees),
        outcomes=tuple(outcomes),
    )


def _right(outcome: QuestionOutcome) -> bool | None:
    return outcome.right


def _is_local(outcome: QuestionOutcome) -> bool:
    return _belongs(outcome.group, "locality", LOCALITY)


def _belongs(group: str, pool: str, keys: Sequence[str]) -> bool:
    parts = group.lower().replace(" ", "_").replace("generalisation", "generalization").split("/")
    return parts[0] == pool or (len(parts) == 1 and parts[0] in keys)


def _mean(
    records: Sequence[tuple[QuestionOutcome, ...]],
    chosen: Callable[[QuestionOutcome], bool],
    value: Callable[[QuestionOutcome], bool | None],
) -> Estimate | None:
    means = []
    for record in records:
        values = [found for outcome in record if chosen(outcome) and (found := value(outcome)) is not None]
        if values:
            means.append(sum(values) / len(values))
    return estimate(means)
