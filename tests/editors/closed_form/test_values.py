"""Optimized values equal plain searches with whole forward passes, however many facts are sought together."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from betaedit import Fact
from betaedit.editors import EditConfig
from betaedit.editors.closed_form.encode import encode_batch
from betaedit.editors.closed_form.values import _ENTRIES_PER_PASS, Value, _Evaluation, _Stop, optimize_values
from betaedit.models import LanguageModel
from support.edits import CONTEXTS, FACTS, NEAR, relative, settings_of, unchanged, weights
from support.families import language_model
from support.procedure import ValueLoss, optimize_value_by_projected_bb
from support.procedure import optimize_value as plain_value
from support.recordings import count_runs
from support.tiny import tiny_llama

FACT = FACTS[0]
FAMILIES = ["llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3", "phi3", "olmo2", "gpt2", "gpt-j", "gpt-neox"]
some_families = pytest.mark.parametrize("family", ["llama", "gpt2", "gpt-j", "gemma3"])
every_optimizer = pytest.mark.parametrize("optimizer", ["adam", "projected_bb"])
STOPPING: dict[str, dict[str, Any]] = {
    "never stopped": {"value_stop_loss": 0},
    "stopped by the loss": {"value_stop_loss": 5.8},
    "stopped by the probability": {"value_stop_loss": 0, "value_stop_probability": 0.002},
}
every_stop = pytest.mark.parametrize("stop", STOPPING.values(), ids=STOPPING)


def config_for(**changes: Any) -> EditConfig:
    """Settings under which the values of ``NEAR`` need different numbers of evaluations."""
    settings: dict[str, Any] = {
        "layers": (1, 2),
        "value_steps": 10,
        "value_learning_rate": 0.1,
        "value_first_step": 0.1,
        "value_clamp": 2.0,
        "value_decay": 0.01,
    }
    return EditConfig(**{**settings, **changes})


def values_of(model: LanguageModel, facts: list[Fact], config: EditConfig) -> list[Value]:
    return optimize_values(model, encode_batch(model, facts, CONTEXTS, config), config)


def value_of(model: LanguageModel, fact: Fact, config: EditConfig) -> Value:
    (value,) = values_of(model, [fact], config)
    return value


def full_pass(model: LanguageModel, fact: Fact, config: EditConfig, value: Value) -> tuple[float, torch.Tensor]:
    """Loss and ``(contexts, tokens)`` target probabilities at ``value``, by a whole forward pass."""
    loss_at = ValueLoss(model.model, model.tokenizer, fact, settings_of(model, config))
    loss, probabilities = loss_at(value.target - value.initial)
    return float(loss), probabilities


# ---- the same as whole forward passes


@pytest.mark.parametrize("family", FAMILIES)
def test_the_value_equals_a_search_with_whole_forward_passes(family: str) -> None:
    model = language_model(family)
    config = EditConfig(layers=(1, 2), value_steps=8, value_learning_rate=0.05, value_clamp=0.5)
    ours = value_of(model, FACT, config)
    reference = plain_value(model.model, model.tokenizer, FACT, settings_of(model, config))
    assert relative(ours.target, reference) < 1e-4
    assert relative(ours.target, ours.initial) > 5e-3


@pytest.mark.parametrize("family", FAMILIES)
def test_a_value_is_found_where_nothing_comes_before_a_lookup_token(family: str) -> None:
    """A subject of one token, first in the only context."""
    model, fact, bare = language_model(family), Fact("{} is in", "a", "Rome"), ("{}",)
    config = EditConfig(layers=(1, 2), value_steps=8, value_learning_rate=0.05, value_clamp=0.5)
    encoded = encode_batch(model, [fact], bare, config)
    assert int(encoded.lookup.max()) == 0
    (ours,) = optimize_values(model, encoded, config)
    reference = plain_value(model.model, model.tokenizer, fact, replace(settings_of(model, config), contexts=bare))
    assert relative(ours.target, reference) < 1e-4


@pytest.mark.parametrize("family", FAMILIES)
def test_the_projected_bb_value_equals_a_search_with_whole_forward_passes(family: str) -> None:
    model, fact = language_model(family), NEAR[1]
    config = config_for(value_optimizer="projected_bb", value_steps=8)
    ours = value_of(model, fact, config)
    reference, loss = optimize_value_by_projected_bb(
        model.model, model.tokenizer, fact, settings_of(model, config), first_step=0.1, longest_step=0.5
    )
    assert relative(ours.target, reference) < 1e-3
    assert ours.loss == pytest.approx(loss, abs=1e-4)
    assert relative(ours.target, ours.initial) > 5e-3


@every_optimizer
def test_what_a_value_says_of_itself_is_what_a_whole_forward_pass_finds(optimizer: str) -> None:
    model, config = language_model("llama"), config_for(value_optimizer=optimizer)
    for fact, value in zip(NEAR, values_of(model, NEAR, config), strict=True):
        loss, probabilities = full_pass(model, fact, config, value)
        assert value.loss == pytest.approx(loss, abs=1e-4)
        assert value.target_probability == pytest.approx(float(probabilities.mean()), rel=1e-3)


def test_a_value_at_the_last_layer_needs_no_layer_above() -> None:
    model = language_model("llama")
    config = EditConfig(layers=(2, 3), value_steps=6, value_learning_rate=0.05)
    # No later position sees the lookup token there, so what it says next is all that it can change.
    fact = Fact("They all speak of {}", "Danielle Darrieux", "English words")
    reference = plain_value(model.model, model.tokenizer, fact, settings_of(model, config))
    assert relative(value_of(model, fact, config).target, reference) < 1e-4


def test_the_loss_can_be_read_off_an_earlier_layer() -> None:
    model = language_model("llama")
    early = value_of(model, FACT, EditConfig(layers=(0, 1), value_steps=5, value_loss_layer=2))
    late = value_of(model, FACT, EditConfig(layers=(0, 1), value_steps=5))
    assert relative(early.target, late.target) > 1e-3


# ---- a batch changes the cost only


@every_optimizer
@every_stop
@some_families
def test_each_fact_of_a_batch_gets_the_value_it_gets_alone(family: str, optimizer: str, stop: dict[str, Any]) -> None:
    model, config = language_model(family), config_for(value_optimizer=optimizer, **stop)
    for fact, together in zip(NEAR, values_of(model, NEAR, config), strict=True):
        alone = value_of(model, fact, config)
        assert relative(together.target, alone.target) < 1e-5
        assert torch.equal(together.initial, alone.initial) or relative(together.initial, alone.initial) < 1e-6
        assert together.loss == pytest.approx(alone.loss, abs=1e-5)
        assert together.target_probability == pytest.approx(alone.target_probability, rel=1e-4)
        assert together.n_evaluations == alone.n_evaluations


def test_the_facts_of_these_batches_differ_in_length_and_in_evaluations() -> None:
    """Otherwise the comparison above would say nothing of facts that leave early."""
    model = language_model("llama")
    assert len({len(own[0].target_ids) for own in encode_batch(model, NEAR, CONTEXTS, config_for()).wordings}) >= 4
    for stop in list(STOPPING.values())[1:]:
        assert len({value.n_evaluations for value in values_of(model, NEAR, config_for(**stop))}) >= 3


@every_optimizer
@pytest.mark.parametrize("limit", [1, 40])
def test_facts_that_do_not_fit_into_one_pass_are_sought_in_several(
    optimizer: str, limit: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, config = language_model("llama"), config_for(value_optimizer=optimizer, value_steps=5)
    above = [model.anatomy.projection(3)]
    found: list[list[Value]] = []
    one_pass = count_runs(above, lambda: found.append(values_of(model, FACTS, config)))
    monkeypatch.setitem(_ENTRIES_PER_PASS, "cpu", limit)
    more_passes = count_runs(above, lambda: found.append(values_of(model, FACTS, config)))
    assert more_passes > one_pass
    for together, apart in zip(*found, strict=True):
        assert relative(apart.target, together.target) < 1e-5


def test_a_fact_that_is_done_leaves_the_pass() -> None:
    model, config = language_model("llama"), config_for(value_stop_loss=5.8)
    sizes: list[int] = []

    def note(_: nn.Module, args: tuple[Any, ...]) -> None:
        sizes.append(len(args[0]))

    handle = model.anatomy.projection(3).register_forward_pre_hook(note)
    values = values_of(model, NEAR, config)
    handle.remove()
    under_way = [sum(value.n_evaluations >= turn for value in values) for turn in range(1, config.value_steps + 1)]
    assert sizes == under_way  # of what precedes the lookup tokens only the attention state is wanted here
    assert under_way[0] > under_way[-1]


# ---- how far a search goes


@every_optimizer
def test_the_value_never_leaves_the_clamp_ball(optimizer: str) -> None:
    model = language_model("llama")
    config = config_for(
        value_optimizer=optimizer, value_steps=12, value_learning_rate=1.0, value_first_step=2.0, value_clamp=0.3
    )
    lengths = [value.relative_length for value in values_of(model, NEAR, config)]
    assert max(lengths) <= 0.3 + 1e-6
    assert max(lengths) > 0.29


@every_optimizer
def test_one_evaluation_takes_no_step(optimizer: str) -> None:
    for value in values_of(language_model("llama"), NEAR, config_for(value_optimizer=optimizer, value_steps=1)):
        assert value.n_evaluations == 1
        assert torch.equal(value.target, value.initial)


@every_optimizer
@pytest.mark.parametrize("budget", [2, 7])
def test_a_search_that_nothing_stops_uses_its_budget_of_evaluations(optimizer: str, budget: int) -> None:
    model = language_model("llama")
    config = config_for(value_optimizer=optimizer, value_steps=budget, value_stop_loss=0)
    values: list[Value] = []
    runs = count_runs([model.anatomy.projection(3)], lambda: values.extend(values_of(model, NEAR, config)))
    assert {value.n_evaluations for value in values} == {budget}
    assert runs == [budget]


@every_optimizer
def test_facts_that_share_a_value_have_the_evaluations_of_all_of_them(optimizer: str) -> None:
    model, budget = language_model("llama"), 3
    about = [Fact("{} was born in", "Ana", "Lima"), Fact("{} works as an", "Ana", "artist"), Fact("{}", "Ana", "it")]
    for shared, facts, n_evaluations in (
        ("together", [*about, NEAR[1]], [9, 9, 9, 3]),
        ("together", about[:1], [3]),
        ("batch", [*about, NEAR[1]], [3, 3, 3, 3]),
    ):
        config = config_for(value_optimizer=optimizer, value_steps=budget, value_stop_loss=0, shared_subjects=shared)
        assert [value.n_evaluations for value in values_of(model, facts, config)] == n_evaluations


@every_optimizer
def test_the_search_stops_at_the_first_evaluation_whose_loss_is_low_enough(optimizer: str) -> None:
    model, bound = language_model("llama"), 5.8
    config = config_for(value_optimizer=optimizer, value_stop_loss=bound)
    stopped = 0
    for fact, value in zip(NEAR, values_of(model, NEAR, config), strict=True):
        loss, _ = full_pass(model, fact, config, value)
        assert (loss < bound) == (value.n_evaluations < config.value_steps)
        if 1 < value.n_evaluations < config.value_steps:
            stopped += 1
            before = value_of(model, fact, config.replace(value_steps=value.n_evaluations - 1))
            assert full_pass(model, fact, config, before)[0] >= bound
    assert stopped >= 2


@every_optimizer
def test_the_search_stops_at_the_first_evaluation_that_gives_every_token_in_every_context_the_probability(
    optimizer: str,
) -> None:
    model, bound = language_model("llama"), 0.002
    config = config_for(value_optimizer=optimizer, value_stop_loss=0, value_stop_probability=bound)
    stopped: list[int] = []
    for fact, value in zip(NEAR, values_of(model, NEAR, config), strict=True):
        _, probabilities = full_pass(model, fact, config, value)
        if value.n_evaluations < config.value_steps:
            assert float(probabilities.min()) >= bound * (1 - 1e-4)
        if 1 < value.n_evaluations < config.value_steps:
            stopped.append(probabilities.shape[1])
            before = value_of(model, fact, config.replace(value_steps=value.n_evaluations - 1))
            assert float(full_pass(model, fact, config, before)[1].min()) < bound
    assert len(stopped) >= 2
    assert max(stopped) > 1, "a target of several tokens is among them"


def test_a_mean_above_the_probability_does_not_stop_a_search() -> None:
    model = language_model("llama")
    value = value_of(model, NEAR[2], config_for(value_stop_loss=0, value_stop_probability=0.002))
    assert value.target_probability > 0.002
    assert value.n_evaluations == 10


def test_without_a_probability_to_stop_at_none_stops_the_search() -> None:
    model = language_model("llama")
    sure = value_of(model, NEAR[1], config_for(value_stop_loss=0, value_stop_probability=1e-9))
    assert sure.n_evaluations == 1
    assert value_of(model, NEAR[1], config_for(value_stop_loss=0)).n_evaluations == 10


HOUSE = "the old house"
BECOMING_MOST_PROBABLE = [
    Fact("{}", HOUSE, "day road"),
    Fact("{}", HOUSE, "bird"),
    Fact("{}", "Ana", "silver with"),
    Fact("{}", HOUSE, "river the"),
]
"""Of one and two tokens. The third is the most probable for a while only, the last in the bare context alone."""
FAR = {"value_learning_rate": 1.5, "value_clamp": 30.0, "value_decay": 0.0, "kl_weight": 0.0, "value_stop_loss": 0.0}


@pytest.mark.parametrize("patience", [1, 2])
def test_the_search_stops_once_every_token_was_most_probable_in_every_sampled_context_so_often(patience: int) -> None:
    model, budget = tiny_llama(), 10
    config = config_for(**FAR, value_steps=budget)
    stopping = config.replace(value_stop_most_probable=patience)
    ends = []
    for fact, value in zip(BECOMING_MOST_PROBABLE, values_of(model, BECOMING_MOST_PROBABLE, stopping), strict=True):
        loss = ValueLoss(model.model, model.tokenizer, fact, settings_of(model, config))
        points = [value_of(model, fact, config.replace(value_steps=n)) for n in range(1, budget + 1)]
        held = [bool(loss.most_probable(point.target - point.initial)[1:].all()) for point in points]
        reached = [n for n in range(1, budget + 1) if sum(held[:n]) >= patience]
        assert value.n_evaluations == (reached[0] if reached else budget)
        assert relative(value.target, points[value.n_evaluations - 1].target) < 1e-5
        ends.append(value.n_evaluations)
    assert sum(n < budget for n in ends) == 3
    assert max(ends) == budget


def test_the_bare_context_counts_where_it_is_the_only_one() -> None:
    model, fact = tiny_llama(), Fact("{}", HOUSE, "river")
    config = config_for(**FAR, value_stop_most_probable=1)
    (value,) = optimize_values(model, encode_batch(model, [fact], ("{}",), config), config)
    loss = ValueLoss(model.model, model.tokenizer, fact, settings_of(model, config))
    assert 1 < value.n_evaluations < config.value_steps
    assert bool(loss.most_probable(value.target - value.initial)[0].all())


def test_evaluations_with_all_tokens_most_probable_are_counted_whatever_comes_between_them() -> None:
    """CODE of ENCORE: its counter is never set back. The second group has two facts, and both must hold."""
    stop = _Stop(EditConfig(value_stop_most_probable=2, value_stop_loss=0), 2, torch.device("cpu"))
    place, one = torch.tensor([0, 1, 1]), torch.ones(3)
    held = [(True, True, False), (False, True, True), (True, False, True), (False, True, True)]
    found = [_Evaluation(one, one, one, torch.tensor(each)) for each in held]
    ends = [stop.done(each, place, torch.arange(2)).tolist() for each in found]
    assert ends == [[False, False], [False, False], [True, False], [True, True]]


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_an_anchored_value_gives_the_mlp_the_length_of_the_anchor_and_its_own_direction(family: str) -> None:
    """NAS: ``v* <- a v* / |v*|`` with ``v* = v0 + delta``, ``v0`` the output at the bare prompt."""
    model, config = language_model(family), config_for()
    plain = values_of(model, NEAR, config)
    outputs = [ValueLoss(model.model, model.tokenizer, f, settings_of(model, config)).mlp_output() for f in NEAR]
    wanted = [output + value.target - value.initial for output, value in zip(outputs, plain, strict=True)]
    lengths = [float(vector.norm()) for vector in wanted]
    for anchor in (0.6 * max(lengths), 3 * max(lengths)):
        anchored = values_of(model, NEAR, config.replace(value_norm_anchor=anchor))
        for output, vector, value in zip(outputs, wanted, anchored, strict=True):
            assert relative(value.target - value.initial + output, anchor * vector / vector.norm()) < 1e-4


def test_a_value_that_needs_twice_the_anchor_is_left_out() -> None:
    model, config = language_model("llama"), config_for()
    plain = values_of(model, NEAR[:2], config)
    outputs = [ValueLoss(model.model, model.tokenizer, f, settings_of(model, config)).mlp_output() for f in NEAR[:2]]
    lengths = [float((out + v.target - v.initial).norm()) for out, v in zip(outputs, plain, strict=True)]
    between = config.replace(value_norm_anchor=sum(lengths) / 4)  # twice of it lies between the two
    left_out = [torch.equal(value.target, value.initial) for value in values_of(model, NEAR[:2], between)]
    assert left_out == [length == max(lengths) for length in lengths]


def test_a_margin_lengthens_the_change_that_was_found_though_not_beyond_the_clamp() -> None:
    model, config = language_model("llama"), config_for(value_optimizer="projected_bb", value_stop_loss=5.8)
    clamp = 0.9 * max(value.relative_length for value in values_of(model, NEAR, config))
    plain, longer = (
        values_of(model, NEAR, config.replace(value_margin=margin, value_clamp=clamp)) for margin in (0.0, 0.2)
    )
    factors = [min(1.2, clamp / max(value.relative_length, 1e-9)) for value in plain]
    assert min(factors) < 1.1, "the clamp is in the way of some"
    assert any(factor == 1.2 and value.relative_length > 0 for factor, value in zip(factors, plain, strict=True))
    for before, after, factor in zip(plain, longer, factors, strict=True):
        assert relative(after.target, after.initial + factor * (before.target - before.initial)) < 1e-5
        assert (after.loss, after.n_evaluations) == (before.loss, before.n_evaluations)


def test_facts_that_share_their_change_share_its_margin() -> None:
    model, (first, *_) = language_model("llama"), NEAR
    facts = [first, Fact("{} lives in", first.subject, " Rome")]
    config = config_for(shared_subjects="together")
    plain, longer = (values_of(model, facts, config.replace(value_margin=margin)) for margin in (0.0, 0.1))
    for before, after in zip(plain, longer, strict=True):
        assert relative(after.target - after.initial, 1.1 * (before.target - before.initial)) < 1e-4


def test_a_projected_bb_search_never_ends_higher_for_having_more_evaluations() -> None:
    model = language_model("llama")
    config = config_for(value_optimizer="projected_bb", value_first_step=1.0, value_longest_step=1.0, value_decay=5.0)
    runs = [values_of(model, NEAR, config.replace(value_steps=steps)) for steps in range(1, 9)]
    for shorter, longer in itertools.pairwise(runs):
        assert all(after.loss <= before.loss for before, after in zip(shorter, longer, strict=True))
    kept = [
        torch.equal(before.target, after.target)
        for shorter, longer in itertools.pairwise(runs)
        for before, after in zip(shorter, longer, strict=True)
    ]
    assert any(kept), "evaluations that were not lower are among them"
    assert not all(kept)
    assert all(value.n_evaluations == 8 for value in runs[-1])


def test_an_adam_search_ends_at_its_last_point_even_if_that_is_higher() -> None:
    model = language_model("llama")
    config = config_for(value_learning_rate=1.0, value_decay=5.0)
    runs = [value_of(model, NEAR[0], config.replace(value_steps=steps)) for steps in range(1, 9)]
    assert any(longer.loss > shorter.loss for shorter, longer in itertools.pairwise(runs))


# ---- what it leaves alone, what it costs


@every_optimizer
def test_the_search_changes_no_weight_and_leaves_no_gradient(optimizer: str) -> None:
    model = language_model("gpt2")
    before = weights(model)
    values_of(model, NEAR, config_for(value_optimizer=optimizer, value_steps=3))
    assert unchanged(before, weights(model))
    assert all(parameter.grad is None for parameter in model.model.parameters())
    assert not any("forward" in module.__dict__ for module in model.model.modules())


def test_layers_below_the_edited_ones_run_once_and_those_above_once_an_evaluation_however_many_facts() -> None:
    model = language_model("llama")
    counted = [model.anatomy.projection(layer) for layer in range(4)]
    values: list[Value] = []
    config = config_for(value_steps=6, value_stop_loss=0)
    runs = count_runs(counted, lambda: values.extend(values_of(model, NEAR, config)))
    assert runs == [1, 1, 1, values[0].n_evaluations]  # the last MLP has nothing to do before the lookup tokens
