"""Side memories answer the prompts that they were trained on and leave the others to the model (methods.md F.2)."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from betaedit import Editor, Fact
from betaedit.editors.side_memory.memories import Memory, merge_ties
from betaedit.editors.side_memory.wise import Wise
from betaedit.errors import ConfigError
from betaedit.evaluation.holding import measure_holding
from betaedit.evaluation.scoring import score_targets
from betaedit.models import LanguageModel
from betaedit.models.generate import complete, continue_rows, most_likely
from support.edits import FACTS, unchanged, weights
from support.families import language_model

UNRELATED = ["We like Rome and Paris", "Who is the friend", "A small town"]
"""The first is trained against, the others are not."""
SHORT = [Fact(fact.prompt, fact.subject, letter, joint="") for fact, letter in zip(FACTS, "QZKWX", strict=True)]
"""Facts of one token each, which a random model can be brought to say."""
SETTINGS: dict[str, Any] = {
    "layer": 2,
    "steps": 60,
    "learning_rate": 0.1,
    "outside_limit": 0.2,
    "inside_limit": 1.5,
    "margin": 1.0,
    "mask_share": 0.5,
    "context_templates": ("{}", "I know this. {}"),
    "unrelated_prompts": tuple(UNRELATED[:1]),
}


def wise(model: LanguageModel, **settings: Any) -> Editor:
    return Editor.from_pretrained(model.model, tokenizer=model.tokenizer, method="wise", **{**SETTINGS, **settings})


def memories(editor: Editor) -> list[Memory]:
    assert isinstance(editor.editing, Wise)
    return list(editor.editing.memories)


def route(editor: Editor, prompts: list[str]) -> list[int]:
    assert isinstance(editor.editing, Wise)
    return editor.editing.route(prompts)


@torch.no_grad()
def logits(model: LanguageModel, text: str) -> Tensor:
    found: Tensor = model.model(input_ids=torch.tensor(model.encode([text]))).logits
    return found


def same(first: Editor, second: Editor) -> bool:
    one, other = memories(first), memories(second)
    return len(one) == len(other) and all(
        torch.equal(a.weight, b.weight) and a.least == b.least for a, b in zip(one, other, strict=True)
    )


@pytest.fixture(scope="module")
def edited() -> Editor:
    editor = wise(language_model("llama"))
    editor.edit(SHORT[:2])
    return editor


def test_told_prompts_go_to_the_side_memory_and_others_to_the_model(edited: Editor) -> None:
    scores = score_targets(edited.language_model, [(fact.text, fact.target_new, fact.joint) for fact in SHORT[:2]])
    assert all(score.argmax for score in scores)
    assert route(edited, [fact.text for fact in FACTS[:2]]) == [0, 0]
    assert route(edited, UNRELATED) == [-1] * len(UNRELATED)


def test_what_is_left_to_the_model_is_answered_bit_for_bit_as_before(edited: Editor) -> None:
    model = edited.language_model
    after = [logits(model, text) for text in [*UNRELATED, FACTS[0].text]]
    with edited.unedited():
        before = [logits(model, text) for text in [*UNRELATED, FACTS[0].text]]
    assert [torch.equal(*pair) for pair in zip(before, after, strict=True)] == [True, True, True, False]


def test_no_weight_changes() -> None:
    model = language_model("llama")
    before = weights(model)
    wise(model, steps=4).edit(FACTS[0])
    assert unchanged(before, weights(model))


def test_rows_of_a_padded_batch_are_routed_one_by_one(edited: Editor) -> None:
    model = edited.language_model
    asked = [*FACTS[:2], *(Fact("{}", text, "Rome") for text in UNRELATED)]
    together = measure_holding(model, asked)
    for fact, held in zip(asked, together, strict=True):
        (alone,) = measure_holding(model, [fact])
        assert held.status == alone.status
        assert held.probability == pytest.approx(alone.probability, abs=1e-4)
    prompts = model.encode([fact.text for fact in asked])
    said = continue_rows(model, prompts, [5] * len(prompts), most_likely)
    assert said == [continue_rows(model, [row], [5], most_likely)[0] for row in prompts]


def test_an_answer_goes_on_by_the_memory_that_its_prompt_was_routed_to(edited: Editor) -> None:
    model, memory = edited.language_model, memories(edited)[0]
    projection = model.anatomy.projection(2)
    with edited.unedited():
        own = projection.weight.clone()
        projection.weight.data.copy_(memory.weight)
        expected = complete(model, FACTS[0].text, 12)
        projection.weight.data.copy_(own)
    assert complete(model, FACTS[0].text, 12) == expected


def test_only_the_entries_of_a_shards_mask_are_trained_and_each_shard_has_its_own() -> None:
    editor = wise(language_model("llama"), steps=4, shard_size=2, merge_every=10)
    editor.edit(FACTS[:4])
    original = editor.language_model.anatomy.projection(2).weight
    moved = [memory.weight != original for memory in memories(editor)]
    assert [0.4 < float(mask.float().mean()) < 0.6 for mask in moved] == [True, True]
    assert not torch.equal(*moved)


def test_entries_stay_within_the_limit_of_the_models_own() -> None:
    editor = wise(language_model("llama"), steps=20, norm_limit=0.02)
    editor.edit(FACTS[0])
    moved = memories(editor)[0].weight - editor.language_model.anatomy.projection(2).weight
    assert float(moved.abs().max()) == pytest.approx(0.02, abs=1e-6)


def test_full_shards_are_stored_and_merged_by_ties() -> None:
    merged = wise(language_model("llama"), steps=4, shard_size=1, merge_every=2)
    apart = wise(language_model("llama"), steps=4, shard_size=1, merge_every=4)
    merged.edit(FACTS[:3])
    apart.edit(FACTS[:2])
    first, second = memories(apart)
    found = memories(merged)
    original = merged.language_model.anatomy.projection(2).weight.detach()
    assert len(found) == 2
    assert torch.equal(found[0].weight, merge_ties(original, [first.weight, second.weight], 0.53))
    assert found[0].least == min(first.least, second.least)


@pytest.mark.parametrize("forgotten", [(0,), (2,), (1, 4)])
def test_forgotten_facts_leave_the_memories_that_were_never_told_them(forgotten: tuple[int, ...]) -> None:
    shards = {"steps": 4, "shard_size": 2, "merge_every": 4}
    editor, never = wise(language_model("llama"), **shards), wise(language_model("llama"), **shards)
    editor.edit(FACTS)
    for at in forgotten:
        editor.forget(FACTS[at])
    never.edit([fact for at, fact in enumerate(FACTS) if at not in forgotten])
    assert same(editor, never)
    assert [result.fact for result in editor.results] == [result.fact for result in never.results]


def test_facts_of_a_batch_become_what_they_become_one_by_one() -> None:
    one_by_one, together = wise(language_model("llama"), steps=4), wise(language_model("llama"), steps=4)
    one_by_one.edit(FACTS[:3])
    together.edit(FACTS[:3], batch_size=3)
    assert same(one_by_one, together)


def test_unrelated_prompts_are_sampled_from_the_model_where_none_are_given() -> None:
    first, second = (wise(language_model("llama"), unrelated_prompts=None) for _ in range(2))
    found = first.editing.describe()["unrelated_prompts"]
    assert found
    assert found == second.editing.describe()["unrelated_prompts"]
    second.reset()


def test_shards_that_do_not_make_up_a_merge_are_refused() -> None:
    with pytest.raises(ConfigError, match="multiple of shard_size"):
        wise(language_model("llama"), shard_size=3, merge_every=4)


@pytest.mark.parametrize("family", ["gpt2", "opt", "gemma3"])
def test_other_families_are_served_too(family: str) -> None:
    editor = wise(language_model(family), steps=3)
    before = logits(editor.language_model, FACTS[0].text)
    editor.edit(FACTS[0])
    assert route(editor, [FACTS[0].text]) == [0]
    assert not torch.equal(logits(editor.language_model, FACTS[0].text), before)
