"""A long JSON array, parsed element by element, so that only one is in memory."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, NoReturn

from betaedit.errors import FactError
from betaedit.facts.hints import kind_of
from betaedit.facts.json_text import SHAPES, KeyWatch

_SPACE = " \t\n\r"
_OF_NUMBERS = "0123456789+-.eE"


def array_items(blocks: Iterator[str]) -> Iterator[Any]:
    """The elements of the one array that ``blocks`` of text (of any size) make up.

    An element with a repeated key is replaced by its error, so that later elements can still be read.

    Raises:
        FactError: The text is not JSON or not an array; ``line`` counts within the text.
    """
    text = _Text(blocks)
    if text.peek() != "[":
        value = text.value()
        text.expect_end()
        if isinstance(value, FactError):
            raise value
        raise FactError(f"this is {kind_of(value)}, not an array.", hint=SHAPES, line=1)
    text.take()
    if text.peek() != "]":
        yield text.value()
        while text.peek() == ",":
            text.take()
            yield text.value()
    if text.peek() != "]":
        text.fail("Expecting ',' delimiter")
    text.take()
    text.expect_end()


class _Text:
    """A text that is read as far as needed, with the present position."""

    def __init__(self, blocks: Iterator[str]) -> None:
        self._blocks = blocks
        self._text = ""
        self._at = 0
        self._line = 1  # of the start of the text held
        self._column = 1

    def peek(self) -> str:
        """The next character that is not white space; empty at the end."""
        while True:
            while self._at < len(self._text) and self._text[self._at] in _SPACE:
                self._at += 1
            if self._at < len(self._text):
                return self._text[self._at]
            if not self._read_on():
                return ""

    def take(self) -> None:
        """Pass the character that ``peek`` shows."""
        self._at += 1

    def value(self) -> Any:
        """The JSON value that comes next, or the error for a repeated key in it."""
        self.peek()
        while True:
            watch = KeyWatch()
            try:
                value, end = json.JSONDecoder(object_pairs_hook=watch).raw_decode(self._text, self._at)
            except json.JSONDecodeError as error:
                ahead = error.pos - self._at
                if not self._read_on():
                    self.fail(error.msg, ahead)
            except (ValueError, RecursionError) as error:  # thousands of digits or nested brackets
                raise FactError(f"this JSON cannot be read: {error}.", hint=SHAPES, line=self._line) from error
            else:
                # A number may continue in the next block, after its last digit or after a final "." or "e".
                length = end - self._at
                if self._text[end:].strip(_OF_NUMBERS) or not self._read_on():
                    self._at += length
                    return watch.error() or value

    def expect_end(self) -> None:
        """Refuse further text."""
        if self.peek():
            self.fail("Extra data")

    def fail(self, message: str, ahead: int = 0) -> NoReturn:
        """Refuse the text here, or ``ahead`` characters further."""
        line, column = self._place(self._at + ahead)
        raise FactError(f"this is not JSON: {message} at column {column}.", hint=SHAPES, line=line)

    def _read_on(self) -> bool:
        """Drop the text already read and double the rest, so that a long value is parsed only a few times."""
        self._line, self._column = self._place(self._at)
        rest = [self._text[self._at :]]
        wanted, held = len(rest[0]), 0
        for block in self._blocks:
            rest.append(block)
            held += len(block)
            if held > wanted:
                break
        self._text, self._at = "".join(rest), 0
        return held > 0

    def _place(self, position: int) -> tuple[int, int]:
        """Line and column, both from 1."""
        line = self._text.count("\n", 0, position)
        if line:
            return self._line + line, position - self._text.rindex("\n", 0, position)
        return self._line, self._column + position
