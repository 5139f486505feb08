"""Edited models and raw factors leave as files that plain libraries read."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from betaedit import Editor, Fact
from betaedit.errors import OutputError
from betaedit.facts import read_cases
from betaedit.ledger.export import changes_of, save_factors, save_model
from betaedit.ledger.export_card import Provenance, write_card
from support.edits import FACTS, editor_for, unchanged, weights
from support.tiny import FAMILIES

FIGURES = {"perplexity": (51.17, 51.95), "generality": (None, 0.58)}


@pytest.fixture(scope="module", params=FAMILIES)
def editor(request: pytest.FixtureRequest) -> Editor:
    editor = editor_for(FAMILIES[request.param]())
    editor.edit(FACTS)
    return editor


def test_a_saved_model_is_the_edited_one_for_plain_transformers(editor: Editor, tmp_path: Path) -> None:
    folder = save_model(editor, tmp_path / "out", FIGURES)
    loaded = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    assert unchanged(weights(editor.language_model), loaded.state_dict())
    text = "The king and the queen"
    assert AutoTokenizer.from_pretrained(folder)(text) == editor.tokenizer(text)


def test_the_card_lists_edits_and_figures(editor: Editor, tmp_path: Path) -> None:
    save_model(editor, tmp_path, FIGURES)
    card = (tmp_path / "README.md").read_text()
    for fact in FACTS:
        assert f"| {fact.text} | {fact.target_true} | {fact.target_new} |" in card
    assert "| perplexity | 51.17 | 51.95 |" in card
    assert "| generality | - | 0.58 |" in card
    assert "`betaedit` of betaedit wrote 5 facts" in card
    assert [case.fact for case in read_cases(tmp_path / "facts.jsonl").cases] == [
        Fact(fact.prompt, fact.subject, fact.target_new, fact.target_true, f"own-{line}")
        for line, fact in enumerate(FACTS, start=1)
    ]


def test_a_place_that_cannot_be_written_is_refused(editor: Editor, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(OutputError, match="file cannot be written"):
        save_model(editor, tmp_path / "file", FIGURES)
    with pytest.raises(OutputError, match="cannot be written") as refused:
        save_factors(editor.language_model, changes_of(editor), tmp_path)
    assert refused.value.hint


def test_factors_multiply_to_the_change_and_name_its_place(editor: Editor, tmp_path: Path) -> None:
    file = tmp_path / "new" / "factors.safetensors"
    model = editor.language_model
    ranks = save_factors(model, changes_of(editor), file)
    tensors = load_file(file)
    with safe_open(file, framework="pt") as opened:
        metadata = opened.metadata()
    assert metadata["model"] == model.name
    assert tensors.keys() == {f"{layer}.{side}" for layer in (1, 2) for side in ("left", "right")}
    for layer, change in changes_of(editor).items():
        left, right = tensors[f"{layer}.left"], tensors[f"{layer}.right"]
        assert left.shape[1] == right.shape[1] == ranks[layer] == len(FACTS)
        scale = model.anatomy.projection(layer).weight.norm()
        assert (left @ right.T - change).norm() < 1e-6 * scale
        assert json.loads(metadata["modules"])[str(layer)] == model.anatomy.projection_path(layer)


def test_data_cannot_become_markup_of_the_card(tmp_path: Path) -> None:
    fact = Fact("A | *b* `c`\nof {} is", "<b>Bob</b>", "[x](y)")
    write_card(tmp_path, Provenance("m", "memit", [fact]), library="peft", usage="")
    assert "| A \\| \\*b\\* \\`c\\` of \\<b>Bob\\</b> is | - | \\[x\\](y) |" in (tmp_path / "README.md").read_text()


def test_a_long_list_of_facts_is_cut_in_the_card_only(tmp_path: Path) -> None:
    facts = [Fact("{} is in", f"town {number}", "France") for number in range(150)]
    write_card(tmp_path, Provenance("m", "memit", facts), library="peft", usage="")
    card = (tmp_path / "README.md").read_text()
    assert "town 99 " in card
    assert "town 100 " not in card
    assert "The first 100 of them; all are in" in card
    assert len(read_cases(tmp_path / "facts.jsonl").cases) == 150


def test_a_card_names_the_base_only_where_the_hub_has_it(tmp_path: Path) -> None:
    for model, line in (("owner/model", True), ("smollm2", False), (str(tmp_path), False)):
        write_card(tmp_path, Provenance(model, "memit"), library="peft", usage="")
        assert (f"base_model: {model}\n" in (tmp_path / "README.md").read_text()) == line
