"""What bars tell of the work."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from betaedit.cli import render
from betaedit.editors.editor import PlannedEdit
from betaedit.evaluation.paired import PairedTest
from betaedit.experiments.side_by_side import Comparison, HeldFact
from betaedit.experiments.tables import FigureTable
from betaedit.facts import Fact


def planned(tokens: tuple[str, ...], lookup: int, target: tuple[str, ...]) -> str:
    """A plan as a pipe gets it: without colors."""
    out = io.StringIO()
    plan = PlannedEdit(Fact("{} is", "Japan", "Rome"), tokens, target, lookup)
    Console(file=out, width=20, color_system=None).print(render.highlighted(plan), soft_wrap=True)
    return out.getvalue()


@pytest.mark.parametrize(
    ("tokens", "lookup", "shown"),
    [
        (("The", " capital", " of", " Japan", " is"), 3, "The| capital| of|> Japan<| is| ->  Rome|"),
        (("Japan", " is"), 0, ">Japan<| is| ->  Rome|"),
        (("日", "本", "的", "首都"), 1, "日|>本<|的|首都| ->  Rome|"),
        (("A", "\n", "Q\t"), 1, "A|>\\n<|Q\\t| ->  Rome|"),
    ],
)
def test_a_plan_without_colors_shows_which_token_is_looked_up(tokens, lookup: int, shown: str) -> None:
    assert planned(tokens, lookup, (" Rome",)) == f"{shown}\n"


def drawn(total: int, done: int, made: int, monkeypatch) -> str:
    """The last line of a bar that is told of ``made`` units, in ten seconds."""
    out = io.StringIO()
    with render.Bars(Console(file=out, width=100)).task("editing", total, "facts", done=done) as task:
        for _ in range(made):
            task.advance()
        if made:
            monkeypatch.setattr(render.RichTask, "elapsed", 10.0)
    return out.getvalue()


def test_the_rate_is_of_what_was_done_since_the_bar_began(monkeypatch) -> None:
    line = drawn(total=8, done=6, made=2, monkeypatch=monkeypatch)
    assert "8/8" in line
    assert "5.0 s per fact" in line


def test_no_bar_is_drawn_for_nothing(monkeypatch) -> None:
    assert drawn(total=0, done=0, made=0, monkeypatch=monkeypatch) == ""


def told_facts(runs: list[str], number: int, all_: bool, width: int = 80) -> list[str]:
    """The table of facts of which the first run holds the first one only."""
    facts = [
        HeldFact(
            str(row), f"[b]Bob[/b] {row} lives in", "Rome", {run: row == 0 and run == runs[0] for run in runs}, False
        )
        for row in range(number)
    ]
    out = io.StringIO()
    Console(file=out, width=width).print(render.held_table(facts, 30, all_))
    return [line.rstrip() for line in out.getvalue().splitlines()]


def test_only_the_first_facts_are_listed_until_all_are_asked_for() -> None:
    short, whole = (told_facts(["memit", "betaedit"], 50, all_) for all_ in (False, True))
    assert sum("lives in" in line for line in short) == 20
    assert sum("lives in" in line for line in whole) == 50
    assert "runs differ on 1 of 50 facts; 30 more with --all" in short[-1]
    assert "runs differ on 1 of 50 facts" in whole[-1]
    assert "--all" not in whole[-1]
    assert any("[b]Bob[/b] 0 lives in" in line and line.split()[-2:] == ["held", "no"] for line in short)


@pytest.mark.parametrize(
    "runs",
    [
        ["memit", "memit-h", "alphaedit", "betaedit"],
        ["memit-lookup-last", "alphaedit-naive-lookup-last", "betaedit-layers-4-5-6"],
        [f"method-{number}" for number in range(8)],
    ],
)
def test_names_of_methods_stay_whole_at_80_columns(runs: list[str]) -> None:
    lines = told_facts(runs, 3, False)
    assert max(map(len, lines)) <= 80
    text = " ".join(" ".join(lines).split())
    assert all(run in text for run in runs)


def compared(edits: int, first: int, second: int) -> Comparison:
    test = PairedTest(first, second, 40)
    return Comparison("a", "b", edits, "facts held", "holds more facts than {}", test, test.p, 1)


def test_earlier_comparisons_are_listed_where_they_decide_or_all_are_asked_for() -> None:
    comparisons = [compared(10, 1, 0), compared(20, 9, 0), compared(30, 2, 0)]
    lines = render.comparison_lines(comparisons, all_=False)
    assert lines == [
        "after 20 edits:",
        "  a holds more facts than b (p = 0.0039, 9 facts against 0)",
        "after 30 edits:",
        "  facts held: too few facts to tell a and b apart (p = 0.5; about 120 facts would be needed)",
        "1 undecided comparison at earlier checkpoints: --all lists them",
    ]
    whole = render.comparison_lines(comparisons, all_=True)
    assert [line for line in whole if line.startswith("after")] == [f"after {edits} edits:" for edits in (10, 20, 30)]
    assert len(whole) == 6
    assert render.comparison_lines([], all_=True) == []


def test_a_wide_group_of_figures_becomes_several_tables_that_cut_nothing_off() -> None:
    names = tuple(f"{what}, {kind}" for what in ("retrieved at 10", "shown") for kind in ("prompts", "paraphrases"))
    rows = (("unedited", 0, (None,) * 4), ("betaedit+scr", 100, (0.25,) * 4))
    out = io.StringIO()
    console = Console(file=out, width=55, color_system=None)
    parts = render.further_tables(FigureTable("retrieval", names, rows), 55)
    for part in parts:
        console.print(part)
    lines = out.getvalue().splitlines()
    assert "…" not in out.getvalue()
    assert max(map(len, lines)) <= 55
    assert lines[0].startswith("Retrieval (retrieved at K: ")
    assert len(parts) == 1 + 2
    words = out.getvalue().split()
    assert [words.count(word) for word in ("25.0%", "paraphrases", "betaedit+scr")] == [4, 2, 2]
