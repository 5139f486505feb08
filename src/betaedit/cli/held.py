"""What became of each fact: held or not, misses first, and the line that scripts and people read last."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from betaedit.errors import NotHeldError

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from betaedit.editors.method import EditResult
    from betaedit.evaluation.holding import Holding

_SHOWN = 40
_NAMED = 3
_COLORS = {"held": "green", "by probability": "yellow"}


def show_held(
    console: Console,
    results: Sequence[EditResult],
    holdings: Sequence[Holding | None],
    before: Sequence[str],
    *,
    everything: bool,
) -> None:
    """A row per fact, misses first: all of them where they are few, the first of them without ``--all``."""
    from betaedit.cli.render import counted, say

    rows = [
        (result, holding, text)
        for result, holding, text in zip(results, holdings, before, strict=True)
        if holding is not None
    ]
    rows.sort(key=lambda row: row[1].status == "held")
    shown = rows if everything else rows[:_SHOWN]
    console.print(_table(shown))
    if len(rows) > len(shown):
        say(console, f"{counted(len(rows) - len(shown), 'row')} more: --all shows them")


def say_held(console: Console, results: Sequence[EditResult], holdings: Sequence[Holding | None]) -> float:
    """Say how many facts are not held, naming the first; the share that is."""
    from betaedit.cli.render import counted, one_line, say

    known = [(result, holding) for result, holding in zip(results, holdings, strict=True) if holding is not None]
    missed = [result for result, holding in known if holding.status != "held"]
    taken_back = sum(not result.kept for result, _ in known)
    if not missed:
        say(console, f"all {counted(len(known), 'fact')} held" if len(known) > 1 else "held")
        return 1.0
    names = "; ".join(one_line(result.fact.text) for result in missed[:_NAMED])
    more = f" and {len(missed) - _NAMED} more" if len(missed) > _NAMED else ""
    back = f" ({taken_back} taken back: the model answers as before there)" if taken_back else ""
    say(console, f"{len(missed)} of {len(known)} not held{back}: {names}{more}", "bold")
    return 1 - len(missed) / len(known)


def require_held(share: float, wanted: float | None) -> None:
    """Refuse a share of facts held below ``wanted``.

    Raises:
        NotHeldError: It is.
    """
    if wanted is not None and share < wanted:
        raise NotHeldError(
            f"{share:.1%} of the facts are held, fewer than the {wanted:.1%} asked for.",
            hint="The rows above say what the model answers; give more wordings, or leave these facts out.",
        )


def _table(rows: Sequence[tuple[EditResult, Holding, str]]) -> Table:
    from rich.table import Table
    from rich.text import Text

    from betaedit.cli.render import one_line

    table = Table(title="facts")
    for name in ("prompt", "before", "now", "wanted"):
        table.add_column(name, overflow="fold")
    table.add_column("", overflow="fold", min_width=6)
    table.add_column("prob.", justify="right", no_wrap=True)
    for result, holding, text in rows:
        status = holding.status if result.kept else f"{holding.status}, taken back"
        said = result.fact.target_new if holding.status == "held" else holding.said
        table.add_row(
            Text(one_line(result.fact.text), "dim"),
            Text(one_line(text)),
            Text(one_line(said)),
            Text(one_line(result.fact.target_new), "bold"),
            Text(status, _COLORS.get(holding.status, "red")),
            f"{holding.probability:.2f}",
        )
    return table
