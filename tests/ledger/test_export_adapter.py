"""An adapter gives plain peft the edited model, in the form that peft itself writes."""

from __future__ import annotations

import json
import logging
import shlex
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, PreTrainedModel

from betaedit import Editor
from betaedit.editors.matrix import EditedMatrix
from betaedit.evaluation import measure_edits
from betaedit.facts import EvaluationCase, demo_path, read_cases
from betaedit.ledger.export import changes_of, provenance_of
from betaedit.ledger.export_adapter import SERVER_RANKS, save_adapter, server_rank, truncated
from betaedit.ledger.export_card import Provenance
from betaedit.ledger.export_rank import decompose
from betaedit.models import LanguageModel
from betaedit.models.bundled import BUNDLES, Bundle
from betaedit.models.load import load_language_model
from support.edits import NEAR, editor_for, unchanged, weights
from support.tiny import FAMILIES, random_rows

LAYERS = (1, 2)


@pytest.fixture(scope="module", params=FAMILIES)
def edited(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Editor, Path]:
    """An edited tiny model, and the folder of the unedited one."""
    folder = tmp_path_factory.mktemp(request.param)
    model = FAMILIES[request.param]()
    model.model.save_pretrained(folder)
    editor = editor_for(model)
    editor.edit(NEAR)
    return editor, folder


@torch.no_grad()
def next_tokens(model: PreTrainedModel, rows: list[list[int]]) -> torch.Tensor:
    """The distribution after every row; what is padded lies behind and is not seen."""
    found = []
    for at in range(0, len(rows), 25):
        part = [torch.tensor(row) for row in rows[at : at + 25]]
        logits = model(torch.nn.utils.rnn.pad_sequence(part, batch_first=True)).logits
        found += [row[len(ids) - 1].double().softmax(-1) for row, ids in zip(logits, part, strict=True)]
    return torch.stack(found)


def saved(editor: Editor, folder: Path, **options: object) -> object:
    return save_adapter(editor.language_model, changes_of(editor), folder, provenance_of(editor, {}), **options)


@pytest.mark.parametrize("merged", [False, True])
def test_plain_peft_says_what_the_edited_model_says(edited, merged: bool, tmp_path: Path) -> None:
    editor, base = edited
    report = saved(editor, tmp_path)
    prompts = [editor.tokenizer(fact.text)["input_ids"] for fact in NEAR]
    rows = prompts + random_rows(editor.language_model, [2, 5, 9, 14] * 5)
    loaded = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), tmp_path)
    unedited = next_tokens(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), rows)
    expected = next_tokens(editor.model, rows)
    found = next_tokens(loaded.merge_and_unload() if merged else loaded, rows)
    assert report.rank == len(NEAR)
    assert (found - expected).abs().max() < 1e-4
    assert (unedited - expected).abs().max() > 1e-2


def test_the_files_are_those_that_peft_writes(edited, tmp_path: Path) -> None:
    editor, base = edited
    saved(editor, tmp_path / "ours", rank=3)
    paths = [editor.language_model.anatomy.projection_path(layer) for layer in LAYERS]
    transposed = editor.language_model.name == "tiny-gpt2"
    config = LoraConfig(r=3, lora_alpha=3, target_modules=paths, fan_in_fan_out=transposed, task_type="CAUSAL_LM")
    theirs = get_peft_model(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), config)
    theirs.save_pretrained(tmp_path / "theirs")
    shapes = [
        {name: (tensor.shape, tensor.dtype) for name, tensor in load_file(folder / "adapter_model.safetensors").items()}
        for folder in (tmp_path / "ours", tmp_path / "theirs")
    ]
    assert shapes[0] == shapes[1]
    written = json.loads((tmp_path / "ours" / "adapter_config.json").read_text())
    known = json.loads((tmp_path / "theirs" / "adapter_config.json").read_text())
    assert written.keys() <= known.keys()
    differing = {name for name in written if written[name] != known[name] and name != "target_modules"}
    assert differing == {"base_model_name_or_path"}
    assert set(written["target_modules"]) == set(known["target_modules"])


def test_the_adapter_names_a_folder_by_its_whole_path_and_a_model_in_a_wheel_by_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    editor = editor_for(FAMILIES["llama"]())
    editor.edit(NEAR[0])
    for name, base in (("mine", str(tmp_path / "mine")), ("smollm2", "smollm2"), ("owner/model", "owner/model")):
        Path(name.partition("/")[0]).mkdir()
        named = replace(editor.language_model, name=name)
        save_adapter(named, changes_of(editor), tmp_path / "out", Provenance(name, "betaedit"))
        config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
        assert config["base_model_name_or_path"] == base


