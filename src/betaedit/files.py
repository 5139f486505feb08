"""Atomic writes of files and folders, and the errors of the operating system as errors of this library."""

from __future__ import annotations

import codecs
import errno
import glob
import os
import shutil
import stat
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout
from safetensors import SafetensorError

from betaedit.errors import BetaEditError

_UNFINISHED = ".writing"
_LOCK = ".lock"
_FILE_RIGHTS = 0o666
# UTF-32 before UTF-16, whose mark is a prefix.
_MARKS = {
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}


def text_encoding(head: bytes) -> str:
    """The encoding given by the byte order mark in the first four bytes of a text; default: ``utf-8-sig``."""
    return next((name for mark, name in _MARKS.items() if head.startswith(mark)), "utf-8-sig")


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """A temporary file to write to; at the end it replaces ``path``, or is deleted after an error.

    Missing folders are made, a link at ``path`` stays a link, and a pipe or terminal gets the content at the end. The
    file has the permissions of the user's umask, whatever library wrote it.
    """
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if path.exists() and not path.is_file():
        with tempfile.TemporaryDirectory() as folder:
            yield (content := Path(folder) / path.name)
            with content.open("rb") as source, path.open("wb") as target:
                shutil.copyfileobj(source, target)
        return
    path = path.resolve()
    with _parents_of(path):
        scratch = _scratch(path)
        try:
            scratch.touch()
            rights = stat.S_IMODE(scratch.stat().st_mode)
            yield scratch
            _finish(scratch, rights)
            scratch.replace(path)
        finally:
            with suppress(OSError):
                scratch.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """A temporary folder to write into; at the end its files are moved to ``path``, or deleted after an error.

    A new folder appears in one step. In an existing one, every file is replaced in one step, and files of other names
    stay. Files of killed processes are removed first. Permissions are those of the umask.
    """
    path = path.resolve()
    is_new = not path.exists()
    if not (is_new or path.is_dir()):
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(path))
    place = path if is_new else path / path.name  # an existing folder may be a mount, which cannot be renamed
    with _parents_of(place):
        for left in unfinished(place):
            _remove_dead(left)
        scratch = _scratch(place)
        try:
            scratch.mkdir()
            with FileLock(scratch / _LOCK):
                yield scratch
            (scratch / _LOCK).unlink(missing_ok=True)
            rights = stat.S_IMODE(scratch.stat().st_mode) & _FILE_RIGHTS
            for file in _files(scratch):
                _finish(file, rights)
            if is_new:
                scratch.rename(path)
            else:
                _move_files(scratch, path)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)


def unfinished(path: Path) -> list[Path]:
    """Temporary files for ``path``, of running or killed processes."""
    return list(path.parent.glob(f".{glob.escape(path.name)}.*{_UNFINISHED}"))


def holds_nothing(folder: Path) -> bool:
    """Whether a folder holds only files that ``atomic_folder`` will remove."""
    folder = folder.resolve()
    return set(folder.iterdir()) <= set(unfinished(folder / folder.name))


def clear_unfinished(path: Path) -> None:
    """Remove temporary files of killed processes for ``path``; a process that still writes one fails."""
    for left in unfinished(path):
        left.unlink(missing_ok=True)


@contextmanager
def file_errors(path: Path, kind: type[BetaEditError]) -> Iterator[None]:
    """A context in which system errors on writing ``path`` become errors of that ``kind``."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        hint = "Check the permissions of the folder and the free disk space, then repeat the command."
        if isinstance(error, IsADirectoryError):
            hint = "Name a file."
        raise kind(f"{path} cannot be written: {error}.", hint=hint) from error


def _scratch(path: Path) -> Path:
    """The temporary path of this thread for ``path``."""
    return path.with_name(f".{path.name}.{os.getpid()}-{threading.get_ident()}{_UNFINISHED}")


@contextmanager
def _parents_of(path: Path) -> Iterator[None]:
    """A context with the folders above ``path``; new ones are removed after an error."""
    made = [parent for parent in path.parents if not parent.exists()]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield
    except BaseException:
        for parent in made:
            with suppress(OSError):  # another program has put something there
                parent.rmdir()
        raise


def _remove_dead(scratch: Path) -> None:
    """Remove a scratch folder whose process no longer holds its lock."""
    with suppress(OSError, Timeout), FileLock(scratch / _LOCK, timeout=0):
        shutil.rmtree(scratch)


def _files(folder: Path) -> list[Path]:
    return sorted(file for file in folder.rglob("*") if file.is_file())


def _finish(file: Path, rights: int) -> None:
    """Flush ``file`` to disk, which may only now report that it is full, and set its permissions."""
    with file.open("rb") as written:
        os.fsync(written.fileno())
        if stat.S_IMODE(os.fstat(written.fileno()).st_mode) != rights:
            file.chmod(rights)  # safetensors makes its files private


def _move_files(source: Path, target: Path) -> None:
    for file in _files(source):
        place = target / file.relative_to(source)
        place.parent.mkdir(parents=True, exist_ok=True)
        file.replace(place)
