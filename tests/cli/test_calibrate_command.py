"""``betaedit calibrate`` writes a preset file, and ``--preset`` reads it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

FACTS = [
    {"subject": subject, "prompt": "We saw {}", "target_new": "Rome", "target_true": "Oslo", "neighbors": ["Near the"]}
    for subject in ("Ana Lima", "Another Name", "Zoe")
]


@pytest.fixture
def facts(tmp_path: Path) -> Path:
    path = tmp_path / "facts.jsonl"
    path.write_text("".join(json.dumps(fact) + "\n" for fact in FACTS))
    return path


@pytest.fixture(autouse=True)
def short_prose(monkeypatch: pytest.MonkeyPatch) -> None:
    """Perplexity on a sentence: bytes of whole passages are slow."""
    monkeypatch.setattr("betaedit.experiments.calibrate.held_out_prose", lambda: ["The old town by the river."])


@pytest.fixture
def command(tiny_folder: Path, facts: Path, tmp_path: Path) -> list[str]:
    return [
        "calibrate", "--model", str(tiny_folder), "--from", str(facts), "--limit", "2", "--check", "1", "--trials", "2",
        "--out", str(tmp_path / "mine.yaml"),
    ]  # fmt: skip


def test_a_calibration_shows_layers_and_trials_and_its_preset_is_used(
    betaedit, command: list[str], facts: Path, tiny_folder: Path, tmp_path: Path
) -> None:
    ran = betaedit(*command, "--plot", tmp_path / "mine.svg")
    assert ran.code == 0, ran.err
    assert "causal tracing" in ran.out
    assert "layer 3" in ran.out
    assert "trial 2" in ran.out
    assert "the best setting on 1 other facts" in ran.out
    assert "█" in ran.out
    assert "<svg" in (tmp_path / "mine.svg").read_text()
    again = json.loads(betaedit(*command, "--json").out)
    assert [trial["number"] for trial in again["trials"]] == [0, 1, 2]
    chosen = again["preset"]["values"]
    plan = betaedit(
        "edit", "--from", facts, "--model", tiny_folder, "--preset", tmp_path / "mine.yaml", "--plan", "--json"
    )
    assert plan.code == 0, plan.err
    config = json.loads(plan.out)["config"]
    assert {name: config[name] for name in chosen} == chosen


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--plot", "mine.doc"], "mine.doc"),
        (["--method", "betadit"], "betadit"),
    ],
)
def test_what_cannot_work_is_refused_before_the_search(betaedit, command, options: list[str], told: str) -> None:
    ran = betaedit(*command, *options)
    assert ran.code == 2
    assert told in ran.err
    assert "hint:" in ran.err


@pytest.mark.parametrize("command", ["edit", "compare", "statistics"])
def test_a_broken_preset_file_is_refused_by_every_command(
    betaedit, command: str, facts: Path, tiny_folder: Path, tmp_path: Path
) -> None:
    broken = tmp_path / "broken.yaml"
    broken.write_text("name: mine\nmodel: x\nsource: y\nvalues: {value_clam: 1}\n")
    more = {"edit": ["--from", facts], "compare": ["--from", facts, "--out", tmp_path / "runs"], "statistics": []}
    ran = betaedit(command, "--model", tiny_folder, "--preset", broken, *more[command])
    assert ran.code == 2
    assert "broken.yaml: [values]" in ran.err
    assert "value_clamp" in ran.err
