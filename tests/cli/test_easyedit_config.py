"""``--config`` takes EasyEdit files: ``edit``, ``compare``, ``init`` and ``train-editor``."""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path

import pytest

from support.easyedit import FILES, TRAININGS, text_of


@pytest.fixture
def ft(tmp_path: Path) -> Path:
    """In a folder whose name says nothing."""
    path = tmp_path / "mine.yaml"
    path.write_text(text_of("FT", FILES), encoding="utf-8")
    return path


@pytest.fixture
def facts(tmp_path: Path) -> Path:
    path = tmp_path / "facts.jsonl"
    path.write_text('{"subject": "Ana", "prompt": "{} was born in", "target_new": "Lima"}\n', encoding="utf-8")
    return path


FACT = ("edit", "The capital of [France] is", "Rome", "--quick", "--json")


def test_a_file_names_the_method_and_what_it_does_not_use_is_said(betaedit, tiny_folder, ft: Path) -> None:
    ran = betaedit(*FACT, "--model", tiny_folder, "--config", ft)
    assert ran.code == 0, ran.err
    setup = json.loads(ran.out)["setup"]
    assert setup["method"] == "ft"
    assert (setup["config"]["layer"], setup["config"]["loss"]) == (2, "target")
    (said,) = [line for line in ran.err.splitlines() if "EasyEdit file for FT" in line]
    assert "model_name (--model names the model)" in said
    assert "kl_factor (EasyEdit does not read it either)" in said


def test_set_and_seed_override_the_file(betaedit, tiny_folder, ft: Path) -> None:
    ran = betaedit(*FACT, "--model", tiny_folder, "--config", ft, "--set", "steps=2", "--seed", "7")
    config = json.loads(ran.out)["setup"]["config"]
    assert (config["steps"], config["seed"], config["layer"]) == (2, 7, 2)


def test_the_settings_of_a_preset_do_not_change_what_easyedit_does(betaedit, tiny_folder, tmp_path: Path) -> None:
    """A preset for facts of one's own searches otherwise; v_lr would be the rate of a search that is not done."""
    (tmp_path / "memit.yaml").write_text(text_of("MEMIT", FILES), encoding="utf-8")
    ran = betaedit(
        *("edit", "The capital of [France] is", "Rome", "--plan", "--json", "--model", tiny_folder),
        *("--preset", "smollm2-facts", "--config", tmp_path / "memit.yaml"),
        *("--statistics", tiny_folder / "moments.safetensors", "--set", 'context_templates=["{}"]'),
    )
    config = json.loads(ran.out)["config"]
    assert (config["value_optimizer"], config["retries"], config["form"]) == ("adam", 0, "completion")
    assert (config["answer_end"], config["conflicts"]) == ("", "naive")


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--method", "memit"], "is an EasyEdit file for ft or ft-m, not for memit"),
        (["--method", "fft"], "there is no method 'fft'"),
        (["--method", "ft", "--set", "layers=[1]"], "layers"),
    ],
)
def test_what_does_not_fit_is_refused_before_the_model_is_loaded(
    betaedit, tmp_path: Path, ft: Path, options: list[str], told: str
) -> None:
    (tmp_path / "none").mkdir()
    ran = betaedit(*FACT, "--model", tmp_path / "none", "--config", ft, *options)
    assert ran.code == 2
    assert told in ran.err


def test_layers_beyond_the_model_are_refused(betaedit, tiny_folder, ft: Path) -> None:
    ft.write_text(ft.read_text().replace("layers: [2]", "layers: [21]"))
    ran = betaedit(*FACT, "--model", tiny_folder, "--config", ft)
    assert ran.code == 4
    assert "there is no layer 21" in ran.err


def test_a_comparison_gives_the_file_to_its_method_alone(betaedit, tiny_folder, ft: Path, facts, tmp_path) -> None:
    ran = betaedit(
        *("compare", "--model", tiny_folder, "--from", facts, "--out", tmp_path / "runs", "--json", "--config", ft),
        *("--methods", "ft,ft[steps=2],grace", "--set", "layer=1"),
    )
    assert ran.code == 0, ran.err
    configs = {name: report["setup"]["config"] for name, report in json.loads(ran.out).items()}
    assert {name: (config["steps"], config["learning_rate"], config["layer"]) for name, config in configs.items()} == {
        "ft": (4, 5e-3, 1),
        "ft-steps-2": (2, 5e-3, 1),
        "grace": (50, 1.0, 1),
    }


def test_a_comparison_without_the_method_of_the_file_is_refused(betaedit, ft: Path, facts, tmp_path: Path) -> None:
    (tmp_path / "none").mkdir()
    ran = betaedit("compare", "--model", tmp_path / "none", "--from", facts, "--out", tmp_path / "r", "--config", ft)
    assert ran.code == 2
    assert "for a method that is not compared" in ran.err
    assert "--methods ft" in ran.err


def test_a_workspace_takes_the_method_of_the_file(betaedit, tiny_folder, tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(text_of("AlphaEdit", FILES), encoding="utf-8")
    ran = betaedit(
        *("init", tmp_path / "mine", "--model", tiny_folder, "--config", tmp_path / "a.yaml", "--json"),
        *("--statistics", tiny_folder / "moments.safetensors", "--set", 'context_templates=["{}"]'),
    )
    assert ran.code == 0, ran.err
    assert json.loads(ran.out)["method"] == "alphaedit"


def test_a_command_that_has_its_own_method_refuses_the_file(betaedit, ft: Path) -> None:
    ran = betaedit("statistics", "--config", ft)
    assert ran.code == 2
    assert "is an EasyEdit file for ft or ft-m, not for betaedit" in ran.err


def test_a_training_takes_the_file_and_the_method_that_it_names(betaedit, tmp_path: Path) -> None:
    (tmp_path / "m.yaml").write_text(text_of("MALMEN", TRAININGS), encoding="utf-8")
    ran = betaedit("train-editor", "--config", tmp_path / "m.yaml", "--settings", "--json", "--set", "steps=9")
    settings = json.loads(ran.out)
    assert (settings["batch"], settings["steps"], settings["last_layers"]) == (8, 9, 6)
    assert "archive (EasyEdit's trained editors cannot be read" in ran.err


def test_a_training_takes_a_file_of_its_own_settings(betaedit, tmp_path: Path) -> None:
    (tmp_path / "t.yaml").write_text("rank: 9\n")
    ran = betaedit("train-editor", "--config", tmp_path / "t.yaml", "--settings", "--json")
    assert json.loads(ran.out)["rank"] == 9
    (tmp_path / "t.yaml").write_text("rnak: 9\n")
    ran = betaedit("train-editor", "--config", tmp_path / "t.yaml", "--settings")
    assert ran.code == 2
    assert "Did you mean rank?" in ran.err


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="named pipes are not on this system")
def test_a_pipe_is_read_once(betaedit, tmp_path: Path) -> None:
    pipe = tmp_path / "pipe.yaml"
    os.mkfifo(pipe)
    writer = threading.Thread(target=pipe.write_text, args=(text_of("MEND", TRAININGS),))
    writer.start()
    ran = betaedit("train-editor", "--config", pipe, "--settings", "--json")
    writer.join()
    assert json.loads(ran.out)["batch"] == 10
