"""docs/easyedit.md is what the tables say by which the files are read."""

from __future__ import annotations

import runpy
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_page_of_easyedit_s_keys_is_what_the_tables_say() -> None:
    script = runpy.run_path(str(ROOT / "scripts" / "easyedit_page.py"))
    stated = (ROOT / "docs" / "easyedit.md").read_text(encoding="utf-8")
    assert stated == script["page"](), "run: python scripts/easyedit_page.py"
