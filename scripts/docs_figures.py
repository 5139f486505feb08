"""Draw the figures of the documentation from the tables of its lab pages: python scripts/docs_figures.py."""

from __future__ import annotations

import re
from pathlib import Path

import matplotlib as mpl
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

DOCS = Path(__file__).parents[1] / "docs"
THOUSANDS = [0, 1000, 2000, 3000]
COMPARED = {"betaedit": "-o", "memit-h": "-s", "alphaedit": "-^", "memit": "--s", "alphaedit-naive": "--^"}


def rows(page: str, heading: str = "") -> dict[str, list[str]]:
    """The cells of the first table below ``heading``, by the first cell of each row."""
    text = (DOCS / "lab" / page).read_text(encoding="utf-8").partition(heading)[2] if heading else ""
    text = text or (DOCS / "lab" / page).read_text(encoding="utf-8")
    table = re.search(r"(?:^\|.*\n)+", text, flags=re.MULTILINE)
    assert table is not None
    cells = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in table[0].splitlines()[2:]]
    return {row[0].split(" (")[0].strip("` "): row[1:] for row in cells}


def argmax(cell: str) -> float:
    """The second of two figures, in percent."""
    return 100 * float(cell.split("/")[1])


def perplexity(cell: str, before: float = 51.17) -> float:
    """The rise of perplexity in percent."""
    return 100 * (float(cell.split(maxsplit=1)[0]) / before - 1)


def comparison() -> None:
    """Facts held and rise of perplexity, by method, after 30, 300 and 1,070 edits."""
    page = "2026-11-22-methods-side-by-side.md"
    counts = {n: rows(page, f"## {n:,} edits") for n in (30, 300, 1070)}
    figure, (held, rise) = plt.subplots(1, 2, figsize=(9, 3.4))
    for method, style in COMPARED.items():
        measured = {n: table[method] for n, table in counts.items() if method in table}
        held.plot([*measured], [argmax(row[0]) for row in measured.values()], style, label=method)
        rise.plot([*measured], [perplexity(row[3]) for row in measured.values()], style, label=method)
    label(held, "facts held, argmax (%)", [*counts])
    label(rise, "rise of perplexity (%)", [*counts])
    held.set_ylim(0, 103)
    held.legend(frameon=False, loc="lower right")
    save(figure, "comparison.svg")


def capacity() -> None:
    """What betaedit holds and keeps over 3,000 edits."""
    table = rows("2026-11-29-three-thousand-facts.md")
    counts = [int(n.replace(",", "")) for n in table]
    figure, (held, rise) = plt.subplots(1, 2, figsize=(9, 3.2))
    for name, column, style in (("edited prompts", 0, "-o"), ("paraphrases", 1, "-s"), ("neighbors", 2, "-^")):
        shares = [100 * float(row[column].split("/")[0]) for row in table.values()]
        held.plot(counts, shares, style, label=f"{name}, probability")
    held.plot(counts, [argmax(row[0]) for row in table.values()], "--o", label="edited prompts, argmax")
    rise.plot(counts, [float(row[3]) for row in table.values()], "-o", color="C3")
    label(held, "prompts with the wanted answer (%)", THOUSANDS)
    label(rise, "perplexity", THOUSANDS)
    held.set_ylim(0, 103)
    held.legend(frameon=False, loc="lower right", fontsize=8)
    rise.set_ylim(bottom=0)
    save(figure, "capacity.svg")


def label(axes: Axes, what: str, counts: list[int]) -> None:
    """Name the axes and mark these numbers of edits."""
    axes.set_title(what, fontsize=10)
    axes.set_xlabel("edits")
    axes.set_xticks(counts)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)


def save(figure: plt.Figure, name: str) -> None:
    """Write an SVG that is the same each time, on a white ground, with text as text."""
    figure.tight_layout()
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
        figure.savefig(DOCS / "images" / name, metadata={"Date": None})
    plt.close(figure)


if __name__ == "__main__":
    mpl.use("svg")
    comparison()
    capacity()
