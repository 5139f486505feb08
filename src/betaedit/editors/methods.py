"""``METHODS``: every editing method by name, of all families. Needs no torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from importlib import import_module
from importlib.metadata import entry_points
from typing import Any

from betaedit.editors.method import Method
from betaedit.errors import ConfigError, MethodError, did_you_mean

ENTRY_POINTS = "betaedit.methods"
"""Entry point group by which installed packages add rows: each entry is an iterable of ``Method``."""


class MethodTable(Mapping[str, Method]):
    """Rows by name, in the order of their families; aliases can be looked up but are not listed.

    Args:
        families: Modules with a tuple ``METHODS``, imported when the table is first read.
    """

    def __init__(self, families: Sequence[str]) -> None:
        self._families = families
        self._rows: dict[str, Method] = {}
        self._aliases: dict[str, str] = {}
        self._complete = False

    def register(self, *rows: Method) -> None:
        """Add rows.

        Raises:
            MethodError: A name or alias is already taken; no row is added.
        """
        names = [name for row in rows for name in (row.name, *row.aliases)]
        taken = [name for name in names if name in self._rows or name in self._aliases or names.count(name) > 1]
        if taken:
            raise MethodError(f"there are two methods {taken[0]!r}.", hint="Give the new one another name.")
        for row in rows:
            self._rows[row.name] = row
            self._aliases.update(dict.fromkeys(row.aliases, row.name))

    def unregister(self, name: str) -> None:
        """Remove a row.

        Raises:
            KeyError: There is none of that name.
        """
        row = self._rows.pop(name)
        for alias in row.aliases:
            del self._aliases[alias]

    def __getitem__(self, name: str) -> Method:
        """The row of that name or alias."""
        self._load()
        return self._rows[self._aliases.get(name, name)]

    def __iter__(self) -> Iterator[str]:
        """Names of rows, aliases not among them."""
        self._load()
        return iter(self._rows)

    def __len__(self) -> int:
        """How many rows there are."""
        self._load()
        return len(self._rows)

    def names(self) -> list[str]:
        """Names and aliases."""
        return [*self, *self._aliases]

    def _load(self) -> None:
        if self._complete:
            return
        self._complete = True
        for family in self._families:
            self.register(*import_module(family).METHODS)
        for found in entry_points(group=ENTRY_POINTS):
            self.register(*found.load())


METHODS = MethodTable(
    (
        "betaedit.editors.closed_form.recipes",
        "betaedit.editors.gated.methods",
        "betaedit.editors.gradient.methods",
        "betaedit.editors.hypernet.methods",
        "betaedit.editors.retrieval.methods",
        "betaedit.editors.side_memory.methods",
    )
)


def find_method(name: str) -> Method:
    """The method of that name or alias; ``X+Y`` is ``Y`` put over ``X``, as ``betaedit+scr``.

    Raises:
        MethodError: There is none, and the nearest names are suggested; or ``Y`` cannot be put over another.
    """
    if name in METHODS:
        return METHODS[name]
    below, plus, above = name.rpartition("+")
    if plus:
        writer, upper = find_method(below), find_method(above)
        if (both := upper.over(writer)) is None:
            able = ", ".join(row.name for row in METHODS.values() if type(row).over is not Method.over)
            raise MethodError(
                f"{upper.name} cannot be put over {writer.name}.",
                hint=f"Before the + stands a method that changes weights, behind it one of {able}.",
            )
        return both
    hint = did_you_mean(name, METHODS.names(), f"Methods: {', '.join(METHODS)}.", n=2)
    raise MethodError(f"there is no method {name!r}.", hint=hint)


def check_settings(settings: Mapping[str, Any]) -> None:
    """Refuse settings that no method accepts.

    Raises:
        ConfigError: A name is unknown to all methods (with the nearest known one), or its value is impossible in all.
    """
    families = list({row.config: None for row in METHODS.values()})
    known = {name for config in families for name in config.model_fields}
    for name, value in settings.items():
        if name not in known:
            hint = did_you_mean(name, sorted(known), "See `betaedit methods --config` for all names.")
            raise ConfigError(f"there is no hyper-parameter {name!r}.", hint=hint)
        errors = []
        for config in families:
            if name not in config.model_fields:
                continue
            try:
                config.of({name: value})
            except ConfigError as error:
                errors.append(error)
            else:
                break
        else:
            raise errors[0]
