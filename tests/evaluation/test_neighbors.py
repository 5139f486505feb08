"""Neighbors are compared with what the model said before, whether or not their answer is known."""

from __future__ import annotations

import pytest

from betaedit.evaluation import neighbors
from betaedit.evaluation.continuing import continue_greedily
from betaedit.evaluation.neighbors import FIRST_TOKENS, first_tokens, followed_neighbors, still_says
from betaedit.facts import EvaluationCase, Fact, Probe
from support.chain import chain_model
from support.tiny import tiny_llama

LONG = " king is gold river sea stone sun moon star road town"
OTHERS_AFTER_RIVER = " king is gold river moon star sea stone sun road town"


def case(*prompts: str) -> EvaluationCase:
    return EvaluationCase(Fact("{} is", "Bob", "red"), (), tuple(map(Probe, prompts)))


def test_the_first_neighbor_of_every_case_is_followed_before_any_second_one(monkeypatch: pytest.MonkeyPatch) -> None:
    cases = [case("a", "b", "c"), case(), case("d", "a"), case("e")]
    assert followed_neighbors(cases) == ["a", "d", "e", "b", "c"]
    monkeypatch.setattr(neighbors, "MOST_NEIGHBORS", 4)
    assert followed_neighbors(cases) == ["a", "d", "e", "b"]
    assert followed_neighbors([]) == followed_neighbors([case()]) == []


def test_the_first_tokens_end_with_the_model_s_own_end_or_after_eight() -> None:
    model = chain_model(LONG)
    said = first_tokens(model, ["the king", "a road", "the town"])
    decoded = {prompt: model.tokenizer.decode(list(ids)) for prompt, ids in said.items()}
    assert decoded == {
        "the king": " is gold river sea stone sun moon star",
        "a road": " town<|endoftext|>",
        "the town": "<|endoftext|>",
    }
    assert len(said["the king"]) == FIRST_TOKENS


def test_a_neighbor_is_kept_while_all_its_first_tokens_are() -> None:
    said = first_tokens(chain_model(LONG), ["the king", "a road", "the moon"])
    assert set(still_says(chain_model(LONG), said, said).values()) == {True}
    changed = still_says(chain_model(OTHERS_AFTER_RIVER), said, said)
    assert changed == {"the king": False, "a road": True, "the moon": False}
    longer = still_says(chain_model(f"{LONG} year"), said, said)
    assert longer == {"the king": True, "a road": False, "the moon": False}  # where it ended, it goes on


def test_only_neighbors_that_were_followed_are_asked() -> None:
    model = chain_model(LONG)
    said = first_tokens(model, ["the king"])
    assert still_says(model, said, ["a road", "the king", "the king"]) == {"the king": True}
    assert still_says(model, {}, ["a road"]) == {}


def test_a_prompt_that_fills_the_model_is_left_out() -> None:
    assert first_tokens(chain_model(LONG), [" king" * 200, "the king"]).keys() == {"the king"}


def test_one_pass_finds_what_generating_again_would_find() -> None:
    prompts = [f"the {word} of the king is" for word in ("boat", "hand", "home", "horse", "name", "ring")]
    said = first_tokens(tiny_llama(seed=0), prompts)
    other = tiny_llama(seed=1)
    again = dict(zip(prompts, continue_greedily(other, prompts, FIRST_TOKENS, keep_end=True), strict=True))
    assert still_says(other, said, prompts) == {prompt: again[prompt] == said[prompt] for prompt in prompts}
    assert all(still_says(other, again, prompts).values())
