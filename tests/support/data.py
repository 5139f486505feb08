"""The shared data sets, which a checkout may lack."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

_FALLBACK = Path(__file__).resolve().parents[3] / "shared" / "data"


def data_file(name: str) -> Path:
    """The path of a shared data file; skips the running test where there is none."""
    path = Path(os.environ.get("BETAEDIT_DATA") or _FALLBACK) / name
    if not path.is_file():
        pytest.skip(f"no data file {path}: set BETAEDIT_DATA to the folder that holds it")
    return path
