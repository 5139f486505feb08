"""What a model cannot read is refused before statistics are collected; gradients that are switched off do no harm."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import pytest
import torch

from betaedit import Editor, Fact
from betaedit.editors.contexts import context_templates
from betaedit.editors.resources import Resources
from betaedit.errors import BetaEditError, FactError, ModelError
from betaedit.statistics import Moments
from support.families import MLP, tiny_model
from support.tiny_tokenizers import shared_tokenizer, tiny_tokenizer

FACT = Fact("The mother tongue of {} is", "Danielle Darrieux", "English")
LENGTH = len(shared_tokenizer()(f"{FACT.text} {FACT.target_new}")["input_ids"]) - 1
KEPT = "{} is, as everybody knows and nobody doubts, a"


def editor(name: str = "llama", *, tokenizer: Any = None, **changes: Any) -> Editor:
    """Without statistics; asking for them fails the test."""
    settings = {"layers": (1, 2), "context_templates": ("{}",), "value_steps": 3, "value_clamp": 4.0, **changes}
    sizes = {"max_position_embeddings": settings.pop("positions", 64), "vocab_size": len(shared_tokenizer())}
    model = tiny_model(name, **sizes)
    return Editor.from_pretrained(model, tokenizer=tokenizer or tiny_tokenizer(), method="memit", **settings)


@pytest.fixture
def no_statistics(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Resources, "statistics", lambda *_: pytest.fail("statistics were collected"))


def refused(made: Editor, fact: Fact, kind: type[BetaEditError], said: str) -> None:
    weights = {name: weight.clone() for name, weight in made.model.state_dict().items()}
    for do in (made.plan, made.edit, made.write):
        with pytest.raises(kind, match=said):
            do(fact)  # type: ignore[operator]
    assert all(weight.equal(weights[name]) for name, weight in made.model.state_dict().items())


# --- tokens ---


@pytest.mark.parametrize(
    "fact",
    [
        Fact("The mother tongue of {} is<new>", "Danielle Darrieux", "English"),
        Fact("The mother tongue of {} is", "Danielle<new>", "English"),
        Fact("The mother tongue of {} is", "Danielle Darrieux", "English<new>"),
    ],
)
@pytest.mark.usefixtures("no_statistics")
def test_a_token_without_an_embedding_is_refused_wherever_it_stands(fact: Fact):
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens(["<new>"])
    number = tokenizer.convert_tokens_to_ids("<new>")
    made = editor(tokenizer=tokenizer)
    refused(made, fact, ModelError, rf"the token '<new>' has the id {number}, .* embeddings for {number} tokens")
    made.plan(FACT)
    made.model.resize_token_embeddings(len(tokenizer))
    Editor.from_pretrained(made.model, tokenizer=tokenizer, layers=(1,)).plan(fact)


def test_a_padding_token_without_an_embedding_does_no_harm():
    tokenizer = tiny_tokenizer()
    tokenizer.add_special_tokens({"pad_token": "<padding>"})
    made = editor(tokenizer=tokenizer, statistics=moments())
    made.edit([FACT, Fact("José speaks {}", "well", "a")], batch_size=2)
    assert len(made.results) == 2


# --- positions ---


@pytest.mark.parametrize("name", ["gpt2", "llama", "opt"])
@pytest.mark.usefixtures("no_statistics")
def test_a_prompt_longer_than_the_positions_is_refused_with_the_numbers(name: str):
    """Learned positions would fail after minutes, rotary ones be written where the model cannot read."""
    editor(name, positions=LENGTH).plan(FACT)
    made = editor(name, positions=LENGTH - 1)
    refused(made, FACT, FactError, rf"{LENGTH} tokens with its longest context .* has {LENGTH - 1} positions")


@pytest.mark.usefixtures("no_statistics")
def test_contexts_count_those_given_and_those_that_will_be_sampled():
    more = len(shared_tokenizer()(f"Ah - {FACT.text}")["input_ids"]) - len(shared_tokenizer()(FACT.text)["input_ids"])
    given = editor(positions=LENGTH + more - 1, context_templates=("{}", "Ah - {}"))
    refused(given, FACT, FactError, f"{LENGTH + more} tokens")
    sampled = editor(positions=LENGTH + 10, context_templates=None, context_openings=("Ah",), context_length=10)
    refused(sampled, FACT, FactError, f"{LENGTH + 11} tokens")


@pytest.mark.usefixtures("no_statistics")
def test_the_prompt_whose_answer_is_kept_counts_too():
    long = len(shared_tokenizer()(KEPT.replace("{}", FACT.subject))["input_ids"])
    assert long > LENGTH
    editor(positions=long, kl_template=KEPT).plan(FACT)
    refused(editor(positions=long - 1, kl_template=KEPT), FACT, FactError, f"{long} tokens")


def test_contexts_that_turn_out_longer_than_was_told_are_refused_before_a_weight_changes(
    monkeypatch: pytest.MonkeyPatch,
):
    made = editor(positions=LENGTH + 8, statistics=moments(), context_templates=None, context_openings=("Ah",))
    made.config = made.config.replace(context_length=3)
    long = ("{}", "A long way to go, and longer still than anybody told us. {}")
    monkeypatch.setattr("betaedit.editors.resources.context_templates", lambda *_: long)
    before = made.model.state_dict()["model.layers.1.mlp.down_proj.weight"].clone()
    with pytest.raises(FactError, match="positions"):
        made.edit(FACT)
    assert made.model.state_dict()["model.layers.1.mlp.down_proj.weight"].equal(before)
    assert made.results == []


# --- gradients ---


def moments() -> Moments:
    return Moments({layer: torch.eye(MLP) for layer in (1, 2)}, n_tokens=1000)


@contextmanager
def switched_off() -> Any:
    torch.set_grad_enabled(False)
    try:
        yield
    finally:
        torch.set_grad_enabled(True)


OFF: dict[str, Callable[[], AbstractContextManager[Any]]] = {
    "no_grad": torch.no_grad,
    "inference_mode": torch.inference_mode,
    "set_grad_enabled": switched_off,
}


def edited(around: Callable[[], AbstractContextManager[Any]] | None, name: str, **changes: Any) -> list[torch.Tensor]:
    made = editor(name, statistics=moments(), **changes)
    second = Fact("The mother tongue of {} is", "José", "German")
    if around is None:
        made.edit([FACT, second])
    else:
        with around():
            made.edit(FACT)
        assert torch.is_grad_enabled()
        made.edit(second)
    return [weight.clone() for weight in made.model.state_dict().values()]


@pytest.mark.parametrize("name", ["gpt2", "llama"])
@pytest.mark.parametrize("off", OFF)
def test_an_edit_where_gradients_are_off_writes_what_it_writes_otherwise(off: str, name: str):
    for one, other in zip(edited(OFF[off], name), edited(None, name), strict=True):
        assert one.equal(other)


@pytest.mark.parametrize("off", OFF)
def test_what_was_prepared_where_gradients_are_off_serves_edits_elsewhere(off: str):
    made, other = (editor(statistics=None, statistics_tokens=500, context_templates=None) for _ in range(2))
    with OFF[off]():
        made.prepare()
        assert not torch.is_grad_enabled()
    made.edit(FACT)
    other.edit(FACT)
    assert made.editing.engine.contexts == context_templates(editor().language_model, made.config)
    pairs = zip(made.model.state_dict().values(), other.model.state_dict().values(), strict=True)
    assert all(one.equal(another) for one, another in pairs)


@pytest.mark.parametrize("off", OFF)
def test_facts_are_taken_back_and_everything_reset_where_gradients_are_off(off: str):
    made = editor(statistics=moments())
    before = [weight.clone() for weight in made.model.state_dict().values()]
    with OFF[off]():
        for _ in made.write([FACT, Fact("The mother tongue of {} is", "José", "German")]):
            assert not torch.is_grad_enabled(), "what the caller switched off is off between batches"
        made.reset()
    assert all(one.equal(other) for one, other in zip(made.model.state_dict().values(), before, strict=True))
    made.edit(FACT)
    assert len(made.results) == 1
