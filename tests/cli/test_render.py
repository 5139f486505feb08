"""What bars tell of the work."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from betaedit.cli import render
from betaedit.editors.editor import PlannedEdit
from betaedit.facts import Fact


def planned(tokens: tuple[str, ...], lookup: int, target: tuple[str, ...]) -> str:
    """A plan as a pipe gets it: without colors."""
    out = io.StringIO()
    plan = PlannedEdit(Fact("{} is", "Japan", "Rome"), tokens, lookup, target)
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
