"""Figures of one model on one list of cases."""

from __future__ import annotations

import hashlib
import json
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from betaedit.evaluation.abilities import PAPERS_TASKS, TASKS, measure_abilities, read_ability_items
from betaedit.evaluation.answers import CHAT, PLAIN, AnswerStyle, greedy_answers
from betaedit.evaluation.drift import held_out_prose, perplexity
from betaedit.evaluation.fluency import measure_fluency, sample_texts
from betaedit.evaluation.interval import Estimate, estimate
from betaedit.evaluation.judge import Judge, MatchJudge
from betaedit.evaluation.metrics import EditMeasures, measure_edits
from betaedit.evaluation.neighbors import FIRST_TOKENS, followed_neighbors
from betaedit.evaluation.questions import measure_questions
from betaedit.evaluation.retrieval import measure_retrieval
from betaedit.evaluation.scoring import Pair
from betaedit.evaluation.tokens import Ids, TokenOutcome, choose_tokens, equal_share
from betaedit.experiments.costs import latency_figures
from betaedit.experiments.record import Ability, EditFigure, Figures, Mean
from betaedit.facts.corrections import corrected_later
from betaedit.facts.fact import LOCALITY, EvaluationCase
from betaedit.models.chat import has_chat
from betaedit.models.load import LanguageModel
from betaedit.progress import Progress

logger = logging.getLogger(__name__)

_ASKED_AS: dict[str, AnswerStyle] = {"": PLAIN, "chat ": CHAT}
"""Answer styles of questions, by the prefix of their figures' names."""
_FLUENCY_PROMPTS = 100

FreeAnswers = Mapping[str, Sequence[Sequence[str]]]
"""Answers of a model by case and question, under the prefixes of ``_ASKED_AS``."""
TokenChoices = Sequence[Sequence[Ids]]
"""Tokens of a model by case and neighbor."""


