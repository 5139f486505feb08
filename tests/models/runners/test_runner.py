"""Every backend gives what the model's own modules give; these run where another form does not stand for them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn
from transformers import GraniteConfig, LlamaConfig, PreTrainedModel, SmolLM3Config

from betaedit import Editor
from betaedit.compiled.library import NoKernelsError
from betaedit.errors import ConfigError
from betaedit.models import LanguageModel, find_anatomy
from betaedit.models.packing import Pack
from betaedit.models.prefix_cache import compute_prefix
from betaedit.models.replay import LayerCall, record, run_layers
from betaedit.models.runners import RunnerName
from betaedit.models.runners.runner import LayerRunner
from models.runners.conftest import LAYERS, LENGTHS, demand_kernels, output_and_gradient, problem
from support.families import FAMILIES_AND_ATTENTION, N_LAYERS, family, model_of, shared_model, tiny_model
from support.recordings import random_prompts
from support.tiny_tokenizers import tiny_tokenizer

KIND = {"llama", "mistral", "qwen2", "qwen3"}
ROWS = {"one": ((0, 1, 2),), "three": ((0, 1), (2, 3), (4, 5)), "many": tuple((row % 6,) for row in range(24))}
THREE = ROWS["three"]
ModuleRuns = Callable[[PreTrainedModel, Callable[[], Any]], int]


def real_of(calls: dict[int, LayerCall]) -> Tensor:
    grid = calls[LAYERS.start].grid
    assert grid is not None
    return grid.real


def assert_the_same(model: PreTrainedModel, runner: LayerRunner, rows: str, tolerance: float) -> None:
    anatomy = find_anatomy(model)
    calls, hidden = problem(anatomy, ROWS[rows])
    real = real_of(calls)
    ours = output_and_gradient(runner.bind(calls, hidden, LAYERS), hidden, real)
    theirs = output_and_gradient(lambda x: run_layers(anatomy, calls, x, LAYERS.start, LAYERS.stop - 1), hidden, real)
    for found, expected in zip(ours, theirs, strict=True):
        assert found.shape == expected.shape
        assert found.dtype == expected.dtype
        assert float((found - expected)[real].double().norm() / expected[real].double().norm()) < tolerance


def does_without_modules(model: PreTrainedModel, runner: LayerRunner, module_runs: ModuleRuns) -> bool:
    """Whether none of the model's layers, once they have been tried, takes part in the result."""
    calls, hidden = problem(find_anatomy(model), THREE)
    run = runner.bind(calls, hidden, LAYERS)
    return module_runs(model, lambda: run(hidden)) == 0


def runner_of(model: PreTrainedModel, backend: str = "auto") -> LayerRunner:
    return LayerRunner(find_anatomy(model), cast(RunnerName, backend))


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize(("name", "attention"), FAMILIES_AND_ATTENTION)
def test_every_family_gives_the_same_states_and_gradients(name: str, attention: str, rows: str, backend: str):
    model = shared_model(name, attention)
    assert_the_same(model, runner_of(model, backend), rows, 1e-5)


@pytest.mark.parametrize("name", sorted(KIND))
def test_nothing_is_computed_on_padding(name: str, backend: str):
    model = shared_model(name)
    calls, hidden = problem(find_anatomy(model), THREE)
    real = real_of(calls)
    run = runner_of(model, backend).bind(calls, hidden, LAYERS)
    assert 0 < int((~real).sum()) < real.numel()
    for found in output_and_gradient(run, hidden, torch.ones_like(real)):
        assert not found[~real].any()
        assert found[real].all()
    spoiled = hidden.masked_fill(~real[:, :, None], torch.nan)
    assert torch.equal(run(spoiled), run(hidden))


@pytest.mark.parametrize(("name", "attention"), FAMILIES_AND_ATTENTION)
def test_layers_of_the_llama_kind_do_without_their_modules_and_others_do_not(
    name: str, attention: str, module_runs: ModuleRuns
):
    model = shared_model(name, attention)
    assert does_without_modules(model, runner_of(model), module_runs) == (name in KIND)


@pytest.mark.parametrize("name", sorted(KIND))
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-6), (torch.bfloat16, 0.05)], ids=str)
def test_the_type_of_the_weights_is_that_of_the_computation(
    name: str, dtype: torch.dtype, tolerance: float, module_runs: ModuleRuns
):
    model = tiny_model(name).to(dtype).requires_grad_(False)
    runner = runner_of(model)
    assert_the_same(model, runner, "three", tolerance)
    assert does_without_modules(model, runner, module_runs)


@pytest.mark.parametrize("rows", ROWS)
def test_projections_with_biases_are_of_the_kind(rows: str, backend: str, module_runs: ModuleRuns):
    settings = {**family("llama").settings, "attention_bias": True, "mlp_bias": True}
    model = model_of(LlamaConfig(**settings)).requires_grad_(False)
    model.get_submodule("model.layers.1.self_attn.k_proj").register_parameter("bias", None)
    for index in LAYERS:
        for part in find_anatomy(model).layers[index].modules():
            if isinstance(part, nn.Linear) and part.bias is not None:
                nn.init.normal_(part.bias)
    runner = runner_of(model, backend)
    assert_the_same(model, runner, rows, 1e-5)
    assert does_without_modules(model, runner, module_runs)


