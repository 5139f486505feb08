"""Files of settings: a mapping from YAML, JSON (which YAML includes) or TOML."""

from __future__ import annotations

import tomllib
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


def read_settings(path: Path, hint: str) -> dict[str, Any]:
    """The mapping of names to values in a file: TOML where its name ends in ``.toml``, else YAML or JSON.

    Args:
        path: The file, in UTF-8, or in another Unicode encoding with a byte order mark.
        hint: An example of such a file, or how to get one.

    Raises:
        ConfigError: The file is missing or broken, repeats a key, or holds no mapping.
    """
    try:
        raw = path.read_bytes()
        text = raw.decode(text_encoding(raw[:4]))
        values = tomllib.loads(text) if path.suffix == ".toml" else yaml.load(text, _Loader)
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
    return {str(key): value for key, value in values.items()}
