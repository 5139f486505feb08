"""Files of settings: a mapping from YAML, JSON (which YAML includes) or TOML."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from betaedit.errors import ConfigError
from betaedit.files import text_encoding


class _Loader(yaml.SafeLoader):
    """Refuses a repeated key, of which YAML's own loader keeps the last value."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        lines: dict[str, int] = {}
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                continue
            if key.value in lines:
                problem = f"the key {key.value!r} of line {lines[key.value]} is repeated"
                raise yaml.MarkedYAMLError(problem=problem, problem_mark=key.start_mark)
            lines[key.value] = key.start_mark.line + 1
        return node


@dataclass(frozen=True)
class SettingsFile:
    """A file of settings, and where in it they stand.

    Args:
        path: The file.
        values: Names and values.
        lines: The line of each name, from 1; empty for TOML, whose reader does not tell.
    """

    path: Path
    values: dict[str, Any]
    lines: Mapping[str, int] = field(default_factory=dict)

    def place(self, name: str) -> str:
        """File and line of a name, as errors say it."""
        return f"{self.path}:{self.lines[name]}" if name in self.lines else str(self.path)


def read_settings(path: Path, hint: str) -> dict[str, Any]:
    """The mapping of names to values in a file; see ``read_settings_file``."""
    return read_settings_file(path, hint).values


def read_settings_file(path: Path, hint: str) -> SettingsFile:
    """The mapping of names to values in a file: TOML where its name ends in ``.toml``, else YAML or JSON.

    Args:
        path: The file, in UTF-8, or in another Unicode encoding with a byte order mark.
        hint: An example of such a file, or how to get one.

    Raises:
        ConfigError: The file is missing or broken, repeats a key, or holds no mapping.
    """
    lines: dict[str, int] = {}
    try:
        raw = path.read_bytes()
        text = raw.decode(text_encoding(raw[:4]))
        if path.suffix == ".toml":
            values = tomllib.loads(text)
        else:
            values = yaml.load(text, _Loader)
            lines = _lines(yaml.compose(text, _Loader))
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error}", hint="Check the path.") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} cannot be read: {error}", hint="Save the file as UTF-8.") from error
    except (tomllib.TOMLDecodeError, yaml.YAMLError) as error:
        raise ConfigError(
            f"{path} cannot be read: {error}", hint=f"Correct this place; give every key once. {hint}"
        ) from error
    if not isinstance(values, dict):
        raise ConfigError(f"{path} holds no mapping of names to values.", hint=hint)
    return SettingsFile(path, {str(key): value for key, value in values.items()}, lines)


def _lines(node: yaml.Node | None) -> dict[str, int]:
    """The line of each key of the outermost mapping, from 1."""
    if not isinstance(node, yaml.MappingNode):
        return {}
    return {str(key.value): key.start_mark.line + 1 for key, _ in node.value}
