from __future__ import annotations

import importlib

import pytest

import betaedit

PACKAGES = ["betaedit", "betaedit.editors", "betaedit.memory", "betaedit.models", "betaedit.statistics"]


@pytest.mark.parametrize("package", PACKAGES)
def test_every_public_name_is_found_when_it_is_asked_for(package: str) -> None:
    module = importlib.import_module(package)
    for name in module.__all__:
        assert getattr(module, name) is not None


def test_a_public_name_means_what_is_called_so() -> None:
    for name in betaedit.__all__:
        assert getattr(getattr(betaedit, name), "__name__", name) == name


@pytest.mark.parametrize("package", PACKAGES)
def test_a_name_that_a_package_has_not_is_no_attribute_of_it(package: str) -> None:
    with pytest.raises(AttributeError, match=f"module '{package}' has no attribute 'Editr'"):
        _ = importlib.import_module(package).Editr
