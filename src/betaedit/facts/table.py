"""Facts in a table: comma-separated values, as spreadsheets and pandas write them.

Cells are separated by commas, semicolons or tabs, whichever gives the most headers in the first line; a column of row
numbers, as pandas writes it, is ignored.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator
from itertools import chain, zip_longest

from betaedit.errors import FactError
from betaedit.facts.formats import Record
from betaedit.facts.json_text import decoded, parsed
from betaedit.facts.sources import Source

_NOTHING = '""'  # an empty text in a cell of ``joint``; an empty cell is none
_SEPARATORS = ",;\t"
_LISTS = ("paraphrases", "neighbors", "generation_prompts")
_UNNAMED = re.compile(r"^Unnamed: \d+(?:\.\d+)?$")  # pandas' name of a column without a header
_NAMED_SEPARATOR = re.compile(r"sep=(.)\r?\n?")  # Excel's own line above the headers
_LONGEST_CELL = 1 << 24
_NOT_CSV = "Save it as comma-separated values, with quotes round cells that hold a comma or a line end."


def read_table(source: Source) -> Iterator[tuple[int, Record | FactError]]:
    """The rows of a table as records, each with the line at which it begins.

    Raises:
        FactError: The file is not a table, or two of its columns have the same name.
    """
    # The limit is global; it is never lowered, so that threads do not interfere.
    csv.field_size_limit(max(csv.field_size_limit(), _LONGEST_CELL))
    lines = _text_lines(source)
    headers, first, separator = _headers(lines)
    rows = csv.reader(chain([headers], lines), delimiter=separator, strict=True, skipinitialspace=True)
    try:
        names = [_UNNAMED.sub("", cell.strip()) for cell in next(rows, [])]
        if any(name and names.count(name) > 1 for name in names):
            raise FactError("two columns have the same header.", hint="Rename one.", path=source.path, line=first)
        line = first + rows.line_num
        for cells in rows:
            if any(cells):
                yield line, _record(names, cells)
            line = first + rows.line_num
    except csv.Error as error:
        raise FactError(
            f"this is not a CSV file: {error}.", hint=_NOT_CSV, path=source.path, line=first + rows.line_num - 1
        ) from error


def _headers(lines: Iterator[str]) -> tuple[str, int, str]:
    """The line of the headers, its number, and what separates the cells in it."""
    separator = None
    for number, line in enumerate(lines, start=1):
        if (named := _NAMED_SEPARATOR.fullmatch(line)) is not None:
            separator = named[1]
        elif not line.isspace():
            return (
                line,
                number,
                separator or max(_SEPARATORS, key=lambda one: len(next(csv.reader([line], delimiter=one)))),
            )
    return "", 1, ","


def _text_lines(source: Source) -> Iterator[str]:
    for line, raw in source.lines():
        try:
            yield decoded(raw)
        except FactError as error:
            raise error.at(source.path, line) from error


def _record(names: list[str], cells: list[str]) -> Record | FactError:
    """A row as a record; a cell with a list has one entry per line, and missing cells at the end are empty.

    A question is a JSON object, as in the other kinds of file; ``""`` in a cell of ``joint`` is an empty text.
    """
    while names and not names[0] and cells and cells[0].isdecimal():
        names, cells = names[1:], cells[1:]
    if len(cells) > len(names) and any(cells[len(names) :]):
        extra = next(filter(None, cells[len(names) :]))
        return FactError(
            f"the cell {extra!r} has no header above it.", hint="Put quotes round a cell that holds a comma."
        )
    record: Record = {name: cell for name, cell in zip_longest(names, cells, fillvalue="") if name or cell}
    if "" in record:
        return FactError(
            f"the column of the cell {record['']!r} has no header.",
            hint="Name or drop that column (in pandas: to_csv(..., index=False)).",
        )
    if not record.get("joint"):
        record.pop("joint", None)
    elif record["joint"] == _NOTHING:
        record["joint"] = ""
    lists = {name: record[name].replace("\r\n", "\n").split("\n") for name in _LISTS if name in record}
    try:
        questions = [parsed(line) for line in record.get("questions", "").split("\n") if line.strip()]
    except FactError as error:
        return error.within("questions")
    return record | lists | ({"questions": questions} if "questions" in record else {})
