"""What bars tell of the work."""

from __future__ import annotations

import io

from rich.console import Console

from betaedit.cli import render


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