def test_the_adapter_of_a_model_in_a_wheel_names_the_folder_that_others_can_load(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny, folder = FAMILIES["llama"](), tmp_path / "converted"
    tiny.model.save_pretrained(folder)
    tiny.tokenizer.save_pretrained(folder)
    monkeypatch.setattr(Bundle, "folder", lambda _: folder)
    monkeypatch.chdir(tmp_path)
    for name in ("smollm2", "gemma3-270m", "converted", "./converted"):
        editor = editor_for(load_language_model(name))
        editor.edit(NEAR[0])
        report = saved(editor, tmp_path / "my edits")
        config = json.loads((tmp_path / "my edits" / "adapter_config.json").read_text())
        assert config["base_model_name_or_path"] == report.base == str(folder)


def test_the_card_has_code_that_runs_and_the_command_that_serves_it(tmp_path: Path) -> None:
    tiny, folder = FAMILIES["llama"](), tmp_path / "base"
    tiny.model.save_pretrained(folder)
    tiny.tokenizer.save_pretrained(folder)
    editor = editor_for(load_language_model(str(folder)))
    editor.edit(NEAR[0])
    out = tmp_path / "my edits"
    report = saved(editor, out)
    card = (out / "README.md").read_text()
    made: dict[str, PreTrainedModel] = {}
    exec(card.partition("```python\n")[2].partition("```")[0], made)
    rows = random_rows(editor.language_model, [3, 8])
    assert (next_tokens(made["model"], rows) - next_tokens(editor.model, rows)).abs().max() < 1e-4
    served = report.serving_command(out)
    assert served in card
    assert shlex.split(served) == [
        "vllm", "serve", str(folder), "--enable-lora", "--lora-modules", f"my edits={out}", "--max-lora-rank", "1",
    ]  # fmt: skip
    assert "betaedit eval . --from facts.jsonl" in card


def test_a_rank_that_no_server_takes_has_no_command(edited, tmp_path: Path) -> None:
    editor, _ = edited
    assert replace(saved(editor, tmp_path), server_rank=None).serving_command(tmp_path) is None


def test_a_rank_that_is_too_small_is_told_with_what_it_costs(edited, tmp_path: Path) -> None:
    editor, _ = edited
    report = saved(editor, tmp_path, rank=2)
    for layer, change in changes_of(editor).items():
        values = torch.linalg.svdvals(change.double())
        assert report.layers[layer].relative_error == pytest.approx(float(values[2:].norm() / values.norm()), rel=1e-5)
        kept = float((values[:2] ** 2).sum() / (values**2).sum())
        assert report.layers[layer].kept_energy == pytest.approx(kept)
        assert report.layers[layer].sufficient_rank == report.sufficient_rank == len(NEAR)


def test_efficacy_is_that_of_a_model_with_the_truncated_change(edited, tmp_path: Path) -> None:
    editor, base = edited
    report = saved(editor, tmp_path, rank=1)
    plain = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    merged = PeftModel.from_pretrained(plain, tmp_path).merge_and_unload()
    cases = [EvaluationCase(fact) for fact in NEAR]
    assert report.edited == measure_edits(editor.language_model, cases).efficacy
    assert report.exported == measure_edits(LanguageModel.wrap(merged, editor.tokenizer), cases).efficacy


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_edited_weights_are_put_back_bit_for_bit(dtype: torch.dtype) -> None:
    model = FAMILIES["llama"]()
    model.model.to(dtype)
    editor = editor_for(model)
    editor.edit(NEAR[:2])
    before, changes = weights(model), changes_of(editor)
    with truncated(model, changes, {layer: decompose(change).cut(1) for layer, change in changes.items()}):
        assert not unchanged(before, weights(model))
    assert unchanged(before, weights(model))


@pytest.mark.parametrize(("rank", "limit"), [(1, 1), (2, 8), (8, 8), (65, 128), (321, 512), (512, 512), (513, None)])
def test_servers_take_certain_ranks(rank: int, limit: int | None) -> None:
    assert server_rank(rank) == limit


def test_a_rank_for_servers_is_filled_up_with_zeros(edited, tmp_path: Path) -> None:
    editor, _ = edited
    report = saved(editor, tmp_path, rank=40, for_servers=True)
    assert (report.rank, report.server_rank) == (64, 64)
    for tensor in load_file(tmp_path / "adapter_model.safetensors").values():
        filled, width = (tensor, 0) if tensor.shape[0] == 64 else (tensor, 1)
        assert filled.narrow(width, 32, 32).abs().max() == 0
        assert filled.narrow(width, 0, 32).abs().max() > 0


def test_a_rank_above_what_servers_take_is_warned_of(edited, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    editor, _ = edited
    with caplog.at_level(logging.WARNING):
        report = saved(editor, tmp_path, rank=SERVER_RANKS[-1] + 1, for_servers=True)
    assert (report.rank, report.server_rank) == (513, None)
    assert "rank 513 is above 512" in caplog.text


def test_a_report_is_plain_data(edited, tmp_path: Path) -> None:
    editor, _ = edited
    found = json.loads(json.dumps(saved(editor, tmp_path).to_dict()))
    assert found["layers"]["1"]["sufficient_rank"] == len(NEAR)
    assert set(found["exported"]) == {"probability", "argmax"}


def test_the_default_model_and_plain_peft_agree_on_a_hundred_prompts(smollm2: LanguageModel, tmp_path: Path) -> None:
    prompts = [case.fact.text for case in read_cases(demo_path(), limit=100).cases]
    rows = [smollm2.tokenizer(prompt)["input_ids"] for prompt in prompts]
    generator = torch.Generator().manual_seed(0)
    changes, matrices = {}, {}
    for layer in (6, 9):
        matrices[layer] = EditedMatrix(smollm2.anatomy.projection(layer))
        d_out, d_in = matrices[layer].current().shape
        change = torch.randn(d_out, 12, generator=generator) @ torch.randn(12, d_in, generator=generator)
        matrices[layer].add_dense(0.2 * matrices[layer].current().norm() * change / change.norm())
        changes[layer] = matrices[layer].change()
    try:
        expected = next_tokens(smollm2.model, rows)
        report = save_adapter(smollm2, changes, tmp_path, Provenance("smollm2", "made up"))
    finally:
        for matrix in matrices.values():
            matrix.restore()
    plain = AutoModelForCausalLM.from_pretrained(BUNDLES["smollm2"].folder(), dtype=torch.float32)
    found = next_tokens(PeftModel.from_pretrained(plain, tmp_path), rows)
    assert (report.rank, len(rows)) == (12, 100)
    assert (found - expected).abs().max() < 1e-4
    assert (next_tokens(smollm2.model, rows[:5]) - expected[:5]).abs().max() > 1e-2
