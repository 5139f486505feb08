"""``betaedit eval`` and the options of ``edit`` that measure: what is printed, what is refused."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest

from betaedit.models import load_language_model

FACTS = [
    {"subject": "Ana", "prompt": "{} was born in", "target_new": "Lima", "target_true": "Oslo",
     "paraphrases": ["The birthplace of Ana is"], "neighbors": [{"prompt": "Zoe was born in", "target": "Rome"}]},
    {"subject": "Bob", "prompt": "The home of {} is", "target_new": "Rome", "target_true": "Paris"},
]  # fmt: skip


@pytest.fixture
def facts(tmp_path: Path) -> Path:
    path = tmp_path / "facts.jsonl"
    path.write_text("".join(json.dumps(fact) + "\n" for fact in FACTS))
    return path


def test_eval_prints_one_object_with_counts_and_intervals(betaedit, tiny_folder, facts) -> None:
    found = json.loads(betaedit("eval", tiny_folder, "--from", facts, "--also", "questions", "--json").out)
    assert found["records"] == 2
    for name, count in (("efficacy", 2), ("generality", 1), ("specificity", 1)):
        for form in ("probability", "argmax"):
            figure = found[name][form]
            assert figure["count"] == count
            assert 0 <= figure["low"] <= figure["mean"] <= figure["high"] <= 1
    assert found["perplexity"] > 1
    assert found["reliability"]["count"] == 2


@pytest.mark.parametrize("name", ["-", "/dev/stdin", "/dev/fd/0"])
def test_eval_measures_on_facts_from_a_pipe(betaedit, tiny_folder, facts, monkeypatch, name: str) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(facts.read_bytes())))
    found = json.loads(betaedit("eval", tiny_folder, "--from", name, "--json").out)
    from_file = json.loads(betaedit("eval", tiny_folder, "--from", facts, "--json").out)
    assert found == from_file | {"source": "standard input"}


def test_a_run_and_a_comparison_say_that_their_facts_came_from_a_pipe_and_go_on(
    betaedit, tiny, facts, tmp_path: Path, monkeypatch
) -> None:
    def piped(*command: str | Path) -> None:
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(facts.read_bytes())))
        assert betaedit(*command, "--from", "-", "--limit", "1").code == 0

    for _ in range(2):
        piped("edit", "--out", tmp_path / "run", *tiny)
    piped("compare", "--methods", "memit", "--out", tmp_path / "runs", *tiny[:2], *tiny[4:])
    for place in ("run", "runs/memit"):
        setup = json.loads((tmp_path / place / "run.json").read_text())
        assert setup["data"]["source"] == "standard input"


def test_eval_says_what_its_figures_depend_on(betaedit, tiny_folder, facts) -> None:
    found = json.loads(betaedit("eval", tiny_folder, "--from", facts, "--limit", "2", "--json").out)
    assert {"prompts_sha256", "held_out_sha256", "held_out_texts"} <= set(found["measured"])
    assert {"device", "processor", "threads"} <= set(found["machine"])
    assert {"betaedit", "torch"} <= set(found["versions"])


def test_eval_prints_a_table_for_people(betaedit, tiny_folder, facts) -> None:
    shown = betaedit("eval", tiny_folder, "--from", facts, "--limit", 1).out
    assert "specificity, argmax" in shown


def test_further_figures_stand_in_the_table_of_a_run_and_in_its_report(betaedit, tiny, tmp_path: Path) -> None:
    folder, run, page = tmp_path / "chat", tmp_path / "run", tmp_path / "report.html"
    model = load_language_model(tiny[1])
    model.tokenizer.chat_template = "{% for message in messages %}{{ message.content }}\n{% endfor %}"
    model.model.save_pretrained(folder)
    model.tokenizer.save_pretrained(folder)
    fact = ["A [b] is", "c", "--true", "d", "--also", "chat"]
    ran = betaedit("edit", *fact, "--out", run, "--model", folder, *tiny[2:])
    assert ran.code == 0, ran.err
    assert betaedit("report", run, "--out", page).code == 0
    for name in ("chat efficacy, probability", "chat efficacy, argmax", "chat answers"):
        assert name in ran.out
        assert name in page.read_text()
    assert "chat generality" not in ran.out  # nothing to measure it on


def test_chat_figures_of_a_model_without_a_template_are_not_measured_and_that_is_said(
    betaedit, tiny_folder, facts, caplog
) -> None:
    found = json.loads(betaedit("eval", tiny_folder, "--from", facts, "--also", "chat", "--json").out)
    assert not [name for name in found if name.startswith("chat")]
    assert "no chat template" in caplog.text


def test_a_place_that_does_not_exist_is_told_without_the_hubs_own_notices(betaedit, facts) -> None:
    from huggingface_hub.utils import logging

    before = logging.get_verbosity()
    try:
        logging.set_verbosity_warning()
        ran = betaedit("eval", "runs/typo", "--from", facts)
        assert ran.code == 4
        assert "There is no such folder here" in ran.err
        assert "Runs, workspaces and adapters are named by their folder." in ran.err
        assert not logging.get_logger("huggingface_hub.utils._http").isEnabledFor(logging.WARNING)
    finally:
        logging.set_verbosity(before)


def test_a_run_is_kept_continued_measured_and_drawn(betaedit, tiny, facts, tmp_path: Path) -> None:
    run, page = tmp_path / "run", tmp_path / "report.html"
    first = betaedit("edit", "--from", facts, "--out", run, "--evaluate-at", "1", "--json", *tiny)
    again = betaedit("edit", "--from", facts, "--out", run, "--evaluate-at", "1", "--json", *tiny)
    assert first.code == again.code == 0, first.err + again.err
    assert json.loads(first.out) == json.loads(again.out)
    assert [c["edits"] for c in json.loads(first.out)["checkpoints"]] == [0, 1, 2]
    edited = json.loads(betaedit("eval", run, "--from", facts, *tiny[2:4], "--json").out)
    assert edited["efficacy"]["argmax"] == json.loads(first.out)["checkpoints"][-1]["efficacy"]["argmax"]
    assert betaedit("report", run, "--out", page).code == 0
    assert "2 facts written" in page.read_text()


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--also", "beauty"], "beauty"),
        (["--also", "abilities"], "--tasks"),
        (["--judge", "http://localhost:1/v1"], "--judge-model"),
        (["--judge-model", "qwen"], "--judge URL"),
        (["--judge", "http://localhost:1/v1", "--judge-model", "qwen"], "--also questions"),
        (["--tasks", "somewhere"], "--also abilities"),
        (["--save", "/dev/null/model"], "cannot write to"),
        (["--evaluate-at", "soon"], "soon"),
        (["--evaluate-at", "7"], "after 7 edits"),
    ],
)
def test_what_cannot_be_measured_is_refused_before_anything_is_written(betaedit, tiny, facts, options, says) -> None:
    ran = betaedit("edit", "--from", facts, *options, *tiny)
    assert ran.code == 2
    assert says in ran.err


def test_methods_are_compared_on_the_same_facts_and_continued(betaedit, tiny, facts, tmp_path: Path) -> None:
    options = ["--from", facts, "--methods", "memit,alphaedit", "--out", tmp_path / "runs", "--json"]
    tiny = [part for part in tiny if part != "--statistics" and not part.endswith("moments.safetensors")]
    first = betaedit("compare", *options, "--set", "statistics_tokens=200", *tiny)
    again = betaedit("compare", *options, "--set", "statistics_tokens=200", *tiny)
    assert first.code == 0, first.err
    found = json.loads(first.out)
    assert found == json.loads(again.out)
    assert list(found) == ["memit", "alphaedit"]
    assert found["memit"]["checkpoints"][0]["perplexity"] == found["alphaedit"]["checkpoints"][0]["perplexity"]
    assert found["memit"]["results"][1] != found["alphaedit"]["results"][1]


def test_a_method_that_cannot_go_on_is_told_in_the_table_and_by_the_exit_code(
    betaedit, tiny, facts, tmp_path: Path
) -> None:
    tiny = [part for part in tiny if part != "--statistics" and not part.endswith("moments.safetensors")]
    options = ["--from", facts, "--out", tmp_path / "runs", "--set", "statistics_tokens=200", *tiny]
    assert betaedit("compare", "--methods", "memit", "--limit", "1", "--set", "value_steps=2", *options[:-2]).code == 0
    ran = betaedit("compare", "--methods", "memit,alphaedit", "--limit", "1", "--json", *options)
    assert ran.code == 7
    found = json.loads(ran.out)
    assert "a different config" in found["memit"]["error"]
    assert found["alphaedit"]["edits"] == 1


def test_layers_that_the_model_has_not_are_refused_before_any_method_runs(
    betaedit, tiny_folder, facts, tmp_path: Path
) -> None:
    out = tmp_path / "runs"
    methods = ["--methods", "memit,memit[layers=[40]]", "--set", "layers=[1, 2]"]
    ran = betaedit("compare", "--from", facts, *methods, "--out", out, "--model", tiny_folder)
    assert ran.code == 4
    assert not out.exists()


def test_a_full_disk_is_told_without_a_traceback(betaedit, tiny, facts, tmp_path: Path, monkeypatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("betaedit.experiments.state.save_file", full)
    ran = betaedit("edit", "--from", facts, "--out", tmp_path / "run", *tiny)
    assert ran.code == 7
    assert "00000001.safetensors cannot be written" in ran.err
    assert "repeat the command" in ran.err


def test_an_unknown_method_is_refused_before_any_runs(betaedit, tiny_folder, facts, tmp_path: Path) -> None:
    out = tmp_path / "runs"
    ran = betaedit("compare", "--from", facts, "--methods", "memit,memory", "--out", out, "--model", tiny_folder)
    assert ran.code == 2
    assert "memory" in ran.err
    assert not out.exists()
