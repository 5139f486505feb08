"""docs/commands.md is what the commands themselves say."""

from __future__ import annotations

import runpy
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_page_of_commands_is_what_the_commands_say() -> None:
    script = runpy.run_path(str(ROOT / "scripts" / "command_pages.py"))
    stated = (ROOT / "docs" / "commands.md").read_text(encoding="utf-8")
    assert stated == script["page"](), "run: python scripts/command_pages.py"
