"""Comparison of runs on the same facts: the facts each holds, and which differences are significant."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

from betaedit.evaluation.paired import LEVEL, PairedTest, holm, paired_test
from betaedit.experiments.folder import RunFolder
from betaedit.experiments.record import Outcome

FactKey = tuple[str, str, str]
"""Record, prompt and wanted answer: the same in two runs where they wrote the same fact."""
_SMALLEST_SHOWN = 0.001


@dataclass(frozen=True)
class FactFigures:
    """One fact on one model; every share is over its prompts, ``None`` without any.

    Args:
        held: Its own prompt gives the new answer (argmax).
        wordings: Share of its paraphrases that give it.
        answers: Share of its neighbors whose own answer beats the new one.
        kept: Share of its neighbors answered as by the unedited model.
        corrected: Whether a later written fact corrects it.
    """

    held: bool
    wordings: float | None
    answers: float | None
    kept: float | None
    corrected: bool


@dataclass(frozen=True)
class _Figure:
    """A compared figure: its value for one fact, and the sentence for the better method."""

    name: str
    value: Callable[[FactFigures], float | None]
    better: str


_FIGURES = (
    _Figure("facts held", lambda fact: None if fact.corrected else float(fact.held), "holds more facts than {}"),
    _Figure(
        "other wordings",
        lambda fact: None if fact.corrected else fact.wordings,
        "gives the new answers in more wordings than {}",
    ),
    _Figure("neighbors' answers", lambda fact: fact.answers, "keeps more neighbors' answers than {}"),
    _Figure("neighbors kept", lambda fact: fact.kept, "leaves more neighbors as they were than {}"),
)


@dataclass(frozen=True)
class Comparison:
    """Two runs compared in one figure after a number of edits.

    Args:
        first: Name of one run.
        second: Name of the other.
        edits: Number of edits.
        figure: ``facts held``, ``other wordings``, ``neighbors' answers`` or ``neighbors kept``.
        better: Sentence for the better run, with a slot for the other's name.
        test: Test on the facts that both have written and that have the figure.
        p: Its Holm-corrected p-value.
        tests: Number of pairs of runs compared in this figure.
    """

    first: str
    second: str
    edits: int
    figure: str
    better: str
    test: PairedTest
    p: float
    tests: int

    @property
    def decided(self) -> bool:
        """Whether the difference is significant."""
        return self.p < LEVEL

    @property
    def verdict(self) -> str:
        """A sentence: which run is better, or that there are too few facts."""
        names, won = (self.first, self.second), (self.test.first, self.test.second)
        if self.decided:
            better = won.index(max(won))
            return (
                f"{names[better]} {self.better.format(names[1 - better])} "
                f"({_shown(self.p)}, {_facts(max(won))} against {min(won)})"
            )
        return f"{self.figure}: too few facts to tell {self.first} and {self.second} apart ({self._undecided()})"

    def _undecided(self) -> str:
        needed = self._needed()
        if needed is not None:
            return f"{_shown(self.p)}; about {_facts(needed)} would be needed"
        each = self.test.first
        return f"{_shown(self.p)}; " + (f"each is better on {_facts(each)}" if each else "no fact on which they differ")

    def _needed(self) -> int | None:
        return None if self.decided else self.test.records_needed(LEVEL / self.tests)

    def to_dict(self) -> dict[str, Any]:
        """The comparison as ``--json`` prints it."""
        return {
            "first": self.first,
            "second": self.second,
            "edits": self.edits,
            "figure": self.figure,
            "facts": self.test.count,
            "first_better": self.test.first,
            "second_better": self.test.second,
            "p": self.test.p,
            "p_holm": self.p,
            "decided": self.decided,
            "facts_needed": self._needed(),
            "verdict": self.verdict,
        }


@dataclass(frozen=True)
class HeldFact:
    """One fact, and which runs hold it; ``None`` for a run that has not written it.

    Args:
        record: Its id, else its number.
        prompt: Its own prompt.
        wanted: The new answer.
        held: By the name of the run.
        corrected: Whether a later fact corrects it.
    """

    record: str
    prompt: str
    wanted: str
    held: Mapping[str, bool | None]
    corrected: bool

    @property
    def rank(self) -> int:
        """0 if runs differ, 1 if none holds it, 2 if all do, 3 if it is corrected."""
        known = {held for held in self.held.values() if held is not None}
        return 3 if self.corrected else 0 if len(known) > 1 else 2 if True in known else 1


def read_facts(folder: RunFolder, edits: int) -> dict[FactKey, FactFigures]:
    """Every fact measured after ``edits`` edits, in the order in which they were written."""
    facts: dict[FactKey, list[Outcome]] = {}
    key: FactKey | None = None
    for outcome in folder.outcomes(edits):
        if outcome.kind == "rewrite":
            key = (outcome.record, outcome.prompt, outcome.wanted or "")
            facts[key] = []
        if key is not None:
            facts[key].append(outcome)
    return {key: _fact_figures(outcomes) for key, outcomes in facts.items()}


def compare_runs(runs: Mapping[str, RunFolder]) -> list[Comparison]:
    """Every pair of runs in every figure after every number of edits at which both were measured.

    Runs are compared on the facts that both have written. p-values are Holm-corrected for the number of pairs
    within one figure and one number of edits.
    """
    points = {name: set(folder.measured()) - {0} for name, folder in runs.items()}
    found = []
    for edits in sorted(set().union(*points.values())):
        facts = {name: read_facts(runs[name], edits) for name in runs if edits in points[name]}
        for figure in _FIGURES:
            found += _compared(facts, edits, figure)
    return found


def facts_by_run(runs: Mapping[str, RunFolder]) -> tuple[int, list[HeldFact]]:
    """The facts each run holds after the last number of edits at which all were measured, differing ones first.

    Returns:
        The number of edits, 0 if there is none; and the facts by rank, in the order of the runs.
    """
    common = set[int].intersection(*(set(folder.measured()) for folder in runs.values())) - {0} if runs else set()
    if not common:
        return 0, []
    edits = max(common)
    facts = {name: read_facts(folder, edits) for name, folder in runs.items()}
    rows = []
    for key in dict.fromkeys(key for each in facts.values() for key in each):
        found = {name: each.get(key) for name, each in facts.items()}
        held = {name: None if figures is None else figures.held for name, figures in found.items()}
        rows.append(HeldFact(*key, held, any(figures.corrected for figures in found.values() if figures)))
    return edits, sorted(rows, key=lambda fact: fact.rank)


def _compared(facts: Mapping[str, Mapping[FactKey, FactFigures]], edits: int, figure: _Figure) -> list[Comparison]:
    values = {
        name: {key: value for key, fact in each.items() if (value := figure.value(fact)) is not None}
        for name, each in facts.items()
    }
    tests: dict[tuple[str, str], PairedTest] = {}
    for first, second in combinations(values, 2):
        both = [key for key in values[first] if key in values[second]]
        if both:
            tests[first, second] = paired_test(*([values[name][key] for key in both] for name in (first, second)))
    corrected = holm([test.p for test in tests.values()])
    return [
        Comparison(*pair, edits, figure.name, figure.better, test, p, len(tests))
        for (pair, test), p in zip(tests.items(), corrected, strict=True)
    ]


def _fact_figures(outcomes: Sequence[Outcome]) -> FactFigures:
    paraphrases = [outcome.argmax for outcome in outcomes if outcome.kind == "paraphrase"]
    neighbors = [outcome for outcome in outcomes if outcome.kind == "neighbor"]
    return FactFigures(
        held=bool(outcomes[0].argmax),
        wordings=_share(paraphrases),
        answers=_share(_answers(outcome) for outcome in neighbors),
        kept=_share(outcome.kept for outcome in neighbors),
        corrected=outcomes[0].corrected,
    )


def _answers(neighbor: Outcome) -> bool | None:
    """Whether a neighbor's own answer beats the new one."""
    if neighbor.wanted_nll is None or neighbor.other_nll is None:
        return None
    return neighbor.wanted_nll < neighbor.other_nll


def _share(values: Iterable[bool | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def _shown(p: float) -> str:
    return f"p < {_SMALLEST_SHOWN}" if p < _SMALLEST_SHOWN else f"p = {p:.2g}"


def _facts(number: int) -> str:
    return f"{number:,} fact{'' if number == 1 else 's'}"
