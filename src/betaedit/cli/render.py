"""Terminal output: progress bars, tables, highlighted tokens."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from string import ascii_uppercase
from textwrap import wrap
from typing import TYPE_CHECKING, Any

from rich.box import SIMPLE
from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.progress import Task as RichTask
from rich.table import Table
from rich.text import Text

from betaedit.progress import SilentProgress, Task

if TYPE_CHECKING:
    from betaedit.editors.method import PlannedEdit
    from betaedit.experiments.record import EditFigure, Mean
    from betaedit.experiments.run import RunReport
    from betaedit.experiments.side_by_side import Comparison, HeldFact
    from betaedit.experiments.tables import FigureTable
    from betaedit.ledger.health import Health
    from betaedit.ledger.store import FactVersion

_SLOW = 10.0
_FACTS_SHOWN = 20
_LONGEST_NAMES = 40
_BETWEEN = 2
"""Spaces between the columns of ``short_columns``, and beside the outer ones."""
_HEAD = 12
"""Letters in a line of a column's head."""


class _Rate(ProgressColumn):
    """Units per second, or seconds per unit when that is slow."""

    def render(self, task: RichTask) -> Text:
        unit = str(task.fields["unit"])
        made = task.completed - int(task.fields["done"])
        if not task.elapsed or not made:
            return Text(f"- {unit}/s", style="dim")
        rate = made / task.elapsed
        text = f"{rate:,.0f} {unit}/s" if rate >= _SLOW else f"{1 / rate:.1f} s per {unit.removesuffix('s')}"
        return Text(text, style="cyan")


class _Bar:
    def __init__(self, bars: Progress, task: TaskID) -> None:
        self._bars, self._task = bars, task

    def advance(self, amount: int = 1) -> None:
        self._bars.advance(self._task, amount)


