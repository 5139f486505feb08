"""``betaedit edit``: what it prints, what it saves, what it refuses."""

from __future__ import annotations

import gzip
import json
import re
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from betaedit.compiled.library import NoCompilerError, NoKernelsError
from betaedit.models.runners import kernels

FACTS = [
    {"subject": "Ana", "prompt": "{} was born in", "target_new": "Lima", "target_true": "Oslo",
     "paraphrases": ["The birthplace of Ana is"], "neighbors": ["Zoe was born in"]},
    {"subject": "Bob", "prompt": "The home of {} is", "target_new": "Rome", "target_true": "Paris"},
]  # fmt: skip
FIGURE = {form: {"before", "after", "count", "interval"} for form in ("probability", "argmax")}


@pytest.fixture
def facts(tmp_path: Path) -> Path:
    path = tmp_path / "facts.jsonl"
    path.write_text("".join(json.dumps(fact) + "\n" for fact in FACTS))
    return path


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text("A short held-out text.\n\nAnd another one, a little longer.\n")
    return path


def test_json_is_one_object_on_stdout_and_nothing_else(betaedit, tiny, facts, text) -> None:
    ran = betaedit("edit", "--from", facts, "--text", text, "--json", *tiny)
    assert ran.code == 0, ran.err
    report = json.loads(ran.out)
    assert report["edits"] == 2
    assert report["method"] == "betaedit"
    assert report["model"] == tiny[1]
    assert report["seconds_per_edit"] > 0
    for name in ("efficacy", "generality", "specificity"):
        assert {form: set(report[name][form]) for form in report[name]} == FIGURE
    assert report["leakage"]["mean"] > 0
    assert report["weight_change"]["mean"] > 0
    assert set(report["perplexity"]) == {"before", "after"}
    assert report["setup"]["config"]["layers"] == [1, 2]
    assert [result["subject"] for result in report["results"]] == ["Ana", "Bob"]


def test_the_same_seed_gives_the_same_figures(betaedit, tiny, facts, text) -> None:
    def figures() -> dict:
        report = json.loads(betaedit("edit", "--from", facts, "--text", text, "--seed", "3", "--json", *tiny).out)
        return {key: report[key] for key in ("efficacy", "leakage", "weight_change", "perplexity")}

    assert figures() == figures()


def test_a_typed_fact_prints_answers_before_and_after(betaedit, tiny, text) -> None:
    ran = betaedit("edit", "The home of [Bob] is", "Rome", "--true", "Paris", "--text", text, *tiny)
    assert ran.code == 0, ran.err
    assert "The home of Bob is" in ran.out
    assert "efficacy, argmax" in ran.out
    assert "seconds per edit" in ran.out


def test_a_plan_marks_the_lookup_token_and_changes_nothing(betaedit, tiny) -> None:
    ran = betaedit("edit", "The home of [Bob] is", "Rome", "--plan", "--json", *tiny)
    (plan,) = json.loads(ran.out)["plan"]
    assert "".join(plan["tokens"][: plan["lookup"] + 1]).endswith("Bob")
    shown = betaedit("edit", "The home of [Bob] is", "Rome", "--plan", *tiny)
    assert "nothing changed" in shown.out
    assert re.search(r"\|>[^|]*b<\|", shown.out), shown.out


def test_a_plan_shows_what_can_be_written_before_it_asks_about_the_rest(betaedit, tiny, tmp_path) -> None:
    file = tmp_path / "f.jsonl"
    prompts = ("The art at the Bartlett is", "The Bartlett is", "{}, said Bob, is", "Art is art, and so is art:")
    lines = [{"subject": "art", "prompt": prompt, "target_new": "glass"} for prompt in prompts]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    ran = betaedit("edit", "--from", file, "--plan", *tiny)
    assert ran.code == 3
    assert ran.out.count("->") == 2
    assert "f.jsonl:2: [subject] the subject 'art' occurs only inside other words" in ran.err
    assert "f.jsonl:4: [subject] the subject 'art' occurs 2 times in the prompt" in ran.err
    assert betaedit("edit", "--from", file, "--plan", "--skip-invalid", *tiny).code == 0
    assert betaedit("edit", "--from", file, *tiny).code == 3


def test_settings_that_nobody_measured_are_named_as_such_with_the_command_that_finds_others(
    betaedit, tiny, facts, text, caplog
) -> None:
    assert betaedit("edit", "--from", facts, "--text", text, *tiny).code == 0
    assert f"betaedit calibrate --model {tiny[1]}" in caplog.text
    caplog.clear()
    assert betaedit("edit", "--from", facts, "--text", text, "--preset", "smollm2", *tiny).code == 0
    assert "calibrate" not in caplog.text


