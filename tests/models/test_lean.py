"""Layers of the Llama kind run with few operations give what the model's own modules give, and the same gradient."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import pytest
import torch
from torch import Tensor, nn
from transformers import GraniteConfig, LlamaConfig, PreTrainedModel, SmolLM3Config

from betaedit.models import Anatomy, find_anatomy, lean
from betaedit.models.lean import lean_layers, pass_projection, run_lean_layers
from betaedit.models.pack import Pack, keep_state
from betaedit.models.partial import LayerCall, record, run_layers
from support.families import FAMILIES_AND_ATTENTION, N_LAYERS, family, model_of, shared_model, tiny_model
from support.recordings import random_prompts

LAYERS = range(1, N_LAYERS)
KIND = {"llama", "mistral", "qwen2", "qwen3"}
ROWS = {"one": ((0, 1, 2),), "three": ((0, 1), (2, 3), (4, 5)), "many": tuple((row % 6,) for row in range(24))}


def problem(anatomy: Anatomy, rows: str = "three") -> tuple[dict[int, LayerCall], Tensor]:
    """Packed prompts from their lookup tokens on: the layers' arguments, and the hidden states entering the first."""
    prompts = random_prompts((12, 9, 11, 7, 5, 10), (5, 0, 8, 6, 2, 9))
    recording = record(anatomy, prompts, run=N_LAYERS, keep=(LAYERS.start,))
    chosen = torch.tensor(ROWS[rows])
    prefix = Pack.of(chosen, torch.zeros_like(prompts.lookup), prompts.lookup)
    suffix = Pack.of(chosen, prompts.lookup, prompts.lengths)
    state = keep_state(anatomy, recording, prefix, LAYERS)
    return suffix.calls(recording, LAYERS, state, prefix), suffix.gather(recording.inputs[LAYERS.start])


def output_and_gradient(run: Callable[[Tensor], Tensor], hidden: Tensor) -> tuple[Tensor, Tensor]:
    hidden = hidden.detach().clone().requires_grad_()
    output = run(hidden)
    slope = torch.randn(output.shape, generator=torch.Generator().manual_seed(1)).to(output)
    (gradient,) = torch.autograd.grad(output, hidden, slope)
    return output.detach(), gradient


def assert_the_same(model: PreTrainedModel, rows: str, tolerance: float) -> None:
    anatomy = find_anatomy(model)
    calls, hidden = problem(anatomy, rows)
    real, run = calls[LAYERS.start].real, lean_layers(anatomy, calls, hidden, LAYERS)
    ours = output_and_gradient(lambda x: run(x)[real], hidden)
    theirs = output_and_gradient(lambda x: run_layers(anatomy, calls, x, LAYERS.start, LAYERS.stop - 1)[real], hidden)
    for found, expected in zip(ours, theirs, strict=True):
        assert found.shape == expected.shape
        assert found.dtype == expected.dtype
        assert float((found - expected).double().norm() / expected.double().norm()) < tolerance


def runs_leanly(model: PreTrainedModel, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether none of the model's own modules takes part in the result."""
    anatomy = find_anatomy(model)
    calls, hidden = problem(anatomy)
    run = lean_layers(anatomy, calls, hidden, LAYERS)
    ran: list[bool] = []
    monkeypatch.setattr(lean, "run_layers", lambda *args: ran.append(True) or run_layers(*args))
    run(hidden)
    return not ran


@pytest.mark.usefixtures("hand")
@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize(("name", "attention"), FAMILIES_AND_ATTENTION)
def test_every_family_gives_the_same_states_and_gradients(name: str, attention: str, rows: str):
    assert_the_same(shared_model(name, attention), rows, 1e-5)


@pytest.mark.usefixtures("hand")
@pytest.mark.parametrize("name", sorted(KIND))
def test_nothing_is_computed_on_padding(name: str):
    anatomy = find_anatomy(shared_model(name))
    calls, hidden = problem(anatomy)
    real = calls[LAYERS.start].real
    run = lean_layers(anatomy, calls, hidden, LAYERS)
    assert 0 < int((~real).sum()) < real.numel()
    for found in output_and_gradient(run, hidden):
        assert not found[~real].any()
        assert found[real].all()
    spoiled = hidden.masked_fill(~real[:, :, None], torch.nan)
    assert torch.equal(run(spoiled), run(hidden))


@pytest.mark.parametrize(("name", "attention"), FAMILIES_AND_ATTENTION)
def test_families_of_the_kind_run_leanly_and_others_by_their_modules(
    name: str, attention: str, monkeypatch: pytest.MonkeyPatch
):
    assert runs_leanly(shared_model(name, attention), monkeypatch) == (name in KIND)


@pytest.mark.parametrize("name", sorted(KIND))
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-6), (torch.bfloat16, 0.05)], ids=str)
def test_the_type_of_the_weights_is_that_of_the_computation(
    name: str, dtype: torch.dtype, tolerance: float, monkeypatch: pytest.MonkeyPatch
):
    model = tiny_model(name).to(dtype).requires_grad_(False)
    assert_the_same(model, "three", tolerance)
    assert runs_leanly(model, monkeypatch)


