"""Several methods on the same facts, one run each, from the same unedited model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from betaedit.editors.editor import Editor
from betaedit.editors.preset_file import choose_preset
from betaedit.editors.presets import Preset
from betaedit.editors.recipes import find_recipe
from betaedit.errors import BetaEditError
from betaedit.experiments.run import RunReport, run_edits
from betaedit.facts.fact import EvaluationCase
from betaedit.models.load import LanguageModel
from betaedit.progress import Progress


def compare_methods(
    model: LanguageModel,
    methods: Sequence[str],
    cases: Sequence[EvaluationCase],
    folder: Path | str,
    *,
    preset: Preset | str | Path | None = None,
    overrides: dict[str, Any] | None = None,
    progress: Progress | None = None,
    on_method: Callable[[str], None] | None = None,
    **options: Any,
) -> dict[str, RunReport | BetaEditError]:
    """A measured run of every method, kept under ``folder/METHOD``; repeating the call continues where it was.

    The model is unedited before each and at the end. A method that fails leaves its error in place of a report, and
    the others go on.

    Args:
        model: The unedited model.
        methods: Names of recipes.
        cases: The facts with the prompts they are measured on.
        folder: Where the runs are kept.
        preset: A preset, its name or file; the model's own when not given.
        overrides: Hyper-parameters over what the preset has for each method.
        progress: Where to draw.
        on_method: Hears of every method as it begins.
        options: Passed on to ``run_edits``.

    Raises:
        MethodError: A method is unknown; nothing has run then.
        ConfigError: There is no such preset.
    """
    recipes = [find_recipe(name) for name in methods]
    chosen = choose_preset(preset, model.name, model.anatomy.n_layers)
    found: dict[str, RunReport | BetaEditError] = {}
    for recipe in recipes:
        if on_method is not None:
            on_method(recipe.name)
        config = chosen.config(recipe).replace(**(overrides or {}))
        editor = Editor(model, method=recipe.name, config=config, preset=chosen, progress=progress)
        try:
            found[recipe.name] = run_edits(editor, cases, folder=Path(folder) / recipe.name, **options)
        except BetaEditError as error:
            found[recipe.name] = error
        finally:
            editor.reset()
    return found
