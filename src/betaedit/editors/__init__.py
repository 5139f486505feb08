"""The facade that users import, the table of methods, and presets; families of methods are packages of their own."""

from typing import TYPE_CHECKING

from betaedit.lazy import imported_when_asked

if TYPE_CHECKING:
    from betaedit.editors.closed_form.anchor import measure_norm_anchor
    from betaedit.editors.closed_form.config import EditConfig
    from betaedit.editors.closed_form.engine import Engine
    from betaedit.editors.closed_form.recipes import RECIPES, Recipe, find_recipe
    from betaedit.editors.editor import Editor
    from betaedit.editors.method import EditResult, Method, MethodConfig, PlannedEdit
    from betaedit.editors.methods import METHODS, find_method
    from betaedit.editors.preset_file import PresetFile, choose_preset, read_preset
    from betaedit.editors.presets import PRESETS, Preset, find_preset, preset_for

__all__ = [
    "METHODS",
    "PRESETS",
    "RECIPES",
    "EditConfig",
    "EditResult",
    "Editor",
    "Engine",
    "Method",
    "MethodConfig",
    "PlannedEdit",
    "Preset",
    "PresetFile",
    "Recipe",
    "choose_preset",
    "find_method",
    "find_preset",
    "find_recipe",
    "measure_norm_anchor",
    "preset_for",
    "read_preset",
]

__getattr__ = imported_when_asked(
    __name__,
    {
        "closed_form.anchor": ("measure_norm_anchor",),
        "closed_form.config": ("EditConfig",),
        "closed_form.engine": ("Engine",),
        "closed_form.recipes": ("RECIPES", "Recipe", "find_recipe"),
        "editor": ("Editor",),
        "method": ("EditResult", "Method", "MethodConfig", "PlannedEdit"),
        "methods": ("METHODS", "find_method"),
        "preset_file": ("PresetFile", "choose_preset", "read_preset"),
        "presets": ("PRESETS", "Preset", "find_preset", "preset_for"),
    },
)