@pytest.mark.usefixtures("hand")
@pytest.mark.parametrize("rows", ROWS)
def test_projections_with_biases_are_of_the_kind(rows: str, monkeypatch: pytest.MonkeyPatch):
    settings = {**family("llama").settings, "attention_bias": True, "mlp_bias": True}
    model = model_of(LlamaConfig(**settings)).requires_grad_(False)
    model.get_submodule("model.layers.1.self_attn.k_proj").register_parameter("bias", None)
    for index in LAYERS:
        for part in find_anatomy(model).layers[index].modules():
            if isinstance(part, nn.Linear) and part.bias is not None:
                nn.init.normal_(part.bias)
    assert_the_same(model, rows, 1e-5)
    assert runs_leanly(model, monkeypatch)


DECEPTIVE = {
    "residuals scaled": lambda: GraniteConfig(**family("llama").settings, residual_multiplier=0.5),
    "scores scaled": lambda: GraniteConfig(
        **family("llama").settings, attention_multiplier=0.5, residual_multiplier=0.9
    ),
    "one layer without positions": lambda: SmolLM3Config(**family("llama").settings, no_rope_layers=[1, 1, 1, 0]),
    "another activation": lambda: LlamaConfig(**family("llama").settings, hidden_act="gelu"),
}


@pytest.mark.parametrize("name", DECEPTIVE)
def test_a_model_with_the_same_parts_that_computes_something_else_runs_by_its_modules(
    name: str, monkeypatch: pytest.MonkeyPatch
):
    model = model_of(DECEPTIVE[name]()).requires_grad_(False)
    assert_the_same(model, "three", 1e-5)
    assert not runs_leanly(model, monkeypatch)


