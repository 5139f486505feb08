"""``betaedit init | forget | replace | restore | check | verify | gc | locate``: what changes or checks a workspace."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from betaedit.cli import options
from betaedit.errors import ConfigError

if TYPE_CHECKING:
    from rich.console import Console

    from betaedit.ledger.workspace import Workspace

Names = Annotated[
    list[str] | None,
    typer.Argument(metavar="FACT", help="A fact: its number, its id, its subject, or a part of its prompt."),
]


def init(
    folder: Annotated[Path, typer.Argument(help="The new workspace.")],
    model: options.ModelOption = "smollm2",
    method: options.ChosenMethodOption = None,
    preset: options.PresetOption = None,
    config: options.ConfigOption = None,
    set_: options.SetOption = None,
    seed: options.SeedOption = None,
    statistics: options.StatisticsOption = None,
    storage: Annotated[
        Literal["float32", "bfloat16"] | None,
        typer.Option(
            "--storage", help="Type of the stored keys and values; bfloat16 takes half the space and is less exact."
        ),
    ] = None,
    dtype: options.DtypeOption = "float32",
    device: options.DeviceOption = None,
    json_: options.JsonOption = False,
) -> None:
    """Make a workspace: a folder that remembers every edit of one model, and can undo any of them.

    Statistics are collected if needed, and stored in it. After that, `betaedit edit` in that folder writes there.
    """
    from rich.console import Console

    from betaedit.cli.render import Bars, say
    from betaedit.ledger.query import status
    from betaedit.ledger.workspace import Workspace

    console = Console(stderr=json_)
    chosen_method, values = options.choose(method, config, set_, seed)
    editor = options.load_editor(
        model,
        chosen_method,
        dtype=dtype,
        device=device,
        device_map=None,
        values=values,
        statistics=statistics,
        preset=preset,
        progress=Bars(console),
        own_facts=True,
    )
    with Workspace.create(folder, editor, storage=storage) as made:
        summary = status(made.store)
    if json_:
        options.print_json(summary)
        return
    where = f"layers {summary['layers']}" if summary["layers"] else "no weight changes"
    say(console, f"made {folder}: {summary['model']}, {summary['method']}, {where}")
    say(console, f'write into it: cd {folder}; betaedit edit "The capital of [Japan] is" "Madrid"')


def forget(
    facts: Names = None,
    last: Annotated[int | None, typer.Option("--last", min=1, help="Forget the last N facts.")] = None,
    all_matching: Annotated[
        bool,
        typer.Option(
            "--all-matching", help="Forget every fact that matches the name; by default an ambiguous name is an error."
        ),
    ] = False,
    workspace: options.WorkspaceOption = None,
    device: options.DeviceOption = None,
    json_: options.JsonOption = False,
) -> None:
    """Forget facts: the weights become those with only the other facts written."""
    from betaedit.cli.render import counted, describe, say
    from betaedit.ledger.query import to_dict

    if not facts and not last:
        raise ConfigError("there is nothing to forget.", hint="Name a fact, or give --last N.")
    with _opened(workspace, device, json_=json_) as (opened, console):
        before = opened.store.head
        gone = opened.forget(*(facts or []), last=last or 0, all_matching=all_matching)
        live = len(opened.store.live())
    if json_:
        options.print_json({"forgotten": [to_dict(fact) for fact in gone], "live": live})
        return
    for fact in gone:
        say(console, f"forgot {describe(fact)}")
    say(console, f"the model holds {counted(live, 'fact')} now; betaedit restore {before} undoes this")


def replace(
    fact: Annotated[str, typer.Argument(help="A fact: its number, its id, its subject, or a part of its prompt.")],
    target: Annotated[str, typer.Argument(help="The new answer.")],
    workspace: options.WorkspaceOption = None,
    device: options.DeviceOption = None,
    json_: options.JsonOption = False,
) -> None:
    """Replace the answer of a fact."""
    from betaedit.cli.render import describe, one_line, say
    from betaedit.ledger.query import to_dict

    with _opened(workspace, device, json_=json_) as (opened, console):
        old, result = opened.replace(fact, target)
        says = opened.editor.complete(old.fact.text)
    if json_:
        options.print_json({"replaced": to_dict(old), "result": result.to_dict(), "says": says})
        return
    say(console, f"replaced {describe(old)}")
    say(console, f"now says: {one_line(says)}")


def restore(
    event: Annotated[int, typer.Argument(help="The event to go back to; `betaedit log --events` lists them.")],
    workspace: options.WorkspaceOption = None,
    device: options.DeviceOption = None,
    json_: options.JsonOption = False,
) -> None:
    """Bring the model back to its state after an earlier event; a restore can itself be undone."""
    from betaedit.cli.render import counted, say

    with _opened(workspace, device, json_=json_) as (opened, console):
        opened.restore(event)
        head, live = opened.store.head, len(opened.store.live())
    if json_:
        options.print_json({"restored": event, "event": head, "live": live})
        return
    say(console, f"the model is as it was after event {event}, with {counted(live, 'fact')}; this is event {head}")


def check(
    workspace: options.WorkspaceOption = None,
    reapply: Annotated[
        bool, typer.Option("--reapply", help="Write again the facts that the model does not answer.")
    ] = False,
    text: Annotated[
        Path | None, typer.Option("--text", help="Held-out text for the drift; default: the package's own.")
    ] = None,
    device: options.DeviceOption = None,
    json_: options.JsonOption = False,
) -> None:
    """Check which live facts the model still answers, and measure the drift."""
    from betaedit.cli.render import counted, health_table
    from betaedit.ledger.health import check as examine
    from betaedit.ledger.health import reapply as write_again
    from betaedit.statistics.corpus import TextFiles

    texts = None if text is None else list(TextFiles((text,)).texts())
    with _opened(workspace, device, write=reapply, json_=json_) as (opened, console):
        health = examine(opened, texts=texts)
        again = None
        if reapply and health.slipped:
            write_again(opened, health.slipped)
            again = examine(opened, texts=texts)
    if json_:
        options.print_json({**health.to_dict(), "reapplied": None if again is None else again.to_dict()})
        return
    console.print(health_table(health, "before" if again else "now"))
    if again is not None:
        console.print(health_table(again, f"after writing {counted(len(health.slipped), 'fact')} again"))


def verify(
    workspace: options.WorkspaceOption = None,
    replay: Annotated[
        bool,
        typer.Option(
            "--replay", help="Also write all live facts again from their keys and values, and compare the weights."
        ),
    ] = False,
    device: options.DeviceOption = None,
    json_: options.JsonOption = False,
) -> None:
    """Recompute the ledger from the unedited model and compare; exits with code 1 if it differs."""
    from betaedit.cli.render import counted, say

    with _opened(workspace, device, write=replay, json_=json_) as (opened, console):
        problems = opened.verify(replay=replay)
        head = opened.store.head
    if json_:
        options.print_json({"events": head, "problems": problems})
    for problem in () if json_ else problems:
        say(console, problem, "red")
    if problems:
        raise typer.Exit(1)
    if not json_:
        say(console, f"{counted(head, 'event')} unchanged since commit; they give these weights")


def gc(
    workspace: options.WorkspaceOption = None,
    purge: Annotated[
        bool,
        typer.Option("--purge", help="Also drop the keys and values of facts that are not live; cannot be undone."),
    ] = False,
    device: options.DeviceOption = None,
    json_: options.JsonOption = False,
) -> None:
    """Make the file smaller: keep facts, keys and values; drop what only earlier weights need.

    Earlier events can still be restored by writing their facts again: to a relative error of 1e-6, not bit for bit.
    """
    from betaedit.cli.render import say

    with _opened(workspace, device, json_=json_) as (opened, console):
        freed = opened.collect(purge=purge)
        left = opened.store.nbytes
    if json_:
        options.print_json({"freed": freed, "bytes": left})
        return
    say(console, f"freed {freed / 2**20:.2f} MiB; the file has {left / 2**20:.2f} MiB")


def locate(
    kept: Annotated[str, typer.Argument(metavar="FOLDER", help="A workspace or a run folder.")],
    model: Annotated[str, typer.Argument(help="The present place of its unedited model: a name or a folder.")],
    json_: options.JsonOption = False,
) -> None:
    """Set the new place of the unedited model of a workspace or run; it must be the same model."""
    from rich.console import Console

    from betaedit.cli.render import say
    from betaedit.experiments.target import locate as look

    options.quiet_libraries()
    place = look(kept, model)
    if json_:
        options.print_json({"path": kept, "model": place})
        return
    say(Console(), f"{kept} now loads its model from {place}")


@contextmanager
def _opened(
    folder: Path | None, device: str | None, *, write: bool = True, json_: bool = False
) -> Iterator[tuple[Workspace, Console]]:
    """The workspace that the options name, and the console to print to."""
    from rich.console import Console

    from betaedit.cli.render import Bars
    from betaedit.ledger.place import find_workspace
    from betaedit.ledger.workspace import Workspace

    found = find_workspace(folder)
    options.quiet_libraries()
    console = Console(stderr=json_)
    with Workspace.open(found, write=write, device=device, progress=Bars(console)) as workspace:
        yield workspace, console
