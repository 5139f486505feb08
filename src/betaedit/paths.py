"""Where this package keeps what it computes once: converted models, sampled text, second moments."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder(*parts: str) -> Path:
    """A folder below the cache, made when absent; ``BETAEDIT_CACHE`` moves the whole cache."""
    root = os.environ.get("BETAEDIT_CACHE")
    base = Path(root) if root else Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "betaedit"
    folder = base.joinpath(*parts)
    folder.mkdir(parents=True, exist_ok=True)
    return folder
