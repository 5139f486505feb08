"""The small search behind the smollm2 presets (docs/presets.md): one row of figures per setting.

    python scripts/preset_search.py FILE 1061-1120 'leakage_weight=300' 'preset=smollm2-adam nullspace_threshold=0.02'

FILE is CounterFact, the numbers those of the facts in it; the first ones are kept unseen for the README's figures. Each
setting, over smollm2's preset or the one it names, starts from the unedited model and writes them one after another.
"""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from typing import Any

import yaml

from betaedit import EvaluationCase
from betaedit.editors import Editor
from betaedit.editors.closed_form.recipes import find_recipe
from betaedit.editors.presets import find_preset
from betaedit.evaluation import compare, held_out_prose, measure_edits
from betaedit.evaluation.metrics import EditMeasures
from betaedit.experiments.evaluate import layer_states
from betaedit.experiments.record import mean_known
from betaedit.facts import read_cases
from betaedit.models import LanguageModel, load_language_model

NEIGHBORS = 5


def main(path: str, numbers: str, settings: list[str]) -> None:
    """Print one JSON line per setting."""
    first, last = (int(number) for number in numbers.split("-"))
    cases = [replace(case, neighbors=case.neighbors[:NEIGHBORS]) for case in read_cases(path, limit=last).cases]
    model = load_language_model("smollm2")
    chosen = cases[first - 1 :]
    before = measure_edits(model, chosen)
    for setting in settings:
        changes = {key: yaml.safe_load(value) for key, _, value in (part.partition("=") for part in setting.split())}
        print(json.dumps({"setting": setting, **run(model, chosen, changes, before)}), flush=True)  # noqa: T201


def run(
    model: LanguageModel, cases: list[EvaluationCase], changes: dict[str, Any], before: EditMeasures
) -> dict[str, Any]:
    """Edit all cases, measure, and take the edits back."""
    method = changes.pop("method", "betaedit")
    preset = find_preset(changes.pop("preset", "smollm2"))
    assert preset is not None
    editor = Editor(model, method=method, config=preset.config(find_recipe(method)).replace(**changes))
    results = editor.edit(cases)
    after, states = measure_edits(model, cases), layer_states(editor, held_out_prose())
    drift = compare(model, held_out_prose(), editor.engine.unedited)
    row = {
        "evaluations": sum(result.n_evaluations for result in results) / len(results),
        "length": sum(result.value_length for result in results) / len(results),
        "efficacy": [after.efficacy.probability, after.efficacy.argmax],
        "generality": [after.generality.probability, after.generality.argmax],
        "specificity": [before.specificity.probability, after.specificity.probability],
        "perplexity_change": drift.perplexity / drift.unedited_perplexity - 1,
        "kl": drift.kl,
        "relative_leakage": mean_known([layer.relative_leakage for layer in states.values()]),
    }
    editor.reset()
    return row


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3:])
