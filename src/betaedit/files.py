"""Files that appear whole or not at all, and what the system says against writing them as an error of this package."""

from __future__ import annotations

import codecs
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from safetensors import SafetensorError

from betaedit.errors import BetaEditError

_UNFINISHED = ".writing"
# UTF-32 before UTF-16, whose mark begins like it.
_MARKS = {
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}


def text_encoding(head: bytes) -> str:
    """The encoding that the first four bytes of a text tell of: ``utf-8-sig`` where they hold no other's mark."""
    return next((name for mark, name in _MARKS.items() if head.startswith(mark)), "utf-8-sig")


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """A file to write to, this thread's own; afterwards it stands at ``path``, or is gone if the context failed.

    Folders are made when absent, a link at ``path`` stays one, and what is no file (a pipe, a terminal) is written to
    as it is.
    """
    if path.exists() and not path.is_file():
        yield path
        return
    path = path.resolve()
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(f"{path.name}.{os.getpid()}-{threading.get_ident()}{_UNFINISHED}")
    try:
        yield scratch
        with scratch.open("rb") as written:
            os.fsync(written.fileno())
        scratch.replace(path)
    finally:
        with suppress(OSError):
            scratch.unlink(missing_ok=True)


def clear_unfinished(path: Path) -> None:
    """Remove what processes that were killed had begun to write at ``path``; one that still writes it fails."""
    for left in path.parent.glob(f"{path.name}.*{_UNFINISHED}"):
        left.unlink(missing_ok=True)


@contextmanager
def file_errors(path: Path, kind: type[BetaEditError]) -> Iterator[None]:
    """A context in which what the system says against writing ``path`` becomes an error of that ``kind``."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        mend = "Look at the rights of the folder and the room on the disk, then repeat the command."
        if isinstance(error, IsADirectoryError):
            mend = "Name a file, or remove the folder in its place."
        raise kind(f"{path} cannot be written: {error}.", mend=mend) from error
