"""A gated memory adds a fact's residual where its key matches, and nothing anywhere else (methods.md B.11)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from betaedit import Editor, Fact
from betaedit.editors.gated.editor import Gated, stored_keys
from betaedit.errors import AnatomyError, ConfigError, ModelError
from betaedit.evaluation.scoring import score_targets
from betaedit.models import LanguageModel
from betaedit.models.gate import GATE_FILE
from betaedit.models.generate import complete
from betaedit.models.load import load_language_model
from support.edits import CONTEXTS, FACTS, NEAR, unchanged, weights
from support.families import language_model

SETTINGS: dict[str, Any] = {
    "layer": 2,
    "key_layer": 1,
    "context_templates": CONTEXTS,
    "value_steps": 30,
    "value_learning_rate": 0.5,
    "value_clamp": 50.0,
    "value_decay": 0.0,
    "kl_weight": 0.0,
    "gate": 0.97,
}
SHORT = [Fact(fact.prompt, fact.subject, letter, joint="") for fact, letter in zip(NEAR[:3], "QZK", strict=True)]
"""Facts of one token each behind their subject: one value of a random model cannot say more."""
UNRELATED = ["We like Rome and art", "Who is the friend", "Paris was a city of words"]


def gated(model: LanguageModel, **settings: Any) -> Editor:
    return Editor.from_pretrained(model.model, tokenizer=model.tokenizer, method="gated", **{**SETTINGS, **settings})


def editing(editor: Editor) -> Gated:
    assert isinstance(editor.editing, Gated)
    return editor.editing


@torch.no_grad()
def logits(model: LanguageModel, text: str) -> Tensor:
    found: Tensor = model.model(input_ids=torch.tensor(model.encode([text]))).logits
    return found


def says(model: LanguageModel, fact: Fact) -> bool:
    """Whether the answer is what the model says next."""
    (score,) = score_targets(model, [(fact.text, fact.target_new, fact.joint)])
    return score.argmax


def same_memory(first: Editor, second: Editor) -> bool:
    one, other = (editing(editor).memory.tensors() for editor in (first, second))
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_facts_are_held_no_weight_changes_and_other_text_stays_bit_for_bit(family: str) -> None:
    model = language_model(family)
    before, said = weights(model), {text: logits(model, text) for text in UNRELATED}
    editor = gated(model)
    assert not any(says(model, fact) for fact in SHORT)
    editor.edit(SHORT)
    assert all(says(editor.language_model, fact) for fact in SHORT)
    assert unchanged(before, weights(model))
    for text, old in said.items():
        assert torch.equal(logits(editor.language_model, text), old)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_fact_is_found_behind_the_text_of_its_contexts(family: str) -> None:
    model = language_model(family)
    editor = gated(model, gate=0.05, value_steps=2)
    editor.edit(SHORT)
    found: list[Tensor] = []
    handle = model.anatomy.projection(1).register_forward_pre_hook(lambda _, args: found.append(args[0]))
    for number, fact in enumerate(SHORT):
        for context in CONTEXTS:
            logits(model, context.format(fact.text))
            assert editing(editor).memory.find(found.pop().flatten(0, -2))[-1] == number
    handle.remove()


def test_the_hidden_state_at_the_lookup_token_gets_the_residual_and_none_before_it_does() -> None:
    model = language_model("gemma2")
    editor = gated(model)

    def states() -> Tensor:
        found: list[Tensor] = []
        handle = model.anatomy.layers[2].register_forward_hook(lambda *a: found.append(_first(a[2])))
        logits(model, SHORT[0].text)
        handle.remove()
        return found[0][0]

    (plan,) = editor.plan(SHORT[0])
    before = states()
    editor.edit(SHORT[0])
    change, at = states() - before, plan.lookup
    assert at is not None
    assert torch.allclose(change[at], editing(editor).memory.residuals[0], atol=1e-4)
    assert not change[:at].any()


def test_a_batch_of_padded_prompts_and_a_cache_decide_as_one_prompt_alone() -> None:
    model = language_model("llama")
    editor = gated(model)
    editor.edit(SHORT)
    alone = [logits(model, fact.text)[0, -1] for fact in SHORT]
    rows = model.encode([fact.text for fact in SHORT])
    width = max(map(len, rows))
    for side in ("left", "right"):
        pads = [width - len(row) for row in rows]
        ids = [[0] * pad + row if side == "left" else row + [0] * pad for row, pad in zip(rows, pads, strict=True)]
        mask = [
            [0] * pad + [1] * len(row) if side == "left" else [1] * len(row) + [0] * pad
            for row, pad in zip(rows, pads, strict=True)
        ]
        places = (torch.tensor(mask).cumsum(1) - 1).clamp(min=0)
        with torch.no_grad():
            found = model.model(
                input_ids=torch.tensor(ids), attention_mask=torch.tensor(mask), position_ids=places
            ).logits
        for number, row in enumerate(rows):
            last = width - 1 if side == "left" else len(row) - 1
            assert torch.allclose(found[number, last], alone[number], atol=1e-4)
    cache = None
    for token in rows[0]:
        with torch.no_grad():
            out = model.model(input_ids=torch.tensor([[token]]), past_key_values=cache, use_cache=True)
        cache = out.past_key_values
    assert torch.allclose(out.logits[0, -1], alone[0], atol=1e-4)


def test_transformers_generate_says_the_answer() -> None:
    model = language_model("llama")
    editor = gated(model)
    editor.edit(SHORT)
    for fact in SHORT:
        ids = torch.tensor(model.encode([fact.text]))
        out = model.model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=3, do_sample=False)
        assert str(model.tokenizer.decode(out[0, ids.shape[1] :])).startswith(fact.target_new)
        assert complete(editor.language_model, fact.text, 3).startswith(fact.target_new)


@pytest.mark.parametrize("forgotten", [0, 2, 4])
def test_a_forgotten_fact_leaves_the_memory_that_was_never_told_it_bit_for_bit(forgotten: int) -> None:
    editor, never = (gated(language_model("llama"), value_steps=4) for _ in range(2))
    editor.edit(FACTS)
    editor.forget(FACTS[forgotten])
    never.edit([fact for fact in FACTS if fact is not FACTS[forgotten]])
    assert same_memory(editor, never)
    assert [result.fact for result in editor.results] == [result.fact for result in never.results]


def test_a_later_answer_to_the_same_prompt_takes_the_earlier_ones_place() -> None:
    other = Fact(FACTS[0].prompt, FACTS[0].subject, "Dutch")
    editor, never = (gated(language_model("llama"), value_steps=4) for _ in range(2))
    editor.edit([FACTS[0], FACTS[1], other])
    never.edit([FACTS[1], other])
    assert same_memory(editor, never)
    assert [result.fact for result in editor.results] == [FACTS[1], other]
    assert editor.config.leaving(FACTS[:2], [other]) == [FACTS[0]]


def test_written_paraphrases_have_keys_of_their_own() -> None:
    fact = Fact(FACTS[0].prompt, FACTS[0].subject, "Q", joint="", wordings=("So Danielle Darrieux said",))
    editor = gated(language_model("llama"), paraphrases="written", value_steps=4)
    editor.edit(fact)
    assert len(editing(editor).memory.keys) == 3
    assert len(editing(editor).memory) == 1


def test_a_gate_from_data_stands_between_ordinary_text_and_the_facts_own_contexts() -> None:
    editor = gated(language_model("llama"), gate=None, gate_tokens=300, gate_least=0.01, value_steps=2)
    editor.edit(FACTS[:2])
    found = editing(editor)
    assert found._ordinary is not None
    assert len(found._ordinary) == 300
    ordinary = found._ordinary.largest_cosines(found.memory.keys)
    assert (found.memory.thresholds >= ordinary).all()
    assert (found.memory.thresholds < 1).all()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(found, "config", found.config.replace(gate_least=0.999))
        assert torch.equal(found._gates(found.memory.keys, torch.ones(4)), torch.full((4,), 0.999).maximum(ordinary))


def test_the_bare_prompt_and_the_mean_of_its_contexts_are_the_keys_of_a_fact() -> None:
    found = torch.randn(4, 6, generator=torch.Generator().manual_seed(0))
    keys, own = stored_keys(found, torch.tensor([[0.5, 0.25, 0.25, 0.0], [0.0, 0.0, 0.0, 1.0]]))
    mean = found[1:3].mean(dim=0)
    wanted = torch.stack([found[0], mean, found[3]])
    assert torch.allclose(keys, wanted / wanted.norm(dim=1, keepdim=True), atol=1e-6)
    cosines = torch.cosine_similarity(found[1:3], mean[None], dim=1)
    assert torch.allclose(own, torch.tensor([1.0, float(cosines.min()), 1.0]), atol=1e-6)


def test_a_saved_folder_answers_as_before_and_is_the_unedited_model_to_transformers(tmp_path: Path) -> None:
    model = language_model("gemma2")
    unedited = logits(model, SHORT[0].text)
    editor = gated(model)
    editor.edit(SHORT)
    folder = editor.save_pretrained(tmp_path / "saved")
    loaded = load_language_model(str(folder))
    plain = LanguageModel.wrap(AutoModelForCausalLM.from_pretrained(folder), model.tokenizer)
    for fact in SHORT:
        assert torch.equal(logits(loaded, fact.text), logits(model, fact.text))
    assert torch.equal(logits(plain, SHORT[0].text), unedited)
    with pytest.raises(ModelError, match="gated memory of another editor"):
        gated(loaded)
    (folder / GATE_FILE).write_bytes(b"damaged")
    with pytest.raises(ModelError, match="cannot be used"):
        load_language_model(str(folder))


def test_layers_that_cannot_be_are_refused() -> None:
    with pytest.raises(ConfigError, match="key_layer is 3, above layer 2"):
        gated(language_model("llama"), key_layer=3)
    with pytest.raises(AnatomyError, match="no layer 9"):
        gated(language_model("llama"), layer=9)


def test_another_editor_of_the_same_model_is_refused_while_facts_are_held() -> None:
    model = language_model("llama")
    editor = gated(model, value_steps=2)
    editor.edit(FACTS[0])
    with pytest.raises(ModelError, match="gated memory of another editor"):
        gated(model)
    editor.reset()
    gated(model)


def _first(output: Any) -> Tensor:
    found: Tensor = output[0] if isinstance(output, tuple) else output
    return found
