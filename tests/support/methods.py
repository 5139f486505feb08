"""One small editor per method: what the contract tests run every row of ``METHODS`` through."""

from __future__ import annotations

import atexit
import functools
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from betaedit import Editor
from betaedit.editors.hypernet.methods import Hypernet
from betaedit.editors.hypernet.network import Architecture, Hypernetwork
from betaedit.editors.hypernet.trained import TrainedEditor
from betaedit.editors.method import Method
from betaedit.editors.methods import find_method
from betaedit.editors.retrieval.methods import Framed
from betaedit.editors.shared_config import StatisticsConfig
from betaedit.models import LanguageModel
from support.edits import CONTEXTS, SETTINGS, moments_for
from support.families import HIDDEN, MLP

FAMILY_SETTINGS: dict[str, Mapping[str, Any]] = {
    "closed form": {**SETTINGS, "value_steps": 2},
    "fine-tuning": {"layer": 2, "steps": 4, "learning_rate": 0.01},
    "LoRA": {"steps": 3, "learning_rate": 0.02},
    "AdaLoRA": {"steps": 3, "learning_rate": 0.02},
    "UltraEdit": {"changed_layers": (1, 2), "learning_rate": 1e-3},
    "gated memory": {"layer": 2, "context_templates": CONTEXTS, "value_steps": 2, "gate": 0.9},
    "retrieval": {"confirm": "none", "template": "continue"},
    "codebook": {"layer": 2, "steps": 4},
    "side memory": {
        "layer": 2,
        "steps": 4,
        "context_templates": CONTEXTS,
        "unrelated_prompts": ("It rains in", "We like"),
    },
}
"""By family, settings that let a method write on a tiny model in a moment. A new family brings an entry."""


def small_editor(method: Method | str, model: LanguageModel, **settings: Any) -> Editor:
    """An editor of a tiny model."""
    row = find_method(method) if isinstance(method, str) else method
    values = {**_small_settings(row), **settings}
    config = row.configure(values)
    statistics = moments_for(model, config.layers) if isinstance(config, StatisticsConfig) else None
    return Editor(model, method=row.name, config=config, statistics=statistics)


def _small_settings(row: Method) -> dict[str, Any]:
    if isinstance(row, Framed):
        return {**_small_settings(row.framer), **_small_settings(row.writer)}
    return {**FAMILY_SETTINGS.get(row.family, {}), **_of_one_layer(row), **_of_an_editor(row)}


def _of_one_layer(row: Method) -> dict[str, Any]:
    return {"layers": (2,)} if getattr(row, "form", None) == "rank-one" else {}


def _of_an_editor(row: Method) -> dict[str, Any]:
    return {"editor": untrained_editor(row.name)} if isinstance(row, Hypernet) else {}


@functools.cache
def untrained_editor(method: str) -> str:
    """The folder of an editor of a tiny model's last two layers, as it is before training but with statistics."""
    row = find_method(method)
    assert isinstance(row, Hypernet)
    shapes = dict.fromkeys((2, 3), (HIDDEN, MLP))
    network = Hypernetwork(Architecture(row.rule, shapes, rank=4, blocks=2, edit_rate=0.01))
    rows = torch.randn(64, MLP + HIDDEN, generator=torch.Generator().manual_seed(0))
    network.observe(2, rows[:, :MLP], 0.01 * rows[:, MLP:])
    folder = tempfile.mkdtemp(prefix="betaedit-editor-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    TrainedEditor(method, network).save(Path(folder))
    return folder
