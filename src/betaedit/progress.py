"""Progress of long work: callbacks that the library calls and the command line shows."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Protocol


class Task(Protocol):
    """One piece of work under way."""

    def advance(self, amount: int = 1) -> None:
        """Report ``amount`` more units as done."""


class Progress(Protocol):
    """Something that can show pieces of work."""

    def task(self, description: str, total: int, unit: str, done: int = 0) -> AbstractContextManager[Task]:
        """A context in which one piece of work of ``total`` units runs, ``done`` of them before it begins."""


class _SilentTask:
    def advance(self, amount: int = 1) -> None:
        pass


class SilentProgress:
    """Shows nothing; the default of every library call."""

    def task(self, description: str, total: int, unit: str, done: int = 0) -> AbstractContextManager[Task]:
        """A context whose task draws nothing."""
        return nullcontext(_SilentTask())