def test_the_edited_model_is_saved_and_differs(betaedit, tiny, facts, text, tmp_path) -> None:
    ran = betaedit("edit", "--from", facts, "--text", text, "--save", tmp_path / "out", "--limit", "1", *tiny)
    assert ran.code == 0, ran.err
    edited = AutoModelForCausalLM.from_pretrained(tmp_path / "out").state_dict()
    original = AutoModelForCausalLM.from_pretrained(tiny[1]).state_dict()
    changed = {name for name in original if not torch.equal(original[name], edited[name])}
    assert changed == {f"model.layers.{layer}.mlp.down_proj.weight" for layer in (1, 2)}
    assert len(json.loads((tmp_path / "out" / "betaedit.json").read_text())["edits"]) == 1


def test_compressed_files_are_read_and_batches_are_solved_together(betaedit, tiny, facts, text, tmp_path) -> None:
    packed = tmp_path / "facts.jsonl.gz"
    packed.write_bytes(gzip.compress(facts.read_bytes()))
    ran = betaedit("edit", "--from", packed, "--text", text, "--batch-size", "2", "--method", "memit", "--json", *tiny)
    report = json.loads(ran.out)
    assert report["method"] == "memit"
    assert report["results"][0]["update_norms"] == report["results"][1]["update_norms"]


def test_settings_come_from_preset_then_file_then_seed_then_set(betaedit, tiny, tmp_path) -> None:
    for name, content in (("c.yaml", "value_clamp: 2.0\nridge: 3\n"), ("c.toml", "value_clamp = 2.0\nridge = 3\n"),
                          ("c.json", '{"value_clamp": 2.0, "ridge": 3}')):  # fmt: skip
        (tmp_path / name).write_text(content)
        ran = betaedit("edit", "[Bob] is", "Rome", "--plan", "--json", "--config", tmp_path / name, "--seed", "7",
                       "--set", "ridge=5", "--set", "kl_template={} was a", *tiny)  # fmt: skip
        config = json.loads(ran.out)["config"]
        assert (config["value_clamp"], config["ridge"], config["seed"]) == (2.0, 5.0, 7)
        assert config["kl_template"] == "{} was a"
        assert config["context_templates"] == ["{}", "So. {}"]


BROKEN = '{"subject": "Ana", "prompt": "{} was born in", "target_new": "Lima"}\n{"subject": "Bob", "prompt": "{} is"\n'


@pytest.mark.parametrize(
    ("args", "code", "parts"),
    [
        (["edit"], 2, ["nothing to write", "hint:"]),
        (["edit", "The home of Bob is", "Rome"], 3, ["0 subjects in brackets", "[Danielle Darrieux]"]),
        (["edit", "The home of [] is", "Rome"], 3, ["subject is empty"]),
        (["edit", "The home of [Bob] is", " "], 3, ["new target is empty"]),
        (["edit", "The home of [Bob] is", "Rome", "--true", "Rome"], 3, ["would change nothing"]),
        (["edit", "The home of [Bob] is", "Rome", "--from", "x.jsonl"], 2, ["cannot be combined"]),
        (["edit", "--from", "missing.jsonl"], 3, ["missing.jsonl"]),
        (["edit", "[Bob] is", "Rome", "--reset-every", "1", "--save", "new"], 2, ["no model holds all facts"]),
        (["edit", "[Bob] is", "Rome", "--reset-every", "1", "--batch-size", "2"], 2, ["in batches of 2"]),
        (
            ["edit", "The home of [Bob] is", "<|endoftext|>"],
            3,
            ["special token", "Give the answer that the model should give"],
        ),
        (["edit", "The home of [Bob] is", "Rome", "--true", "</s>"], 3, ["special token", "Leave it out"]),
        (["edit", "[Bob] is", "Rome", "--method", "betaedt"], 2, ["no method 'betaedt'", "Did you mean betaedit"]),
        (["edit", "[Bob] is", "Rome", "--set", "value_clmap=1"], 2, ["value_clmap", "Did you mean value_clamp"]),
        (["edit", "[Bob] is", "Rome", "--set", "value_clamp"], 2, ["not KEY=VALUE"]),
        (["edit", "[Bob] is", "Rome", "--set", "value_clamp=-1"], 2, ["value_clamp", "greater than 0"]),
        (["edit", "[Bob] is", "Rome", "--config", "missing.yaml"], 2, ["missing.yaml"]),
        (["edit", "[Bob] is", "Rome", "--statistics", "missing.safetensors"], 5, ["missing.safetensors"]),
        (["edit", "[Bob] is", "Rome", "--evaluate-at", "0,5"], 2, ["cannot measure after 5 edits", "from 0 to 1"]),
        (["edit", "[Bob] is", "Rome", "--set", "layers=[1, 40]"], 4, ["no layer 40", "layers 0 to 3"]),
    ],
)
def test_bad_input_is_refused_with_cause_mend_and_a_stable_code(betaedit, tiny, args, code, parts) -> None:
    model = ["--model", tiny[1]]
    ran = betaedit(*args, *model)
    assert ran.code == code, ran.err
    assert ran.out == ""
    for part in [*parts, "error:"]:
        assert part in ran.err


