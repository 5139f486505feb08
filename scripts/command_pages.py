"""Write docs/commands.md from the help of the commands: python scripts/command_pages.py."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import typer

from betaedit.cli.main import app

PAGE = Path(__file__).parents[1] / "docs" / "commands.md"
HEAD = """\
# Commands

Every command of `betaedit` with its arguments and options, as `betaedit COMMAND --help` prints them. The exit codes and
what `--json` prints are in [file formats](file-formats.md#exit-codes).

This page is written by `python scripts/command_pages.py`; a test fails when it differs from the commands.
"""
_PLACEHOLDERS: dict[Any, str] = {bool: "", int: "N", float: "X", Path: "PATH"}


def page() -> str:
    """The whole page."""
    program = typer.main.get_command(app)
    commands = dict(_commands(program, ""))
    index = "\n".join(
        f"- [`{name}`](#{name.replace(' ', '-')}): {_first(made.help)}" for name, made in commands.items()
    )
    return "\n".join([HEAD, index, "", *(_section(name, command) for name, command in commands.items())])


def _commands(group: Any, before: str) -> Iterator[tuple[str, Any]]:
    """Each command with its full name, those of groups included."""
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from _commands(command, f"{before}{name} ")
        else:
            yield before + name, command


def _entry(name: str, command: Any) -> str:
    return f"- [`{name}`](#{name.replace(' ', '-')}): {_first(command.help)}"


def _section(name: str, command: Any) -> str:
    rows = [_row(parameter) for parameter in command.params]
    table = ["| argument or option | meaning | default |", "| --- | --- | --- |", *rows, ""] if rows else []
    return "\n".join([f"## {name}", "", command.help.strip(), "", *table])


def _row(parameter: Any) -> str:
    value = parameter.metavar or _placeholder(parameter.type_descriptor.annotation)
    if parameter.param_type_name == "argument":
        spelled = f"`{parameter.metavar or parameter.name.upper()}`" + (" ..." if parameter.nargs == -1 else "")
    else:
        spelled = ", ".join(f"`{option}`" for option in [*parameter.opts, *parameter.secondary_opts])
        spelled += f" `{value}`" if value else ""
    default = parameter.default
    stated = "" if default in (None, False, "", (), []) or callable(default) else f"`{default}`"
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in (spelled, parameter.help or "", stated)) + " |"


def _placeholder(annotation: Any) -> str:
    if get_origin(annotation) is Literal:
        return "|".join(map(str, get_args(annotation)))
    return _PLACEHOLDERS.get(annotation, "TEXT")


def _first(text: str) -> str:
    return text.strip().split("\n\n")[0].replace("\n", " ")


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