@dataclass(frozen=True)
class Measures:
    """What to measure.

    Args:
        held_out: Texts for perplexity, agreement and divergence; the package's own prose by default.
        drift: Whether to measure perplexity, agreement, divergence, leakage, and the views of reports.
        extras: Slower figures, of ``record.EXTRAS``.
        abilities_folder: Folder of the ability tasks' files.
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

    def usable_on(self, model: LanguageModel) -> Measures:
        """The same without chat figures, with a warning, if ``model`` has no chat template."""
        if "chat" not in self.extras or has_chat(model.tokenizer):
            return self
        logger.warning("%s has no chat template: its chat figures are not measured.", model.name)
        return replace(self, extras=tuple(name for name in self.extras if name != "chat"))

    @property
    def of_facts(self) -> Measures:
        """The same without figures of the model itself: drift, abilities and latency."""
        extras = tuple(name for name in self.extras if name not in ("abilities", "latency"))
        return replace(self, drift=False, extras=extras)

    @property
    def asked_as(self) -> dict[str, AnswerStyle]:
        """Answer styles of questions, by the prefix of their figures' names."""
        return {name: style for name, style in _ASKED_AS.items() if not style.chat or "chat" in self.extras}

    def describe(self, cases: Sequence[EvaluationCase], *, followed: bool = True) -> dict[str, Any]:
        """What is measured on ``cases``, for the record: hashes of the prompts and texts, and the further figures.

        Args:
            cases: The records.
            followed: Whether neighbors are followed, as those of a run are.
        """
        judge = f"{type(self.judge).__name__} {getattr(self.judge, 'model', '')}".strip()
        return {
            "prompts_sha256": _digest([asdict(case) for case in cases]),
            "extras": sorted(self.extras),
            **({"neighbors": _of_neighbors(cases)} if followed else {}),
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


def _of_neighbors(cases: Sequence[EvaluationCase]) -> dict[str, int]:
    """How many neighbors are followed, and for how many tokens."""
    return {"tokens": FIRST_TOKENS, "prompts": len(followed_neighbors(cases))}


def measure_model(
    model: LanguageModel, cases: Sequence[EvaluationCase], measures: Measures, progress: Progress
) -> dict[str, Any]:
    """All figures of one model, as ``betaedit eval --json`` prints them.

    Of facts that correct each other only the last counts; ``corrected`` is the number left out.
    """
    measures = measures.usable_on(model)
    corrected = corrected_later([case.fact for case in cases])
    found = {
        **edit_figures(measure_edits(model, cases, corrected=corrected, progress=progress)),
        **measure_task_abilities(model, measures, progress),
        **extra_figures(model, cases, measures, progress, corrected=corrected),
        **(latency_figures(model, cases, progress) if "latency" in measures.extras else {}),
    }
    return {
        "corrected": sum(corrected),
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
    """The ability tasks by the most probable answer (metrics.md G.7), if requested."""
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
    answers_before: FreeAnswers | None = None,
    corrected: Sequence[bool] | None = None,
    tokens_before: TokenChoices | None = None,
) -> Figures:
    """The slower figures of ``measures``, by name.

    Args:
        model: The model.
        cases: The cases.
        measures: Which figures.
        progress: Shows the progress.
        answers_before: The ``free_answers`` of the unedited model.
        corrected: For each record, whether a later one corrects it: then only prompts that should keep
            their answer are asked.
        tokens_before: The ``neighbor_tokens`` of the unedited model.

    Raises:
        ModelError: Chat figures are requested and the model has no chat template, or it refuses a request.
    """
    marks = [False] * len(cases) if corrected is None else corrected
    found: dict[str, Mean | float | None] = {}
    if "tokens" in measures.extras:
        found |= _tokens(model, cases, marks, tokens_before)
    if "chat" in measures.extras:
        found |= _chat(model, cases, progress, marks)
    if "questions" in measures.extras:
        for name, style in measures.asked_as.items():
            said = None if answers_before is None else answers_before[name]
            asked = _questions(model, cases, measures.judge, style, progress, said, marks)
            found |= {f"{name}{figure}": value for figure, value in asked.items()}
    if "fluency" in measures.extras:
        found |= _fluency(model, cases)
    if "retrieval" in measures.extras:
        found |= {name: _optional(value) for name, value in measure_retrieval(model, cases, marks).items()}
    return {name: value for name, value in found.items() if value is not None}


def asked_of(case: EvaluationCase) -> list[tuple[str, tuple[str, ...], str]]:
    """Prompt, right answers and group of every free-text question of a case (metrics.md G.4)."""
    wanted = (case.fact.target_new,)
    return [
        (case.fact.text, wanted, "reliability"),
        *((text, wanted, "generalization") for text in case.paraphrases),
        *((question.prompt, question.answers, question.group) for question in case.questions),
    ]


def free_answers(
    model: LanguageModel, cases: Sequence[EvaluationCase], measures: Measures, progress: Progress
) -> FreeAnswers:
    """The model's answers to all free-text questions of the cases, in every answer style of ``measures``."""
    prompts = [row[0] for case in cases for row in asked_of(case)]
    found = {}
    for name, style in measures.asked_as.items():
        said = iter(greedy_answers(model, prompts, style=style, progress=progress))
        found[name] = [[next(said) for _ in asked_of(case)] for case in cases]
    return found


def mean_of(found: Estimate) -> Mean:
    """An estimate as it is stored."""
    return Mean(mean=found.mean, count=found.count, low=found.low, high=found.high)


def _tokens(
    model: LanguageModel,
    cases: Sequence[EvaluationCase],
    corrected: Sequence[bool],
    before: TokenChoices | None,
) -> dict[str, Mean | None]:
    """ZsRE token accuracy of the new target, and of the neighbors' own answers (metrics.md G.2).

    If the tokens ``before`` the edits are given, token-level locality of the neighbors as well (G.4).
    """
    asked: dict[str, list[list[Pair]]] = {"prompts": [], "paraphrases": []}
    for case, mark in zip(cases, corrected, strict=True):
        new, joint = case.fact.target_new, case.fact.joint
        if not mark:
            asked["prompts"].append([(case.fact.text, new, joint)])
            asked["paraphrases"].append([(text, new, joint) for text in case.paraphrases])
    outcomes = {kind: _choose(model, pairs) for kind, pairs in asked.items()}
    outcomes["neighbors"] = _choose(model, _answered_neighbors(cases))
    found = {
        f"token accuracy, {kind}": _mean_over_records([[each.accuracy for each in record] for record in records])
        for kind, records in outcomes.items()
    }
    if before is None:
        return found
    now = [[each.chosen for each in record] for record in outcomes["neighbors"]]
    pairs = [list(zip(old, new, strict=True)) for old, new in zip(before, now, strict=True)]
    return {
        **found,
        "match ratio, neighbors": _mean_over_records([[equal_share(*pair) for pair in record] for record in pairs]),
        "exact match, neighbors": _mean_over_records([[float(a == b) for a, b in record] for record in pairs]),
    }


def neighbor_tokens(model: LanguageModel, cases: Sequence[EvaluationCase]) -> TokenChoices:
    """By case, the model's choice of tokens at the places of each neighbor's own answer, that answer given."""
    return [[each.chosen for each in record] for record in _choose(model, _answered_neighbors(cases))]


def _answered_neighbors(cases: Sequence[EvaluationCase]) -> list[list[Pair]]:
    return [
        [(probe.prompt, probe.target, case.fact.joint) for probe in case.neighbors if probe.target] for case in cases
    ]


def _choose(model: LanguageModel, records: Sequence[Sequence[Pair]]) -> list[list[TokenOutcome]]:
    outcomes = iter(choose_tokens(model, [pair for record in records for pair in record]))
    return [[next(outcomes) for _ in record] for record in records]


def _mean_over_records(records: Sequence[Sequence[float]]) -> Mean | None:
    """The mean over a record's pairs of prompt and target, then over the records that have any."""
    return _optional(estimate([math.fsum(record) / len(record) for record in records if record]))


def _chat(
    model: LanguageModel, cases: Sequence[EvaluationCase], progress: Progress, corrected: Sequence[bool]
) -> dict[str, Mean | None]:
    """The edit metrics with every prompt put in the chat template, and the share of facts that chat answers give."""
    measured = measure_edits(model, cases, chat=True, corrected=corrected, progress=progress, label="measuring chat")
    metrics = {
        f"chat {name}, {form}": _optional(found)
        for name, forms in measured.estimates().items()
        for form, found in forms.items()
    }
    facts = [case.fact for case, mark in zip(cases, corrected, strict=True) if not mark]
    said = greedy_answers(model, [fact.text for fact in facts], style=CHAT, progress=progress)
    match = MatchJudge()
    given = [match.judge(fact.text, (fact.target_new,), text) for fact, text in zip(facts, said, strict=True)]
    return {**metrics, "chat answers": _optional(estimate([float(right) for right in given]))}


def _questions(
    model: LanguageModel,
    cases: Sequence[EvaluationCase],
    judge: Judge,
    style: AnswerStyle,
    progress: Progress,
    answers_before: Sequence[Sequence[str]] | None,
    corrected: Sequence[bool],
) -> dict[str, Mean | None]:
    asked = [asked_of(case) for case in cases]
    lasting = [
        [place for place, (_, _, group) in enumerate(row) if not mark or _should_stay(group)]
        for row, mark in zip(asked, corrected, strict=True)
    ]
    rows = [[row[place] for place in places] for row, places in zip(asked, lasting, strict=True)]
    if answers_before is not None:
        pairs = zip(answers_before, lasting, strict=True)
        answers_before = [[answers[place] for place in places] for answers, places in pairs]
    found = measure_questions(
        model,
        [[prompt for prompt, _, _ in row] for row in rows],
        [[answers for _, answers, _ in row] for row in rows],
        [[group for _, _, group in row] for row in rows],
        judge,
        answers_before=answers_before,
        style=style,
        progress=progress,
    )
    pooled = {name: getattr(found, name) for name in ("portability", "locality_gold", "locality_agree")}
    return {name: _optional(value) for name, value in {**found.groups, **pooled}.items()}


def _should_stay(group: str) -> bool:
    """Whether questions of a group should keep their answer after any edit."""
    return group in LOCALITY or group.endswith("_locality")


def _fluency(model: LanguageModel, cases: Sequence[EvaluationCase]) -> dict[str, float]:
    prompts = _openings(cases)
    return {"fluency": measure_fluency(sample_texts(model, prompts)).printed} if prompts else {}


def _openings(cases: Sequence[EvaluationCase]) -> list[str]:
    """The openings for free text whose continuations are measured."""
    return [prompt for case in cases for prompt in case.generation_prompts][:_FLUENCY_PROMPTS]


def _optional(found: Estimate | None) -> Mean | None:
    return None if found is None else mean_of(found)
