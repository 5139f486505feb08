"""The locate-then-edit engine, the table of recipes, and the facade that users import."""

from typing import TYPE_CHECKING

from betaedit.lazy import imported_when_asked

if TYPE_CHECKING:
    from betaedit.editors.anchor import measure_norm_anchor
    from betaedit.editors.config import EditConfig, make_config
    from betaedit.editors.editor import Editor, PlannedEdit
    from betaedit.editors.engine import EditResult, Engine
    from betaedit.editors.preset_file import PresetFile, choose_preset, read_preset
    from betaedit.editors.presets import PRESETS, Preset, find_preset, preset_for
    from betaedit.editors.recipes import RECIPES, Recipe, find_recipe

__all__ = [
    "PRESETS",
    "RECIPES",
    "EditConfig",
    "EditResult",
    "Editor",
    "Engine",
    "PlannedEdit",
    "Preset",
    "PresetFile",
    "Recipe",
    "choose_preset",
    "find_preset",
    "find_recipe",
    "make_config",
    "measure_norm_anchor",
    "preset_for",
    "read_preset",
]

__getattr__ = imported_when_asked(
    __name__,
    {
        "anchor": ("measure_norm_anchor",),
        "config": ("EditConfig", "make_config"),
        "editor": ("Editor", "PlannedEdit"),
        "engine": ("EditResult", "Engine"),
        "preset_file": ("PresetFile", "choose_preset", "read_preset"),
        "presets": ("PRESETS", "Preset", "find_preset", "preset_for"),
        "recipes": ("RECIPES", "Recipe", "find_recipe"),
    },
)
