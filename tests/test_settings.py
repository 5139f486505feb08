from __future__ import annotations

from pathlib import Path

import pytest

from betaedit.errors import ConfigError
from betaedit.settings import read_settings


def settings(path: Path, text: str, encoding: str = "utf-8") -> dict[str, object]:
    path.write_text(text, encoding=encoding)
    return read_settings(path, "Write lines like value_clamp: 1.0")


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("s.yaml", "layers: [1, 2]\nnote: é\n"),
        ("s.json", '{"layers": [1, 2], "note": "é"}'),
        ("s.toml", 'layers = [1, 2]\nnote = "é"\n'),
    ],
)
def test_settings_are_read_in_every_encoding_that_has_a_mark(tmp_path: Path, name: str, text: str, encoding: str):
    assert settings(tmp_path / name, text, encoding) == {"layers": [1, 2], "note": "é"}


@pytest.mark.parametrize(
    ("name", "text", "line"),
    [
        ("s.yaml", "ridge: 1\nlayers: [1]\nridge: 2\n", 3),
        ("s.yaml", 'values:\n  ridge: 1\n  "ridge": 2\n', 3),
        ("s.yaml", "{ridge: 1, ridge: 2}", 1),
        ("s.json", '{\n"ridge": 1,\n"ridge": 2}', 3),
        ("s.json", '{"values":\n{"ridge": 1, "ridge": 1}}', 2),
        ("s.toml", "ridge = 1\nridge = 2\n", 2),
        ("s.toml", "[values]\nridge = 1\n[rome]\n[values]\n", 4),
    ],
)
def test_a_key_that_comes_twice_is_refused_with_its_line(tmp_path: Path, name: str, text: str, line: int):
    with pytest.raises(ConfigError, match=f"line {line}, column") as refused:
        settings(tmp_path / name, text)
    assert "give every key once" in refused.value.hint


def test_one_key_in_several_mappings_and_one_merged_from_an_anchor_are_no_repeats(tmp_path: Path):
    text = "a: &a {ridge: 1, rate: 2}\nb: {<<: *a, ridge: 3}\n"
    assert settings(tmp_path / "s.yaml", text)["b"] == {"ridge": 3, "rate": 2}


def test_each_cause_has_its_own_hint(tmp_path: Path):
    path = tmp_path / "s.yaml"
    with pytest.raises(ConfigError, match="Check the path"):
        read_settings(path, "")
    path.write_bytes("note: é".encode("latin-1"))
    with pytest.raises(ConfigError, match="Save the file as UTF-8"):
        read_settings(path, "")
    with pytest.raises(ConfigError, match=r"no mapping of names to values\. Write lines like"):
        settings(path, "- 1\n")
