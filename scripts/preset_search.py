"""The small search behind the smollm2 preset (docs/presets.md): one row of figures per setting.

    python scripts/preset_search.py FILE 'leakage_weight=300' 'leakage_weight=1000 nullspace_threshold=0.05'

FILE is CounterFact; facts 1,001 to 1,040 are used, so that the first ones stay unseen. Each setting starts from the
unedited model and writes them one after another.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import yaml

from betaedit import EvaluationCase
from betaedit.editors import Editor, preset_for
from betaedit.editors.recipes import find_recipe
from betaedit.evaluation import held_out_prose, measure_edits, perplexity
from betaedit.experiments.evaluate import layer_states
from betaedit.facts import read_cases
from betaedit.models import LanguageModel, load_language_model

FIRST, COUNT, NEIGHBORS = 1000, 40, 3


def main(path: str, settings: list[str]) -> None:
    """Print one JSON line per setting."""
    cases = [
        EvaluationCase(case.fact, case.paraphrases, case.neighbors[:NEIGHBORS])
        for case in read_cases(path, limit=FIRST + COUNT).cases[FIRST:]
    ]
    model = load_language_model("smollm2")
    texts = held_out_prose()
    before = measure_edits(model, cases), perplexity(model, texts)
    for setting in settings:
        changes = {key: yaml.safe_load(value) for key, _, value in (part.partition("=") for part in setting.split())}
        print(json.dumps({"setting": setting, **run(model, cases, texts, changes, before)}), flush=True)  # noqa: T201


def run(
    model: LanguageModel,
    cases: list[EvaluationCase],
    texts: list[str],
    changes: dict[str, Any],
    before: Any,
) -> dict[str, Any]:
    """Edit all cases, measure, and take the edits back."""
    method = changes.pop("method", "betaedit")
    config = preset_for("smollm2", model.anatomy.n_layers).config(find_recipe(method)).replace(**changes)
    editor = Editor(model, method=method, config=config)
    results = editor.edit(cases)
    after, drift = measure_edits(model, cases), layer_states(editor)
    row = {
        "evaluations": sum(result.n_evaluations for result in results) / len(results),
        "length": sum(result.value_length for result in results) / len(results),
        "efficacy": [after.efficacy.probability, after.efficacy.argmax],
        "generality": after.generality.probability,
        "specificity": [before[0].specificity.probability, after.specificity.probability],
        "perplexity_change": perplexity(model, texts) / before[1] - 1,
        "relative_leakage": sum(layer.relative_leakage for layer in drift.values()) / len(drift),
    }
    editor.reset()
    return row


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
