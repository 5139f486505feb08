"""``betaedit log | show | status | diff``: what a workspace holds; the model is loaded only for ``diff --drift``."""

from __future__ import annotations

from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from betaedit.cli import options
from betaedit.errors import ConfigError

if TYPE_CHECKING:
    from rich.table import Table

    from betaedit.evaluation.drift import Drift
    from betaedit.ledger.store import Event, FactVersion, Store

_SHOWN = 50  # rows of a long log without --last
_COLORS = {"live": "green", "replaced": "yellow", "forgotten": "red", "undone": "dim"}


def log(
    subject: Annotated[str | None, typer.Option("--subject", help="Only facts about this subject.")] = None,
    state: Annotated[
        Literal["live", "replaced", "forgotten", "undone"] | None,
        typer.Option("--state", help="Only facts in this state."),
    ] = None,
    since: Annotated[
        str | None, typer.Option("--since", help="Only facts written on this day or later: 2026-11-21 (UTC).")
    ] = None,
    until: Annotated[
        str | None, typer.Option("--until", help="Only facts written on this day or before: 2026-11-21 (UTC).")
    ] = None,
    last: Annotated[
        int | None,
        typer.Option("--last", min=1, help=f"Only the newest N; default: {_SHOWN} facts, all with --json."),
    ] = None,
    events: Annotated[bool, typer.Option("--events", help="List events instead of facts.")] = False,
    workspace: options.WorkspaceOption = None,
    json_: options.JsonOption = False,
) -> None:
    """List the facts of a workspace with their states."""
    from betaedit.cli.render import counted
    from betaedit.ledger.query import select, to_dict

    with closing(_store(workspace)) as store:
        if events:
            _show_events(store.events()[-(last or 0) :], json_=json_)
            return
        filtered = any(value is not None for value in (subject, state, since, until))
        shown = last or (None if json_ else _SHOWN)
        known = store.facts(None if filtered else shown)
        found = select(known, subject=subject, state=state, since=since, until=until)
        facts = found[-(shown or 0) :]
        total = len(found) if filtered else sum(store.states().values())
    if json_:
        options.print_json({"edits": [to_dict(fact) for fact in facts]})
        return
    caption = counted(total, "fact") if len(facts) == total else f"the last {len(facts)} of {total} facts"
    _print(_facts_table(facts), caption)


def show(
    name: Annotated[
        str,
        typer.Argument(
            metavar="FACT", help="A fact: its number in `betaedit log`, its id, its subject, or a part of its prompt."
        ),
    ],
    workspace: options.WorkspaceOption = None,
    json_: options.JsonOption = False,
) -> None:
    """Show one fact: each time it was written, with figures and state."""
    from betaedit.ledger.query import history, to_dict

    with closing(_store(workspace)) as store:
        found = history(store, name)
        ends = {fact.until: store.event(fact.until) for fact in found if fact.until is not None}
    if json_:
        options.print_json({"fact": to_dict(found[-1]), "writings": [to_dict(fact) for fact in found]})
        return
    _print(_versions_table(found, ends))


def status(workspace: options.WorkspaceOption = None, json_: options.JsonOption = False) -> None:
    """Show what a workspace holds: model, method, facts by state, size."""
    from betaedit.ledger.query import status as workspace_status

    with closing(_store(workspace)) as store:
        summary = workspace_status(store)
    if json_:
        options.print_json(summary)
        return
    from rich.table import Table
    from rich.text import Text

    from betaedit.cli.render import day_and_time

    table = Table(show_header=False)
    last, per_fact = summary["last"], summary["bytes_per_fact"]
    for name in ("workspace", "model", "method", "storage"):
        table.add_row(name, Text(str(summary[name])))
    table.add_row("facts", ", ".join(f"{summary[name]} {name}" for name in _COLORS))
    table.add_row("events", f"{summary['events']}; the last: {last['kind']}, {day_and_time(last['at'])} UTC")
    each = "" if per_fact is None else f", {per_fact / 1000:.0f} kB a fact"
    table.add_row("size", f"{summary['bytes'] / 2**20:.1f} MiB{each}")
    _print(table)


