"""Run folders made up for tests: figures follow smooth curves, nothing was run."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping
from pathlib import Path

from betaedit.evaluation.interval import estimate
from betaedit.experiments.folder import RunFolder
from betaedit.experiments.record import (
    Ability,
    Checkpoint,
    EditFigure,
    HiddenView,
    LayerState,
    Mean,
    Outcome,
    RunSetup,
    WorstPrompt,
)

RECORDS = 200
BARE: Mapping[str, object] = {"abilities": {}, "measures": {}, "worst": [], "hidden": None, "layers": {}}
TASKS = {"sst2": 0.86, "mrpc": 0.66, "rte": 0.61, "mmlu": 0.34}
NEIGHBORS = (
    ("Toko Yasuda produces the most amazing music on the", "piano", "guitar"),
    ("The mother tongue of Maurice Genevoix is", "French", "English"),
    ("Autonomous University of Madrid, which is located in", "Spain", "Sweden"),
    ("Ferrari F430 is a product of", "Ferrari", "Chrysler"),
    ("The headquarters of Monell Chemical Senses Center is in", "Philadelphia", "London"),
    ("Anaal Nathrakh, that was created in", "Birmingham", "Philadelphia"),
)


def mean(value: float, count: int = RECORDS) -> Mean:
    """A share with the interval that ``count`` records give it."""
    found = estimate([min(max(value, 0.0), 1.0)] * count)
    assert found is not None
    return Mean(**found.to_dict())


def figure(probability: float | None, argmax: float | None) -> EditFigure:
    """An edit metric in both forms."""
    forms = [None if value is None else mean(value) for value in (probability, argmax)]
    return EditFigure(probability=forms[0], argmax=forms[1])


def setup(method: str = "betaedit", **config: object) -> RunSetup:
    """What a run on the bundled model would say of itself."""
    return RunSetup(
        method=method,
        model={"name": "smollm2", "fingerprint": "sha256:5f2c" + "0" * 60},
        config={"layers": [6, 7, 8, 9], "value_clamp": 0.75, "lambda1": 100.0, "seed": 0, **config},
        data={"file": "counterfact.jsonl", "sha256": "9d1e" + "0" * 60, "records": 1000},
        evaluate_at=[0, 100, 1000],
        batch_size=1,
        versions={"betaedit": "0.1.0", "torch": "2.13.0", "transformers": "5.23.0", "python": "3.11.2"},
        details={"statistics": {"tokens": 100_000}, "contexts": ["{}", "So. {}"], "command": "betaedit run"},
    )


def checkpoint(edits: int, damage: float = 0.0, **changes: object) -> Checkpoint:
    """A model with ``damage`` from 0 (as the unedited one) to 1 (nothing left)."""
    left = 1 - damage
    written = min(edits, 1) * left
    values: dict[str, object] = {
        "edits": edits,
        "efficacy": figure(0.15 + 0.84 * written, 0.01 + 0.98 * written),
        "generality": figure(0.18 + 0.79 * written, 0.02 + 0.9 * written),
        "specificity": figure(0.5 + 0.2 * left, 0.22 * left),
        "perplexity": 23.4 * math.exp(6 * damage**2 + 0.1 * damage),
        "agreement": left**0.5 if damage < 1 else 0.0,
        "kl": 4 * damage**2,
        "layers": {
            layer: LayerState(
                leakage=0.3 * damage * (layer - 4),
                relative_leakage=0.1 * damage * (layer - 4),
                statistics_text_leakage=0.2 * damage * (layer - 4),
                relative_statistics_text_leakage=0.08 * damage * (layer - 4),
                weight_change=20 * damage * (layer - 4),
                relative_weight_change=0.2 * damage * (layer - 4),
            )
            for layer in (6, 7, 8, 9)
        },
        "abilities": {
            task: Ability(accuracy=mean(0.25 + (share - 0.25) * left), macro_f1=share * left)
            for task, share in TASKS.items()
        },
        "measures": {"fluency": 6.2 * left, "portability": mean(0.3 * left, 50)},
        "worst": _worst(damage) if edits else [],
        "hidden": _hidden(damage) if edits else None,
        "seconds_editing": 0.8 * edits,
        "seconds_evaluating": 30.0,
        **changes,
    }
    return Checkpoint(**values)  # type: ignore[arg-type]


def fabricate(
    path: Path,
    method: str = "betaedit",
    *,
    damage: float = 0.04,
    steps: int = 10,
    facts: int = 1000,
    changes: Mapping[str, object] = {},
) -> RunFolder:
    """A run of ``facts`` edits that ends with ``damage``, measured at 0 and ``steps`` times after."""
    folder = RunFolder.create(path, setup(method))
    for step in range(steps + 1):
        edits = facts * step // steps
        folder.write_checkpoint(checkpoint(edits, damage * (step / steps) ** 2, **changes), [outcome("counterfact-1")])
    for number in range(3):
        folder.append_edit({"id": f"counterfact-{number}", "seconds": 0.8})
    return folder


def outcome(record: str) -> Outcome:
    """One measured prompt."""
    return Outcome(
        record=record,
        kind="rewrite",
        prompt="The mother tongue of Danielle Darrieux is",
        wanted="English",
        other="French",
        wanted_nll=0.1,
        other_nll=4.0,
        argmax=True,
    )


def _worst(damage: float) -> list[WorstPrompt]:
    return [
        WorstPrompt(
            kind="neighbor",
            prompt=prompt,
            wanted=wanted,
            other=other,
            margin_before=3.1 - 0.2 * row,
            margin_after=1.2 - 12 * damage - 0.3 * row,
            text_before=f" {wanted}, and it has been so for a long time.",
            text_after=f" {other}, {other}, {other}" if damage > 0.3 else f" {other}, as everybody knows.",
        )
        for row, (prompt, wanted, other) in enumerate(NEIGHBORS)
    ]


def _hidden(damage: float) -> HiddenView:
    draw = random.Random(7)
    before = {
        group: [(draw.gauss(x, 1.2), draw.gauss(y, 0.9)) for _ in range(60)]
        for group, x, y in (("facts", -1.5, 0.8), ("neighbors", 1.8, -0.6))
    }
    after = {
        group: [(x + 5 * damage + draw.gauss(0, 0.15), y - 4 * damage + draw.gauss(0, 0.15)) for x, y in points]
        for group, points in before.items()
    }
    return HiddenView(layer=9, before=before, after=after)
