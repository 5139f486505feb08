"""Figures of one model as it is, on one list of cases."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from betaedit.evaluation.abilities import PAPERS_TASKS, TASKS, measure_abilities, read_ability_items
from betaedit.evaluation.answers import greedy_answers
from betaedit.evaluation.drift import held_out_prose, perplexity
from betaedit.evaluation.fluency import measure_fluency, sample_texts
from betaedit.evaluation.interval import Estimate, estimate
from betaedit.evaluation.judge import Judge, MatchJudge
from betaedit.evaluation.latency import measure_latency, peak_memory
from betaedit.evaluation.metrics import EditMeasures, measure_edits
from betaedit.evaluation.questions import measure_questions
from betaedit.evaluation.scoring import Pair
from betaedit.evaluation.tokens import choose_tokens
from betaedit.experiments.record import Ability, EditFigure, Mean
from betaedit.facts.fact import EvaluationCase
from betaedit.models.load import LanguageModel
from betaedit.progress import Progress

_LATENCY_PROMPTS = 5
_FLUENCY_PROMPTS = 100

Figures = dict[str, Mean | float]


@dataclass(frozen=True)
class Measures:
    """What to measure.

    Args:
        held_out: Texts for perplexity, agreement and divergence; the package's own prose by default.
        drift: Whether to measure perplexity, agreement, divergence and leakage, and what reports draw beside them.
        extras: Slower figures, of ``record.EXTRAS``.
        abilities_folder: Where the ability tasks' files are.
        n_tests: Items per ability task.
        judge: Decides which answers to questions are right.
    """

    held_out: tuple[str, ...] | None = None
    drift: bool = True
    extras: tuple[str, ...] = ()
    abilities_folder: Path | None = None
    n_tests: int = 100
    judge: Judge = field(default_factory=MatchJudge)

    @property
    def texts(self) -> list[str]:
        """The held-out texts."""
        return held_out_prose() if self.held_out is None else list(self.held_out)

    def describe(self, cases: Sequence[EvaluationCase]) -> dict[str, Any]:
        """What is measured on ``cases``, for the record: hashes of the prompts and texts, and the further figures."""
        judge = f"{type(self.judge).__name__} {getattr(self.judge, 'model', '')}".strip()
        return {
            "prompts_sha256": _digest([asdict(case) for case in cases]),
            "extras": sorted(self.extras),
            **self._of_drift(),
            **(self._of_tasks() if "abilities" in self.extras else {}),
            **({"fluency_prompts": len(_openings(cases))} if "fluency" in self.extras else {}),
            **({"judge": judge} if "questions" in self.extras else {}),
        }

    def _of_drift(self) -> dict[str, Any]:
        """How many held-out texts, and a hash of them."""
        return {"held_out_sha256": _digest(self.texts), "held_out_texts": len(self.texts)} if self.drift else {}

    def _of_tasks(self) -> dict[str, Any]:
        """How many items of each ability task, and a hash of them."""
        folder = self.abilities_folder
        if folder is None:
            return {"n_tests": self.n_tests}
        items = [item for name in PAPERS_TASKS for item in read_ability_items(TASKS[name], folder, self.n_tests)]
        return {"n_tests": self.n_tests, "tasks_sha256": _digest([[item.prompt, item.label] for item in items])}


def measure_model(
    model: LanguageModel, cases: Sequence[EvaluationCase], measures: Measures, progress: Progress
) -> dict[str, Any]:
    """Everything that can be said of a model by itself, as ``betaedit eval --json`` prints it."""
    found = {
        **edit_figures(measure_edits(model, cases, progress=progress)),
        **measure_task_abilities(model, measures, progress),
        **extra_figures(model, cases, measures, progress),
    }
    return {
        "perplexity": perplexity(model, measures.texts, progress=progress),
        **{
            name: value.model_dump(mode="json") if isinstance(value, EditFigure | Ability | Mean) else value
            for name, value in found.items()
        },
    }


def _digest(values: list[Any]) -> str:
    return hashlib.sha256(json.dumps(values, ensure_ascii=False).encode()).hexdigest()


def edit_figures(measured: EditMeasures) -> dict[str, EditFigure]:
    """Efficacy, generality and specificity with counts and intervals."""
    return {
        name: EditFigure(**{form: _optional(found) for form, found in forms.items()})
        for name, forms in measured.estimates().items()
    }


def measure_task_abilities(model: LanguageModel, measures: Measures, progress: Progress) -> dict[str, Ability]:
    """The ability tasks by the most probable answer (metrics.md G.7), when they are asked for."""
    if "abilities" not in measures.extras or measures.abilities_folder is None:
        return {}
    found = measure_abilities(
        model, measures.abilities_folder, n_tests=measures.n_tests, generate=False, progress=progress
    )
    return {
        name: Ability(accuracy=mean_of(result.probability.accuracy), macro_f1=result.probability.macro_f1)
        for name, result in found.items()
    }


def extra_figures(
    model: LanguageModel,
    cases: Sequence[EvaluationCase],
    measures: Measures,
    progress: Progress,
    answers_before: Sequence[Sequence[str]] | None = None,
) -> Figures:
    """The slower figures that ``measures`` asks for, by name."""
    found: dict[str, Mean | float | None] = {}
    if "tokens" in measures.extras:
        found |= _tokens(model, cases)
    if "questions" in measures.extras:
        found |= _questions(model, cases, measures.judge, progress, answers_before)
    if "fluency" in measures.extras:
        found |= _fluency(model, cases)
    if "latency" in measures.extras:
        found |= _latency(model, cases)
    return {name: value for name, value in found.items() if value is not None}


def asked_of(case: EvaluationCase) -> list[tuple[str, tuple[str, ...], str]]:
    """Prompt, right answers and group of everything a case is asked in free text (metrics.md G.4)."""
    wanted = (case.fact.target_new,)
    return [
        (case.fact.text, wanted, "reliability"),
        *((text, wanted, "generalization") for text in case.paraphrases),
        *((question.prompt, question.answers, question.group) for question in case.questions),
    ]


def free_answers(model: LanguageModel, cases: Sequence[EvaluationCase], progress: Progress) -> list[list[str]]:
    """What the model says to everything the cases are asked."""
    said = iter(greedy_answers(model, [row[0] for case in cases for row in asked_of(case)], progress=progress))
    return [[next(said) for _ in asked_of(case)] for case in cases]


def mean_of(found: Estimate) -> Mean:
    """An estimate as it is stored."""
    return Mean(mean=found.mean, count=found.count, low=found.low, high=found.high)


def _tokens(model: LanguageModel, cases: Sequence[EvaluationCase]) -> dict[str, Mean | None]:
    """ZsRE token accuracy of the new target, and of the neighbors' own answers (metrics.md G.2)."""
    asked: dict[str, list[list[Pair]]] = {"prompts": [], "paraphrases": [], "neighbors": []}
    for case in cases:
        new, joint = case.fact.target_new, case.fact.joint
        asked["prompts"].append([(case.fact.text, new, joint)])
        asked["paraphrases"].append([(text, new, joint) for text in case.paraphrases])
        asked["neighbors"].append([(probe.prompt, probe.target, joint) for probe in case.neighbors if probe.target])
    return {f"token accuracy, {kind}": _token_accuracy(model, pairs) for kind, pairs in asked.items()}


