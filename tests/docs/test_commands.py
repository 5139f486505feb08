"""docs/commands.md is what the commands themselves say, and no page names a command or option that is not there."""

from __future__ import annotations

import re
import runpy
import shlex
from pathlib import Path
from typing import Any

import pytest
import typer

from betaedit.cli.main import app

ROOT = Path(__file__).parents[2]


def test_the_page_of_commands_is_what_the_commands_say() -> None:
    script = runpy.run_path(str(ROOT / "scripts" / "command_pages.py"))
    stated = (ROOT / "docs" / "commands.md").read_text(encoding="utf-8")
    assert stated == script["page"](), "run: python scripts/command_pages.py"


# A command in a listing, in an indented block, or alone between backticks.
COMMAND = re.compile(r"^(?: {4,}|\$ )(betaedit (?:.*\\\n)*.*)$|`(betaedit [^`]+)`", re.MULTILINE)
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def commands() -> dict[str, Any]:
    """Every command by its name; one of a group by both words."""
    found: dict[str, Any] = {}
    for name, command in typer.main.get_command(app).commands.items():
        inner = getattr(command, "commands", None)
        found |= {name: command} if inner is None else {f"{name} {word}": one for word, one in inner.items()}
    return found


def written(page: Path) -> list[list[str]]:
    """The words of every command on a page, what follows a pipe or a comment left out."""
    text = page.read_text(encoding="utf-8")
    lines = [listed or quoted for listed, quoted in COMMAND.findall(text)]
    return [shlex.split(re.split(r"\s[|<>]\s|;", line)[0].replace("\\\n", " "), comments=True) for line in lines]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_and_option_on_a_page_exists(page: Path) -> None:
    known = commands()
    for words in written(page):
        arguments = [word for word in words[1:3] if not word.startswith("-")]
        name = next((name for name in (" ".join(arguments), *arguments[:1]) if name in known), None)
        assert name is not None or words[1].startswith(("-", "COMMAND")), words
        options = {word.strip("[]").partition("=")[0] for word in words if word.strip("[").startswith("--")}
        offered = {option for parameter in known[name].params for option in parameter.opts} if name else set()
        assert options <= offered | {"--help", "--version", "--debug"}, words