# ---- a layer that another form does not stand for runs by its module


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
    name: str, module_runs: ModuleRuns
):
    model = model_of(DECEPTIVE[name]()).requires_grad_(False)
    runner = runner_of(model)
    assert_the_same(model, runner, "three", 1e-5)
    assert not does_without_modules(model, runner, module_runs)


@pytest.mark.parametrize("lookups", [(0,) * 6, (1,) * 6], ids=["nothing before", "one token before"])
def test_a_layer_is_not_judged_by_positions_that_see_themselves_alone(lookups: tuple[int, ...], backend: str):
    """Its rotary angles show nothing there; SmolLM3 is told from Llama by them."""
    model = model_of(DECEPTIVE["one layer without positions"]()).requires_grad_(False)
    anatomy, runner = find_anatomy(model), runner_of(model, backend)
    prompts = random_prompts(LENGTHS, lookups)
    recording = record(anatomy, prompts, run=N_LAYERS, keep=(LAYERS.start,))
    prefix = Pack.of(torch.tensor(THREE), torch.zeros_like(prompts.lookup), prompts.lookup)
    compute_prefix(recording, prefix, LAYERS, runner.run)
    assert_the_same(model, runner, "three", 1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_a_layer_first_met_with_nothing_in_its_padding_is_judged_by_the_rest(
    dtype: torch.dtype, module_runs: ModuleRuns
):
    """A norm of queries has a gradient beyond half precision at zero, which no real state is."""
    model = tiny_model("qwen3").to(dtype).requires_grad_(False)
    runner = runner_of(model)
    calls, hidden = problem(find_anatomy(model), THREE)
    runner.bind(calls, hidden.masked_fill(~real_of(calls)[:, :, None], 0), LAYERS)
    assert does_without_modules(model, runner, module_runs)


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


@pytest.mark.parametrize("change", [hook, pre_hook, replace_forward, replace_linear, add_a_part, thaw])
def test_layers_that_somebody_watches_or_has_changed_run_by_their_modules(
    change: Callable[[PreTrainedModel], None], backend: str, module_runs: ModuleRuns
):
    model = tiny_model("llama").requires_grad_(False)
    runner = runner_of(model, backend)
    assert does_without_modules(model, runner, module_runs)
    change(model)
    assert_the_same(model, runner, "three", 1e-5)
    assert not does_without_modules(model, runner, module_runs)


def test_layers_run_by_their_modules_where_attention_scores_would_be_too_many(
    module_runs: ModuleRuns, monkeypatch: pytest.MonkeyPatch
):
    model = tiny_model("llama").requires_grad_(False)
    calls, _ = problem(find_anatomy(model), THREE)
    scores = model.config.num_attention_heads * calls[LAYERS.start].kwargs["attention_mask"].numel()
    for most, fused in ((scores, True), (scores - 1, False)):
        monkeypatch.setattr("betaedit.models.runners.fused._MOST_SCORES", most)
        assert does_without_modules(model, runner_of(model), module_runs) == fused
        assert_the_same(model, runner_of(model), "three", 1e-5)


# ---- each layer is checked once per device and dtype


def trials(model: PreTrainedModel, runner: LayerRunner, module_runs: ModuleRuns) -> int:
    """How often modules run while layers are bound."""
    calls, hidden = problem(find_anatomy(model), THREE)
    return module_runs(model, lambda: runner.bind(calls, hidden, LAYERS))


def test_a_layer_is_tried_once_for_each_form_and_type_of_weights(backend: str, module_runs: ModuleRuns):
    model = tiny_model("llama").requires_grad_(False)
    runner, forms = runner_of(model, backend), 2 if backend == "kernels" else 1
    assert [trials(model, runner, module_runs) for _ in range(2)] == [forms * len(LAYERS), 0]
    model.to(torch.float64)
    assert [trials(model, runner, module_runs) for _ in range(2)] == [len(LAYERS), 0]


def test_what_one_runner_has_found_out_says_nothing_to_another(module_runs: ModuleRuns):
    model = tiny_model("llama").requires_grad_(False)
    first, second = runner_of(model, "fused"), runner_of(model, "fused")
    assert trials(model, first, module_runs) == trials(model, second, module_runs) == len(LAYERS)


# ---- the weights are those that the model has when the layers run


def in_place(linear: nn.Linear) -> None:
    with torch.no_grad():
        linear.weight.mul_(2)


def behind_its_back(linear: nn.Linear) -> None:
    linear.weight.data.mul_(2)


def other_data(linear: nn.Linear) -> None:
    linear.weight.data = 2 * linear.weight.data


def other_parameter(linear: nn.Linear) -> None:
    linear.weight = nn.Parameter(2 * linear.weight.data, requires_grad=False)


@pytest.mark.parametrize("change", [in_place, behind_its_back, other_data, other_parameter])
def test_weights_that_change_between_searches_change_every_form(
    change: Callable[[nn.Linear], None], backend: str, module_runs: ModuleRuns
):
    model = tiny_model("llama").requires_grad_(False)
    runner = runner_of(model, backend)
    assert_the_same(model, runner, "three", 1e-5)
    change(cast(nn.Linear, model.get_submodule("model.layers.2.mlp.up_proj")))
    assert_the_same(model, runner, "three", 1e-5)
    assert does_without_modules(model, runner, module_runs)


@pytest.mark.parametrize("runner", ["modules", "auto"])
@pytest.mark.parametrize(("name", "attention"), FAMILIES_AND_ATTENTION)
def test_a_projection_changed_within_its_layer_is_the_one_that_is_used(name: str, attention: str, runner: RunnerName):
    model = tiny_model(name, attention=attention).requires_grad_(False)
    anatomy = find_anatomy(model)
    calls, hidden = problem(anatomy, THREE)
    weight = anatomy.projection(2).get_parameter("weight")
    entered: list[Tensor] = []
    expected_entering: list[Tensor] = []

    def pause(entering: Tensor) -> None:
        entered.append(entering.clone())
        weight.mul_(2)

    found = LayerRunner(anatomy, runner).pass_projection(calls, hidden, 2, pause)
    handle = anatomy.projection(2).register_forward_pre_hook(lambda _, args: expected_entering.append(args[0]))
    expected = run_layers(anatomy, calls, hidden, 2, 2)
    handle.remove()
    real = real_of(calls)
    torch.testing.assert_close(found[real], expected[real])
    assert len(entered) == len(expected_entering) == 1
    torch.testing.assert_close(entered[0][real], expected_entering[0].view(*hidden.shape[:2], -1)[real])


def test_no_layers_leave_the_states_as_they_are():
    model = shared_model("llama")
    calls, hidden = problem(find_anatomy(model), THREE)
    assert runner_of(model).bind(calls, hidden, range(2, 2))(hidden) is hidden


# ---- the backend is chosen


def test_the_modules_run_all_layers_and_the_head_as_they_are(module_runs: ModuleRuns):
    model = shared_model("llama")
    anatomy, runner = find_anatomy(model), runner_of(model, "modules")
    calls, hidden = problem(anatomy, THREE)
    found: list[Tensor] = []
    run = runner.bind(calls, hidden, LAYERS)
    assert module_runs(model, lambda: found.append(run(hidden))) == len(LAYERS)
    assert torch.equal(found[0], run_layers(anatomy, calls, hidden, LAYERS.start, LAYERS.stop - 1))
    assert torch.equal(runner.logits(found[0]), anatomy.logits(found[0]))


@pytest.mark.parametrize(("runner", "runs"), [("modules", False), ("fused", False), ("kernels", True), ("auto", True)])
def test_only_those_who_may_use_the_kernels_do(runner: str, runs: bool, kernel_rows: list[int]):
    demand_kernels()
    model = shared_model("llama")
    calls, hidden = problem(find_anatomy(model), THREE)
    runner_of(model, runner).bind(calls, hidden, LAYERS)(hidden.clone().requires_grad_())
    assert bool(kernel_rows) == runs


def test_logits_are_the_models_own_whatever_runs(backend: str):
    model = shared_model("llama")
    hidden = torch.randn(9, model.config.hidden_size, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(runner_of(model, backend).logits(hidden), find_anatomy(model).logits(hidden))


def test_a_runner_is_chosen_when_a_model_is_wrapped_or_an_editor_made():
    model = tiny_model("llama")
    assert LanguageModel.wrap(model, tiny_tokenizer()).runner.backend == "auto"
    assert LanguageModel.wrap(model, tiny_tokenizer(), runner="fused").runner.backend == "fused"
    editor = Editor.from_pretrained(model, tokenizer=tiny_tokenizer(), layers=(1,), runner="modules")
    assert editor.language_model.runner.backend == "modules"


def test_a_runner_that_there_is_not_is_refused_with_those_that_there_are():
    with pytest.raises(ConfigError, match="no runner 'lean'") as caught:
        runner_of(shared_model("llama"), "lean")
    assert "auto, modules, fused, kernels" in caught.value.hint


def test_kernels_that_cannot_be_used_are_refused_when_they_are_asked_for(monkeypatch: pytest.MonkeyPatch):
    demand_kernels()
    double = tiny_model("llama").double()
    with pytest.raises(ConfigError, match="float64"):
        runner_of(double, "kernels")
    monkeypatch.setattr("betaedit.models.runners.runner.find_kernels", lambda: NoKernelsError("no C compiler"))
    with pytest.raises(ConfigError, match="no C compiler") as caught:
        runner_of(tiny_model("llama"), "kernels")
    assert "modules" in caught.value.hint
