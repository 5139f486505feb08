"""Files of facts: every format of the field, compressed or not, read into evaluation cases.

The kind of file comes from its name (see ``sources``), the format of its records from their keys (see ``formats``).
Errors of a file are ``FactError``s with file, line and hint.

Records are read and converted one by one, while the caller iterates.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import get_args

from betaedit.errors import ConfigError, FactError
from betaedit.extras import import_extra
from betaedit.facts.fact import EvaluationCase
from betaedit.facts.formats import EXAMPLE, Format, Reading, Record, ZsreTarget, find_format
from betaedit.facts.json_array import array_items
from betaedit.facts.json_text import as_record, decoded, parsed
from betaedit.facts.sources import DATASET, Source, find_source, source_name
from betaedit.facts.table import read_table


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
    """The contents of a file of facts.

    Args:
        path: The file; ``standard input`` or ``a pipe`` for what was piped in.
        format: Name of the format its records are in.
        cases: The usable records, in the order of the file.
        rejected: The others; only with ``skip_invalid``.
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
    """The evaluation cases in a ``.jsonl``, ``.json``, ``.csv`` or ``.tsv`` file, which may be compressed (``.gz``).

    Every fact gets an id: its own, or the format's name with the file's case number or, failing that, the line; the
    facts of a record that holds several are numbered.

    Args:
        path: The file. Lines count from 1; in a ``.json`` array the number of the record stands for the line.
            Or a Hugging Face dataset: ``dataset:owner/name``, ``dataset:owner/name:split`` (else ``train``) or
            ``dataset:owner/name:config:split``. Or a pipe, ``-`` being the standard input, read to its end; its
            content tells which kind it is.
        limit: Stop after this many usable cases; the rest is not read.
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
    return FactFile(Path(source_name(path)), form, tuple(cases), tuple(rejected))


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
    """The result of each record, usable or not, read while you iterate.

    Raises:
        FactError: The file as a whole cannot be read (further), or holds no record.
        ConfigError: ``zsre_target`` does not exist.
        MissingExtraError: As ``read_cases``.
    """
    _check_options(None, zsre_target)
    source = find_source(path)
    converter = _Converter(zsre_target, unit="record" if source.kind in (DATASET, ".json") else "line")
    with closing(_entries(source)) as entries:
        for line, entry in entries:
            result: Converted | Rejected
            try:
                result = converter.result(line, entry)
            except FactError as error:
                result = Rejected(line, error.at(source.path, line))
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
        FactError: The file cannot be read, or a record is broken or not an object; raised on reaching it.
    """
    source = find_source(path)
    for line, entry in _entries(source):
        if isinstance(entry, FactError):
            raise entry.at(source.path, line)
        yield line, entry


def _check_options(limit: int | None, zsre_target: str) -> None:
    if limit is not None and limit < 1:
        raise ConfigError(f"limit is {limit}.", hint="Give at least 1, or leave it out to read all.")
    if zsre_target not in get_args(ZsreTarget):
        raise ConfigError(f"zsre_target is {zsre_target!r}.", hint=f"Choose from {', '.join(get_args(ZsreTarget))}.")


class _Converter:
    """Makes cases of one file's records; remembers the file's format and the ids seen."""

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
                hint="Give every fact an id of its own.",
                field="id",
            )


# A broken record is yielded as a value, because a generator cannot continue after an error; a broken file raises.
_Entries = Iterator[tuple[int, Record | FactError]]


def _entries(source: Source) -> Generator[tuple[int, Record | FactError], None, None]:
    """The numbered records of a source of any kind, or what is wrong with them.

    Raises:
        FactError: The source as a whole cannot be read, or is empty.
    """
    empty = True
    for numbered in _reader_of(source)(source):
        empty = False
        yield numbered
    if empty:
        raise FactError("the file holds no record.", hint=f"Write one fact a line, as in {EXAMPLE}", path=source.path)


def _reader_of(source: Source) -> Callable[[Source], _Entries]:
    if source.kind not in _READERS:
        next(source.lines(), None)  # that a file is missing or a folder matters more than its name
        raise FactError(
            f"files named {source.kind or source.path.name} are not read.",
            hint=f"Name the file {', '.join(_ENDINGS)}, or one of these with .gz.",
            path=source.path,
        )
    return _READERS[source.kind]


def _read_jsonl(source: Source) -> _Entries:
    for line, raw in source.lines():
        if record := raw.rstrip():
            try:
                yield line, as_record(parsed(decoded(record)))
            except FactError as error:
                yield line, error


def _read_json(source: Source) -> _Entries:
    try:
        for number, value in enumerate(array_items(source.blocks()), start=1):
            yield number, as_record(value)
    except FactError as error:
        raise error if error.path else error.at(source.path, error.line or 1) from error


def _read_dataset(source: Source) -> _Entries:
    """The records of a Hugging Face dataset, streamed, numbered from 1."""
    load_dataset = import_extra("datasets", "datasets", "reading a dataset").load_dataset
    name, *parts = source.path.as_posix().removeprefix(DATASET).split(":")
    split = parts.pop() if parts else "train"
    config = parts.pop() if parts else None
    try:
        for number, record in enumerate(load_dataset(name, config, split=split, streaming=True), start=1):
            yield number, dict(record)
    except Exception as error:
        raise FactError(
            f"the dataset cannot be read: {error}",
            hint="Check its name, its split and the network, or download it and name the file.",
            path=source.path,
        ) from error


_ENDINGS = (".jsonl", ".json", ".csv", ".tsv")
_READERS: dict[str, Callable[[Source], _Entries]] = {
    ".jsonl": _read_jsonl,
    ".json": _read_json,
    ".csv": read_table,
    ".tsv": read_table,
    DATASET: _read_dataset,
}