def diff(
    before: Annotated[int, typer.Argument(help="An event; `betaedit log --events` lists them.")],
    after: Annotated[int | None, typer.Argument(help="A later event; default: the last one.")] = None,
    drift: Annotated[
        bool, typer.Option("--drift", help="Also load the model and compare its two states on ordinary text.")
    ] = False,
    text: Annotated[
        Path | None, typer.Option("--text", help="The text for --drift; default: the package's own.")
    ] = None,
    workspace: options.WorkspaceOption = None,
    device: options.DeviceOption = None,
    json_: options.JsonOption = False,
) -> None:
    """Compare two events: facts gained and lost, the distance of the weights, and with --drift the model's outputs."""
    from betaedit.ledger.query import compare, to_dict
    from betaedit.ledger.weights import distances

    if text is not None and not drift:
        raise ConfigError("--text needs --drift.", hint="Add --drift, or leave --text out.")
    with closing(_store(workspace)) as store:
        end = store.head if after is None else after
        found, moved = compare(store, before, end), distances(store, before, end)
    measured = _drift(store.path.parent, before, end, text, device, json_=json_) if drift else None
    if json_:
        layers = None if moved is None else {str(layer): distance for layer, distance in moved.items()}
        facts = {name: [to_dict(fact) for fact in getattr(found, name)] for name in ("gained", "lost")}
        drifted = None if measured is None else _two_points(measured)
        options.print_json({"before": before, "after": end, **facts, "weights_moved": layers, "drift": drifted})
        return
    from rich.console import Console

    from betaedit.cli.render import describe, say

    console = Console()
    for sign, color, facts_ in (("-", "red", found.lost), ("+", "green", found.gained)):
        for fact in facts_:
            say(console, f"{sign} {describe(fact)}", color)
    if moved != {}:  # there are edited matrices
        distance = "unknown: gc dropped what is needed to compute it" if moved is None else _by_layer(moved)
        say(console, f"weights moved (Frobenius norm): {distance}")
    if measured is not None:
        moved_by = f"{measured.unedited_perplexity:.2f} -> {measured.perplexity:.2f}"
        say(console, f"perplexity on ordinary text: {moved_by}; same next token: {measured.agreement.mean:.2%}")


def _two_points(drift: Drift) -> dict[str, Any]:
    """Drift between two points as ``--json`` prints it: neither need be the unedited model."""
    plain = drift.to_dict()
    return {"perplexity": {"before": plain.pop("unedited_perplexity"), "after": plain.pop("perplexity")}, **plain}


def _drift(folder: Path, before: int, after: int, text: Path | None, device: str | None, *, json_: bool) -> Drift:
    from rich.console import Console

    from betaedit.cli.render import Bars
    from betaedit.ledger.health import drift_between
    from betaedit.ledger.workspace import Workspace
    from betaedit.statistics.corpus import TextFiles

    options.quiet_libraries()
    texts = None if text is None else list(TextFiles((text,)).texts())
    with Workspace.open(folder, device=device, progress=Bars(Console(stderr=json_))) as workspace:
        return drift_between(workspace, before, after, texts=texts)


def _store(workspace: Path | None) -> Store:
    from betaedit.ledger.place import LEDGER, find_workspace
    from betaedit.ledger.store import Store

    return Store(find_workspace(workspace) / LEDGER)


def _by_layer(moved: dict[int, float]) -> str:
    return ", ".join(f"layer {layer}: {distance:.3g}" for layer, distance in moved.items())


def _show_events(events: list[Event], *, json_: bool) -> None:
    if json_:
        options.print_json({"events": [asdict(event) for event in events]})
        return
    from rich.table import Table
    from rich.text import Text

    from betaedit.cli.render import day_and_time

    table = Table("event", "what", "when (UTC)", "note")
    for event in events:
        note = ", ".join(f"{name}: {value}" for name, value in event.note.items())
        table.add_row(str(event.id), event.kind, day_and_time(event.at), Text(note))
    _print(table)


def _facts_table(facts: list[FactVersion]) -> Table:
    from rich.table import Table
    from rich.text import Text

    from betaedit.cli.render import day_and_time, one_line

    table = Table()
    for name in ("#", "state", "event", "when (UTC)"):
        table.add_column(name, no_wrap=True)
    for name in ("prompt", "answer"):
        table.add_column(name, overflow="fold")
    for fact in facts:
        table.add_row(
            str(fact.number),
            Text(fact.state, _COLORS[fact.state]),
            str(fact.event),
            day_and_time(fact.at),
            Text(one_line(fact.fact.text)),
            Text(one_line(fact.fact.target_new)),
        )
    return table


def _versions_table(found: list[FactVersion], ends: dict[int, Event]) -> Table:
    from rich.table import Table
    from rich.text import Text

    from betaedit.cli.render import day_and_time, describe

    columns = ("event", "when (UTC)", "held", "probability", "search prob.", "evaluations", "seconds", "until")
    table = Table(*columns, title=Text(describe(found[-1])), title_justify="left")
    for version in found:
        figures: dict[str, Any] = version.figures
        measured = figures.get("measured_probability")
        until = "" if version.until is None else f"event {version.until} ({ends[version.until].kind})"
        table.add_row(
            str(version.event),
            day_and_time(version.at),
            figures.get("status") or "not measured",
            "-" if measured is None else f"{measured:.3f}",
            f"{figures.get('sought_probability', figures.get('target_probability')):.3f}",
            str(figures.get("evaluations", figures.get("n_evaluations", "-"))),
            f"{figures['seconds']:.2f}",
            until or "live",
        )
    return table


def _print(*shown: object) -> None:
    from rich.console import Console

    console = Console()
    for item in shown:
        console.print(item)
