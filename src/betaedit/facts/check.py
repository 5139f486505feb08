"""Counts of a file of facts and its errors, made in one pass.

Only hashes of the facts seen are kept, so a long file takes little memory.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from itertools import islice, repeat
from pathlib import Path
from typing import Any

from betaedit.errors import FactError, UnchangedError
from betaedit.facts.fact import EvaluationCase, Fact
from betaedit.facts.formats import ZsreTarget
from betaedit.facts.readers import Converted, Rejected, iter_results
from betaedit.facts.sources import source_name

_WORST = 5
_LISTED = 1000


@dataclass(frozen=True, slots=True)
class RejectedRecord:
    """A record that cannot be used, and why."""

    line: int | None
    field: str | None
    reason: str
    hint: str


@dataclass(frozen=True, slots=True)
class Duplicate:
    """A fact that was seen before: the same subject, prompt and new target."""

    subject: str
    prompt: str
    target_new: str
    line: int
    first_line: int


@dataclass(slots=True)
class Conflict:
    """One subject and prompt with different new targets; a line for each target."""

    subject: str
    prompt: str
    lines: list[int]


@dataclass(slots=True)
class Check:
    """The figures of a file of facts.

    Lists hold at most the first 1,000 entries; the counts are complete.

    Args:
        path: The file.
        format: Name of its format; ``None`` if no record has a known format.
        records: Records read, usable or not.
        facts: Usable facts.
        prompts: Number of prompts by kind: paraphrases, neighbors, generation_prompts, questions.GROUP.
        n_true_unknown: Facts without a known true answer, for which efficacy has no probability form.
        subjects: Different subjects.
        repeated_subjects: Subjects of more than one fact.
        facts_of_repeated_subjects: Facts with such a subject.
        worst_subjects: The subjects of the most facts, with the number of facts, if more than one.
        n_duplicates: Facts seen before.
        duplicates: Where.
        n_conflicts: Pairs of subject and prompt with different new targets.
        conflicts: Where.
        n_unchanged: Rejected records whose new target is already a known answer.
        unchanged_lines: Where.
        n_rejected: Records that cannot be used.
        rejected: Where and why.
    """

    path: Path
    format: str | None = None
    records: int = 0
    facts: int = 0
    prompts: Counter[str] = field(default_factory=Counter)
    n_true_unknown: int = 0
    subjects: int = 0
    repeated_subjects: int = 0
    facts_of_repeated_subjects: int = 0
    worst_subjects: list[tuple[str, int]] = field(default_factory=list)
    n_duplicates: int = 0
    duplicates: list[Duplicate] = field(default_factory=list)
    n_conflicts: int = 0
    conflicts: list[Conflict] = field(default_factory=list)
    n_unchanged: int = 0
    unchanged_lines: list[int] = field(default_factory=list)
    n_rejected: int = 0
    rejected: list[RejectedRecord] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return asdict(self) | {"path": str(self.path), "prompts": dict(self.prompts)}


def check_facts(path: str | Path, *, limit: int | None = None, zsre_target: ZsreTarget = "alt") -> Check:
    """Read a file of facts to its end and count.

    Args:
        path: The file or dataset, as ``read_cases`` takes it.
        limit: Only this many records.
        zsre_target: As in ``read_cases``.

    Raises:
        FactError: Nothing of the file can be read. A later error of the file counts as a rejected record.
        MissingExtraError: As ``read_cases``.
    """
    check = Check(Path(source_name(path)))
    repeats = _Repeats(check)
    try:
        for result in islice(iter_results(path, zsre_target=zsre_target), limit):
            _count(check, repeats, result)
    except FactError as error:
        if not check.records:
            raise
        _reject(check, error)
    repeats.conclude()
    return check


def _count(check: Check, repeats: _Repeats, result: Converted | Rejected) -> None:
    check.records += 1
    if isinstance(result, Rejected):
        _reject(check, result.error)
        return
    check.format = result.format
    for case in result.cases:
        check.facts += 1
        check.n_true_unknown += case.fact.target_true is None
        check.prompts.update(_prompts(case))
        repeats.note(case.fact, result.line)


def _prompts(case: EvaluationCase) -> Iterator[str]:
    """The kind of every prompt."""
    yield from repeat("paraphrases", len(case.paraphrases))
    yield from repeat("neighbors", len(case.neighbors))
    yield from repeat("generation_prompts", len(case.generation_prompts))
    yield from (f"questions.{question.group}" for question in case.questions)


def _reject(check: Check, error: FactError) -> None:
    check.n_rejected += 1
    if len(check.rejected) < _LISTED:
        check.rejected.append(RejectedRecord(error.line, error.field, error.message, error.hint))
    if isinstance(error, UnchangedError):
        check.n_unchanged += 1
        if error.line is not None and len(check.unchanged_lines) < _LISTED:
            check.unchanged_lines.append(error.line)


class _Repeats:
    """Facts seen before, by hash; texts are kept only of repeats."""

    def __init__(self, check: Check) -> None:
        self._check = check
        self._subjects: Counter[int] = Counter()
        self._names: dict[int, str] = {}
        self._facts: dict[int, int] = {}
        self._questions: dict[int, int] = {}
        self._conflicts: dict[int, Conflict | None] = {}  # None: not listed

    def note(self, fact: Fact, line: int) -> None:
        """Count a fact in the given line."""
        subject = hash(fact.subject)
        self._subjects[subject] += 1
        if self._subjects[subject] > 1:
            self._names[subject] = fact.subject
        if not self._is_duplicate(fact, line):
            self._look_for_conflict(fact, line)

    def conclude(self) -> None:
        """Fill in the figures that need the whole file."""
        check, repeated = self._check, {subject: self._subjects[subject] for subject in self._names}
        check.subjects = len(self._subjects)
        check.repeated_subjects = len(repeated)
        check.facts_of_repeated_subjects = sum(repeated.values())
        worst = sorted(repeated, key=lambda subject: (-repeated[subject], self._names[subject]))
        check.worst_subjects = [(self._names[subject], repeated[subject]) for subject in worst[:_WORST]]

    def _is_duplicate(self, fact: Fact, line: int) -> bool:
        # Two facts of one record have the same line, so the first line does not show whether this is the first.
        key, met = hash((fact.subject, fact.prompt, fact.target_new)), len(self._facts)
        first = self._facts.setdefault(key, line)
        if len(self._facts) > met:
            return False
        self._check.n_duplicates += 1
        if len(self._check.duplicates) < _LISTED:
            self._check.duplicates.append(Duplicate(fact.subject, fact.prompt, fact.target_new, line, first))
        return True

    def _look_for_conflict(self, fact: Fact, line: int) -> None:
        key, met = hash((fact.subject, fact.prompt)), len(self._questions)
        first = self._questions.setdefault(key, line)
        if len(self._questions) > met:
            return
        if key not in self._conflicts:
            self._check.n_conflicts += 1
            self._conflicts[key] = self._listed(Conflict(fact.subject, fact.prompt, [first]))
        conflict = self._conflicts[key]
        if conflict is not None:
            conflict.lines.append(line)

    def _listed(self, conflict: Conflict) -> Conflict | None:
        if len(self._check.conflicts) == _LISTED:
            return None
        self._check.conflicts.append(conflict)
        return conflict
