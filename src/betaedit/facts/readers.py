"""Files of facts: every format of the field, compressed or not, read into evaluation cases.

The kind of file comes from its name, the format of its records from their keys (see ``formats``). Whatever is wrong
with a file is a ``FactError`` with the file, the line and what to do about it.
"""

from __future__ import annotations

import csv
import gzip
import json
import zlib
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any, get_args

from betaedit.errors import ConfigError, FactError
from betaedit.facts.fact import EvaluationCase
from betaedit.facts.formats import EXAMPLE, Format, Reading, Record, ZsreTarget, find_format

_CSV_LISTS = ("paraphrases", "neighbors")
_JSON_SHAPES = "A .jsonl file holds one record {...} a line, a .json file one array [...] of records."
_FILE_ERRORS: tuple[tuple[type[Exception], str, str], ...] = (
    (FileNotFoundError, "there is no such file.", "Check the path."),
    (IsADirectoryError, "this is a folder.", "Name a file in it."),
    (PermissionError, "the file may not be read.", "Check its permissions."),
    (gzip.BadGzipFile, "the file is no gzip file or is damaged.", "Download it again, or drop .gz from its name."),
    (EOFError, "the compressed file breaks off.", "Download it again."),
    (zlib.error, "the compressed file is damaged.", "Download it again."),
)


@dataclass(frozen=True, slots=True)
class Rejected:
    """A record that could not be used."""

    line: int
    error: FactError


@dataclass(frozen=True, slots=True)
class FactFile:
    """What a file holds.

    Args:
        path: The file.
        format: Name of the format its records are in.
        cases: The usable records, in the order of the file.
        rejected: The others; filled only when the caller asked to skip them.
    """

    path: Path
    format: str
    cases: tuple[EvaluationCase, ...]
    rejected: tuple[Rejected, ...] = ()


def demo_path() -> Path:
    """The small file of facts that comes with the package."""
    return Path(__file__).with_name("data") / "demo.jsonl"


def read_cases(
    path: str | Path,
    *,
    limit: int | None = None,
    skip_invalid: bool = False,
    zsre_target: ZsreTarget = "alt",
) -> FactFile:
    """The evaluation cases in a ``.jsonl``, ``.json`` or ``.csv`` file, which may be compressed (``.gz``).

    Every fact gets an id: its own, or the format's name with the file's case number or, failing that, the line.
    KnowEdit's portability questions are not read yet.

    Args:
        path: The file. Lines count from 1; in a ``.json`` array the number of the record stands for the line.
        limit: Stop after this many usable cases; a ``.jsonl`` or ``.csv`` file is then read no further.
        skip_invalid: Collect unusable records in ``rejected`` instead of stopping at the first.
        zsre_target: What a zsRE record writes: ``alt``, a new answer, as EasyEdit does; or ``answers``, the true one,
            as MEMIT and AlphaEdit do.

    Raises:
        FactError: The file cannot be read, a record is broken, does not fit the format of the first or repeats an id,
            or no record at all is usable.
        ConfigError: An option has an impossible value.
    """
    path = Path(path)
    _check_options(limit, zsre_target)
    converter = _Converter(zsre_target, unit="record" if _kind(path) == ".json" else "line")
    cases: list[EvaluationCase] = []
    rejected: list[Rejected] = []
    with closing(_entries(path)) as entries:
        for line, entry in entries:
            try:
                cases.append(converter.case(line, entry))
            except FactError as error:
                rejected.append(Rejected(line, error.at(path, line)))
                if not skip_invalid:
                    raise rejected[-1].error from error
            if len(cases) == limit:
                break
    if converter.format is None or not cases:
        raise rejected[0].error
    return FactFile(path, converter.format.name, tuple(cases), tuple(rejected))


def iter_records(path: str | Path) -> Iterator[tuple[int, Record]]:
    """The records of a file as they are written, each with its line (from 1), read while you iterate.

    Raises:
        FactError: The file cannot be read, or a record is broken or no object; raised on reaching it.
    """
    path = Path(path)
    for line, entry in _entries(path):
        if isinstance(entry, FactError):
            raise entry.at(path, line)
        yield line, entry


def _check_options(limit: int | None, zsre_target: str) -> None:
    if limit is not None and limit < 1:
        raise ConfigError(f"limit is {limit}.", mend="Ask for at least one case, or leave it out to read all.")
    if zsre_target not in get_args(ZsreTarget):
        raise ConfigError(f"zsre_target is {zsre_target!r}.", mend=f"Choose from {', '.join(get_args(ZsreTarget))}.")


class _Converter:
    """Makes cases of one file's records; remembers the file's format and the ids it has met."""

    def __init__(self, zsre_target: ZsreTarget, unit: str) -> None:
        self.format: Format | None = None
        self._zsre_target = zsre_target
        self._unit = unit
        self._lines: dict[str | None, int] = {}

    def case(self, line: int, entry: Record | FactError) -> EvaluationCase:
        """The case in ``entry``, which decides on the format if it is the first.

        Raises:
            FactError: The entry is an error itself, fits no format, is not usable, or repeats an id.
        """
        if isinstance(entry, FactError):
            raise entry
        self.format = self.format or find_format(entry)
        case = self.format.convert(entry, Reading(self.format.name, line, self._zsre_target))
        first = self._lines.setdefault(case.fact.id, line)
        if first != line:
            raise FactError(
                f"the id {case.fact.id!r} of {self._unit} {first} comes again in {self._unit} {line}.",
                mend="Give every fact an id of its own.",
                field="id",
            )
        return case


