"""Layers by the kernels give what the model gives in double precision, and its gradient, for any number of threads."""

from __future__ import annotations

import copy
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor
from transformers import LlamaConfig, PreTrainedModel

from betaedit.compiled.library import NoKernelsError
from betaedit.models import find_anatomy
from betaedit.models.replay import LayerCall, run_layers
from betaedit.models.runners.kernel_layers import KernelLayers
from betaedit.models.runners.kernels import Kernels, find_kernels
from betaedit.models.runners.runner import LayerRunner
from models.runners.conftest import LAYERS, LENGTHS, LOOKUPS, demand_kernels, output_and_gradient, problem
from support.families import family, model_of, tiny_model

NAMES = ("llama", "mistral", "qwen2", "qwen3")
Run = Callable[[Tensor], Tensor]


@pytest.fixture(autouse=True)
def kernels() -> Kernels:
    return demand_kernels()


@pytest.fixture(params=[torch.bfloat16, torch.float16], ids=str)
def two_bytes(request: pytest.FixtureRequest, kernels: Kernels, monkeypatch: pytest.MonkeyPatch) -> torch.dtype:
    """A type for whose products the processor seems to have no instructions."""
    kind: torch.dtype = request.param
    if kind == torch.float16 and not kernels.most_rows[kind]:
        pytest.skip("float16 cannot be read on this processor")
    monkeypatch.setitem(kernels.most_rows, kind, 256)
    return kind


@pytest.fixture(params=[1, 2, 5])
def threads(request: pytest.FixtureRequest) -> object:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def bound(model: PreTrainedModel, calls: dict[int, LayerCall], hidden: Tensor) -> Run:
    return LayerRunner(find_anatomy(model)).bind(calls, hidden, LAYERS)


def distance(
    model: PreTrainedModel,
    chosen: tuple[tuple[int, ...], ...],
    kernel_rows: list[int],
    lookups: tuple[int, ...] = LOOKUPS,
    by_kernels: bool = True,
) -> float:
    """The larger relative distance of the states and gradients by the kernels from the model's modules in float64."""
    double = copy.deepcopy(model).double()
    calls, hidden = problem(find_anatomy(model), chosen, lookups)
    exact_calls, exact_hidden = problem(find_anatomy(double), chosen, lookups)
    real = calls[LAYERS.start].grid.real
    run = bound(model, calls, hidden)
    exact = find_anatomy(double)
    kernel_rows.clear()  # of the trial that they are put to
    ours = output_and_gradient(run, exact_hidden.to(hidden.dtype), real)
    assert kernel_rows == [int(real.sum())] * by_kernels
    theirs = output_and_gradient(
        lambda x: run_layers(exact, exact_calls, x, LAYERS.start, LAYERS.stop - 1), exact_hidden, real
    )
    pairs = ((a[real].double(), b[real]) for a, b in zip(ours, theirs, strict=True))
    return max(float((a - b).norm() / b.norm()) for a, b in pairs)


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("chosen", [((0, 1, 2),), ((0, 1), (2, 3), (4, 5)), ((1,),)], ids=["packed", "padded", "one"])
@pytest.mark.parametrize("name", NAMES)
def test_every_family_of_the_kind_is_as_in_double_precision(
    name: str, chosen: tuple[tuple[int, ...], ...], kernel_rows: list[int]
):
    assert distance(tiny_model(name).requires_grad_(False), chosen, kernel_rows) < 2e-6


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("heads", [(1, 1), (4, 1), (4, 4), (8, 2)], ids=str)
def test_heads_share_keys_in_any_way(heads: tuple[int, int], kernel_rows: list[int]):
    h, kv = heads
    settings = {**family("llama").settings, "num_attention_heads": h, "num_key_value_heads": kv, "head_dim": 16}
    model = model_of(LlamaConfig(**settings)).requires_grad_(False)
    assert distance(model, ((0, 1), (2, 3), (4, 5)), kernel_rows) < 2e-6


