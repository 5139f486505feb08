"""docs/adding-an-editor.md, followed to the letter: its editor passes the tests of the protocol and runs everywhere."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from betaedit.editors.method import Method
from betaedit.editors.methods import METHODS
from contracts.test_editing_method import TestEveryMethod, TestEveryMethodThatEditsWeights, TestEveryMethodThatForgets

PAGE = Path(__file__).parents[2] / "docs" / "adding-an-editor.md"
__all__ = ["TestEveryMethod", "TestEveryMethodThatEditsWeights", "TestEveryMethodThatForgets"]


@pytest.fixture(scope="module")
def row() -> Iterator[Method]:
    """The page's row, registered."""
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL)[:2]
    module = ModuleType("added_editor")
    sys.modules[module.__name__] = module
    exec("\n".join(blocks), vars(module))
    (found,) = module.METHODS
    METHODS.register(found)
    yield found
    METHODS.unregister(found.name)
    del sys.modules[module.__name__]


@pytest.fixture
def method(row: Method) -> Method:
    return row
