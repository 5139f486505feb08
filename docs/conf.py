"""Settings of the documentation site: `make docs` builds it from these pages and fails on a broken link."""

import re
from typing import Any

project = "betaedit"
copyright = "the betaedit authors"
extensions = ["myst_parser"]
source_suffix = {".md": "markdown"}
root_doc = "index"
exclude_patterns = ["images"]
myst_heading_anchors = 4  # links such as methods.md#b10-stabilizers, as GitHub makes them
html_theme = "furo"
html_title = "betaedit"
html_copy_source = False


def setup(app: Any) -> None:
    """The pages that index.md lists, under its headings, become the site's sidebar."""
    app.connect("source-read", _add_sidebar)


def _add_sidebar(_app: Any, page: str, source: list[str]) -> None:
    if page != root_doc:
        return
    for section in re.split(r"^## ", source[0], flags=re.MULTILINE)[1:]:
        caption, _, body = section.partition("\n")
        listed = dict.fromkeys(re.findall(r"\]\(([\w/-]+)\.md\)", body))
        source[0] += "\n".join(["", "```{toctree}", ":hidden:", f":caption: {caption}", "", *listed, "```", ""])