class Bars:
    """Progress bars on stderr, with a rate and an estimate; silent when stderr is not a terminal."""

    def __init__(self, console: Console) -> None:
        self.console = console

    @contextmanager
    def task(self, description: str, total: int, unit: str, done: int = 0) -> Iterator[Task]:
        """A progress bar; none if there is nothing to do."""
        if total == 0:
            with SilentProgress().task(description, total, unit) as silent:
                yield silent
            return
        columns = (
            TextColumn("{task.description:<18}"),
            BarColumn(),
            MofNCompleteColumn(),
            _Rate(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=self.console) as bars:
            yield _Bar(bars, bars.add_task(description, total=total, completed=done, unit=unit, done=done))


def highlighted(plan: PlannedEdit) -> Text:
    """The prompt as tokens, its lookup token between ``>`` and ``<``, and the new target after an arrow.

    Signs mark the token, so that it is also found in a pipe, a log and a screen reader; colors are an addition.
    """
    text = Text()
    for index, token in enumerate(plan.tokens):
        if index == plan.lookup:
            text.append(f">{_on_one_line(token)}<", style="bold black on yellow")
        else:
            text.append(_on_one_line(token))
        text.append("|", style="dim")
    text.append(" -> ", style="dim")
    for token in plan.target_tokens:
        text.append(_on_one_line(token), style="bold green")
        text.append("|", style="dim")
    return text


def _on_one_line(token: str) -> str:
    """A token with its line ends and tabs escaped."""
    return token.replace("\n", "\\n").replace("\r", "\\r").replace("\t", "\\t")


def describe(version: FactVersion) -> str:
    """A fact of a workspace in one line."""
    return f"#{version.number}: {one_line(version.fact.text)} -> {one_line(version.fact.target_new)}"


def say(console: Console, text: str, style: str = "") -> None:
    """Print ``text`` unchanged: brackets and colons are not markup, and no line is broken."""
    console.print(Text(text, style), soft_wrap=True)


def counted(number: int, noun: str) -> str:
    """``1 fact``, ``2 facts``."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def corrected_facts(number: int) -> str:
    """How many facts are left out of the means, and why."""
    verb = "is" if number == 1 else "are"
    return f"{counted(number, 'fact')} that a later line corrects {verb} left out of efficacy and generality"


def day_and_time(at: str) -> str:
    """A time of the ledger, shortened, UTC: ``2026-11-21 19:53``."""
    return at[:16].replace("T", " ")


def health_table(health: Health, when: str) -> Table:
    """The facts that the model answers, and the drift."""
    table = Table("figure", when, "what it says")
    drift, holding = health.drift, health.holding
    change = drift.perplexity / drift.unedited_perplexity - 1
    if holding is not None:
        facts = counted(holding.count, "fact")
        table.add_row("holding", f"{holding.mean:.1%}", f"of {facts}; every token the most probable one")
    table.add_row("perplexity", f"{drift.perplexity:.2f}", f"{change:+.2%} on text that no edit saw")
    table.add_row("agreement", f"{drift.agreement.mean:.2%}", "of that text's next tokens are the unedited model's")
    for fact in health.slipped:
        table.add_row("[red]slipped[/]", "", Text(describe(fact)))
    return table


def one_line(text: str) -> str:
    """``text`` without line breaks or outer spaces."""
    return " ".join(text.split())


def summary_table(report: RunReport) -> Table:
    """The figures of a run, before and after."""
    from betaedit.experiments.tables import show

    table = Table(title=f"{counted(len(report.results), 'edit')} · {report.setup['method']} · {report.setup['model']}")
    table.add_column("figure")
    table.add_column("before", justify="right")
    table.add_column("after", justify="right")
    table.add_column("what it says", style="dim")
    rows: tuple[tuple[str, EditFigure, EditFigure, str], ...] = (
        ("efficacy", report.before.efficacy, report.after.efficacy, "the model gives the new answer"),
        ("generality", report.before.generality, report.after.generality, "and after other wordings"),
        ("specificity", report.before.specificity, report.after.specificity, "neighbors keep their own answer"),
    )
    for name, was, now, meaning in rows:
        _add_figure(table, name, was, now, meaning)
    if (kept := report.after.neighbors_kept) is not None:
        table.add_row("neighbors kept", "100%", _share(kept), "neighbors whose answer is unchanged")
    notes = [groups_note(report), corrected_facts(report.after.corrected) if report.after.corrected else ""]
    table.caption = "\n".join(note for note in notes if note) or None
    _add_drift(table, report)
    for name, value in report.after.measures.items():
        table.add_row(name, show(name, report.before.measures.get(name)), show(name, value), "")
    table.add_row("seconds per edit", "", f"{report.seconds_per_edit:.2f}", "statistics and measuring not included")
    return table


def groups_note(report: RunReport) -> str:
    """How the facts were grouped and where drift was measured; empty for one sequence."""
    groups = report.after.groups
    if groups is None:
        return ""
    facts = f"groups of {counted(groups.size, 'fact')}, each written into the unedited model"
    if groups.drift == 0:
        return facts
    over = (
        f"all {groups.count:,}" if groups.drift == groups.count else f"the first {groups.drift:,} of {groups.count:,}"
    )
    return f"{facts}; figures of the model itself: mean over {over} groups"


def _add_drift(table: Table, report: RunReport) -> None:
    before, after, agreement = report.before.perplexity, report.after.perplexity, report.after.agreement
    if before is None or after is None or agreement is None:
        table.add_row("drift", "-", "-", "not measured: perplexity, agreement, leakage, weight change")
        return
    table.add_row("perplexity", f"{before:.2f}", f"{after:.2f}", f"{after / before - 1:+.2%} on text that no edit saw")
    table.add_row("agreement", "100%", f"{agreement:.2%}", "of that text's next tokens are the same")
    if not report.after.layers:  # the method changes no MLP output matrices
        return
    drift = report.to_dict()
    table.add_row("leakage", "0", _percent(drift["leakage"]["relative"]), "of the edited layers' outputs on that text")
    own = drift["statistics_text_leakage"]["relative"]
    if own is not None:
        table.add_row("leakage, own text", "0", _percent(own), "the same on the statistics' own text")
    table.add_row("weight change", "0", f"{drift['weight_change']['relative']:.2%}", "of the edited matrices' norm")


def short_columns(first: str, *names: str) -> Table:
    """A plain table whose names and figures are not cut in a narrow terminal: only its first column folds."""
    table = Table(box=SIMPLE, padding=(0, 1, 0, 0))
    table.add_column(first, overflow="fold")
    for name in names:
        table.add_column(name, no_wrap=True)
    return table


def further_tables(figures: FigureTable, width: int) -> list[Table | Text]:
    """A group of further figures: a line on what they are, and as many tables below each other as ``width`` needs.

    The figures' names are the heads of columns, a few words to a line.
    """
    rows = [figures.shown(row) for row in range(len(figures.rows))]
    heads = ["\n".join(wrap(name.replace("_", " "), _HEAD, break_long_words=False)) for name in figures.names]
    widths = [
        max(len(line) for line in [*head.split("\n"), *cells]) + _BETWEEN
        for head, *cells in zip(heads, *rows, strict=True)
    ]
    first = sum(max(map(len, column)) + _BETWEEN for column in _named(figures.rows)) + _BETWEEN
    shown: list[Table | Text] = [Text.assemble((figures.title, "bold"), f" ({figures.note})" if figures.note else "")]
    for columns in _fitting(widths, width - first):
        table = short_columns("method", "edits", *(heads[column] for column in columns))
        for (name, edits, _), cells in zip(figures.rows, rows, strict=True):
            table.add_row(Text(name), str(edits), *(cells[column] for column in columns))
        shown.append(table)
    return shown


def _named(rows: Sequence[tuple[str, int, Any]]) -> tuple[list[str], list[str]]:
    """The first two columns: names of runs and numbers of edits."""
    return ["method", *(name for name, _, _ in rows)], ["edits", *(str(edits) for _, edits, _ in rows)]


def _fitting(widths: Sequence[int], room: int) -> list[list[int]]:
    """Columns by number, in order, in as few lots as fit into ``room``; one that does not fit is a lot by itself."""
    lots: list[list[int]] = [[]]
    left = room
    for column, width in enumerate(widths):
        if width > left and lots[-1]:
            lots.append([])
            left = room
        lots[-1].append(column)
        left -= width
    return lots


def held_table(facts: Sequence[HeldFact], edits: int, all_: bool) -> Table:
    """Which runs hold each fact; without ``all_`` only the first, those on which runs differ before the others."""
    shown, runs = facts if all_ else facts[:_FACTS_SHOWN], list(facts[0].held)
    title = f"facts held after {counted(edits, 'edit')}"
    table = Table("fact", "wanted", box=SIMPLE, padding=(0, 1, 0, 0), title=title)
    # Long names would leave no room for the facts: they are replaced by letters, explained below the table.
    lettered = sum(map(len, runs)) > _LONGEST_NAMES
    heads = [_letter(place) for place in range(len(runs))] if lettered else runs
    for head in heads:
        table.add_column(Text(head), no_wrap=True)
    for fact in shown:
        marks = ("-" if held is None else "held" if held else "no" for held in fact.held.values())
        corrected = " (corrected later)" if fact.corrected else ""
        table.add_row(Text(one_line(fact.prompt) + corrected), Text(one_line(fact.wanted)), *marks)
    notes = [f"{head}: {name}" for head, name in zip(heads, runs, strict=True)] if lettered else []
    if len(runs) > 1:
        notes.append(f"runs differ on {sum(fact.rank == 0 for fact in facts):,} of {counted(len(facts), 'fact')}")
    if len(shown) < len(facts):
        notes.append(f"{len(facts) - len(shown):,} more with --all")
    table.caption = Text("; ".join(notes))
    return table


def _letter(place: int) -> str:
    """A, B, ..., Z, A1, B1, ..."""
    return f"{ascii_uppercase[place % 26]}{place // 26 or ''}"


def comparison_lines(comparisons: Sequence[Comparison], all_: bool) -> list[str]:
    """Verdicts on pairs of runs; without ``all_``, earlier checkpoints only if they are decided."""
    last = max((each.edits for each in comparisons), default=0)
    shown = [each for each in comparisons if all_ or each.decided or each.edits == last]
    lines = []
    for edits in dict.fromkeys(each.edits for each in shown):
        lines += [f"after {counted(edits, 'edit')}:", *(f"  {each.verdict}" for each in shown if each.edits == edits)]
    if left := len(comparisons) - len(shown):
        lines.append(f"{counted(left, 'undecided comparison')} at earlier checkpoints: --all lists them")
    return lines


def figures_table(name: str, n_records: int, found: dict[str, Any]) -> Table:
    """The figures of ``betaedit eval``."""
    table = Table("figure", "value", "95% interval", title=f"{escape(name)} · {counted(n_records, 'record')}")
    for figure, value in found.items():
        for form, mean in _forms(figure, value):
            if isinstance(mean, dict):
                table.add_row(form, f"{mean['mean']:.1%}", f"{mean['low']:.1%} to {mean['high']:.1%}")
            elif mean is not None:
                table.add_row(form, f"{mean:.4g}", "")
    return table


def _forms(name: str, value: Any) -> list[tuple[str, Any]]:
    """A figure's parts: both forms of an edit metric, accuracy and F1 of a task, or itself."""
    whole = not isinstance(value, dict) or "mean" in value
    return [(name, value)] if whole else [(f"{name}, {part.replace('_', ' ')}", held) for part, held in value.items()]


def both_forms(figure: EditFigure) -> str:
    """An edit metric as probability / argmax."""
    return " / ".join("-" if mean is None else f"{mean.mean:.2f}" for mean in (figure.probability, figure.argmax))


def _add_figure(table: Table, name: str, before: EditFigure, after: EditFigure, meaning: str) -> None:
    table.add_row(f"{name}, probability", _share(before.probability), _share(after.probability), meaning)
    table.add_row(f"{name}, argmax", _share(before.argmax), _share(after.argmax), "every token the most probable one")


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.2%}"


def _share(value: Mean | None) -> str:
    return "-" if value is None else f"{value.mean:.1%}"
