"""The snippets of README.md and docs/python-api.md run as they stand, one after another."""

from __future__ import annotations

import re
import shlex
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from betaedit import Editor, Fact, Workspace
from betaedit.cli.main import main

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
GATED = (ROOT / "docs" / "gated-memory.md").read_text(encoding="utf-8")
PYTHON_API = (ROOT / "docs" / "python-api.md").read_text(encoding="utf-8")
TABLE = README.partition("## What you can do")[2].partition("\n## ")[0]
COMMANDS = [cell for cell in re.findall(r"`(betaedit [^`]+)`", TABLE) if not cell.startswith("betaedit calibrate")]


def listings(page: str) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", page, flags=re.DOTALL | re.MULTILINE)


def run_listings(page: str) -> dict[str, Any]:
    """All listings in one namespace; a traceback names the listing and its line."""
    names: dict[str, Any] = {}
    for number, listing in enumerate(listings(page), start=1):
        exec(compile(listing, f"<listing {number}>", "exec"), names)
    return names


def run_command(line: str, monkeypatch: pytest.MonkeyPatch) -> int:
    """The exit code of a command as a shell would run it."""
    monkeypatch.setattr(sys, "argv", shlex.split(line))
    try:
        main()
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0


@pytest.mark.usefixtures("desk")
def test_the_python_of_the_readme_runs_and_leaves_an_unedited_model() -> None:
    names = run_listings(README)
    assert names["editor"].results == []
    assert Path("edited/config.json").exists()


@pytest.mark.usefixtures("desk")
def test_the_python_api_runs_from_beginning_to_end() -> None:
    with Workspace.create("other", Editor.from_pretrained("smollm2")) as workspace:
        workspace.edit(Fact("The capital of {} is", "Peru", "Lisbon"))
    names = run_listings(PYTHON_API)
    assert names["report"].after.edits == len(names["file"].cases)


@pytest.mark.usefixtures("desk")
def test_transformers_gives_the_answers_of_a_saved_gated_memory_by_the_lines_of_its_page() -> None:
    fact = Fact("The capital of {} is", "Peru", "Lisbon")
    editor = Editor.from_pretrained("smollm2", method="gated", gate=0.9, value_steps=2)
    editor.edit(fact)
    editor.save_pretrained("edited")
    model = run_listings(GATED)["model"]
    ids = torch.tensor([[*editor.language_model.encode([fact.text])[0], 5]] * 2)
    with torch.no_grad():
        assert torch.allclose(model(ids).logits, editor.model(ids).logits, atol=1e-5)
        with editor.unedited():
            assert not torch.allclose(model(ids).logits, editor.model(ids).logits, atol=1e-5)


@pytest.mark.usefixtures("desk")
def test_the_commands_of_the_readme_run_in_their_order(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for line in COMMANDS:
        code = run_command(line, monkeypatch)
        assert code == 0, f"{line}\n{capsys.readouterr().err}"
    assert {"edited", "runs", "report.html", "adapter", "mine"} <= {path.name for path in Path().iterdir()}


@pytest.mark.usefixtures("desk")
def test_the_calibration_of_the_readme_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """With fewer trials and facts than the command's own defaults."""
    (line,) = re.findall(r"`(betaedit calibrate [^`]+)`", TABLE)
    assert run_command(f"{line} --trials 1 --limit 2 --check 1", monkeypatch) == 0
    assert Path("my-llama.yaml").exists()


def test_the_two_commands_of_the_readme_are_targets_of_the_makefile() -> None:
    targets = re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert {"demo", "test", "docs"} <= set(targets)
    assert re.findall(r"^make (\w+)", README, flags=re.MULTILINE) == ["demo", "test"]


@pytest.mark.real_model
def test_the_readme_edits_the_default_model_as_it_says(smollm2: Any, tmp_path: Path) -> None:
    """The same snippet with the real model: the answer is the new one until it is forgotten."""
    editor = Editor.from_pretrained(smollm2.model, tokenizer=smollm2.tokenizer, preset="smollm2")
    prompt = "The mother tongue of Danielle Darrieux is"
    try:
        editor.edit(Fact("The mother tongue of {} is", "Danielle Darrieux", "English"))
        assert editor.complete(prompt).strip().startswith("English")
        editor.forget("Danielle Darrieux")
        assert not editor.complete(prompt).strip().startswith("English")
    finally:
        editor.reset()