@pytest.mark.usefixtures("hand")
@pytest.mark.parametrize("lookups", [(0,) * 6, (1,) * 6], ids=["nothing before", "one token before"])
def test_a_layer_is_not_judged_by_positions_that_see_themselves_alone(lookups: tuple[int, ...]):
    """Its rotary angles show nothing there; SmolLM3 is told from Llama by them."""
    model = model_of(DECEPTIVE["one layer without positions"]()).requires_grad_(False)
    anatomy = find_anatomy(model)
    prompts = random_prompts((12, 9, 11, 7, 5, 10), lookups)
    recording = record(anatomy, prompts, run=N_LAYERS, keep=(LAYERS.start,))
    chosen = torch.tensor(ROWS["three"])
    prefix = Pack.of(chosen, torch.zeros_like(prompts.lookup), prompts.lookup)
    keep_state(anatomy, recording, prefix, LAYERS, run_lean_layers)
    assert_the_same(model, "three", 1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_a_layer_first_met_with_nothing_in_its_padding_is_judged_by_the_rest(dtype: torch.dtype):
    """A norm of queries has a gradient beyond half precision at zero, which no real state is."""
    anatomy = find_anatomy(tiny_model("qwen3").to(dtype).requires_grad_(False))
    calls, hidden = problem(anatomy)
    lean_layers(anatomy, calls, hidden.masked_fill(~calls[LAYERS.start].real[:, :, None], 0), LAYERS)
    assert [lean._trusted.get(anatomy.layers[layer]) for layer in LAYERS] == [{hidden.dtype: True}] * len(LAYERS)


def hook(model: PreTrainedModel) -> None:
    model.get_submodule("model.layers.2.mlp").register_forward_hook(lambda *_: None)


def pre_hook(model: PreTrainedModel) -> None:
    model.get_submodule("model.layers.2.self_attn.q_proj").register_forward_pre_hook(lambda *_: None)


def replace_forward(model: PreTrainedModel) -> None:
    linear = model.get_submodule("model.layers.2.mlp.up_proj")
    linear.__dict__["forward"] = linear.forward


def replace_linear(model: PreTrainedModel) -> None:
    class Half(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) / 2

    mlp = model.get_submodule("model.layers.2.mlp")
    half = Half(mlp.up_proj.in_features, mlp.up_proj.out_features, bias=False).requires_grad_(False)
    half.load_state_dict(mlp.up_proj.state_dict())
    mlp.up_proj = half


def add_a_part(model: PreTrainedModel) -> None:
    model.get_submodule("model.layers.2").adapter = nn.Linear(2, 2).requires_grad_(False)


def thaw(model: PreTrainedModel) -> None:
    model.get_submodule("model.layers.2.mlp.up_proj").requires_grad_(True)


@pytest.mark.usefixtures("hand")
@pytest.mark.parametrize("change", [hook, pre_hook, replace_forward, replace_linear, add_a_part, thaw])
def test_layers_that_somebody_watches_or_has_changed_run_by_their_modules(
    change: Callable[[PreTrainedModel], None], monkeypatch: pytest.MonkeyPatch
):
    model = tiny_model("llama").requires_grad_(False)
    assert runs_leanly(model, monkeypatch)
    change(model)
    assert_the_same(model, "three", 1e-5)
    assert not runs_leanly(model, monkeypatch)


def in_place(linear: nn.Linear) -> None:
    with torch.no_grad():
        linear.weight.mul_(2)


def behind_its_back(linear: nn.Linear) -> None:
    linear.weight.data.mul_(2)


def other_data(linear: nn.Linear) -> None:
    linear.weight.data = 2 * linear.weight.data


def other_parameter(linear: nn.Linear) -> None:
    linear.weight = nn.Parameter(2 * linear.weight.data, requires_grad=False)


@pytest.mark.usefixtures("hand")
@pytest.mark.parametrize("change", [in_place, behind_its_back, other_data, other_parameter])
def test_weights_that_change_between_searches_change_both_ways(
    change: Callable[[nn.Linear], None], monkeypatch: pytest.MonkeyPatch
):
    model = tiny_model("llama").requires_grad_(False)
    assert_the_same(model, "three", 1e-5)
    change(cast(nn.Linear, model.get_submodule("model.layers.2.mlp.up_proj")))
    assert_the_same(model, "three", 1e-5)
    assert runs_leanly(model, monkeypatch)


@pytest.mark.parametrize(("name", "attention"), FAMILIES_AND_ATTENTION)
def test_a_projection_changed_halfway_through_its_layer_is_the_one_that_is_used(name: str, attention: str):
    model = tiny_model(name, attention=attention).requires_grad_(False)
    anatomy = find_anatomy(model)
    calls, hidden = problem(anatomy)
    weight = anatomy.projection(2).get_parameter("weight")
    entered: list[Tensor] = []
    expected_entering: list[Tensor] = []

    def pause(entering: Tensor) -> None:
        entered.append(entering.clone())
        weight.mul_(2)

    found = pass_projection(anatomy, calls, hidden, 2, pause)
    handle = anatomy.projection(2).register_forward_pre_hook(lambda _, args: expected_entering.append(args[0]))
    expected = run_layers(anatomy, calls, hidden, 2, 2)
    handle.remove()
    real = calls[2].real
    torch.testing.assert_close(found[real], expected[real])
    assert len(entered) == len(expected_entering) == 1
    torch.testing.assert_close(entered[0][real], expected_entering[0].view(*hidden.shape[:2], -1)[real])


def test_layers_run_by_their_modules_where_attention_scores_would_be_too_many(monkeypatch: pytest.MonkeyPatch):
    model = tiny_model("llama").requires_grad_(False)
    calls, _ = problem(find_anatomy(model))
    scores = model.config.num_attention_heads * calls[LAYERS.start].kwargs["attention_mask"].numel()
    for most, leanly in ((scores, True), (scores - 1, False)):
        monkeypatch.setattr(lean, "_MOST_SCORES", most)
        assert runs_leanly(model, monkeypatch) == leanly
        assert_the_same(model, "three", 1e-5)


def test_no_layers_leave_the_states_as_they_are():
    anatomy = find_anatomy(shared_model("llama"))
    calls, hidden = problem(anatomy)
    assert lean_layers(anatomy, calls, hidden, range(2, 2))(hidden) is hidden


def test_a_layer_that_was_given_another_type_is_judged_again():
    model = tiny_model("llama").requires_grad_(False)
    for dtype in (torch.float32, torch.float64):
        anatomy = find_anatomy(model.to(dtype))
        calls, hidden = problem(anatomy)
        lean_layers(anatomy, calls, hidden, LAYERS)
    assert lean._trusted[anatomy.layers[LAYERS.start]] == {torch.float32: True, torch.float64: True}
