"""Files of facts: every format of the field, compressed or not, read into evaluation cases.

The kind of file comes from its name, the format of its records from their keys (see ``formats``). Whatever is wrong
with a file is a ``FactError`` with the file, the line and what to do about it.

Records are read and converted one by one, while the caller iterates.
"""

from __future__ import annotations

import codecs
import csv
import gzip
import json
import zlib
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from itertools import zip_longest
from pathlib import Path
from typing import IO, Any, cast, get_args

from betaedit.errors import ConfigError, FactError
from betaedit.extras import import_extra
from betaedit.facts.fact import EvaluationCase
from betaedit.facts.formats import EXAMPLE, Format, Reading, Record, ZsreTarget, find_format
from betaedit.facts.json_array import array_items, shown

_BLOCK = 1 << 16
_CSV_LISTS = ("paraphrases", "neighbors", "generation_prompts")
_NOTHING = '""'  # in a cell of ``joint``, where an empty one says nothing
_DATASET = "dataset:"
_JSON_SHAPES = (
    "Correct this place or take the record out. A .jsonl file holds one record {...} a line, a .json file one array "
    "[...] of records."
)
_FILE_ERRORS: tuple[tuple[type[Exception], str, str], ...] = (
    (FileNotFoundError, "there is no such file.", "Check the path."),
    (IsADirectoryError, "this is a folder.", "Name a file in it."),
    (PermissionError, "the file may not be read.", "Check its permissions."),
    (gzip.BadGzipFile, "the file is no gzip file or is damaged.", "Download it again, or drop .gz from its name."),
    (EOFError, "the compressed file breaks off.", "Download it again."),
    (zlib.error, "the compressed file is damaged.", "Download it again."),
)
_UNREADABLE = (OSError, EOFError, zlib.error)


@dataclass(frozen=True, slots=True)
class Rejected:
    """A record that could not be used."""

    line: int
    error: FactError


