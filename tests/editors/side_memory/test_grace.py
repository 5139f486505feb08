"""A codebook answers the prompts it was told and leaves all others exactly as they were (methods.md F.1)."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from betaedit import Editor, Fact
from betaedit.editors.side_memory.grace import Grace
from betaedit.evaluation.drift import compare, held_out_prose
from betaedit.evaluation.holding import measure_holding
from betaedit.evaluation.scoring import score_targets
from betaedit.models import LanguageModel
from betaedit.models.generate import complete
from support.edits import FACTS, unchanged, weights
from support.families import language_model

SETTINGS: dict[str, Any] = {"layer": 2, "steps": 60, "radius": 0.01}
PARAPHRASES = ["So the mother tongue of Danielle Darrieux is", "The mother tongue of Danielle Darrieux was"]
UNRELATED = ["The mother tongue of Zoë is", "We like Rome and Paris", "Who is the friend of Ana", *PARAPHRASES]


SHORT = [Fact(fact.prompt, fact.subject, letter, joint="") for fact, letter in zip(FACTS, "QZKWX", strict=True)]
"""Facts of one token each: one value of a random model cannot say more."""


def grace(model: LanguageModel, **settings: Any) -> Editor:
    return Editor.from_pretrained(model.model, tokenizer=model.tokenizer, method="grace", **{**SETTINGS, **settings})


def entries(editor: Editor) -> Grace:
    assert isinstance(editor.editing, Grace)
    return editor.editing


@torch.no_grad()
def logits(model: LanguageModel, text: str) -> Tensor:
    found: Tensor = model.model(input_ids=torch.tensor(model.encode([text]))).logits
    return found


def says(model: LanguageModel, fact: Fact) -> bool:
    """Whether the answer is what the model says next."""
    (score,) = score_targets(model, [(fact.text, fact.target_new, fact.joint)])
    return score.argmax


def same_book(first: Editor, second: Editor) -> bool:
    one, other = entries(first).codebook, entries(second).codebook
    pairs = ((one.keys, other.keys), (one.values, other.values), (one.radii, other.radii))
    return one.labels == other.labels and all(torch.equal(*pair) for pair in pairs)


def test_facts_are_held_and_every_logit_of_other_text_stays_bit_for_bit() -> None:
    model = language_model("llama")
    before, said = weights(model), {text: logits(model, text) for text in UNRELATED}
    editor = grace(model)
    assert not any(says(model, fact) for fact in SHORT)
    editor.edit(SHORT)
    assert all(says(editor.language_model, fact) for fact in SHORT)
    assert unchanged(before, weights(model))
    for text, old in said.items():
        assert torch.equal(logits(editor.language_model, text), old)


def test_it_does_not_generalize() -> None:
    model = language_model("llama")
    asked = [
        Fact(text.replace("Danielle Darrieux", "{}"), "Danielle Darrieux", "English words") for text in PARAPHRASES
    ]
    before = measure_holding(model, asked)
    editor = grace(model)
    editor.edit(FACTS[0])
    assert measure_holding(editor.language_model, asked) == before


def test_drift_on_prose_is_nothing() -> None:
    model = language_model("llama")
    editor = grace(model)
    editor.edit(FACTS)
    drift = compare(editor.language_model, [text[:60] for text in held_out_prose()[:2]], editor.unedited)
    assert (drift.kl, drift.agreement.mean) == (0, 1)


def test_a_fact_is_said_in_a_batch_of_padded_prompts_as_alone() -> None:
    model = language_model("llama")
    editor = grace(model)
    editor.edit(SHORT)
    alone = [measure_holding(editor.language_model, [fact])[0] for fact in SHORT]
    together = measure_holding(editor.language_model, SHORT)
    assert [held.status for held in together] == [held.status for held in alone]
    for one, other in zip(alone, together, strict=True):
        assert one.probability == pytest.approx(other.probability, abs=1e-4)


def test_generation_says_what_scoring_finds_likely() -> None:
    editor = grace(language_model("llama"))
    editor.edit(SHORT)
    for fact in SHORT:
        assert complete(editor.language_model, fact.text, 8).startswith(fact.target_new)


def test_facts_of_a_batch_become_what_they_become_one_by_one() -> None:
    one_by_one, together = grace(language_model("llama")), grace(language_model("llama"))
    one_by_one.edit(FACTS)
    together.edit(FACTS, batch_size=3)
    assert same_book(one_by_one, together)


@pytest.mark.parametrize("radius", [0.01, 3.0, 100.0])
@pytest.mark.parametrize("only_wrong", [False, True])
@pytest.mark.parametrize("forgotten", [0, 3])
def test_a_forgotten_fact_leaves_the_codebook_that_was_never_told_it(
    radius: float, only_wrong: bool, forgotten: int
) -> None:
    settings = {"radius": radius, "only_wrong": only_wrong, "steps": 8}
    told = [*FACTS[:3], Fact("The mother tongue of {} is", "Ana", "English words"), FACTS[4]]
    editor, never = grace(language_model("llama"), **settings), grace(language_model("llama"), **settings)
    editor.edit(told)
    editor.forget(told[forgotten])
    never.edit([fact for fact in told if fact is not told[forgotten]])
    assert same_book(editor, never)
    assert [result.fact for result in editor.results] == [result.fact for result in never.results]


def test_a_value_that_another_was_trained_from_is_trained_anew_once_that_is_forgotten() -> None:
    near = Fact("The mother tongue of {} is", "Ana", "English words")
    editor, never = (grace(language_model("llama"), radius=100.0, steps=8) for _ in range(2))
    editor.edit([FACTS[0], near])
    assert len(entries(editor).codebook) == 1
    editor.forget(FACTS[0])
    never.edit(near)
    assert same_book(editor, never)


def test_a_later_answer_to_the_same_prompt_takes_the_earlier_ones_place() -> None:
    other = Fact(FACTS[0].prompt, FACTS[0].subject, "Dutch")
    editor, never = grace(language_model("llama")), grace(language_model("llama"))
    editor.edit([FACTS[0], FACTS[1], other])
    never.edit([FACTS[1], other])
    assert same_book(editor, never)
    assert [result.fact for result in editor.results] == [FACTS[1], other]
    assert editor.config.leaving(FACTS[:2], [other]) == [FACTS[0]]


def test_what_the_model_says_already_gets_no_entry_where_only_errors_are_written() -> None:
    model = language_model("llama")
    said = complete(model, "The bridge is", 1)
    known = Fact("{} is", "The bridge", said, joint="")
    editor = grace(model, only_wrong=True)
    editor.edit([known, FACTS[0]])
    assert len(entries(editor).codebook) == 1
    assert len(editor.results) == 2
    assert len(entries(grace(language_model("llama"))).codebook) == 0


def test_the_value_stands_at_the_tokens_before_the_query_too_where_that_is_asked() -> None:
    model = language_model("llama")
    last = grace(model)
    last.edit(FACTS[0])
    projection, text = model.anatomy.projection_path(2), FACTS[0].text

    def outputs() -> Tensor:
        found: list[Tensor] = []
        handle = model.model.get_submodule(projection).register_forward_hook(lambda *a: found.append(a[2]))
        logits(model, text)
        handle.remove()
        return found[0][0]

    value = entries(last).codebook.values[0]
    found = outputs()
    assert torch.equal(found[-1], value)
    assert not any(torch.equal(row, value) for row in found[:-1])
    last.reset()
    whole = grace(model, replacement="prompt")
    whole.edit(FACTS[0])
    assert all(torch.equal(row, entries(whole).codebook.values[0]) for row in outputs())
