"""The cache of this package: converted models, sampled text, second moments."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_ROOT = "BETAEDIT_CACHE"


@contextmanager
def cache_at(root: Path) -> Iterator[None]:
    """A context with another cache folder, for this process and those it starts."""
    before = os.environ.get(_ROOT)
    os.environ[_ROOT] = str(root)
    try:
        yield
    finally:
        if before is None:
            del os.environ[_ROOT]
        else:
            os.environ[_ROOT] = before


def cache_folder(*parts: str) -> Path:
    """A folder below the cache, made when absent; ``BETAEDIT_CACHE`` moves the whole cache."""
    root = os.environ.get(_ROOT)
    base = Path(root) if root else Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")) / "betaedit"
    folder = base.expanduser().joinpath(*parts)
    folder.mkdir(parents=True, exist_ok=True)
    return folder
