"""``betaedit export``: every form of a run, and what is said of it; ``betaedit eval`` of what was exported."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file

from betaedit.experiments.folder import RunFolder

FACTS = [
    {"id": "a", "subject": "Ana", "prompt": "{} was born in", "target_new": "Lima", "target_true": "Oslo"},
    {"id": "b", "subject": "Bob", "prompt": "The home of {} is", "target_new": "Rome", "target_true": "Paris"},
]


@pytest.fixture
def facts(tmp_path: Path) -> Path:
    path = tmp_path / "facts.jsonl"
    path.write_text("".join(json.dumps(fact) + "\n" for fact in FACTS))
    return path


@pytest.fixture
def run(betaedit, tiny, facts, tmp_path: Path) -> Path:
    """A measured run of two facts."""
    assert betaedit("edit", "--from", facts, "--out", tmp_path / "run", "--json", *tiny).code == 0
    return tmp_path / "run"


def test_a_folder_to_export_that_does_not_exist_is_told_so(betaedit, tmp_path: Path) -> None:
    ran = betaedit("export", tmp_path / "none", "--to", "facts", "--out", tmp_path / "facts.jsonl")
    assert ran.code == 7
    assert "is not a folder." in ran.err
    assert "Give a run folder or a workspace." in ran.err


def test_an_exported_adapter_is_measured_as_the_run_is(betaedit, tiny, facts, run, tmp_path: Path) -> None:
    adapter = tmp_path / "adapter"
    ran = betaedit("export", run, "--to", "adapter", "--out", adapter, "--json", *tiny[2:4])
    assert ran.code == 0, ran.err
    found = json.loads(ran.out)
    assert (found["facts"], found["rank"], found["server_rank"]) == (2, 2, 8)
    assert found["edited"] == found["exported"]
    by_adapter, by_run = (
        json.loads(betaedit("eval", name, "--from", facts, *tiny[2:4], "--json").out) for name in (adapter, run)
    )
    assert by_adapter["efficacy"] == by_run["efficacy"]
    assert by_adapter["perplexity"] == pytest.approx(by_run["perplexity"], rel=1e-5)
    last = RunFolder(run).checkpoint(2)
    assert by_adapter["perplexity"] == pytest.approx(last.perplexity, rel=1e-5)
    assert f"| perplexity | {RunFolder(run).checkpoint(0).perplexity:.4g} |" in (adapter / "README.md").read_text()


@pytest.fixture(params=["lora", "adalora"])
def adapted(request: pytest.FixtureRequest, betaedit, tiny, facts, tmp_path: Path) -> tuple[str, Path]:
    """A method that trains an adapter, and a run of it."""
    made = ["edit", "--from", facts, "--out", tmp_path / "adapted", "--method", request.param, "--json"]
    assert betaedit(*made, "--set", "steps=5", *tiny[:2]).code == 0
    return str(request.param), tmp_path / "adapted"


def test_a_run_that_trained_an_adapter_is_exported_as_that_adapter(betaedit, facts, adapted, tmp_path: Path) -> None:
    method, run = adapted
    ran = betaedit("export", run, "--to", "adapter", "--out", tmp_path / "adapter", "--json")
    assert ran.code == 0, ran.err
    found = json.loads(ran.out)
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert config["peft_type"] == found["peft_type"] == method.upper()
    assert sorted({name.rpartition(".")[2] for name in config["target_modules"]}) == ["q_proj", "v_proj"]
    assert config["base_model_name_or_path"] == found["base"]
    assert (found["rank"], found["server_rank"]) == {"lora": (8, 8), "adalora": (12, None)}[method]
    by_adapter = json.loads(betaedit("eval", tmp_path / "adapter", "--from", facts, "--json").out)
    assert by_adapter["perplexity"] == pytest.approx(RunFolder(run).checkpoint(2).perplexity, rel=1e-5)
    assert method in (tmp_path / "adapter" / "README.md").read_text()


def test_an_adapter_of_its_own_has_the_rank_it_has_and_is_told_who_serves_it(betaedit, adapted, tmp_path: Path) -> None:
    method, run = adapted
    to = ["export", run, "--to", "adapter", "--out", tmp_path / "adapter"]
    refused = betaedit(*to, "--rank", "4")
    assert refused.code == 2
    assert "exported with the rank it has" in refused.err
    shown = betaedit(*to).out
    served = {"lora": "serve it with: vllm serve", "adalora": "servers take no adapter of the type ADALORA"}
    assert served[method] in shown


def test_an_adapter_of_its_own_is_no_factors_of_mlp_matrices(betaedit, adapted, tmp_path: Path) -> None:
    method, run = adapted
    refused = betaedit("export", run, "--to", "factors", "--out", tmp_path / "factors.safetensors")
    assert refused.code != 0
    assert f"{method} cannot be exported as a change of weights" in refused.err


def test_a_truncated_adapter_says_what_was_lost_and_how_to_serve_it(betaedit, tiny, run, tmp_path: Path) -> None:
    options = ["--rank", "1", "--for-servers", *tiny[2:4]]
    shown = betaedit("export", run, "--to", "adapter", "--out", tmp_path / "adapter", *options).out
    assert "adapter of rank 1" in shown
    served = f"vllm serve {tiny[1]} --enable-lora --lora-modules adapter={tmp_path / 'adapter'} --max-lora-rank 1"
    assert served in shown
    assert "efficacy, probability / argmax: edited model" in shown
    assert "2 facts written" in shown


def test_an_exported_model_is_measured_as_the_run_is(betaedit, tiny, facts, run, tmp_path: Path) -> None:
    assert betaedit("export", run, "--to", "model", "--out", tmp_path / "model", *tiny[2:4]).code == 0
    record = json.loads((tmp_path / "model" / "betaedit.json").read_text())
    assert [edit["subject"] for edit in record["edits"]] == ["Ana", "Bob"]
    assert (tmp_path / "model" / "betaedit" / "statistics.safetensors").is_file()
    found = json.loads(betaedit("eval", tmp_path / "model", "--from", facts, "--json").out)
    assert found["perplexity"] == pytest.approx(RunFolder(run).checkpoint(2).perplexity, rel=1e-6)


def test_an_exported_model_names_the_preset_of_its_run(betaedit, tiny, facts, tmp_path: Path) -> None:
    mine = tmp_path / "mine.yaml"
    mine.write_text("name: mine\nmodel: x\nsource: tried\nvalues: {ridge: 3.5}\n")
    for number, (preset, name) in enumerate([("smollm2-adam", "smollm2-adam"), ("untuned", "untuned"), (mine, "mine")]):
        run, out = tmp_path / f"run-{number}", tmp_path / f"gpt2-xl-{number}"
        assert betaedit("edit", "--from", facts, "--out", run, "--preset", preset, "--json", *tiny).code == 0
        assert betaedit("export", run, "--to", "model", "--out", out, *tiny[2:4]).code == 0
        record = json.loads((out / "betaedit.json").read_text())
        assert record["preset"] == name
        assert json.loads(betaedit("models", out, "--json").out)["preset"] == name


def test_factors_and_facts_are_files(betaedit, tiny, run, tmp_path: Path) -> None:
    for to, name in (("factors", "new/factors.safetensors"), ("facts", "new/facts.jsonl")):
        ran = betaedit("export", run, "--to", to, "--out", tmp_path / name, "--json", *tiny[2:4])
        assert json.loads(ran.out) == {"to": to, "path": str(tmp_path / name), "facts": 2}
    assert set(load_file(tmp_path / "new" / "factors.safetensors")) == {"1.left", "1.right", "2.left", "2.right"}
    assert [json.loads(line) for line in (tmp_path / "new" / "facts.jsonl").read_text().splitlines()] == FACTS


@pytest.mark.parametrize(
    ("options", "code", "says"),
    [
        (["--to", "model", "--rank", "4"], 2, "need --to adapter"),
        (["--to", "facts", "--for-servers"], 2, "need --to adapter"),
        (["--to", "adapter"], 7, "neither a run folder nor a workspace"),
    ],
)
def test_what_cannot_be_exported_is_refused(betaedit, tmp_path: Path, options, code: int, says: str) -> None:
    ran = betaedit("export", tmp_path, *options, "--out", tmp_path / "out")
    assert ran.code == code
    assert says in ran.err
    assert not (tmp_path / "out").exists()


def test_a_run_has_a_type_of_its_own(betaedit, run, tmp_path: Path) -> None:
    ran = betaedit("export", run, "--to", "model", "--out", tmp_path / "out", "--dtype", "bfloat16")
    assert ran.code == 2
    assert "holds edits of float32 weights, not of bfloat16" in ran.err


def test_facts_are_not_written_into_a_folder(betaedit, run, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    ran = betaedit("export", run, "--to", "facts", "--out", tmp_path / "empty")
    assert ran.code == 2
    assert "Name a file" in ran.err


def test_nothing_is_overwritten(betaedit, tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("x")
    ran = betaedit("export", "run", "--to", "model", "--out", tmp_path)
    assert ran.code == 2
    assert "not empty" in ran.err


def test_an_adapter_that_names_no_base_is_refused(betaedit, facts, tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    ran = betaedit("eval", tmp_path, "--from", facts)
    assert ran.code == 4
    assert "does not name its base model" in ran.err


def test_without_peft_the_extra_is_named(betaedit, facts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    (tmp_path / "adapter_config.json").write_text("{}")
    ran = betaedit("eval", tmp_path, "--from", facts)
    assert ran.code == 1
    assert "betaedit[peft]" in ran.err
