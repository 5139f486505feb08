"""``betaedit train-editor``: train what edits by a network of its own, once for a model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from betaedit.cli import options
from betaedit.errors import ConfigError, MethodError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from rich.console import Console

    from betaedit.editors.method import MethodConfig, TrainableMethod

_SHARES = ("reliability", "generality", "locality")


def train_editor(
    method: Annotated[
        str | None,
        typer.Option("--method", help="mend, malmen or rledit; default: mend, or the one that an EasyEdit file names."),
    ] = None,
    model: options.ModelOption = "smollm2",
    source: Annotated[
        Path | None, typer.Option("--from", help="Records with rephrases and unrelated prompts, such as zsRE's; .gz.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="Folder of the trained editor; the same command continues it.")
    ] = None,
    limit: options.LimitOption = None,
    skip_invalid: options.SkipInvalidOption = False,
    zsre_target: options.ZsreTargetOption = "alt",
    config: Annotated[
        Path | None,
        typer.Option("--config", help="A YAML, JSON or TOML file of settings of the training, or one of EasyEdit's."),
    ] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="One setting of the training. Repeatable.")
    ] = None,
    seed: Annotated[int | None, typer.Option("--seed", help="Decides first weights and the order of records.")] = None,
    settings: Annotated[bool, typer.Option("--settings", help="Show all settings of the training, and stop.")] = False,
    dtype: options.DtypeOption = "float32",
    device: options.DeviceOption = None,
    json_: options.JsonOption = False,
) -> None:
    """Train the network of a method that edits by one (mend, malmen, rledit), for one model.

    The last records of the file are only validated on; the editor with the lowest loss there is kept. An interrupted
    training goes on where its last validation was. Edit with: betaedit edit --method mend --set editor=FOLDER.
    """
    if method is not None:
        _trainable(method)
    chosen, values = options.choose(method, config, set_, seed, default="mend", training=True)
    row = _trainable(chosen)
    training = row.configure_training(values)
    if settings:
        _show_settings(training, json_=json_)
        return
    if source is None or out is None:
        raise ConfigError("a training needs records and a folder.", hint="Give --from FILE and --out FOLDER.")
    from rich.console import Console

    from betaedit.cli.render import Bars
    from betaedit.facts.readers import read_cases
    from betaedit.facts.sources import source_name

    facts = read_cases(source, limit=limit, skip_invalid=skip_invalid, zsre_target=zsre_target)
    options.say_skipped(facts.rejected)
    row.check_training(facts.cases)
    from betaedit.models.load import load_language_model

    options.quiet_libraries()
    console = Console(stderr=json_)
    validations: list[Mapping[str, Any]] = []
    row.train(
        load_language_model(model, dtype=dtype, device=device),
        facts.cases,
        training,
        out,
        source=source_name(source),
        progress=Bars(console),
        on_validation=_listener(console, validations),
    )
    if json_:
        options.print_json({"method": row.name, "editor": str(out), "validations": validations})
    else:
        console.print(f"trained: betaedit edit --method {row.name} --model {model} --set editor={out}", soft_wrap=True)


def _trainable(method: str) -> TrainableMethod:
    from betaedit.editors.method import TrainableMethod
    from betaedit.editors.methods import METHODS, find_method

    row = find_method(method)
    if not isinstance(row, TrainableMethod):
        others = ", ".join(name for name, other in METHODS.items() if isinstance(other, TrainableMethod))
        raise MethodError(f"{row.name} is not trained: it edits as it is.", hint=f"Methods that are trained: {others}.")
    return row


def _listener(console: Console, validations: list[Mapping[str, Any]]) -> Callable[[Mapping[str, Any]], None]:
    """Shows each validation in one line."""

    def hear(figures: Mapping[str, Any]) -> None:
        validations.append(figures)
        shares = ", ".join(f"{name} {figures[name]:.0%}" for name in _SHARES)
        console.print(
            f"step {figures['step']}: loss {figures['train_loss']:.4f}, validation {figures['loss']:.4f}; {shares}; "
            f"{figures['seconds']:.0f} s",
            soft_wrap=True,
            highlight=False,
        )

    return hear


def _show_settings(config: MethodConfig, *, json_: bool) -> None:
    values = config.model_dump(mode="json")
    if json_:
        options.print_json(values)
        return
    for name, field in type(config).model_fields.items():
        typer.echo(f"{name}={values[name]}  {field.description}")
