"""Optional libraries, imported when they are first needed."""

from __future__ import annotations

import importlib
import sys
from typing import Any

from betaedit.errors import MissingExtraError


def import_extra(module: str, extra: str, purpose: str) -> Any:
    """The module of an optional library.

    Args:
        module: Its full name.
        extra: The extra of this package that installs it.
        purpose: What needs it, as the subject of a sentence.

    Raises:
        MissingExtraError: It is not installed.
    """
    try:
        importlib.import_module(module.partition(".")[0])
        return importlib.import_module(module)
    except ImportError as error:
        raise MissingExtraError(
            f"{purpose} needs {module.partition('.')[0]}.", hint=f'{sys.executable} -m pip install "betaedit[{extra}]"'
        ) from error