@pytest.mark.parametrize("chosen", [((0, 1, 2),), ((0, 1), (2, 3), (4, 5))], ids=["packed", "padded"])
@pytest.mark.parametrize("name", NAMES)
def test_models_of_two_bytes_a_weight_are_nearer_to_double_precision_than_by_torch(
    name: str,
    chosen: tuple[tuple[int, ...], ...],
    kernel_rows: list[int],
    two_bytes: torch.dtype,
    kernels: Kernels,
    monkeypatch: pytest.MonkeyPatch,
):
    model = tiny_model(name).to(two_bytes).requires_grad_(False)
    ours = distance(model, chosen, kernel_rows)
    monkeypatch.setitem(kernels.most_rows, two_bytes, 0)
    theirs = distance(model, chosen, kernel_rows, by_kernels=False)
    assert ours <= theirs < 0.02


def test_layers_of_several_types_are_left_to_torch(kernel_rows: list[int], two_bytes: torch.dtype):
    model = tiny_model("llama").requires_grad_(False)
    calls, hidden = problem(find_anatomy(model), ((0, 1, 2),))
    find_anatomy(model).layers[LAYERS.start + 1].mlp.to(two_bytes)
    run = bound(model, calls, hidden)
    with pytest.raises(RuntimeError, match="dtype"):
        run(hidden.clone().requires_grad_())
    assert kernel_rows == []


def test_positions_with_nothing_before_them_see_themselves_alone(kernel_rows: list[int]):
    assert distance(tiny_model("llama").requires_grad_(False), ((0, 1), (2, 3)), kernel_rows, (0,) * 6) < 2e-6


def test_a_gradient_asked_for_twice_is_the_same(kernel_rows: list[int]):
    model = tiny_model("qwen3").requires_grad_(False)
    calls, hidden = problem(find_anatomy(model), ((0, 1, 2),))
    hidden.requires_grad_()
    run = bound(model, calls, hidden)
    kernel_rows.clear()
    first, second = run(hidden).sum(), run(2 * hidden).sum()
    assert len(kernel_rows) == 2
    before = torch.autograd.grad(first, hidden, retain_graph=True)[0]
    torch.autograd.grad(second, hidden)
    assert torch.equal(torch.autograd.grad(first, hidden)[0], before)


def test_states_of_other_positions_are_refused():
    model = tiny_model("llama").requires_grad_(False)
    calls, hidden = problem(find_anatomy(model), ((0, 1, 2),))
    run = bound(model, calls, hidden)
    for other in (hidden[:, :-1], hidden.double()):
        with pytest.raises(ValueError, match="states on the CPU"):
            run(other.clone().requires_grad_())


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("chosen", [((0, 1, 2),), ((0, 1), (2, 3), (4, 5))], ids=["packed", "padded"])
def test_what_is_not_a_number_spoils_what_sees_it_and_nothing_else(
    chosen: tuple[tuple[int, ...], ...], value: float, kernel_rows: list[int]
):
    model = tiny_model("llama").requires_grad_(False)
    calls, hidden = problem(find_anatomy(model), chosen)
    run = bound(model, calls, hidden)
    kernel_rows.clear()
    spoiled = hidden.clone()
    spoiled[0, 0] = value
    spoiled.requires_grad_()
    found = run(spoiled)
    assert kernel_rows
    sound, real = run(hidden), calls[LAYERS.start].grid.real
    seen = torch.zeros_like(real)
    seen[0, : LENGTHS[0] - LOOKUPS[0]] = True  # the first prompt of the first row
    assert found[seen & real].isnan().any(dim=-1).all()
    torch.testing.assert_close(found[real & ~seen], sound[real & ~seen])
    (gradient,) = torch.autograd.grad(found.sum(), spoiled)
    assert gradient[seen & real].isnan().any()


