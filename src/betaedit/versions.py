"""Library versions, for the records of runs, calibrations and workspaces."""

from __future__ import annotations

import platform
from importlib import metadata

_RECORDED = ("betaedit", "torch", "transformers")


def library_versions() -> dict[str, str]:
    """The versions of Python, this package, and the libraries that affect edits."""
    return {"python": platform.python_version(), **{name: metadata.version(name) for name in _RECORDED}}
