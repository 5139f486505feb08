"""Runs on the same facts are told apart where the facts suffice, and not where they do not."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from betaedit.experiments.folder import RunFolder
from betaedit.experiments.record import Outcome
from betaedit.experiments.side_by_side import HeldFact, compare_runs, facts_by_run, read_facts
from support.runs import BARE, checkpoint, setup


def rewrite(record: str, held: bool, *, wanted: str = "Rome", corrected: bool = False) -> Outcome:
    return Outcome(
        record=record, kind="rewrite", prompt=f"{record} lives in", wanted=wanted, other=None, wanted_nll=1.0,
        other_nll=None, argmax=held, corrected=corrected,
    )  # fmt: skip


def paraphrase(record: str, says: bool) -> Outcome:
    return rewrite(record, says).model_copy(update={"kind": "paraphrase"})


def neighbor(record: str, wanted_nll: float | None, kept: bool | None) -> Outcome:
    known = wanted_nll is not None
    return Outcome(
        record=record, kind="neighbor", prompt="Zoe lives in", wanted="Oslo" if known else None,
        other="Rome" if known else None, wanted_nll=wanted_nll, other_nll=2.0 if known else None,
        argmax=False if known else None, kept=kept,
    )  # fmt: skip


def run(path: Path, **checkpoints: Sequence[Outcome]) -> RunFolder:
    """A run with these outcomes by checkpoint: ``_30`` is the one after 30 edits."""
    folder = RunFolder.create(path, setup())
    for name, outcomes in checkpoints.items():
        folder.write_checkpoint(checkpoint(int(name[1:]), **BARE), outcomes)
    return folder


def holding(path: Path, held: str, at: int = 20) -> RunFolder:
    """A run that holds the facts with a ``+``."""
    return run(path, **{f"_{at}": [rewrite(str(number), sign == "+") for number, sign in enumerate(held)]})


def verdicts(runs: dict[str, RunFolder], figure: str = "facts held") -> list[str]:
    return [found.verdict for found in compare_runs(runs) if found.figure == figure]


@pytest.mark.parametrize(
    ("one", "other", "verdict"),
    [
        ("+" * 14 + "--++", "-" * 14 + "++++", "a holds more facts than b (p = 0.0042, 14 facts against 2)"),
        ("-" * 8 + "+", "+" * 8 + "+", "b holds more facts than a (p = 0.0078, 8 facts against 0)"),
        ("+" * 30, "-" * 30, "a holds more facts than b (p < 0.001, 30 facts against 0)"),
        ("++++---+", "++-----+",
         "facts held: too few facts to tell a and b apart (p = 0.5; about 24 facts would be needed)"),
        ("++--", "++--", "facts held: too few facts to tell a and b apart (p = 1; no fact on which they differ)"),
        ("+-", "-+", "facts held: too few facts to tell a and b apart (p = 1; each is better on 1 fact)"),
    ],
)  # fmt: skip
def test_a_verdict_needs_enough_facts_on_which_two_runs_differ(
    tmp_path: Path, one: str, other: str, verdict: str
) -> None:
    assert verdicts({"a": holding(tmp_path / "a", one), "b": holding(tmp_path / "b", other)}) == [verdict]


def test_every_figure_is_compared_record_by_record(tmp_path: Path) -> None:
    def outcomes(good: bool) -> list[Outcome]:
        found = []
        for number in range(10):
            name = str(number)
            found += [rewrite(name, True), paraphrase(name, True), paraphrase(name, good)]
            found += [neighbor(name, 1.0 if good else 3.0, True), neighbor(name, None, good)]
        return found

    runs = {name: run(tmp_path / name, _10=outcomes(name == "a")) for name in "ab"}
    found = {each.figure: each for each in compare_runs(runs)}
    assert {name: (each.test.first, each.test.second, each.test.count) for name, each in found.items()} == {
        "facts held": (0, 0, 10),
        "other wordings": (10, 0, 10),
        "neighbors' answers": (10, 0, 10),
        "neighbors kept": (10, 0, 10),
    }
    first = next(iter(read_facts(runs["b"], 10).values()))
    assert (first.held, first.wordings, first.answers, first.kept) == (True, 0.5, 0.0, 0.5)
    assert found["other wordings"].verdict.startswith("a gives the new answers in more wordings than b (p = 0.002")
    assert found["neighbors kept"].to_dict()["decided"]


def test_a_figure_that_no_fact_has_is_not_compared(tmp_path: Path) -> None:
    runs = {"a": holding(tmp_path / "a", "+-"), "b": holding(tmp_path / "b", "--")}
    assert {found.figure for found in compare_runs(runs)} == {"facts held"}


def test_only_facts_that_both_have_written_are_compared(tmp_path: Path) -> None:
    one = run(tmp_path / "a", _3=[rewrite("1", True), rewrite("2", True), rewrite("3", True, wanted="Lima")])
    other = run(tmp_path / "b", _3=[rewrite("1", False), rewrite("3", False), rewrite("4", False)])
    assert [found.test.count for found in compare_runs({"a": one, "b": other})] == [1]
    third = run(tmp_path / "c", _3=[rewrite("9", True)])
    assert compare_runs({"a": one, "c": third}) == []


def test_runs_are_compared_wherever_both_were_measured(tmp_path: Path) -> None:
    facts = [rewrite("1", True)]
    one = run(tmp_path / "a", _0=facts, _1=facts, _2=facts, _5=facts)
    other = run(tmp_path / "b", _0=facts, _2=facts, _3=facts, _5=facts)
    assert [found.edits for found in compare_runs({"a": one, "b": other})] == [2, 5]
    assert facts_by_run({"a": one, "b": other})[0] == 5
    assert facts_by_run({"a": one, "c": run(tmp_path / "c", _0=facts, _4=facts)}) == (0, [])
    assert compare_runs({}) == compare_runs({"a": one}) == []
    assert facts_by_run({}) == (0, [])


def test_the_more_runs_are_compared_the_less_a_single_difference_counts(tmp_path: Path) -> None:
    held = {"a": "+" * 6, "b": "-" * 6, "c": "-" * 6}
    runs = {name: holding(tmp_path / name, signs) for name, signs in held.items()}
    alone = compare_runs({name: runs[name] for name in "ab"})[0]
    assert alone.p == pytest.approx(2 / 64)
    assert alone.decided
    among = {(found.first, found.second): found for found in compare_runs(runs)}
    assert among["a", "b"].p == pytest.approx(3 * 2 / 64)
    assert not among["a", "b"].decided
    assert "about 7 facts would be needed" in among["a", "b"].verdict
    assert among["b", "c"].p == 1


def test_which_run_is_named_first_changes_no_verdict_but_the_names_order(tmp_path: Path) -> None:
    runs = {"a": holding(tmp_path / "a", "+" * 9 + "-"), "b": holding(tmp_path / "b", "-" * 10)}
    assert verdicts(runs) == verdicts(dict(reversed(runs.items())))


def test_facts_on_which_runs_differ_come_first_then_those_that_none_holds(tmp_path: Path) -> None:
    held = {"a": [True, False, True, False, True], "b": [True, False, False, True, True]}
    runs = {
        name: run(tmp_path / name, _5=[rewrite(str(n), h, corrected=n == 0) for n, h in enumerate(each)])
        for name, each in held.items()
    }
    edits, facts = facts_by_run(runs)
    assert edits == 5
    assert [(fact.record, fact.rank) for fact in facts] == [("2", 0), ("3", 0), ("1", 1), ("4", 2), ("0", 3)]
    assert facts[0] == HeldFact("2", "2 lives in", "Rome", {"a": True, "b": False}, False)


def test_a_fact_that_one_run_has_not_written_is_listed_as_such(tmp_path: Path) -> None:
    runs = {"a": holding(tmp_path / "a", "++"), "b": run(tmp_path / "b", _20=[rewrite("0", True)])}
    assert [dict(fact.held) for fact in facts_by_run(runs)[1]] == [{"a": True, "b": True}, {"a": True, "b": None}]


def test_a_fact_that_a_later_one_corrects_counts_for_no_side(tmp_path: Path) -> None:
    runs = {
        name: run(tmp_path / name, _2=[rewrite("0", name == "a", corrected=True), rewrite("1", True)]) for name in "ab"
    }
    assert [(found.test.first, found.test.count) for found in compare_runs(runs)] == [(0, 1)]
