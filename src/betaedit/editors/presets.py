"""Hyper-parameters per model: published ones, and those measured for the bundled model."""

from __future__ import annotations

from collections import ChainMap
from dataclasses import dataclass, field
from typing import Any

from betaedit.editors.closed_form.recipes import RECIPES
from betaedit.editors.method import Method, MethodConfig


@dataclass(frozen=True)
class Preset:
    """Settings for one model.

    Args:
        name: What to call it.
        models: Lower-case endings of the model names it is for.
        source: Where the values come from.
        parameters: Weights of the model, in billions.
        mlp_size: Width of its keys, ``d_in``.
        hidden_size: Width of its hidden state, ``d_out``.
        values: What differs from the defaults, for every method that has such a setting.
        by_method: What differs further for one method.
        for_own_facts: The preset that takes its place for facts of people's own, where nobody names one.
    """

    name: str
    models: tuple[str, ...]
    source: str
    parameters: float
    mlp_size: int
    hidden_size: int
    values: dict[str, Any]
    by_method: dict[str, dict[str, Any]] = field(default_factory=dict)
    for_own_facts: str = ""

    def settings(self, method: Method) -> dict[str, Any]:
        """Those of ``values`` that ``method`` has a setting for, and what differs for it by name."""
        known = method.config.model_fields
        common = {name: value for name, value in self.values.items() if name in known}
        own = [self.by_method.get(name, {}) for name in method.preset_names]
        return {**common, **dict(ChainMap(*reversed(own)))}

    def config(self, method: Method) -> MethodConfig:
        """The configuration for a method.

        Raises:
            ConfigError: A value is impossible, or unknown among those of the method by name.
        """
        return method.configure(self.settings(method))

    def to_dict(self) -> dict[str, Any]:
        """The preset as plain data."""
        return {
            "name": self.name,
            "models": list(self.models),
            "source": self.source,
            "values": self.values,
            "by_method": self.by_method,
        }


# Published code writes a second answer beside the first; docs/forgetting.md.
_PUBLISHED = {"conflicts": "naive", "shared_subjects": "apart"}
_OWN_STRENGTHS = ("betaedit", "betaedit-no-kl", "betaedit-no-ns")
_SINGLE = ("rome", "r-rome")
# Measured on three CounterFact records: at WISE's published rate its two distances do not settle (docs/side-memory.md).
# docs/side-memory.md and docs/gradient-methods.md say on how few facts these were chosen.
_SMOLLM2_OTHERS: dict[str, dict[str, Any]] = {
    "lora": {"learning_rate": 2e-4, "steps": 12},
    "adalora": {"learning_rate": 1e-3, "steps": 20},
    "ultraedit": {"learning_rate": 3e-4},
    "wise": {"layer": 20, "learning_rate": 0.3},
    "gated": {"context_openings": ("The", "Because", "You")},
}


def _by_method(
    leakage_weight: float | None, single: int, further: dict[str, dict[str, Any]] | None = None
) -> dict[str, dict[str, Any]]:
    """The published strength of MEMIT for all but BetaEdit's own recipes, and the one layer of rank-one recipes.

    PAPER: BetaEdit uses lambda1 = 3000; CODE of MEMIT: 15000 (20000 for GPT-2 XL); docs/methods.md, Presets.
    """
    chosen: dict[str, dict[str, Any]] = {name: {"layers": (single,)} for name in _SINGLE}
    if leakage_weight is not None:
        for recipe in RECIPES:
            if recipe.leakage and recipe.name not in _OWN_STRENGTHS:
                chosen.setdefault(recipe.name, {})["leakage_weight"] = leakage_weight
    for name, values in (further or {}).items():
        chosen.setdefault(name, {}).update(values)
    return chosen


_SMOLLM2: dict[str, Any] = {
    "layers": (4, 5, 6, 7, 8),
    "value_learning_rate": 0.5,
    "value_clamp": 1.5,
    "value_decay": 0.1,
    "nullspace_threshold": 0.05,
    "statistics_tokens": 30_000,
}
# The published rate is for matrices ten times as wide, and writes nothing here; docs/gradient-methods.md.
_SMOLLM2_BY_METHOD = _by_method(None, 5, _SMOLLM2_OTHERS)
# Its steps are in norms of the hidden state, so that it needs no rate that fits the model; docs/presets.md.
_QUICK_SEARCH: dict[str, Any] = {
    "value_optimizer": "projected_bb",
    "value_first_step": 0.2,
    "value_longest_step": 0.2,
    "value_stop_loss": 0.005,
    "value_stop_probability": 0.9,
    "value_margin": 0.2,
}
# Answers of any length that end, other wordings, chat; docs/user-facts.md.
_OWN_FACTS: dict[str, Any] = {
    "paraphrases": "written",
    "form": "both",
    "answer_end": "auto",
    "retries": 3,
    "keep_missed": False,
    "shared_subjects": "together",
    "value_steps_per_token": 2.0,
    "value_optimizer": "lbfgs",
    "value_clamp": 0.6,
    "value_first_step": 0.2,
    "value_longest_step": 0.2,
    "value_stop_loss": 0.005,
    "value_stop_probability": 0.6,
}
_ALPHAEDIT_REPO = "AlphaEdit and BetaEdit repositories"

