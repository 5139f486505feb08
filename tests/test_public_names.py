from __future__ import annotations

import betaedit


def test_every_public_name_is_found_when_it_is_asked_for() -> None:
    assert {name for name in betaedit.__all__ if not name.startswith("_")} == set(betaedit._HOMES)
    for name in betaedit.__all__:
        assert getattr(getattr(betaedit, name), "__name__", name) == name