# A broken record is handed on as a value, since a generator that raises cannot go on; a broken file is raised.
_Entries = Iterator[tuple[int, Record | FactError]]


def _entries(path: Path) -> Generator[tuple[int, Record | FactError], None, None]:
    """The numbered records of a file of any kind, or what is wrong with them.

    Raises:
        FactError: The file as a whole cannot be read, or is empty.
    """
    kind = _kind(path)
    if kind not in _READERS:
        next(_lines(path), None)  # that a file is missing or a folder matters more than its name
        raise FactError(
            f"files named {kind or path.name} are not read.",
            mend=f"Name the file {', '.join(_READERS)}, or one of these with .gz.",
            path=path,
        )
    empty = True
    for numbered in _READERS[kind](path):
        empty = False
        yield numbered
    if empty:
        raise FactError("the file holds no record.", mend=f"Write one fact a line, as in {EXAMPLE}", path=path)


def _kind(path: Path) -> str:
    return Path(path.stem if _is_compressed(path) else path).suffix.lower()


def _is_compressed(path: Path) -> bool:
    return path.suffix.lower() == ".gz"


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """The numbered lines of a file; bytes, since text would also break at rare Unicode separators inside a record.

    Raises:
        FactError: The file cannot be opened or decompressed.
    """
    number = 0
    try:
        with gzip.open(path) if _is_compressed(path) else path.open("rb") as file:
            for number, raw in enumerate(file, start=1):
                yield number, raw
    except (OSError, EOFError, zlib.error) as error:
        for kind, message, mend in _FILE_ERRORS:
            if isinstance(error, kind):
                raise FactError(message, mend=mend, path=path, line=number + 1 if number else None) from error
        raise FactError(f"the file cannot be read: {error}.", mend="Check the path and the disk.", path=path) from error


def _read_jsonl(path: Path) -> _Entries:
    for line, raw in _lines(path):
        if record := raw.rstrip():
            try:
                yield line, _as_record(_parsed(record))
            except FactError as error:
                yield line, error


def _read_json(path: Path) -> _Entries:
    try:
        array = _parsed(b"".join(raw for _, raw in _lines(path)))
    except FactError as error:
        raise error.at(path, error.line or 1) from error
    if not isinstance(array, list):
        raise FactError(f"this is no array but {_shown(array)}.", mend=_JSON_SHAPES, path=path, line=1)
    for number, value in enumerate(array, start=1):
        yield number, _as_record(value)


def _read_csv(path: Path) -> _Entries:
    rows = csv.reader(_text_lines(path), strict=True)
    try:
        names = [cell.strip() for cell in next(rows, [])]
        if any(name and names.count(name) > 1 for name in names):
            raise FactError("two columns have the same header.", mend="Rename one.", path=path, line=1)
        line = rows.line_num + 1
        for cells in rows:
            if any(cells):
                yield line, _csv_record(names, cells)
            line = rows.line_num + 1
    except csv.Error as error:
        mend = "Save it as comma-separated values, with quotes round cells that hold a comma."
        raise FactError(f"this is no CSV: {error}.", mend=mend, path=path, line=rows.line_num) from error


_READERS: dict[str, Callable[[Path], _Entries]] = {
    ".jsonl": _read_jsonl,
    ".json": _read_json,
    ".csv": _read_csv,
}


def _decoded(raw: bytes) -> str:
    """``raw`` as text, without the mark that some editors put at the start.

    Raises:
        FactError: It is not UTF-8; ``line`` counts within ``raw``.
    """
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise FactError(f"this is no UTF-8: {error.reason}.", mend="Save the file as UTF-8.", line=line) from error


def _parsed(raw: bytes) -> Any:
    """The JSON value in ``raw``.

    Raises:
        FactError: It is no UTF-8 or no JSON; ``line`` counts within ``raw``.
    """
    try:
        return json.loads(_decoded(raw))
    except json.JSONDecodeError as error:
        message = f"this is no JSON: {error.msg} at column {error.colno}."
        raise FactError(message, mend=_JSON_SHAPES, line=error.lineno) from error
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, brackets thousands deep
        raise FactError(f"this JSON cannot be read: {error}.", mend=_JSON_SHAPES) from error


def _as_record(value: object) -> Record | FactError:
    if isinstance(value, dict):
        return value
    return FactError(f"the record is no object but {_shown(value)}.", mend=_JSON_SHAPES)


def _shown(value: object) -> str:
    return {dict: "an object", list: "a list", str: "a text", type(None): "null"}.get(type(value), "a number")


def _text_lines(path: Path) -> Iterator[str]:
    for line, raw in _lines(path):
        try:
            yield _decoded(raw)
        except FactError as error:
            raise error.at(path, line) from error


def _csv_record(names: list[str], cells: list[str]) -> Record | FactError:
    """A row as a record; a cell that holds a list has one entry a line, and cells missing at the end are empty."""
    record: Record = {name: cell for name, cell in zip_longest(names, cells, fillvalue="") if name or cell}
    if "" in record:
        return FactError(
            f"the cell {record['']!r} stands under no header.", mend="Put quotes round a cell that holds a comma."
        )
    return record | {name: record[name].split("\n") for name in _CSV_LISTS if name in record}
