"""Several methods, or one with several settings, on the same facts: one run each, from the same unedited model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from betaedit.editors.closed_form.value_cache import ValueCache
from betaedit.editors.editor import Editor
from betaedit.editors.methods import find_method
from betaedit.editors.preset_file import choose_preset, warn_untuned
from betaedit.editors.presets import Preset
from betaedit.errors import BetaEditError
from betaedit.experiments.run import RunReport, run_edits
from betaedit.experiments.variants import Variant, check_variants, settings_of
from betaedit.facts.fact import EvaluationCase
from betaedit.models.load import LanguageModel
from betaedit.progress import Progress


def compare_methods(
    model: LanguageModel,
    methods: Sequence[str | Variant],
    cases: Sequence[EvaluationCase],
    folder: Path | str,
    *,
    preset: Preset | str | Path | None = None,
    overrides: dict[str, Any] | None = None,
    progress: Progress | None = None,
    on_method: Callable[[str], None] | None = None,
    **options: Any,
) -> dict[str, RunReport | BetaEditError]:
    """A measured run of every method, stored in ``folder/NAME``; the same call continues an interrupted one.

    The model is unedited before each and at the end, and measured as such only once, in this call or an earlier one;
    values searched on its unedited weights are shared by the methods of this call with the same search. A method that
    fails has its error instead of a report, and the others continue.

    Args:
        model: The unedited model.
        methods: Names of methods, or variants of them; the result and the folders have their names.
        cases: The facts with the prompts they are measured on.
        folder: Folder of the runs.
        preset: A preset, its name or file; the model's own when not given.
        overrides: Hyper-parameters that override the preset, for each method that has them.
        progress: Shows the progress.
        on_method: Called with the name of every method when it starts.
        options: Passed on to ``run_edits``.

    Raises:
        MethodError: A method is unknown; nothing has run.
        ConfigError: There is no such preset, a setting is unknown or impossible, or two variants have one name;
            nothing has run.
        AnatomyError: The model has no such layer; nothing has run.
    """
    variants = [Variant(method) if isinstance(method, str) else method for method in methods]
    names = check_variants(variants, preset, overrides or {})
    chosen = choose_preset(preset, model.place, model.anatomy.n_layers)
    rows = [find_method(variant.method) for variant in variants]
    by_preset = next((row for row in rows if chosen.settings(row)), None)
    if preset is None and by_preset is not None:
        warn_untuned(chosen, by_preset, model.name)
    configs = [
        chosen.config(row).replace(**settings_of(variant, overrides or {}))
        for row, variant in zip(rows, variants, strict=True)
    ]
    known = ValueCache()
    editors = [
        Editor(model, method=variant.method, config=config, preset=chosen, progress=progress, value_cache=known)
        for variant, config in zip(variants, configs, strict=True)
    ]
    found: dict[str, RunReport | BetaEditError] = {}
    for name, editor in zip(names, editors, strict=True):
        if on_method is not None:
            on_method(name)
        try:
            found[name] = run_edits(editor, cases, folder=Path(folder) / name, beside=Path(folder), **options)
        except BetaEditError as error:
            found[name] = error
        finally:
            editor.reset()
    return found