@dataclass(frozen=True, slots=True)
class Converted:
    """A usable record: its line, the name of its format and a case for each of its facts."""

    line: int
    format: str
    cases: tuple[EvaluationCase, ...]


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

    Every fact gets an id: its own, or the format's name with the file's case number or, failing that, the line; the
    facts of a record that holds several are numbered.

    Args:
        path: The file. Lines count from 1; in a ``.json`` array the number of the record stands for the line.
            Or a Hugging Face dataset: ``dataset:owner/name``, ``dataset:owner/name:split`` (else ``train``) or
            ``dataset:owner/name:config:split``.
        limit: Stop after this many usable cases; what follows is then not read.
        skip_invalid: Collect unusable records in ``rejected`` instead of stopping at the first.
        zsre_target: What a zsRE record writes: ``alt``, a new answer, as EasyEdit does; or ``answers``, the true one,
            as MEMIT and AlphaEdit do.

    Raises:
        FactError: The file or dataset cannot be read, a record is broken, does not fit the format of the first or
            repeats an id, or no record at all is usable.
        ConfigError: An option has an impossible value.
        MissingExtraError: The datasets library is needed and absent.
    """
    form = ""
    cases: list[EvaluationCase] = []
    rejected: list[Rejected] = []
    for result in _chosen(path, limit, skip_invalid, zsre_target):
        if isinstance(result, Rejected):
            rejected.append(result)
        else:
            form = result.format
            cases.extend(result.cases)
    return FactFile(Path(path), form, tuple(cases), tuple(rejected))


def iter_cases(
    path: str | Path,
    *,
    limit: int | None = None,
    skip_invalid: bool = False,
    zsre_target: ZsreTarget = "alt",
) -> Iterator[EvaluationCase]:
    """The cases that ``read_cases`` gives, read while you iterate; of those passed only the ids are kept.

    Raises:
        FactError: As ``read_cases``, on reaching the record.
        ConfigError: As ``read_cases``.
        MissingExtraError: As ``read_cases``.
    """
    for result in _chosen(path, limit, skip_invalid, zsre_target):
        if isinstance(result, Converted):
            yield from result.cases


def iter_results(path: str | Path, *, zsre_target: ZsreTarget = "alt") -> Iterator[Converted | Rejected]:
    """What became of each record, usable or not, read while you iterate.

    Raises:
        FactError: The file as a whole cannot be read (further), or holds no record.
        ConfigError: ``zsre_target`` does not exist.
        MissingExtraError: As ``read_cases``.
    """
    path = Path(path)
    _check_options(None, zsre_target)
    converter = _Converter(zsre_target, unit="record" if _is_dataset(path) or _kind(path) == ".json" else "line")
    with closing(_entries(path)) as entries:
        for line, entry in entries:
            result: Converted | Rejected
            try:
                result = converter.result(line, entry)
            except FactError as error:
                result = Rejected(line, error.at(path, line))
            yield result


def _chosen(
    path: str | Path, limit: int | None, skip_invalid: bool, zsre_target: ZsreTarget
) -> Iterator[Converted | Rejected]:
    """The results up to the case at which ``limit`` is reached.

    Raises:
        FactError: A record is not usable and ``skip_invalid`` is off, or none is usable.
        ConfigError: An option has an impossible value.
    """
    _check_options(limit, zsre_target)
    first_error: FactError | None = None
    n_cases = 0
    for result in iter_results(path, zsre_target=zsre_target):
        if isinstance(result, Rejected):
            first_error = first_error or result.error
            if not skip_invalid:
                raise result.error
            yield result
            continue
        cases = result.cases[: None if limit is None else limit - n_cases]
        n_cases += len(cases)
        yield replace(result, cases=cases)
        if n_cases == limit:
            return
    if first_error is not None and not n_cases:
        raise first_error


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

    def result(self, line: int, entry: Record | FactError) -> Converted:
        """The cases in ``entry``, which decides on the format if it is the first.

        Raises:
            FactError: The entry is an error itself, fits no format, is not usable, or repeats an id.
        """
        if isinstance(entry, FactError):
            raise entry
        self.format = self.format or find_format(entry)
        cases = self.format.convert(entry, Reading(self.format.name, line, self._zsre_target))
        for case in cases:
            self._check_id(case.fact.id, line)
        return Converted(line, self.format.name, cases)

    def _check_id(self, fact_id: str | None, line: int) -> None:
        first = self._lines.setdefault(fact_id, line)
        if first != line:
            raise FactError(
                f"the id {fact_id!r} of {self._unit} {first} comes again in {self._unit} {line}.",
                mend="Give every fact an id of its own.",
                field="id",
            )


# A broken record is handed on as a value, since a generator that raises cannot go on; a broken file is raised.
_Entries = Iterator[tuple[int, Record | FactError]]


def _entries(path: Path) -> Generator[tuple[int, Record | FactError], None, None]:
    """The numbered records of a dataset or of a file of any kind, or what is wrong with them.

    Raises:
        FactError: The file as a whole cannot be read, or is empty.
    """
    read = _read_dataset if _is_dataset(path) else _reader_of_file(path)
    empty = True
    for numbered in read(path):
        empty = False
        yield numbered
    if empty:
        raise FactError("the file holds no record.", mend=f"Write one fact a line, as in {EXAMPLE}", path=path)


def _reader_of_file(path: Path) -> Callable[[Path], _Entries]:
    kind = _kind(path)
    if kind not in _READERS:
        next(_lines(path), None)  # that a file is missing or a folder matters more than its name
        raise FactError(
            f"files named {kind or path.name} are not read.",
            mend=f"Name the file {', '.join(_READERS)}, or one of these with .gz.",
            path=path,
        )
    return _READERS[kind]


def _is_dataset(path: Path) -> bool:
    return path.as_posix().startswith(_DATASET)


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
        with _opened(path) as file:
            for number, raw in enumerate(file, start=1):
                yield number, raw
    except _UNREADABLE as error:
        raise _file_error(error, path, number + 1 if number else None) from error


def _blocks(path: Path) -> Iterator[str]:
    """The text of a file in blocks, which need not end where lines do.

    Raises:
        FactError: The file cannot be opened or decompressed, or is not UTF-8.
    """
    decoder = codecs.getincrementaldecoder("utf-8-sig")()
    line = 1
    try:
        with _opened(path) as file:
            while raw := file.read(_BLOCK):
                yield decoder.decode(raw)
                line += raw.count(b"\n")
            decoder.decode(b"", final=True)
    except UnicodeDecodeError as error:
        # What is decoded begins with the bytes of a character that the block before left open: no line breaks.
        raise _not_utf8(error, line + error.object.count(b"\n", 0, error.start), path) from error
    except _UNREADABLE as error:
        raise _file_error(error, path, line if line > 1 else None) from error


def _opened(path: Path) -> IO[bytes]:
    return cast(IO[bytes], gzip.open(path)) if _is_compressed(path) else path.open("rb")


def _file_error(error: Exception, path: Path, line: int | None) -> FactError:
    for kind, message, mend in _FILE_ERRORS:
        if isinstance(error, kind):
            return FactError(message, mend=mend, path=path, line=line)
    return FactError(f"the file cannot be read: {error}.", mend="Check the path and the disk.", path=path)


def _read_jsonl(path: Path) -> _Entries:
    for line, raw in _lines(path):
        if record := raw.rstrip():
            try:
                yield line, _as_record(_parsed(record))
            except FactError as error:
                yield line, error


def _read_json(path: Path) -> _Entries:
    try:
        for number, value in enumerate(array_items(_blocks(path), _JSON_SHAPES), start=1):
            yield number, _as_record(value)
    except FactError as error:
        raise error if error.path else error.at(path, error.line or 1) from error


def _read_csv(path: Path) -> _Entries:
    rows = csv.reader(_text_lines(path), strict=True, skipinitialspace=True)
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


def _read_dataset(path: Path) -> _Entries:
    """The records of a Hugging Face dataset, streamed, numbered from 1."""
    load_dataset = import_extra("datasets", "datasets", "reading a dataset").load_dataset
    name, *parts = path.as_posix().removeprefix(_DATASET).split(":")
    split = parts.pop() if parts else "train"
    config = parts.pop() if parts else None
    try:
        for number, record in enumerate(load_dataset(name, config, split=split, streaming=True), start=1):
            yield number, dict(record)
    except Exception as error:
        raise FactError(
            f"the dataset cannot be read: {error}",
            mend="Check its name, its split and the network, or download it and name the file.",
            path=path,
        ) from error


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
        raise _not_utf8(error, raw.count(b"\n", 0, error.start) + 1) from error


def _not_utf8(error: UnicodeDecodeError, line: int, path: Path | None = None) -> FactError:
    return FactError(f"this is no UTF-8: {error.reason}.", mend="Save the file as UTF-8.", path=path, line=line)


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
    return FactError(f"the record is no object but {shown(value)}.", mend=_JSON_SHAPES)


def _text_lines(path: Path) -> Iterator[str]:
    for line, raw in _lines(path):
        try:
            yield _decoded(raw)
        except FactError as error:
            raise error.at(path, line) from error


def _csv_record(names: list[str], cells: list[str]) -> Record | FactError:
    """A row as a record; a cell that holds a list has one entry a line, and cells missing at the end are empty.

    A question is a JSON object, as in the other kinds of file; ``""`` in a cell of ``joint`` is an empty text.
    """
    record: Record = {name: cell for name, cell in zip_longest(names, cells, fillvalue="") if name or cell}
    if "" in record:
        return FactError(
            f"the cell {record['']!r} stands under no header.", mend="Put quotes round a cell that holds a comma."
        )
    if not record.get("joint"):
        record.pop("joint", None)
    elif record["joint"] == _NOTHING:
        record["joint"] = ""
    lists = {name: record[name].replace("\r\n", "\n").split("\n") for name in _CSV_LISTS if name in record}
    try:
        questions = [_parsed(line.encode()) for line in record.get("questions", "").split("\n") if line.strip()]
    except FactError as error:
        return error.within("questions")
    return record | lists | ({"questions": questions} if "questions" in record else {})
