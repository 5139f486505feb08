"""A made-up editor, fine-tuning and retrieval go through every command as the closed form does."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from betaedit.editors.methods import METHODS
from support.counting import COUNTING

SETTINGS = {
    "counting": ["--set", "step=2"],
    "ft": ["--set", "steps=2", "--set", "layer=1"],
    "scr": ["--set", "confirm=none"],
}
EVERY = pytest.mark.parametrize("method", SETTINGS)


@pytest.fixture(autouse=True)
def _counting() -> Iterator[None]:
    METHODS.register(COUNTING)
    yield
    METHODS.unregister(COUNTING.name)


@pytest.fixture
def facts(tmp_path: Path) -> Path:
    file = tmp_path / "facts.jsonl"
    rows = [
        {
            "subject": "Ana",
            "prompt": "{} was born in",
            "target_new": "Lima",
            "paraphrases": ["The birth of Ana was in"],
        },
        {"subject": "Bob", "prompt": "{} lives in", "target_new": "Rome", "neighbors": ["Zoë lives in"]},
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return file


@EVERY
def test_edit_writes_and_reports_each_fact(betaedit, tiny_folder: Path, facts: Path, method: str) -> None:
    ran = betaedit("edit", "--model", tiny_folder, "--method", method, "--from", facts, "--json", *SETTINGS[method])
    assert ran.code == 0, ran.err
    found = json.loads(ran.out)
    assert found["method"] == method
    assert [result["subject"] for result in found["results"]] == ["Ana", "Bob"]
    assert found["efficacy"]["probability"]["after"] is None or 0 <= found["efficacy"]["probability"]["after"] <= 1


@EVERY
def test_people_are_shown_the_facts_and_what_is_known_of_drift(
    betaedit, tiny_folder: Path, facts: Path, method: str
) -> None:
    ran = betaedit("edit", "--model", tiny_folder, "--method", method, "--from", facts, *SETTINGS[method])
    assert ran.code == 0, ran.err
    assert "Ana was born in" in ran.out
    assert "perplexity" in ran.out
    assert ("weight change" in ran.out) == (method == "ft")


@EVERY
def test_a_run_is_kept_continued_evaluated_and_drawn(
    betaedit, tiny_folder: Path, facts: Path, tmp_path: Path, method: str
) -> None:
    options = ["edit", "--model", tiny_folder, "--method", method, "--from", facts, *SETTINGS[method]]
    first = betaedit(*options, "--limit", "1", "--out", tmp_path / "run", "--json")
    assert first.code == 0, first.err
    whole = betaedit(*options, "--out", tmp_path / "run", "--json")
    assert whole.code == 0, whole.err
    assert json.loads(whole.out)["edits"] == 2
    straight = betaedit(*options, "--out", tmp_path / "straight", "--json")
    same = ("efficacy", "generality", "specificity", "perplexity")
    assert {name: json.loads(whole.out)[name] for name in same} == {
        name: json.loads(straight.out)[name] for name in same
    }
    measured = betaedit("eval", tmp_path / "run", "--from", facts, "--json")
    assert measured.code == 0, measured.err
    report = betaedit("report", tmp_path / "run", "--out", tmp_path / "report.html")
    assert report.code == 0, report.err


def test_compare_takes_methods_of_all_families(betaedit, tiny_folder: Path, facts: Path, tmp_path: Path) -> None:
    options = ["compare", "--model", tiny_folder, "--methods",
               "memit,ft[steps=2],scr[confirm=none],counting", "--from", facts, "--out", tmp_path / "runs",
               "--set", "layers=[1]", "--set", "value_steps=3", "--set", "statistics_tokens=600",
               "--set", "layer=1"]  # fmt: skip
    ran = betaedit(*options, "--json")
    assert ran.code == 0, ran.err
    shown = betaedit(*options)
    assert shown.code == 0, shown.err
    assert "counting" in shown.out
    assert not json.loads(ran.out).get("failed")
    assert sorted(folder.parent.name for folder in (tmp_path / "runs").glob("*/run.json")) == [
        "counting", "ft-steps-2", "memit", "scr-confirm-none"
    ]  # fmt: skip


@EVERY
def test_a_plan_changes_nothing(betaedit, tiny_folder: Path, facts: Path, method: str) -> None:
    ran = betaedit("edit", "--model", tiny_folder, "--method", method, "--from", facts, "--plan", *SETTINGS[method])
    assert ran.code == 0, ran.err
    assert method in ran.out


def test_methods_lists_every_family(betaedit) -> None:
    listed = {row["name"]: row["family"] for row in json.loads(betaedit("methods", "--json").out)["methods"]}
    assert {listed[name] for name in ("betaedit", "ft", "scr", "counting")} == {
        "closed form", "fine-tuning", "retrieval", "counting"
    }  # fmt: skip
    settings = json.loads(betaedit("methods", "--config", "--json").out)["hyper_parameters"]
    names = {(row["family"], row["name"]) for row in settings}
    assert {("counting", "step"), ("retrieval", "top_k"), ("closed form", "ridge")} <= names


@pytest.mark.parametrize("method", ["counting", "scr"])
def test_what_changes_no_weights_is_not_saved_as_a_model(
    betaedit, tiny_folder: Path, facts: Path, tmp_path: Path, method: str
) -> None:
    ran = betaedit("edit", "--model", tiny_folder, "--method", method, "--from", facts, "--save", tmp_path / "saved",
                   *SETTINGS[method])  # fmt: skip
    assert ran.code != 0
    assert f"{method} cannot be saved as a model" in ran.err
    assert "Ana" not in ran.out, "nothing is written before that is said"
    assert not (tmp_path / "saved").exists()


@pytest.mark.parametrize("method", ["counting", "ft", "lora", "memit-h+scr"])
def test_what_a_workspace_cannot_undo_is_refused_by_name(
    betaedit, tiny_folder: Path, tmp_path: Path, method: str
) -> None:
    ran = betaedit("init", tmp_path / "workspace", "--model", tiny_folder, "--method", method)
    assert ran.code != 0
    assert f"{method} cannot be used in a workspace" in ran.err


@pytest.mark.parametrize("method", ["grace", "wise", "scr"])
def test_a_workspace_keeps_and_forgets_what_is_beside_the_weights(
    betaedit, tiny_folder: Path, facts: Path, tmp_path: Path, method: str
) -> None:
    settings = {"scr": ["--set", "confirm=none"], "grace": ["--set", "steps=2"]}.get(
        method, ["--set", "steps=2", "--set", 'unrelated_prompts=["It rains in"]', "--set", 'context_templates=["{}"]']
    )
    folder = tmp_path / "workspace"
    ran = betaedit("init", folder, "--model", tiny_folder, "--method", method, *settings)
    assert ran.code == 0, ran.err
    assert f"{method}, no weight changes" in ran.out
    assert betaedit("edit", "--from", facts, "--workspace", folder).code == 0
    again = betaedit("edit", "--from", facts, "--workspace", folder)
    assert "2 of 2 facts skipped" in again.out
    assert betaedit("forget", "Ana", "--workspace", folder).code == 0
    assert betaedit("replace", "Bob", "Oslo", "--workspace", folder).code == 0
    listed = json.loads(betaedit("log", "--workspace", folder, "--json").out)["edits"]
    assert [fact["state"] for fact in listed] == ["forgotten", "replaced", "live"]
    ran = betaedit("ask", "Bob lives in", "--workspace", folder)
    assert ran.code == 0, ran.err
    ran = betaedit("diff", "1", "--workspace", folder)
    assert "+ #3" in ran.out
    assert "weights" not in ran.out
    ran = betaedit("verify", "--replay", "--workspace", folder)
    assert ran.code == 0, ran.out
    ran = betaedit("export", folder, "--to", "facts", "--out", tmp_path / "kept.jsonl")
    assert ran.code == 0, ran.err
    assert json.loads((tmp_path / "kept.jsonl").read_text())["target_new"] == "Oslo"
    for form in ("model", "adapter", "factors"):
        ran = betaedit("export", folder, "--to", form, "--out", tmp_path / form)
        assert ran.code != 0
        assert f"{method} cannot be" in ran.err
        assert not (tmp_path / form).exists()


def test_a_setting_of_another_family_is_refused(betaedit, tiny_folder: Path, facts: Path) -> None:
    ran = betaedit("edit", "--model", tiny_folder, "--method", "ft", "--from", facts, "--set", "value_clamp=1")
    assert ran.code != 0
    assert "no hyper-parameter 'value_clamp'" in ran.err
