"""Where the cache lies."""

from __future__ import annotations

from pathlib import Path

import pytest

from betaedit.paths import cache_folder


@pytest.mark.parametrize("said", ["~", "~/own cache", "{home}/plain"])
def test_the_cache_variable_may_begin_with_a_tilde(said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("BETAEDIT_CACHE", said.format(home=tmp_path))
    expected = Path(said.replace("~", str(tmp_path)).format(home=tmp_path))
    assert cache_folder("models") == expected / "models"
    assert (expected / "models").is_dir()
    assert not (tmp_path / "~").exists()


def test_without_the_variable_the_cache_lies_where_the_system_keeps_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.delenv("BETAEDIT_CACHE")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert cache_folder() == tmp_path / ".cache" / "betaedit"
    monkeypatch.setenv("XDG_CACHE_HOME", "~/elsewhere")
    assert cache_folder() == tmp_path / "elsewhere" / "betaedit"