@pytest.mark.parametrize("default", [torch.float64, torch.bfloat16], ids=str)
def test_torchs_default_type_changes_nothing(default: torch.dtype, kernel_rows: list[int]):
    model = tiny_model("llama").requires_grad_(False)
    calls, hidden = problem(find_anatomy(model), ((0, 1), (2, 3)))
    runner = LayerRunner(find_anatomy(model))
    expected = runner.bind(calls, hidden, LAYERS)(hidden.clone().requires_grad_())
    torch.set_default_dtype(default)
    try:
        assert not isinstance(find_kernels.__wrapped__(), NoKernelsError)
        kernel_rows.clear()
        found = runner.bind(calls, hidden, LAYERS)(hidden.clone().requires_grad_())
        assert (len(kernel_rows), found.dtype) == (1, torch.float32)
    finally:
        torch.set_default_dtype(torch.float32)
    assert torch.equal(found, expected)


def test_weights_replaced_on_the_way_are_kept_until_the_way_back(kernel_rows: list[int]):
    model = tiny_model("llama").requires_grad_(False)
    calls, hidden = problem(find_anatomy(model), ((0, 1, 2),))
    hidden.requires_grad_()
    run = bound(model, calls, hidden)
    (expected,) = torch.autograd.grad(run(hidden).sum(), hidden)
    kernel_rows.clear()
    output = run(hidden)
    assert kernel_rows
    for parameter in model.parameters():
        parameter.data = torch.full_like(parameter, torch.nan)
    assert torch.equal(torch.autograd.grad(output.sum(), hidden)[0], expected)


def test_two_threads_of_python_do_not_disturb_each_other():
    model = tiny_model("llama").requires_grad_(False)
    calls, hidden = problem(find_anatomy(model), ((0, 1), (2, 3), (4, 5)))
    run = bound(model, calls, hidden)
    inputs = [scale * hidden.detach() for scale in (1.0, 2.0)]

    def both(x: Tensor) -> tuple[Tensor, Tensor]:
        x = x.clone().requires_grad_()
        y = run(x)
        return y.detach(), torch.autograd.grad(y.sum(), x)[0]

    expected = [both(x) for x in inputs]
    with ThreadPoolExecutor(2) as pool:
        for found in [pool.map(both, inputs) for _ in range(20)]:
            for ours, theirs in zip(found, expected, strict=True):
                torch.testing.assert_close(ours, theirs)


def test_many_rows_and_runs_without_a_gradient_are_left_to_torch(
    kernel_rows: list[int], kernels: Kernels, monkeypatch: pytest.MonkeyPatch
):
    model = tiny_model("llama").requires_grad_(False)
    runner = LayerRunner(find_anatomy(model))
    calls, hidden = problem(find_anatomy(model), ((0, 1, 2),))
    n = hidden.shape[1]
    runner.bind(calls, hidden, LAYERS)(hidden.clone().requires_grad_())
    kernel_rows.clear()
    for few, expected in ((n - 1, []), (n, [n])):
        monkeypatch.setitem(kernels.most_rows, torch.float32, few)
        runner.bind(calls, hidden, LAYERS)(hidden.clone().requires_grad_())
        assert kernel_rows == expected
    kernel_rows.clear()
    with torch.no_grad():
        runner.bind(calls, hidden, LAYERS)(hidden)
    assert kernel_rows == []


def test_layers_that_the_kernels_would_compute_otherwise_are_left_to_torch(
    kernel_rows: list[int], monkeypatch: pytest.MonkeyPatch
):
    model = tiny_model("llama").requires_grad_(False)
    calls, hidden = problem(find_anatomy(model), ((0, 1, 2),))
    run = KernelLayers.__call__
    monkeypatch.setattr(KernelLayers, "__call__", lambda self, x: (run(self, x)[0] * 1.01, run(self, x)[1]))
    layers = bound(model, calls, hidden)
    assert kernel_rows  # they were tried
    kernel_rows.clear()
    layers(hidden.clone().requires_grad_())
    assert kernel_rows == []
