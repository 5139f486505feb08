from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from betaedit.cli.main import main
from support.edits import moments_for
from support.families import language_model


@pytest.fixture(autouse=True)
def _no_debug_of_earlier_tests(monkeypatch: pytest.MonkeyPatch) -> None:
    """``--debug`` speaks through the environment, which programs that a test starts would inherit."""
    monkeypatch.delenv("BETAEDIT_DEBUG", raising=False)


@dataclass
class Ran:
    code: int
    out: str
    err: str


@pytest.fixture
def betaedit(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Ran]:
    """Run the program in this process as a shell would."""

    def run(*args: str | Path) -> Ran:
        monkeypatch.setattr(sys, "argv", ["betaedit", *map(str, args)])
        code = 0
        try:
            main()
        except SystemExit as stop:
            code = int(stop.code or 0)
        captured = capsys.readouterr()
        return Ran(code, captured.out, captured.err)

    monkeypatch.setenv("COLUMNS", "200")
    return run


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random Llama as a folder, with statistics for layers 1 and 2 beside it."""
    folder = tmp_path_factory.mktemp("tiny") / "model"
    model = language_model("llama")
    model.model.save_pretrained(folder)
    model.tokenizer.save_pretrained(folder)
    moments_for(model).save(folder / "moments.safetensors")
    return folder


@pytest.fixture(scope="session")
def tiny(tiny_folder: Path) -> list[str]:
    """Options that edit the tiny model quickly."""
    return [
        "--model", str(tiny_folder), "--statistics", str(tiny_folder / "moments.safetensors"),
        "--set", "layers=[1, 2]", "--set", 'context_templates=["{}", "So. {}"]', "--set", "value_steps=3",
        "--set", "nullspace_threshold=0.3",
    ]  # fmt: skip
