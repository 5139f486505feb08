"""``methods``, ``models``, ``doctor``, ``env``, ``statistics`` and the help of every command."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from betaedit import __version__
from betaedit.cli.main import app
from betaedit.compiled import library
from betaedit.compiled.library import NoKernelsError
from betaedit.editors import METHODS, PRESETS, EditConfig
from betaedit.models.runners import kernels
from betaedit.statistics import Moments
from support.tiny_tokenizers import tiny_tokenizer

UNREPLAYED: dict[str, dict[str, Any]] = {
    "gpt-neo": {
        "hidden_size": 32,
        "num_layers": 2,
        "num_heads": 4,
        "attention_types": [[["global", "local"], 1]],
        "window_size": 4,
        "max_position_embeddings": 64,
    },
    "mpt": {"d_model": 32, "n_layers": 2, "n_heads": 4},
    "bloom": {"hidden_size": 32, "n_layer": 2, "n_head": 4},
}
COMMANDS = [
    *("edit", "ask", "demo", "eval", "compare", "align", "keys", "calibrate", "train-editor", "report", "export"),
    *("statistics", "bench"),
    *("methods", "models", "doctor", "env", "init", "log", "show", "status", "diff", "forget", "replace", "restore"),
    *("import", "check", "verify", "gc", "locate"),
]


def test_the_commands_are_those_documented() -> None:
    names = [command.name or command.callback.__name__ for command in app.registered_commands]  # type: ignore[union-attr]
    assert names == COMMANDS


def test_the_commands_on_data_are_those_documented() -> None:
    (group,) = app.registered_groups
    assert group.typer_instance is not None
    assert [command.callback.__name__ for command in group.typer_instance.registered_commands] == ["check"]  # type: ignore[union-attr]


@pytest.mark.parametrize("command", [*COMMANDS, "data check"])
def test_every_command_explains_itself(betaedit, command: str) -> None:
    ran = betaedit(*command.split(), "--help")
    assert ran.code == 0
    assert command in ran.out
    assert "--json" in ran.out


def test_the_help_of_the_log_says_what_is_left_out_and_in_which_zone_days_are(betaedit) -> None:
    shown = betaedit("log", "--help").out
    assert "default: 50 facts" in shown
    assert shown.count("UTC") == 2


def test_help_does_not_import_torch() -> None:
    lines = (
        "import sys; sys.argv = ['betaedit', 'edit', '--help']",
        "import betaedit.cli.main as program",
        "try: program.main()",
        "except SystemExit: pass",
        "assert 'torch' not in sys.modules",
    )
    done = subprocess.run([sys.executable, "-c", "\n".join(lines)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_version_is_printed(betaedit) -> None:
    assert betaedit("--version").out.strip() == f"betaedit {__version__}"


def test_methods_lists_every_method_with_its_family_and_paper(betaedit) -> None:
    listed = json.loads(betaedit("methods", "--json").out)["methods"]
    assert [method["name"] for method in listed] == list(METHODS)
    assert all(method["paper"] and method["family"] for method in listed)
    assert all(name in betaedit("methods").out for name in METHODS)


def test_methods_lists_every_hyper_parameter(betaedit) -> None:
    listed = json.loads(betaedit("methods", "--config", "--json").out)["hyper_parameters"]
    of_closed_form = [row["name"] for row in listed if row["family"] == "closed form"]
    assert of_closed_form == list(EditConfig.model_fields)
    assert {row["family"] for row in listed} == {method.family for method in METHODS.values()}


def test_models_lists_every_preset(betaedit) -> None:
    listed = json.loads(betaedit("models", "--json").out)["models"]
    assert [row["name"] for row in listed] == [preset.name for preset in PRESETS]


def test_models_shows_where_a_model_would_be_edited(betaedit, tiny_folder) -> None:
    found = json.loads(betaedit("models", tiny_folder, "--json").out)
    assert found["edited matrix"] == "model.layers.0.mlp.down_proj"
    assert found["preset"] == "untuned"


def test_doctor_says_what_is_installed_and_what_fits(betaedit) -> None:
    found = json.loads(betaedit("doctor", "--json").out)
    assert found["betaedit"] == __version__
    assert [row["model"] for row in found["fits"]] == [preset.name for preset in PRESETS]
    assert "GB" in betaedit("doctor").out


def test_doctor_counts_all_that_editing_holds(betaedit, monkeypatch) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    fits = {row["model"]: row for row in json.loads(betaedit("doctor", "--json").out)["fits"]}
    d_in, d_out, columns = 14336, 4096, 128
    solver = 20 * d_in**2 + 24 * d_in * columns
    for name, element in (("float32", 4), ("bfloat16", 2)):
        matrix = d_out * d_in * (element + 4)
        need = 8.03e9 * element + 5 * (solver + matrix) + 24 * d_in**2
        assert fits["llama-3.1-8b"][name].startswith(f"{need / 1e9:.1f} GB")


def test_doctor_knows_every_library_that_is_optional(betaedit) -> None:
    found = json.loads(betaedit("doctor", "--json").out)["extras"]
    assert {"datasets", "jinja2", "lm_eval", "matplotlib", "peft", "sklearn"} <= set(found)
    assert "calibrate --plot" in found["matplotlib"]


def test_env_prints_what_a_bug_report_needs(betaedit) -> None:
    assert f"betaedit: {__version__}" in betaedit("env").out
    assert set(json.loads(betaedit("env", "--json").out)) >= {"python", "torch", "transformers", "platform", "kernels"}


def test_on_the_command_line_waiting_threads_sleep_unless_that_is_set(tmp_path) -> None:
    command = [sys.executable, "-c", "from betaedit.cli.main import main; main()", "env", "--json"]
    for given, expected in (({}, "PASSIVE"), ({"OMP_WAIT_POLICY": "ACTIVE"}, "ACTIVE")):
        environment = {name: text for name, text in os.environ.items() if name != "OMP_WAIT_POLICY"} | given
        told = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, timeout=120)
        assert f"OMP_WAIT_POLICY={expected}" in json.loads(told.stdout)["threads"]


def test_env_lists_the_statistics_of_the_cache_by_their_text(betaedit, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("BETAEDIT_CACHE", str(tmp_path))
    assert json.loads(betaedit("env", "--json").out)["statistics"] == []
    known = {"model": "smollm2", "corpus": "text sampled from the model", "text_sha256": "sha256:" + "ab" * 32}
    for name, origin in (("1", known), ("2", {"model": "older"})):
        Moments({0: torch.eye(3)}, 30_000, origin).save(tmp_path / "moments" / f"{name}.safetensors")
    (tmp_path / "moments" / "3.safetensors").write_text("damaged")
    first, second, third = json.loads(betaedit("env", "--json").out)["statistics"]
    assert first.startswith("smollm2: 30,000 tokens of text sampled from the model; text abababababab, matrices ")
    assert second.startswith("older: 30,000 tokens of unknown text; text not recorded, matrices ")
    assert "cannot be read" in third
    assert f"statistics: {second}" in betaedit("env").out.splitlines()


def test_env_says_why_there_are_no_kernels(betaedit, monkeypatch, tmp_path) -> None:
    def told() -> str:
        return json.loads(betaedit("env", "--json").out)["kernels"]

    monkeypatch.setenv("BETAEDIT_CACHE", str(tmp_path))
    monkeypatch.setenv("CC", "no-such-compiler")
    assert "none" in told()
    assert "no-such-compiler" in told()
    monkeypatch.delenv("CC")
    monkeypatch.setattr("shutil.which", lambda _: None)
    assert "no C compiler" in told()
    monkeypatch.setenv("BETAEDIT_NATIVE", "0")
    assert "BETAEDIT_NATIVE=0" in told()


def test_env_tells_kernels_that_are_compiled_from_those_that_will_be(betaedit, monkeypatch, tmp_path) -> None:
    monkeypatch.setenv("BETAEDIT_CACHE", str(tmp_path))
    if isinstance(kernels.find_kernels(), NoKernelsError):
        pytest.skip("no kernels here")
    assert "when they are first needed" in json.loads(betaedit("env", "--json").out)["kernels"]
    library.load_library(kernels._SOURCE)
    assert json.loads(betaedit("env", "--json").out)["kernels"] == "compiled for this processor"


def test_doctor_tries_the_kernels(betaedit, monkeypatch) -> None:
    reason = NoKernelsError("no C compiler")
    for found, said in ((reason, "no C compiler"), (object(), "compiled for this processor, and checked")):
        monkeypatch.setattr(kernels, "find_kernels", lambda found=found: found)
        assert said in json.loads(betaedit("doctor", "--json").out)["kernels"]


QUICK = [
    ("methods",),
    ("methods", "--config"),
    ("models",),
    ("env",),
    ("env", "--json"),
    ("--version",),
    ("edit", "--modle", "smollm2"),
    ("edti",),
    ("edit", "The capital of [Peru] is", "Quito", "--method", "beta-edit"),
    ("edit", "The capital of [Peru] is", "Quito", "--preset", "smolm"),
    ("edit", "The capital of [Peru] is", "Quito", "--set", "value_clmp=3"),
    ("edit", "The capital of [Peru] is", "Quito", "--set", "value_clamp=three"),
    ("edit", "The capital of [Peru] is", "Quito", "--also", "ability"),
    ("edit", "The capital of [Peru] is", "Quito", "--model", "smolm2"),
    ("edit", "The capital of [Peru] is", "Quito", "--model", "./nowhere"),
    ("edit", "The capital of Peru is", "Quito"),
    ("edit", "--from", "missing.jsonl"),
    ("init", "new", "--method", "beta-edit"),
    ("init", "new", "--preset", "smolm"),
    ("demo", "--method", "beta-edit"),
    ("compare", "--methods", "beta-edit", "--from", "missing.jsonl", "--out", "runs"),
    ("statistics", "--set", "sead=1"),
    ("bench", "sole"),
    ("align", "--method", "beta-edit", "--from", "missing.jsonl"),
]


@pytest.mark.parametrize("arguments", QUICK, ids=" ".join)
def test_a_list_and_a_slip_are_answered_without_torch(arguments: tuple[str, ...], tmp_path: Path) -> None:
    lines = (
        f"import sys; sys.argv = ['betaedit', *{list(arguments)!r}]",
        "import betaedit.cli.main as program",
        "try: program.main()",
        "except SystemExit: pass",
        "slow = {'torch', 'transformers', 'huggingface_hub'} & set(sys.modules)",
        "assert not slow, slow",
    )
    done = subprocess.run(
        [sys.executable, "-c", "\n".join(lines)],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
        env={name: value for name, value in os.environ.items() if name != "BETAEDIT_DEBUG"},
    )
    assert done.returncode == 0, done.stderr


def test_settings_from_a_pipe_are_read_once(tiny_folder: Path) -> None:
    """The check of the option must leave the pipe to the command."""
    done = subprocess.run(
        [sys.executable, "-m", "betaedit", "edit", "The capital of [Peru] is", "Quito", "--plan", "--json",
         "--model", tiny_folder, "--config", "/dev/stdin"],
        input="value_clamp: 0.25\n", capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert json.loads(done.stdout)["config"]["value_clamp"] == 0.25


def test_statistics_are_collected_shown_and_saved(betaedit, tiny_folder, tmp_path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("\n\n".join("Ordinary words follow one another in the long text. " * 3 for _ in range(6)))
    ran = betaedit("statistics", "--model", tiny_folder, "--corpus", text, "--tokens", "200", "--layers", "1,2",
                   "--save", tmp_path / "m.safetensors", "--json")  # fmt: skip
    assert ran.code == 0, ran.err
    found = json.loads(ran.out)
    assert found["tokens"] == 200
    assert [row["layer"] for row in found["spectrum"]] == [1, 2]
    shown = betaedit("statistics", "--model", tiny_folder, "--from", tmp_path / "m.safetensors", "--layers", "1,2")
    assert "200 tokens" in shown.out


def test_the_length_of_values_is_measured_over_a_file_of_facts(betaedit, tiny, tmp_path) -> None:
    facts = tmp_path / "facts.jsonl"
    facts.write_text('{"subject": "Ana", "prompt": "{} was born in", "target_new": "Lima"}\n')
    options = ["--from" if option == "--statistics" else option for option in tiny]
    found = json.loads(betaedit("statistics", "--norm-anchor", facts, "--json", *options).out)
    shown = betaedit("statistics", "--norm-anchor", facts, *options).out
    assert f"--set value_norm_anchor={found['norm_anchor']:.4g}" in shown


def test_statistics_of_a_file_have_their_text_already(betaedit, tiny_folder) -> None:
    ran = betaedit("statistics", "--model", tiny_folder, "--from", tiny_folder / "moments.safetensors", "--tokens", "9")
    assert ran.code == 2
    assert "--corpus" in ran.err


def test_unreadable_layers_are_refused(betaedit, tiny_folder) -> None:
    ran = betaedit("statistics", "--model", tiny_folder, "--layers", "one,two")
    assert ran.code == 2
    assert "--layers" in ran.err


@pytest.mark.parametrize("name", ["gpt-neo", "mpt", "bloom"])
def test_a_model_whose_layers_cannot_be_replayed_is_refused_where_its_anatomy_is_asked_for(
    betaedit, name: str, tmp_path: Path
) -> None:
    config = AutoConfig.for_model(name.replace("-", "_"), **UNREPLAYED[name])
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    ran = betaedit("models", str(tmp_path))
    assert ran.code != 0
    assert "cannot be run on a subset of the positions" in ran.err


def test_a_current_folder_that_was_deleted_is_one_error(
    betaedit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for command in (["methods"], ["status"], ["edit", "--from", "facts.jsonl"]):
        gone = tmp_path / "gone"
        gone.mkdir()
        monkeypatch.chdir(gone)
        gone.rmdir()
        ran = betaedit(*command)
        monkeypatch.chdir(tmp_path)
        assert ran.code == 1
        assert "the current folder no longer exists" in ran.err
