"""Reads EasyEdit hyper-parameter files (``hparams/<METHOD>/<model>.yaml``) as settings of this package."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from betaedit.editors.easyedit import EasyEditTable, Key, UnusableError, Unused
from betaedit.editors.method import Method, TrainableMethod
from betaedit.editors.methods import METHODS, find_method
from betaedit.errors import ConfigError, did_you_mean
from betaedit.settings import SettingsFile

_NAMES = ("alg_name", "alg")
MARKS = frozenset((*_NAMES, "model_name", "rewrite_module_tmp", "inner_params"))
"""Keys that only EasyEdit files have; one of them is enough."""
_OTHER = "Take the method of the file, or a file for the method."


@dataclass(frozen=True)
class Translation:
    """An EasyEdit file in the words of this package.

    Args:
        method: The method that it is for.
        settings: Hyper-parameters by name.
        remarks: What is not used, and what differs; one line each.
    """

    method: str
    settings: dict[str, Any]
    remarks: tuple[str, ...]


def is_easyedit(values: Mapping[str, Any]) -> bool:
    """Whether a file with these keys is one of EasyEdit's."""
    return not MARKS.isdisjoint(values)


def tables() -> list[EasyEditTable]:
    """All tables, in the order of the methods."""
    return list({id(table): table for row in METHODS.values() for table in row.easyedit}.values())


def fits(file: SettingsFile, method: str) -> bool:
    """Whether ``method`` is one that the file is for; where it names none, one that EasyEdit has files for.

    Raises:
        MethodError: There is no such method.
        ConfigError: The file is for a method that is not here.
    """
    row = find_method(method)
    return any(_serves(table, row) for table in _candidates(file))


def translate(file: SettingsFile, method: str | None = None, *, training: bool = False) -> Translation:
    """The settings of a file for ``method``, or for the one that it names; needs no torch.

    Raises:
        MethodError: There is no such ``method``.
        ConfigError: A key is unknown or its value cannot be used, with file and line; or the file is for another
            method.
    """
    table = _choose(file, method)
    row = find_method(method or table.methods[0])
    if training and not isinstance(row, TrainableMethod):
        raise ConfigError(f"{file.path} is for {row.name}, which is not trained.", hint="Edit with it: betaedit edit.")
    known = table.of(training=training)
    values = {key: _number(value) for key, value in file.values.items() if key not in (*_NAMES, *table.when)}
    settings = {} if training else dict(table.fixed)
    source: dict[str, str] = {}
    for key, value in values.items():
        kind = _known(file, table, known, key)
        try:
            taken = kind.take(value, values)
        except UnusableError as error:
            raise ConfigError(f"{file.place(key)}: {key} {error}.", hint=error.hint) from error
        except (TypeError, ArithmeticError) as error:
            hint = "Give a number, or delete the key."
            raise ConfigError(f"{file.place(key)}: {key} cannot be {value!r}.", hint=hint) from error
        settings |= taken
        source |= dict.fromkeys(taken, key)
    _check(file, row, settings, source, training=training)
    return Translation(row.name, settings, tuple(_remarks(file, table, known, values)))


def _choose(file: SettingsFile, method: str | None) -> EasyEditTable:
    """The table by which a file is read for ``method``, or for the one that it names."""
    found = _candidates(file)
    if method is None and _name_key(file) is None:
        raise ConfigError(f"{file.path} does not name its method (alg_name).", hint="Name it with --method.")
    if method is not None:
        row = find_method(method)
        serving = [table for table in found if _serves(table, row)]
        if not serving and _name_key(file) is None:
            raise ConfigError(f"{file.path} is an EasyEdit file, and EasyEdit has none for {row.name}.", hint=_OTHER)
        if not serving:
            theirs = " or ".join(dict.fromkeys(name for table in found for name in table.methods))
            raise ConfigError(f"{file.path} is an EasyEdit file for {theirs}, not for {row.name}.", hint=_OTHER)
        found = serving
    if len(found) > 1:
        keys = ", ".join(dict.fromkeys(key for table in found for key in table.when))
        raise ConfigError(f"{file.path} does not say {keys}.", hint="Add the line, or name the method with --method.")
    return found[0]


def _candidates(file: SettingsFile) -> list[EasyEditTable]:
    """The tables of the method that a file names; all where it names none.

    Raises:
        ConfigError: The method that it names is not here, or a value leaves none of the tables.
    """
    key = _name_key(file)
    if key is None:
        return [table for table in tables() if _agrees(file, table)]
    name = str(file.values[key])
    of_name = [table for table in tables() if table.alg_name.casefold() == name.casefold()]
    if not of_name:
        known = ", ".join(dict.fromkeys(table.alg_name for table in tables()))
        raise ConfigError(
            f"{file.place(key)}: {key} {name} is not a method of this program.", hint=f"Files are read for {known}."
        )
    found = [table for table in of_name if _agrees(file, table)]
    if not found:
        key = next(iter(of_name[0].when))
        allowed = " or ".join(table.when[key] for table in of_name)
        raise ConfigError(f"{file.place(key)}: {key} must be {allowed}.", hint="Change the value.")
    return found


def _name_key(file: SettingsFile) -> str | None:
    """The key under which a file names its method."""
    return next((key for key in _NAMES if file.values.get(key) is not None), None)


def _agrees(file: SettingsFile, table: EasyEditTable) -> bool:
    """Whether a file does not contradict ``table.when``."""
    return all(file.values.get(key, value) == value for key, value in table.when.items())


def _serves(table: EasyEditTable, row: Method) -> bool:
    """Whether a table is for a method, or for one of the two that it is made of."""
    return not set(table.methods).isdisjoint(row.preset_names)


def _number(value: Any) -> Any:
    """A number where YAML has a text because the point is missing: EasyEdit reads 1e-3 so."""
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            pass
    return value


def _known(file: SettingsFile, table: EasyEditTable, known: Mapping[str, Key], key: str) -> Key:
    if key not in known:
        otherwise = f"Delete the line; {table.alg_name} files may have {', '.join(sorted(known))}."
        hint = did_you_mean(key, known, otherwise)
        raise ConfigError(
            f"{file.place(key)}: the key {key} is unknown in EasyEdit files for {table.alg_name}.", hint=hint
        )
    return known[key]


def _check(
    file: SettingsFile, row: Method, settings: Mapping[str, Any], source: Mapping[str, str], *, training: bool
) -> None:
    """Refuse impossible values, by the key that they come from."""
    try:
        if training and isinstance(row, TrainableMethod):
            row.configure_training(settings)
        else:
            row.configure(settings)
    except ConfigError as error:
        key = source.get(error.message.partition(":")[0].partition(".")[0])
        place = str(file.path) if key is None else f"{file.place(key)}: {key}"
        raise ConfigError(f"{place}: {error.message}", hint=error.hint) from error


def _remarks(
    file: SettingsFile, table: EasyEditTable, known: Mapping[str, Key], values: Mapping[str, Any]
) -> Iterator[str]:
    """One line on the keys that are not used, and one for each that is not carried over exactly."""
    unused: dict[str, list[str]] = {}
    for key in values:
        if isinstance(kind := known[key], Unused):
            unused.setdefault(kind.reason.replace("`", ""), []).append(key)
    if unused:
        said = "; ".join(f"{', '.join(keys)} ({reason})" for reason, keys in unused.items())
        yield f"{file.path}, an EasyEdit file for {table.alg_name}: not used: {said}"
    for key, value in values.items():
        if said := known[key].remark(value):
            yield f"{file.place(key)}: {key}: {said.replace('`', '')}"
