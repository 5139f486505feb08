"""Files that cannot be written say so as an error of this package."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from betaedit.errors import BetaEditError


@contextmanager
def file_errors(path: Path, kind: type[BetaEditError]) -> Iterator[None]:
    """A context in which what the system says against writing ``path`` becomes an error of that ``kind``."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        raise kind(
            f"{path} cannot be written: {error}.", mend="Look at the rights of the folder and at the room on the disk."
        ) from error
