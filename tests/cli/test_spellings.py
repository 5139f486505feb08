"""Runs, statistics and workspaces are opened again whatever their model was called: its weights say which it is."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

FACT = {"id": "a", "subject": "Bob", "prompt": "The home of {} is", "target_new": "Rome", "target_true": "Paris"}
QUICK = ["--set", "layers=[1, 2]", "--set", 'context_templates=["{}"]', "--set", "value_steps=2"]
COLLECTING = [*QUICK, "--set", "nullspace_threshold=0.3", "--set", "statistics_tokens=200"]


@pytest.fixture
def here(tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder: a model ``m``, a link to it, a folder beside it, and a file of facts."""
    folder = tmp_path / "here"
    shutil.copytree(tiny_folder, folder / "m")
    (folder / "m" / "moments.safetensors").unlink()
    (folder / "link").symlink_to("m")
    (folder / "x").mkdir()
    (folder / "facts.jsonl").write_text(json.dumps(FACT) + "\n")
    monkeypatch.chdir(folder)
    return folder


def edited(betaedit: Callable, model: str | Path, *options: str | Path):
    return betaedit("edit", "--from", "facts.jsonl", "--model", model, "--out", "run", "--json", *COLLECTING, *options)


@pytest.mark.parametrize("typed", ["./m", "m", "m/", "x/../m", "link", "~/m"])
def test_a_run_is_opened_from_another_folder_however_its_model_was_typed(
    betaedit, here: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, typed: str
) -> None:
    monkeypatch.setenv("HOME", str(here))
    assert edited(betaedit, typed).code == 0
    (here / "x").rmdir()
    monkeypatch.chdir(tmp_path)
    for to in ("factors", "facts"):
        ran = betaedit("export", "here/run", "--to", to, "--out", f"{to}.file")
        assert ran.code == 0, ran.err
    measured = betaedit("eval", "here/run", "--from", here / "facts.jsonl", "--json")
    assert measured.code == 0, measured.err
    assert json.loads(measured.out)["perplexity"] == pytest.approx(
        json.loads((here / "run" / "checkpoints" / "00000001.json").read_text())["perplexity"], rel=1e-5
    )


def test_a_run_goes_on_under_every_name_of_its_model(betaedit, here: Path, searches: list[int]) -> None:
    assert edited(betaedit, "./m").code == 0
    shutil.copytree(here / "m", here / "same-weights")
    for typed in ("m", "m/", "link", here / "m", "same-weights"):
        ran = edited(betaedit, typed)
        assert ran.code == 0, ran.err
    assert searches == [1], "the fact was written once and kept"
    shutil.copytree(here / "m", here / "elsewhere" / "gpt2-xl")
    ran = edited(betaedit, "elsewhere/gpt2-xl")
    assert ran.code == 7, "the published settings of gpt2-xl are others"
    assert "a different config" in ran.err


def test_a_comparison_goes_on_under_another_name_of_its_model(betaedit, here: Path, searches: list[int]) -> None:
    compare = ("compare", "--from", "facts.jsonl", "--out", "runs", "--json", *COLLECTING)
    assert betaedit(*compare, "--model", "./m", "--methods", "memit").code == 0
    again = betaedit(*compare, "--model", "link", "--methods", "memit,memit-h")
    assert again.code == 0, again.err
    assert searches == [1, 1], "one of each method"


def test_a_run_whose_model_has_moved_names_the_way_back_and_goes_on(betaedit, here: Path, tmp_path: Path) -> None:
    assert edited(betaedit, "m").code == 0
    (here / "link").unlink()
    moved = (here / "m").rename(tmp_path / "other name")
    export = ("export", "run", "--to", "model", "--out", "edited")
    lost = betaedit(*export)
    assert lost.code == 4
    assert "betaedit locate run PLACE" in lost.err
    assert betaedit("locate", "run", "../other name").code == 0
    assert json.loads((here / "run" / "run.json").read_text())["model"]["name"] == str(moved)
    ran = betaedit(*export)
    assert ran.code == 0, ran.err
    assert edited(betaedit, moved).code == 0