def _token_accuracy(model: LanguageModel, records: Sequence[Sequence[Pair]]) -> Mean | None:
    """The mean over a record's pairs of prompt and target, then over the records that have any."""
    outcomes = iter(choose_tokens(model, [pair for record in records for pair in record]))
    shares = [[next(outcomes).accuracy for _ in record] for record in records if record]
    return _optional(estimate([math.fsum(record) / len(record) for record in shares]))


def _questions(
    model: LanguageModel,
    cases: Sequence[EvaluationCase],
    judge: Judge,
    progress: Progress,
    answers_before: Sequence[Sequence[str]] | None,
) -> dict[str, Mean | None]:
    rows = [asked_of(case) for case in cases]
    found = measure_questions(
        model,
        [[prompt for prompt, _, _ in row] for row in rows],
        [[answers for _, answers, _ in row] for row in rows],
        [[group for _, _, group in row] for row in rows],
        judge,
        answers_before=answers_before,
        progress=progress,
    )
    pooled = {name: getattr(found, name) for name in ("portability", "locality_gold", "locality_agree")}
    return {name: _optional(value) for name, value in {**found.groups, **pooled}.items()}


def _fluency(model: LanguageModel, cases: Sequence[EvaluationCase]) -> dict[str, float]:
    prompts = _openings(cases)
    return {"fluency": measure_fluency(sample_texts(model, prompts)).printed} if prompts else {}


def _openings(cases: Sequence[EvaluationCase]) -> list[str]:
    """The openings for free text whose continuations are measured."""
    return [prompt for case in cases for prompt in case.generation_prompts][:_FLUENCY_PROMPTS]


def _latency(model: LanguageModel, cases: Sequence[EvaluationCase]) -> dict[str, float]:
    latency = measure_latency(model, [case.fact.text for case in cases[:_LATENCY_PROMPTS]])
    return {"seconds per 50 tokens": latency.mean, "peak memory, GiB": peak_memory(model.device).process / 2**30}


def _optional(found: Estimate | None) -> Mean | None:
    return None if found is None else mean_of(found)
