"""Sections of methods.md and metrics.md that a docstring or comment cites are sections of those pages."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = [(ROOT / "docs" / page).read_text(encoding="utf-8") for page in ("methods.md", "metrics.md")]
HEADINGS = {name for page in PAGES for name in re.findall(r"^##+ ([A-H](?:\.\d+)?)\.? ", page, flags=re.MULTILINE)}
# "methods.md A.7", "docs/methods.md A.4-7, B.7", "metrics.md G.4", "(methods.md C)", "(D.5 to D.7)"
AFTER_PAGE = re.compile(r"(?:methods|metrics)\.md,?\s+(?:sections?\s+)?([A-H](?:\.\d+)?)\b")
ALONE = re.compile(r"\b([A-H]\.\d+)\b")
SOURCES = sorted(
    path for folder in ("src", "tests") for path in (ROOT / folder).rglob("*.py") if path != Path(__file__)
)


def cited(text: str) -> set[str]:
    """Every section that ``text`` names, whether the page's name stands before it or not."""
    joined = re.sub(r"\n\s*(?:#\s*)?", " ", text)
    return set(AFTER_PAGE.findall(joined)) | set(ALONE.findall(joined))


CITING = [path for path in SOURCES if path != Path(__file__) and cited(path.read_text(encoding="utf-8"))]


@pytest.mark.parametrize("path", CITING, ids=lambda path: path.name)
def test_every_section_that_a_file_cites_exists(path: Path) -> None:
    assert cited(path.read_text(encoding="utf-8")) <= HEADINGS


def test_citations_are_found_in_every_form() -> None:
    assert cited("(methods.md A.7)") == {"A.7"}
    assert cited("as methods.md\n    D.5 has it") == {"D.5"}
    assert cited("(metrics.md G.2), and so on (G.4)") == {"G.2", "G.4"}
    assert cited("(docs/methods.md section B)") == {"B"}
    assert cited("text of B. and C0") == set()
