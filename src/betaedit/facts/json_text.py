"""JSON texts of facts; a repeated key is refused."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

from betaedit.errors import FactError
from betaedit.facts.hints import kind_of
from betaedit.facts.sources import not_unicode

SHAPES = (
    "Correct this place or remove the record. A .jsonl file holds one record {...} per line, a .json file one array "
    "[...] of records."
)


class KeyWatch:
    """Makes objects for a JSON decoder (its ``object_pairs_hook``) and remembers a repeated key."""

    def __init__(self) -> None:
        self.twice: str | None = None

    def __call__(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        """The object; a repeated key has its last value."""
        found = dict(pairs)
        if len(found) < len(pairs) and self.twice is None:
            self.twice = Counter(key for key, _ in pairs).most_common(1)[0][0]
        return found

    def error(self) -> FactError | None:
        """The error for that key, if any."""
        if self.twice is None:
            return None
        return FactError(f"the key {self.twice!r} occurs twice in one object.", hint="Keep one of the two.")


def decoded(raw: bytes) -> str:
    """``raw`` as text, without a byte order mark.

    Raises:
        FactError: It is not UTF-8; ``line`` counts within ``raw``.
    """
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise not_unicode(error, raw.count(b"\n", 0, error.start) + 1) from error


def parsed(text: str) -> Any:
    """The JSON value in ``text``.

    Raises:
        FactError: It is not JSON, or a key is repeated; ``line`` counts within ``text``.
    """
    watch = KeyWatch()
    try:
        value = json.loads(text, object_pairs_hook=watch)
    except json.JSONDecodeError as error:
        message = f"this is not JSON: {error.msg} at column {error.colno}."
        raise FactError(message, hint=SHAPES, line=error.lineno) from error
    except (ValueError, RecursionError) as error:  # thousands of digits or nested brackets
        raise FactError(f"this JSON cannot be read: {error}.", hint=SHAPES) from error
    if (twice := watch.error()) is not None:
        raise twice
    return value


def as_record(value: object) -> dict[str, Any] | FactError:
    """``value`` if it is an object or an error; else the error for another type."""
    if isinstance(value, dict | FactError):
        return value
    return FactError(f"the record is {kind_of(value)}, not an object.", hint=SHAPES)
