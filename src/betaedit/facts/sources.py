"""Sources of records as bytes: a file, compressed or not, or a pipe, in any Unicode encoding.

A pipe can be read only once, so what it holds is kept in memory; the kind of its records comes from its content, where
that of a file comes from its name.
"""

from __future__ import annotations

import codecs
import gzip
import io
import re
import stat
import sys
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any, cast

from betaedit.errors import FactError
from betaedit.files import text_encoding

DATASET = "dataset:"
_STANDARD_INPUT = "standard input"
_NAMES_OF_IT = {"-", "/dev/stdin", "/dev/fd/0", "/proc/self/fd/0"}
_DESCRIPTOR = re.compile(r"/(?:dev|proc/(?:self|\d+))/fd/\d+")
_GZIP = b"\x1f\x8b"
_BLOCK = 1 << 16
_PIPE_IN = "Pipe the facts in, as in `cat facts.jsonl | betaedit data check -`, or name a file."
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
class Source:
    """Bytes of facts.

    Args:
        path: What errors and records call it: the path, or ``standard input``.
        kind: ``.jsonl``, ``.json``, ``.csv`` or, of a file with another name, its ending; ``dataset:`` for a dataset.
        compressed: Whether it is gzip.
        content: What a pipe held; ``None`` for a file.
    """

    path: Path
    kind: str
    compressed: bool
    content: bytes | None = None

    def lines(self) -> Iterator[tuple[int, bytes]]:
        """The numbered lines as UTF-8; bytes, since text would also break at rare Unicode separators inside a record.

        Raises:
            FactError: The file cannot be opened or decompressed, or is broken UTF-16 or UTF-32.
        """
        number = 0
        try:
            with self._opened() as file:
                for number, raw in enumerate(file, start=1):
                    yield number, raw
        except UnicodeDecodeError as error:
            raise not_unicode(error, number + 1, self.path) from error
        except _UNREADABLE as error:
            raise _file_error(error, self.path, number + 1 if number else None) from error

    def blocks(self) -> Iterator[str]:
        """The text in blocks, which need not end where lines do.

        Raises:
            FactError: The file cannot be opened or decompressed, or is not Unicode.
        """
        decoder = codecs.getincrementaldecoder("utf-8-sig")()
        line = 1
        try:
            with self._opened() as file:
                while raw := file.read(_BLOCK):
                    yield decoder.decode(raw)
                    line += raw.count(b"\n")
                decoder.decode(b"", final=True)
        except UnicodeDecodeError as error:
            # The bytes left from the block before are part of a character: no line breaks.
            raise not_unicode(error, line + error.object.count(b"\n", 0, error.start), self.path) from error
        except _UNREADABLE as error:
            raise _file_error(error, self.path, line if line > 1 else None) from error

    @contextmanager
    def _opened(self) -> Iterator[IO[bytes]]:
        place = self.path if self.content is None else io.BytesIO(self.content)
        with gzip.open(place) if self.compressed else _plain(place) as file:
            encoding = text_encoding(file.peek(4))
            if encoding == "utf-8-sig":
                yield cast(IO[bytes], file)
            else:
                with io.BufferedReader(_Recoded(cast(IO[bytes], file), encoding)) as recoded:
                    yield recoded


def _plain(place: Path | io.BytesIO) -> io.BufferedReader:
    return place.open("rb") if isinstance(place, Path) else io.BufferedReader(cast(io.RawIOBase, place))


class _Recoded(io.RawIOBase):
    """A file in another encoding as one of UTF-8, line ends as they are."""

    def __init__(self, file: IO[bytes], encoding: str) -> None:
        self._text = io.TextIOWrapper(file, encoding, newline="")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        raw = self._text.read(max(len(buffer) // 4, 1)).encode()  # no character takes more than four bytes
        buffer[: len(raw)] = raw
        return len(raw)

    def close(self) -> None:
        self._text.close()
        super().close()


def find_source(path: str | Path) -> Source:
    """The source at ``path``: a dataset, a file, a pipe, or ``-``, the standard input. Pipes are read to their end.

    Raises:
        FactError: Nothing is piped in, or the input cannot be read.
    """
    path, name = Path(path), Path(source_name(path))
    if path.as_posix().startswith(DATASET):
        return Source(path, DATASET, compressed=False)
    if str(path) in _NAMES_OF_IT:
        return _of_pipe(name, None if sys.stdin is None else sys.stdin.buffer)
    if _is_pipe(path):
        try:
            with path.open("rb") as file:
                return _of_pipe(name, file)
        except OSError as error:
            raise _file_error(error, name, None) from error
    compressed = path.suffix.lower() == ".gz"
    return Source(path, Path(path.stem if compressed else path).suffix.lower(), compressed)


def source_name(path: str | Path) -> str:
    """The name of the facts' source for records: the given path, or that it was a pipe."""
    if str(path) in _NAMES_OF_IT:
        return _STANDARD_INPUT
    return "a pipe" if _DESCRIPTOR.fullmatch(str(path)) else str(path)


def not_unicode(error: UnicodeDecodeError, line: int, path: Path | None = None) -> FactError:
    """The error for bytes that are not text; lines count from 1."""
    name = "UTF-8" if error.encoding.startswith("utf-8") else error.encoding.upper()
    return FactError(f"this is not {name}: {error.reason}.", hint="Save the file as UTF-8.", path=path, line=line)


def _is_pipe(path: Path) -> bool:
    """Whether ``path`` is not a regular file, or is an open file under a number: then its name has no file type."""
    try:
        mode = path.stat().st_mode
    except OSError:  # reported when the file is opened
        return False
    return not stat.S_ISDIR(mode) and (not stat.S_ISREG(mode) or _DESCRIPTOR.fullmatch(str(path)) is not None)


def _of_pipe(name: Path, pipe: IO[bytes] | None) -> Source:
    """The content of ``pipe``, with the kind found from its first character."""
    if pipe is None or pipe.isatty():
        raise FactError("nothing is piped in.", hint=_PIPE_IN, path=name)
    content = pipe.read()
    source = Source(name, ".jsonl", content.startswith(_GZIP), content)
    first = next(source.blocks(), "").lstrip()[:1]
    return replace(source, kind={"[": ".json", "{": ".jsonl", "": ".jsonl"}.get(first, ".csv"))


def _file_error(error: Exception, path: Path, line: int | None) -> FactError:
    for kind, message, hint in _FILE_ERRORS:
        if isinstance(error, kind):
            return FactError(message, hint=hint, path=path, line=line)
    return FactError(f"the file cannot be read: {error}.", hint="Check the path and the disk.", path=path)