PRESETS: tuple[Preset, ...] = (
    Preset(
        name="smollm2",
        models=("smollm2", "smollm2-135m-instruct", "smollm2-135m"),
        source="measured: docs/presets.md",
        parameters=0.135,
        mlp_size=1536,
        hidden_size=576,
        values={
            **_SMOLLM2,
            **_QUICK_SEARCH,
            "context_openings": ("The", "Because", "You"),
            "value_steps": 20,
            "leakage_weight": 500.0,
        },
        by_method=_SMOLLM2_BY_METHOD,
        for_own_facts="smollm2-facts",
    ),
    Preset(
        name="smollm2-facts",
        models=(),
        source="measured: docs/user-facts.md; for facts of people's own: all wordings, chat, answers that end",
        parameters=0.135,
        mlp_size=1536,
        hidden_size=576,
        values={
            **_SMOLLM2,
            **_OWN_FACTS,
            "context_openings": (),
            "value_steps": 12,
            "leakage_weight": 1000.0,
        },
        by_method=_SMOLLM2_BY_METHOD,
    ),
    Preset(
        name="smollm2-adam",
        models=(),
        source="measured: docs/presets.md; values are sought as published, in two and a half times the evaluations",
        parameters=0.135,
        mlp_size=1536,
        hidden_size=576,
        values={**_SMOLLM2, "value_stop_loss": 0.1, "leakage_weight": 1000.0},
        by_method=_SMOLLM2_BY_METHOD,
    ),
    Preset(
        name="gpt2-xl",
        models=("gpt2-xl",),
        source=_ALPHAEDIT_REPO,
        parameters=1.558,
        mlp_size=6400,
        hidden_size=1600,
        values={"layers": (13, 14, 15, 16, 17), "value_steps": 20, "value_learning_rate": 0.5, **_PUBLISHED},
        by_method=_by_method(20000.0, 17),
    ),
    Preset(
        name="gpt-j-6b",
        models=("gpt-j-6b",),
        source=_ALPHAEDIT_REPO,
        parameters=6.05,
        mlp_size=16384,
        hidden_size=4096,
        values={"layers": (3, 4, 5, 6, 7, 8), "value_learning_rate": 0.5, **_PUBLISHED},
        by_method=_by_method(15000.0, 5, {"pmet": {"leakage_weight": 6000.0}}),
    ),
    Preset(
        name="llama-3-8b-instruct",
        models=("llama-3-8b-instruct", "llama-3-8b"),
        source=_ALPHAEDIT_REPO,
        parameters=8.03,
        mlp_size=14336,
        hidden_size=4096,
        values={"layers": (4, 5, 6, 7, 8), "value_learning_rate": 0.1, **_PUBLISHED},
        by_method=_by_method(15000.0, 5, {"encore": {"ridge": 20.0, "value_learning_rate": 0.5}}),
    ),
    Preset(
        name="llama-3.1-8b",
        models=("llama-3.1-8b", "llama-3.1-8b-instruct"),
        source="BetaEdit repository",
        parameters=8.03,
        mlp_size=14336,
        hidden_size=4096,
        values={"layers": (4, 5, 6, 7, 8), "value_learning_rate": 0.1, **_PUBLISHED},
        by_method=_by_method(15000.0, 5),
    ),
    Preset(
        name="qwen2.5-7b",
        models=("qwen2.5-7b", "qwen2.5-7b-instruct"),
        source="BetaEdit repository",
        parameters=7.62,
        mlp_size=18944,
        hidden_size=3584,
        values={"layers": (4, 5, 6, 7, 8), "value_learning_rate": 0.1, **_PUBLISHED},
        by_method=_by_method(15000.0, 5),
    ),
    Preset(
        name="qwen3-4b-instruct-2507",
        models=("qwen3-4b-instruct-2507",),
        source="BetaEdit paper names the layers; no configuration is released, the rest is that of the other models",
        parameters=4.02,
        mlp_size=9728,
        hidden_size=2560,
        values={"layers": (4, 5, 6, 7, 8), "value_learning_rate": 0.1, **_PUBLISHED},
        by_method=_by_method(15000.0, 5),
    ),
)

UNTUNED = "untuned"
_DEPTH_OF_DEFAULTS = 32


def preset_for(model_name: str, n_layers: int) -> Preset:
    """The preset of a model, by the last part of its name; scaled defaults marked as untuned when there is none."""
    last = model_name.rstrip("/").rpartition("/")[2].lower()
    known = next((preset for preset in PRESETS if last.endswith(preset.models)), None)
    return known or untuned(n_layers)


def untuned(n_layers: int) -> Preset:
    """The shared defaults with layers 4 to 8 of 32 scaled to the model's depth, and a search that knows no scale."""
    first = round(4 * n_layers / _DEPTH_OF_DEFAULTS)
    last = max(round(8 * n_layers / _DEPTH_OF_DEFAULTS), first)
    layers = tuple(range(first, last + 1))
    return Preset(
        name=UNTUNED,
        models=(),
        source="defaults of 8B models, layers scaled to the depth, a search in norms of the hidden state; not measured",
        parameters=0.0,
        mlp_size=0,
        hidden_size=0,
        values={"layers": layers, **_QUICK_SEARCH},
        by_method=_by_method(15000.0, layers[min(1, len(layers) - 1)]),
    )


def find_preset(name: str) -> Preset | None:
    """The preset of that name, if there is one."""
    return next((preset for preset in PRESETS if preset.name == name), None)
