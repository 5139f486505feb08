"""Which facts are held: a table with the misses first, and a last line with the count."""

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
    """Print a row per fact, misses first; without ``--all`` at most the first forty."""
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
    """Print how many facts are not held, with the first of them; returns the share of facts held."""
    from betaedit.cli.render import counted, one_line, say

    known = [(result, holding) for result, holding in zip(results, holdings, strict=True) if holding is not None]
    missed = [result for result, holding in known if holding.status != "held"]
    removed = sum(not result.kept for result, _ in known)
    if not missed:
        say(console, f"all {counted(len(known), 'fact')} held" if len(known) > 1 else "held")
        return 1.0
    names = "; ".join(one_line(result.fact.text) for result in missed[:_NAMED])
    more = f" and {len(missed) - _NAMED} more" if len(missed) > _NAMED else ""
    back = f" ({removed} removed again, the model answers as before)" if removed else ""
    say(console, f"{len(missed)} of {len(known)} not held{back}: {names}{more}", "bold")
    return 1 - len(missed) / len(known)


def require_held(share: float, wanted: float | None) -> None:
    """Refuse a share of facts held below ``wanted``.

    Raises:
        NotHeldError: The share is below it.
    """
    if wanted is not None and share < wanted:
        raise NotHeldError(
            f"{share:.1%} of the facts are held, fewer than the required {wanted:.1%}.",
            hint="The table shows what the model answers; give these facts more wordings, or leave them out.",
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
        status = holding.status if result.kept else f"{holding.status}, removed"
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