def test_a_broken_line_is_named_and_nothing_is_saved(betaedit, tiny, tmp_path) -> None:
    path = tmp_path / "broken.jsonl"
    path.write_text(BROKEN)
    ran = betaedit("edit", "--from", path, "--save", tmp_path / "out", *tiny)
    assert ran.code == 3
    assert f"{path}:2" in ran.err
    assert not (tmp_path / "out").exists()


def test_broken_lines_can_be_left_out_and_are_listed(betaedit, tiny, tmp_path, text) -> None:
    path = tmp_path / "broken.jsonl"
    path.write_text(BROKEN)
    ran = betaedit("edit", "--from", path, "--skip-invalid", "--text", text, "--json", *tiny)
    assert json.loads(ran.out)["edits"] == 1
    assert "skipped: " in ran.err
    assert f"{path}:2" in ran.err


def test_a_folder_that_is_not_empty_is_not_overwritten(betaedit, tiny, tmp_path) -> None:
    (tmp_path / "precious").write_text("x")
    ran = betaedit("edit", "[Bob] is", "Rome", "--save", tmp_path, *tiny)
    assert ran.code == 2
    assert "not empty" in ran.err


def test_a_missing_model_is_named_before_anything_is_read(betaedit) -> None:
    ran = betaedit("edit", "[Bob] is", "Rome", "--model", "./no-such-folder")
    assert ran.code == 4
    assert "no-such-folder" in ran.err


def test_a_traceback_is_shown_only_when_asked_for(betaedit, tiny, monkeypatch) -> None:
    from betaedit.errors import FactError

    monkeypatch.delenv("BETAEDIT_DEBUG", raising=False)
    with pytest.raises(FactError):
        betaedit("--debug", "edit", "no brackets", "Rome")
    monkeypatch.delenv("BETAEDIT_DEBUG", raising=False)


@pytest.mark.parametrize(("reason", "said"), [(NoCompilerError("none"), True), (NoKernelsError("off"), False)])
def test_a_machine_without_a_compiler_is_told_what_one_would_bring(
    betaedit, tiny, facts, monkeypatch, caplog, reason, said
):
    monkeypatch.setattr(kernels, "find_kernels", lambda: reason)
    ran = betaedit("edit", "--from", facts, "--plan", *tiny)
    assert ran.code == 0, ran.err
    assert ("searches take half of the time" in caplog.text) == said


@pytest.fixture
def no_drift(monkeypatch: pytest.MonkeyPatch) -> None:
    """Measuring drift fails."""

    def measured(*_: object, **__: object) -> None:
        raise AssertionError("drift was measured")

    for name in ("perplexity", "compare", "leakage_on"):
        monkeypatch.setattr(f"betaedit.experiments.evaluate.{name}", measured)


@pytest.mark.usefixtures("no_drift")
def test_a_quick_edit_measures_no_drift_and_says_so(betaedit, tiny, facts) -> None:
    report = json.loads(betaedit("edit", "--from", facts, "--quick", "--json", *tiny).out)
    assert report["perplexity"] == {"before": None, "after": None}
    assert (report["agreement"], report["kl"], report["leakage"]["mean"]) == (None, None, None)
    assert report["weight_change"]["mean"] is None
    assert report["efficacy"]["argmax"]["after"] is not None
    assert "drift not measured" in report["verdict"]["summary"]
    shown = betaedit("edit", "The home of [Bob] is", "Rome", "--quick", *tiny).out
    assert "not measured: perplexity, agreement, leakage" in shown
    assert "efficacy" in shown


@pytest.mark.usefixtures("no_drift")
def test_a_quick_edit_measures_what_is_asked_for_by_name(betaedit, tiny, facts) -> None:
    ran = betaedit("edit", "--from", facts, "--quick", "--also", "tokens", "--evaluate-at", "1", "--json", *tiny)
    found = json.loads(ran.out)["checkpoints"]
    assert [checkpoint["edits"] for checkpoint in found] == [0, 1, 2]
    assert "token accuracy, prompts" in found[-1]["measures"]