def test_another_model_in_its_place_names_the_way_back_too(betaedit, here: Path) -> None:
    assert edited(betaedit, "m").code == 0
    assert betaedit("init", "w", "--model", "m", *COLLECTING).code == 0
    assert betaedit("export", "run", "--to", "model", "--out", "edited").code == 0
    (here / "m").rename(here / "kept")
    (here / "edited").rename(here / "m")
    run = betaedit("eval", "run", "--from", "facts.jsonl")
    workspace = betaedit("verify", "--workspace", "w")
    assert (run.code, workspace.code) == (4, 9)
    assert "betaedit locate run PLACE" in run.err
    assert "betaedit locate w PLACE" in workspace.err
    for name in ("run", "w"):
        assert betaedit("locate", name, "kept").code == 0
    assert betaedit("eval", "run", "--from", "facts.jsonl").code == 0
    assert betaedit("verify", "--workspace", "w").code == 0


@pytest.mark.parametrize("typed", ["./m", "m/", "x/../m", "link"])
def test_a_workspace_is_opened_from_another_folder_however_its_model_was_typed(
    betaedit, here: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, typed: str
) -> None:
    assert betaedit("init", "w", "--model", typed, *COLLECTING).code == 0
    (here / "x").rmdir()
    monkeypatch.chdir(tmp_path)
    ran = betaedit("edit", "The home of [Bob] is", "Rome", "--workspace", "here/w")
    assert ran.code == 0, ran.err
    assert betaedit("export", "here/w", "--to", "facts", "--out", "facts.jsonl").code == 0


def test_statistics_are_known_by_what_they_were_made_of(betaedit, here: Path, tmp_path: Path) -> None:
    """Neither the model nor the text is known by its name."""
    text = " ".join(str(number) for number in range(900))
    (here / "text.txt").write_text(text)
    (here / "x" / "renamed.txt").write_text(text)
    (here / "x" / "other.txt").write_text(f"1 {text}")
    shutil.copytree(here / "m", here / "same-weights")
    for name, model in (("text.txt", "m"), ("x/renamed.txt", "same-weights"), ("x/other.txt", "m")):
        collected = betaedit(
            "statistics", "--model", model, "--corpus", name, "--tokens", "200", "--layers", "1,2",
            "--save", f"{name}.safetensors",
        )  # fmt: skip
        assert collected.code == 0, collected.err
    assert edited(betaedit, "m", "--set", "statistics_corpus=text.txt").code == 0
    same = edited(betaedit, "link", "--set", "statistics_corpus=./x/../text.txt")
    assert same.code == 0, same.err
    given = edited(betaedit, "m", "--statistics", "x/renamed.txt.safetensors")
    assert given.code == 0, given.err
    refused = edited(betaedit, "m", "--statistics", "x/other.txt.safetensors")
    assert refused.code == 5
    assert "other statistics" in refused.err
    export = ("export", "run", "--to", "factors", "--out")
    assert betaedit(*export, "one", "--statistics", "x/renamed.txt.safetensors").code == 0
    (here / "text.txt").unlink()
    lost = betaedit(*export, "two")
    assert lost.code == 5
    assert "--statistics" in lost.err
    assert betaedit(*export, "two", "--statistics", "x/renamed.txt.safetensors").code == 0


def test_the_same_weights_under_another_name_have_statistics_already(betaedit, here: Path, cache: Path) -> None:
    shutil.copytree(here / "m", here / "same-weights")
    before = set((cache / "moments").glob("*.safetensors"))
    for model in ("m", "same-weights", "link"):
        ran = betaedit("statistics", "--model", model, "--tokens", "345", "--layers", "1,2")
        assert ran.code == 0, ran.err
    assert len(set((cache / "moments").glob("*.safetensors")) - before) == 1


def test_the_facts_of_a_run_or_workspace_need_no_model(
    betaedit, here: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    more = {**FACT, "id": "b", "target_new": "Oslo"}
    other = {**FACT, "id": "c", "subject": "Ana"}
    (here / "facts.jsonl").write_text("".join(f"{json.dumps(fact)}\n" for fact in (FACT, other, more)))
    assert edited(betaedit, "m").code == 0
    assert betaedit("init", "w", "--model", "m", *COLLECTING).code == 0
    assert betaedit("edit", "--from", "facts.jsonl", "--workspace", "w").code == 0
    (here / "link").unlink()
    shutil.rmtree(here / "m")
    for name in ("run", "w"):
        ran = betaedit("export", name, "--to", "facts", "--out", f"{name}.jsonl")
        assert ran.code == 0, ran.err
        written = [json.loads(line) for line in (here / f"{name}.jsonl").read_text().splitlines()]
        assert written == [other, more], "the replaced answer is not among them"
