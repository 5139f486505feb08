"""``betaedit ask``: questions to a model, its answers beside those of the unedited model."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from betaedit.cli import options
from betaedit.errors import BetaEditError, ConfigError

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from betaedit.evaluation.free_text import Answer
    from betaedit.experiments.asking import Asked, Conversation

_DEFAULT_MODEL = "smollm2"


def ask(
    questions: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="QUESTION", help="The questions; if none is given, one per line from a pipe or at a prompt."
        ),
    ] = None,
    chat: Annotated[bool, typer.Option("--chat", help="Put each question into the model's chat template.")] = False,
    system: Annotated[
        str | None, typer.Option("--system", help="With --chat: the system message before the question.")
    ] = None,
    model: Annotated[
        str | None,
        typer.Option("--model", "-m", help="A model, a saved folder, an adapter, a run, or a workspace."),
    ] = None,
    workspace: options.WorkspaceOption = None,
    n_tokens: Annotated[int, typer.Option("--tokens", min=1, help="Maximum number of tokens of an answer.")] = 32,
    top: Annotated[int, typer.Option("--top", min=1, help="Number of most probable answers to show.")] = 3,
    statistics: options.StatisticsOption = None,
    json_: options.JsonOption = False,
    dtype: options.OwnDtypeOption = None,
    device: options.DeviceOption = None,
) -> None:
    """Ask a model questions, and compare its answers with those of the unedited model.

    Without --model or --workspace, the workspace that contains the current folder is asked, else the default model.
    Below the answer are the most probable ones, each with the probability of its first token.
    """
    from rich.console import Console

    from betaedit.cli.render import say
    from betaedit.experiments.asking import check_questions, open_conversation

    name = _target(model, workspace)
    asked = questions or _piped(json_)
    check_questions(asked or [], chat=chat, system=system)
    console = Console(stderr=json_)
    options.quiet_libraries()
    with open_conversation(name, statistics=statistics, dtype=dtype, device=device) as conversation:
        put = partial(conversation.ask, chat=chat, system=system, n_tokens=n_tokens, top=top)
        if conversation.why_no_base:
            say(console, f"the model without the edits cannot be asked: {conversation.why_no_base}", "yellow")
        if json_:
            found = [each.to_dict() for each in put(asked or [])]
            base = {"base": conversation.base_name or None, "why_no_base": conversation.why_no_base or None}
            options.print_json({"model": name, **base, "chat": chat, "system": system, "questions": found})
            return
        for lot in [asked] if asked else _typed(console):
            try:
                for each in put(lot):
                    _show(each, conversation, console)
            except BetaEditError as error:
                if asked:
                    raise
                say(console, str(error), "red")


def _target(model: str | None, workspace: Path | None) -> str:
    """The model that the options name, else the workspace of the current folder, else the default model."""
    from betaedit.ledger.place import current_workspace, find_workspace

    if model is not None and workspace is not None:
        raise ConfigError("--model and --workspace cannot be combined.", hint="Give one of them.")
    if model is not None:
        return model
    found = current_workspace() if workspace is None else find_workspace(workspace)
    return _DEFAULT_MODEL if found is None else str(found)


def _piped(json_: bool) -> list[str] | None:
    """The questions from a pipe, one per line; ``None`` at a terminal, where they are typed one by one.

    Raises:
        ConfigError: There is no question, the input is not text, or ``--json`` was given without a question.
    """
    hint = 'Write betaedit ask "The capital of Japan is", or pipe questions in, one per line.'
    if sys.stdin.isatty():
        if json_:
            raise ConfigError("--json needs a question.", hint=hint)
        return None
    try:
        found = [line.strip() for line in sys.stdin.read().removeprefix("\ufeff").splitlines() if line.strip()]
    except UnicodeDecodeError as error:
        raise ConfigError(f"the questions are not UTF-8 text: {error.reason}.", hint="Write them as UTF-8.") from error
    if not found:
        raise ConfigError("there is no question.", hint=hint)
    return found


def _typed(console: Console) -> Iterator[list[str]]:
    """Questions typed at a prompt, one by one, until an empty line or Ctrl-D."""
    console.print("one question per line; an empty line or Ctrl-D ends", style="dim")
    try:
        while question := console.input("[bold]?[/] ").strip():
            yield [question]
    except EOFError:
        console.print()  # the prompt's line has no end yet


def _show(asked: Asked, conversation: Conversation, console: Console) -> None:
    """One question with its answers, those of the base first."""
    from rich.text import Text

    console.print(Text(asked.question, "bold"))
    console.print(_table(asked, conversation.base_name))


def _table(asked: Asked, base_name: str) -> Table:
    from rich.box import SIMPLE
    from rich.table import Table
    from rich.text import Text

    table = Table(box=SIMPLE, padding=(0, 1, 0, 0), show_header=asked.base is not None)
    columns = [asked.answer] if asked.base is None else [asked.base, asked.answer]
    table.add_column("", style="dim")
    edited = "edited: differs" if asked.differs else "edited"
    for name in [""] if asked.base is None else [f"base ({base_name})", edited]:
        table.add_column(Text(name), overflow="fold", ratio=1)
    table.add_row("says", *(Text(answer.text.strip() or "(nothing)") for answer in columns))
    for place in range(max(len(answer.likely) for answer in columns)):
        table.add_row(f"{place + 1}.", *(Text(_likely(answer, place)) for answer in columns))
    return table


def _likely(answer: Answer, place: int) -> str:
    """The probability of an answer and its first words, with line ends escaped."""
    if place >= len(answer.likely):
        return ""
    found = answer.likely[place]
    return f"{found.probability:6.1%}  {found.text.strip(' ').replace(chr(10), chr(92) + 'n') or '(end)'}"
