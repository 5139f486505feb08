"""EasyEdit files become settings of this package; what cannot be carried over is refused by name, or said."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from betaedit import Editor
from betaedit.editors.easyedit_file import MARKS, fits, is_easyedit, tables, translate
from betaedit.editors.method import MethodConfig
from betaedit.editors.methods import METHODS, find_method
from betaedit.editors.shared_config import StatisticsConfig
from betaedit.errors import ConfigError
from betaedit.settings import SettingsFile, read_settings_file
from support.easyedit import FILES, TRAININGS, text_of
from support.edits import CONTEXTS, FACTS, moments_for
from support.families import language_model
from support.methods import small_editor, untrained_editor

# What a user would add by --set to run a file of a large model on a tiny one in a moment.
ADDED: dict[str, dict[str, Any]] = {
    "simie": {"layers": (1, 2)},
    "wise": {"context_templates": CONTEXTS, "unrelated_prompts": ("It rains in", "We like")},
    "ike": {"retriever": "bm25"},
}


def read(folder: Path, text: str, name: str = "file.yaml") -> SettingsFile:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return read_settings_file(path, "")


def refused(folder: Path, text: str, method: str | None = None, *, training: bool = False) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        translate(read(folder, text), method, training=training)
    return caught.value


@pytest.mark.parametrize("name", FILES)
def test_a_file_names_its_method_and_its_values_become_settings(tmp_path: Path, name: str) -> None:
    method, _, settings = FILES[name]
    found = translate(read(tmp_path, text_of(name, FILES)))
    assert found.method == method
    config = find_method(method).configure(found.settings)
    wanted = find_method(method).configure(settings)
    assert {key: getattr(config, key) for key in settings} == {key: getattr(wanted, key) for key in settings}


@pytest.mark.parametrize("name", TRAININGS)
def test_a_file_of_a_training_is_counted_in_optimizer_steps(tmp_path: Path, name: str) -> None:
    method, _, settings = TRAININGS[name]
    found = translate(read(tmp_path, text_of(name, TRAININGS)), training=True)
    assert (found.method, found.settings) == (method, settings)


@pytest.mark.parametrize("name", FILES)
def test_the_settings_of_a_file_build_an_editor_that_writes(tmp_path: Path, name: str) -> None:
    found = translate(read(tmp_path, text_of(name, FILES)))
    row, model = find_method(found.method), language_model("llama")
    trained = {"editor": untrained_editor(row.name)} if name in TRAININGS else {}
    contexts = {"context_templates": CONTEXTS} if "context_templates" in row.config.model_fields else {}
    config: MethodConfig = row.configure({**found.settings, **contexts, **ADDED.get(row.name, {}), **trained})
    statistics = moments_for(model, config.layers) if isinstance(config, StatisticsConfig) else None
    editor = Editor(model, method=row.name, config=config, statistics=statistics)
    assert len(editor.edit(FACTS[:1])) == 1


def test_the_files_above_have_every_key_that_is_known() -> None:
    for name, files, training in [
        *((one, FILES, False) for one in FILES),
        *((one, TRAININGS, True) for one in TRAININGS),
    ]:
        lines = text_of(name, files).splitlines()
        written = {line.partition(":")[0] for line in lines}
        method = files[name][0]
        (table,) = (table for table in tables() if method in table.methods)
        keys = {*table.keys, *table.training} if training else set(table.keys)
        assert keys <= written | ({"max_output_length"} if training else set()), name


def test_every_setting_that_a_table_fixes_exists() -> None:
    for table in tables():
        for method in table.methods:
            assert set(table.fixed) <= set(find_method(method).config.model_fields)


def test_a_file_is_known_by_its_keys_and_no_setting_here_has_such_a_name() -> None:
    assert is_easyedit({"alg_name": "FT"})
    assert is_easyedit({"model_name": "x", "layers": [1]})
    assert not is_easyedit({"layers": [1], "value_clamp": 2})
    assert MARKS.isdisjoint(name for row in METHODS.values() for name in row.config.model_fields)


def test_a_number_without_a_point_is_a_number_as_in_easyedit(tmp_path: Path) -> None:
    """YAML reads 5e-4 as a text."""
    assert translate(read(tmp_path, "alg_name: FT\nlr: 5e-4\n")).settings["learning_rate"] == 5e-4


@pytest.mark.parametrize("written", ["false", "1"])
def test_a_norm_constraint_that_is_no_number_with_a_point_is_none(tmp_path: Path, written: str) -> None:
    found = translate(read(tmp_path, f"alg_name: FT\nnorm_constraint: {written}\n"))
    assert found.settings["norm_limit"] is None


def test_an_unknown_key_is_named_with_file_and_line(tmp_path: Path) -> None:
    error = refused(tmp_path, "alg_name: FT\nlr: 5e-4\nnum_step: 3\n")
    assert f"{tmp_path / 'file.yaml'}:3: the key num_step is unknown" in error.message
    assert "num_steps" in error.hint
    assert "Delete the line" in refused(tmp_path, "alg_name: FT\nqformer_checkpoint: x\n").hint


def test_keys_of_a_json_file_have_lines_too(tmp_path: Path) -> None:
    file = read(tmp_path, '{"alg_name": "FT",\n "lr": 0.1,\n "odd": 3}', "file.json")
    with pytest.raises(ConfigError, match=r"file\.json:3: the key odd"):
        translate(file)


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("lr: -1", "lr: learning_rate: "),
        ("num_steps: many", "num_steps: steps: "),
        ("layers: [1, 2]", "layers is [1, 2]: one layer is trained here"),
        ("objective_optimization: promptz_last", "must be prompt_last or target_new"),
        ("rewrite_module_tmp: model.layers.{}.mlp.up_proj.weight", "names model.layers.{}.mlp.up_proj.weight"),
        ("rewrite_module_tmp: transformer.h.{}.attn.c_proj", "names transformer.h.{}.attn.c_proj"),
        ("rewrite_module_tmp: transformer.h.{}", "names transformer.h.{}"),
        ("layer_module_tmp: model.layers.{}.mlp", "names model.layers.{}.mlp"),
    ],
)
def test_an_impossible_value_is_told_with_its_key_and_line(tmp_path: Path, line: str, told: str) -> None:
    error = refused(tmp_path, f"alg_name: FT\n{line}\n")
    assert f"{tmp_path / 'file.yaml'}:2: " in error.message
    assert told in error.message
    assert error.hint


@pytest.mark.parametrize(
    "name",
    [
        "model.layers.{}.mlp.down_proj",
        "model.layers.{}.mlp.down_proj.weight",
        "transformer.h.{}.mlp.c_proj",
        "transformer.h.{}.mlp.fc_out",
        "transformer.encoder.layers.{}.mlp.dense_4h_to_h",
        "model.decoder.layers.{}.fc2",
    ],
)
def test_output_projections_of_any_family_are_accepted(tmp_path: Path, name: str) -> None:
    found = translate(read(tmp_path, f"alg_name: FT\nrewrite_module_tmp: {name}\n"))
    assert not any("rewrite_module_tmp" in remark for remark in found.remarks)


@pytest.mark.parametrize("where", ["model.layers[2].mlp.down_proj.weight", "model.layers.2.mlp.down_proj"])
def test_the_layer_is_read_from_the_name_of_the_matrix(tmp_path: Path, where: str) -> None:
    assert translate(read(tmp_path, f"alg_name: GRACE\ninner_params: ['{where}']\n")).settings["layer"] == 2


@pytest.mark.parametrize("names", ["[model.layers.1.fc2, model.layers.2.fc2]", "[]", "['model.layers.{}.fc2']"])
def test_a_codebook_takes_one_matrix_with_its_layer(tmp_path: Path, names: str) -> None:
    assert "must name one matrix" in refused(tmp_path, f"alg_name: GRACE\ninner_params: {names}\n").message


def test_all_matrices_that_cannot_be_trained_are_named(tmp_path: Path) -> None:
    inner = (
        "[model.layers.3.mlp.gate_proj.weight, model.layers.3.mlp.down_proj.weight, model.layers.3.mlp.up_proj.weight]"
    )
    text = f"alg: MEND\ninner_params: {inner}\n"
    message = refused(tmp_path, text, training=True).message
    assert "names model.layers.3.mlp.gate_proj.weight, model.layers.3.mlp.up_proj.weight:" in message
    assert any("inner_params" in remark for remark in translate(read(tmp_path, text)).remarks), "it is trained already"


def test_another_method_than_the_file_s_is_refused(tmp_path: Path) -> None:
    error = refused(tmp_path, text_of("ROME", FILES), "memit")
    assert "is an EasyEdit file for rome, not for memit" in error.message
    assert error.hint


@pytest.mark.parametrize("method", ["ft", "ft-l", "ft-m", "ft+scr"])
def test_the_method_may_be_named_too_also_under_a_memory(tmp_path: Path, method: str) -> None:
    file = read(tmp_path, text_of("FT", FILES))
    assert fits(file, method)
    assert translate(file, method).method == find_method(method).name


def test_a_method_that_is_not_here_is_refused_with_those_that_are(tmp_path: Path) -> None:
    error = refused(tmp_path, "model_name: x\nalg_name: SERAC\n")
    assert "file.yaml:2: alg_name SERAC is not a method of this program" in error.message
    assert "AlphaEdit" in error.hint


def test_a_file_that_does_not_name_its_method_needs_one(tmp_path: Path) -> None:
    """The authors' own files, from which EasyEdit's come."""
    text = '{"model_name": "Llama3-8B", "layers": [1, 2], "v_lr": 0.1, "L2": 10}'
    assert "does not name its method" in refused(tmp_path, text).message
    assert translate(read(tmp_path, text), "alphaedit").settings["ridge"] == 10
    assert "EasyEdit has none for betaedit" in refused(tmp_path, text, "betaedit").message


def test_a_lora_file_says_which_of_the_two_it_is_for(tmp_path: Path) -> None:
    assert "does not say lora_type" in refused(tmp_path, "alg_name: LoRA\nrank: 4\n").message
    assert translate(read(tmp_path, "alg_name: LoRA\nrank: 4\n"), "lora").settings["rank"] == 4
    assert "lora_type must be lora or adalora" in refused(tmp_path, "alg_name: LoRA\nlora_type: qlora\n").message


def test_the_training_of_a_method_that_is_not_trained_is_refused(tmp_path: Path) -> None:
    assert "is for ft, which is not trained" in refused(tmp_path, "alg_name: FT\n", training=True).message


def test_keys_without_effect_are_said_in_one_line_and_differences_in_one_each(tmp_path: Path) -> None:
    remarks = translate(read(tmp_path, text_of("ROME", FILES))).remarks
    assert "model_name (--model names the model)" in remarks[0]
    assert "device, model_parallel (--device, --device-map)" in remarks[0]
    assert "mom2_dataset, mom2_n_samples, mom2_dtype, stats_dir" in remarks[0]
    assert [remark.split(": ")[1] for remark in remarks[1:]] == ["v_weight_decay", "clamp_norm_factor"]


@pytest.mark.parametrize(("adjusted", "along_the_key"), [("false", True), ("true", False)])
def test_rome_without_adjustment_writes_along_the_key_itself(
    tmp_path: Path, adjusted: str, along_the_key: bool
) -> None:
    text = f"alg_name: ROME\nlayers: [2]\nv_num_grad_steps: 4\nmom2_adjustment: {adjusted}\n"
    settings = {**translate(read(tmp_path, text)).settings, "context_templates": ("{}",)}
    model = language_model("llama")
    editor = small_editor("rome", model, **settings)
    matrix = model.anatomy.projection(2)
    before, keys = matrix.weight.detach().clone(), []
    hook = matrix.register_forward_pre_hook(lambda _, inputs: keys.append(inputs[0].detach()))
    plan = editor.editing.plan(FACTS[0])
    ids = model.tokenizer(FACTS[0].text, return_tensors="pt")
    model.model(**ids)
    hook.remove()
    key = keys[-1][0, plan.lookup]
    editor.edit(FACTS[:1])
    change = matrix.weight.detach() - before
    aligned = torch.linalg.norm(change @ key) / (torch.linalg.norm(change) * torch.linalg.norm(key))
    assert (float(aligned) > 0.9999) == along_the_key


def test_reading_a_file_needs_no_torch(tmp_path: Path) -> None:
    (tmp_path / "ft.yaml").write_text(text_of("FT", FILES), encoding="utf-8")
    code = (
        "import sys; from pathlib import Path; from betaedit.settings import read_settings_file;"
        "from betaedit.editors.easyedit_file import translate;"
        f"translate(read_settings_file(Path({str(tmp_path / 'ft.yaml')!r}), '')); sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("alg_name: GRACE\nreplacement: replace_prompt\n", "replacement: EasyEdit leaves out the last token"),
        ("alg_name: GRACE\nreplacement: replace_last\n", None),
        ("alg_name: ULTRAEDIT\ntoken: mask\n", "token: EasyEdit takes all tokens"),
        ("alg_name: UltraEdit\ntoken: ans\n", None),
    ],
)
def test_a_difference_is_said_where_the_value_makes_one(tmp_path: Path, text: str, said: str | None) -> None:
    remarks = translate(read(tmp_path, text)).remarks
    assert (len(remarks), said is None or said in remarks[0]) == (int(said is not None), True)
