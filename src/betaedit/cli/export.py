"""``betaedit export``: the edits of a run or workspace in the formats that other programs load."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from betaedit.cli import options
from betaedit.errors import ConfigError

if TYPE_CHECKING:
    from betaedit.editors.editor import Editor
    from betaedit.ledger.export_adapter import AdapterReport
    from betaedit.ledger.export_card import BeforeAndAfter
    from betaedit.progress import Progress

Form = Literal["model", "adapter", "factors", "facts"]


def export(
    source: Annotated[str, typer.Argument(metavar="FROM", help="A run folder or a workspace.")],
    to: Annotated[Form, typer.Option("--to", help="A Hugging Face folder, a LoRA adapter, raw factors, or JSONL.")],
    out: Annotated[
        Path, typer.Option("--out", "-o", help="The folder (model, adapter) or file (factors, facts) to write.")
    ],
    rank: Annotated[
        int | None, typer.Option("--rank", min=1, help="Rank of the adapter; by default the rank of the edits.")
    ] = None,
    for_servers: Annotated[
        bool, typer.Option("--for-servers", help="Round the adapter's rank up to one that servers accept.")
    ] = False,
    statistics: options.StatisticsOption = None,
    json_: options.JsonOption = False,
    dtype: options.OwnDtypeOption = None,
    device: options.DeviceOption = None,
) -> None:
    """Export the edits of a run or workspace: the model, an adapter for the unedited one, raw factors, or facts."""
    from rich.console import Console

    from betaedit.cli.render import Bars, say
    from betaedit.experiments.target import editor_of, facts_of, figures_of
    from betaedit.facts.writer import save_facts

    options.check_new("--out", out)
    if to in ("factors", "facts") and out.is_dir():
        raise ConfigError(f"--out {out} is a folder, but {to} are written to a file.", hint="Name a file.")
    if to != "adapter" and (rank is not None or for_servers):
        raise ConfigError("--rank and --for-servers need --to adapter.", hint="Add --to adapter, or leave them out.")
    console = Console(stderr=json_)
    options.quiet_libraries()
    facts = facts_of(source)
    if not facts:
        raise ConfigError(f"{source} holds no edits.", hint="Name a run that has written facts.")
    report = None
    if to == "facts":
        save_facts(facts, out)
    else:
        figures = figures_of(source)
        editor = editor_of(source, statistics=statistics, dtype=dtype, device=device)
        report = _save(editor, figures, to, out, rank, for_servers, Bars(console))
    summary = {"to": to, "path": str(out), "facts": len(facts)}
    if json_:
        options.print_json(summary | ({} if report is None else report.to_dict()))
        return
    if report is not None:
        if report.layers:
            console.print(_table(report))
        console.print(_efficacy(report))
        say(console, _served(report, out))
    console.print(f"{summary['facts']} facts written to {out}", markup=False)


def _save(
    editor: Editor,
    figures: dict[str, BeforeAndAfter],
    to: Form,
    out: Path,
    rank: int | None,
    for_servers: bool,
    progress: Progress,
) -> AdapterReport | None:
    from betaedit.editors.method import HasAdapter
    from betaedit.ledger.export import changes_of, provenance_of, save_factors, save_model
    from betaedit.ledger.export_adapter import save_adapter, save_own_adapter

    if to == "adapter":
        provenance = provenance_of(editor, figures)
        if isinstance(editor.editing, HasAdapter):
            if rank is not None or for_servers:
                raise ConfigError(
                    f"{editor.method.name} made an adapter, which is exported with the rank it has.",
                    hint="Leave --rank and --for-servers out.",
                )
            return save_own_adapter(editor.language_model, editor.editing, out, provenance, progress=progress)
        changes = changes_of(editor)
        return save_adapter(
            editor.language_model, changes, out, provenance, rank=rank, for_servers=for_servers, progress=progress
        )
    if to == "model":
        save_model(editor, out, figures)
    else:
        save_factors(editor.language_model, changes_of(editor), out)
    return None


def _table(report: AdapterReport) -> Any:
    from rich.table import Table

    table = Table("layer", "rank needed", "truncation error", "energy kept", title=f"adapter of rank {report.rank}")
    for layer, kept in report.layers.items():
        table.add_row(str(layer), str(kept.sufficient_rank), f"{kept.relative_error:.1e}", f"{kept.kept_energy:.4%}")
    return table


def _efficacy(report: AdapterReport) -> str:
    shares = [
        "-" if share is None else f"{share:.1%}"
        for figure in (report.edited, report.exported)
        for share in (figure.probability, figure.argmax)
    ]
    return f"efficacy, probability / argmax: edited model {shares[0]} / {shares[1]}, adapter {shares[2]} / {shares[3]}"


def _served(report: AdapterReport, out: Path) -> str:
    command = report.serving_command(out)
    if report.peft_type != "LORA":
        return f"servers take no adapter of the type {report.peft_type}; export the model for them (--to model)"
    if command is None:
        return f"rank {report.rank} is above the largest that servers accept; export the model instead (--to model)"
    return f"serve it with: {command}"