@pytest.mark.parametrize("options", [["--out", "run"], ["--text", "text.txt"]])
def test_what_needs_drift_excludes_a_quick_edit(betaedit, tiny, facts, options, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    ran = betaedit("edit", "--from", facts, "--quick", *options, *tiny)
    assert ran.code == 2
    assert "--quick" in ran.err
    assert not (tmp_path / "run").exists()


def test_settings_that_were_not_measured_are_told_once(betaedit, tiny, caplog: pytest.LogCaptureFixture) -> None:
    assert betaedit("edit", "The home of [Bob] is", "Rome", "--plan", *tiny).code == 0
    assert sum("there is no preset for" in message for message in caplog.messages) == 1
    assert f"`betaedit calibrate --model {tiny[1]}" in caplog.text


# ---- held or missed


def test_wordings_and_form_are_options(betaedit, tiny, facts, text) -> None:
    def config(*options: str) -> dict:
        ran = betaedit("edit", "--from", facts, "--text", text, "--json", *options, *tiny)
        return json.loads(ran.out)["setup"]["config"]

    assert (config()["form"], config()["paraphrases"]) == ("completion", "unseen")
    chosen = config("--form", "both", "--paraphrases", "written")
    assert (chosen["form"], chosen["paraphrases"]) == ("both", "written")


def test_the_last_line_counts_the_facts_that_are_not_held_and_scripts_can_ask_for_a_share(
    betaedit, tiny, facts, text
) -> None:
    ran = betaedit("edit", "--from", facts, "--text", text, *tiny)
    assert ran.code == 0
    assert ran.out.splitlines()[-1].startswith("2 of 2 not held: Ana was born in; The home of Bob is")
    failed = betaedit("edit", "--from", facts, "--text", text, "--fail-under", "0.5", *tiny)
    assert failed.code == 10
    assert "0.0% of the facts are held" in failed.err
    assert betaedit("edit", "--from", facts, "--text", text, "--fail-under", "0", *tiny).code == 0


def test_a_fact_that_is_missed_is_taken_back_and_said_so_unless_it_is_to_be_kept(betaedit, tiny, facts, text) -> None:
    tiny = [*tiny, "--set", "keep_missed=false"]
    ran = betaedit("edit", "--from", facts, "--text", text, *tiny)
    assert "2 of 2 not held (2 removed again, the model answers as before)" in ran.out
    report = json.loads(betaedit("edit", "--from", facts, "--text", text, "--json", *tiny).out)
    assert report["held"] | {"missed": 0, "by probability": 0} == {
        "facts": 2, "missed": 0, "runs on": 0, "by probability": 0, "held": 0, "taken back": 2
    }  # fmt: skip
    assert [(one["status"] == "held", one["kept"], one["keys"]) for one in report["results"]] == [(False, False, 0)] * 2
    assert report["weight_change"]["mean"] == 0
    kept = json.loads(betaedit("edit", "--from", facts, "--text", text, "--json", *tiny[:-2], "--keep-missed").out)
    assert kept["held"]["taken back"] == 0
    assert kept["weight_change"]["mean"] > 0


def test_a_run_whose_facts_were_taken_back_goes_on_where_it_was(betaedit, tiny, facts, text, tmp_path: Path) -> None:
    options = ("edit", "--from", facts, "--text", text, "--out", tmp_path / "run", "--json", *tiny)
    first = json.loads(betaedit(*options, "--set", "keep_missed=false").out)
    again = json.loads(betaedit(*options, "--set", "keep_missed=false").out)
    assert first["results"] == again["results"]
    exported = betaedit("export", tmp_path / "run", "--to", "facts", "--out", tmp_path / "out.jsonl")
    assert "holds no edits" in exported.err


def test_a_missed_fact_leaves_no_event_in_a_workspace(betaedit, tiny, facts, tmp_path: Path) -> None:
    made = betaedit("init", tmp_path / "w", *tiny, "--set", "keep_missed=false")
    assert made.code == 0, made.err
    ran = betaedit("edit", "--from", facts, "--workspace", tmp_path / "w")
    assert ran.code == 0, ran.err
    assert "0 edits kept" in ran.out
    assert json.loads(betaedit("log", "--json", "--workspace", tmp_path / "w").out)["edits"] == []
    assert betaedit("verify", "--workspace", tmp_path / "w").code == 0


def test_layers_run_by_the_chosen_runner_and_the_figures_differ_by_rounding_alone(betaedit, tiny, facts) -> None:
    found = {}
    for runner in ("modules", "fused", "auto"):
        ran = betaedit("edit", "--from", facts, "--quick", "--json", "--runner", runner, *tiny)
        assert ran.code == 0, ran.err
        found[runner] = [result["sought_probability"] for result in json.loads(ran.out)["results"]]
    assert found["fused"] == pytest.approx(found["modules"], rel=1e-4)
    assert found["auto"] == pytest.approx(found["modules"], rel=1e-4)


def test_a_runner_that_there_is_not_is_refused_before_a_model_is_loaded(betaedit) -> None:
    ran = betaedit("edit", "[Bob] is", "Rome", "--model", "smollm2", "--runner", "lean")
    assert ran.code != 0
    assert "modules" in ran.err
