"""Layers by the kernels give what the model gives in double precision, and its gradient, for any number of threads."""

from __future__ import annotations

import copy
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor
from transformers import LlamaConfig, PreTrainedModel

from betaedit.models import find_anatomy
from betaedit.models.lean import lean_layers
from betaedit.models.native.kernels import Kernels, find_kernels
from betaedit.models.native.layers import NativeLayers
from betaedit.models.pack import Pack, keep_state
from betaedit.models.partial import LayerCall, record, run_layers
from betaedit.native.library import NoKernelsError
from support.families import N_LAYERS, family, model_of, tiny_model
from support.recordings import random_prompts

LAYERS = range(1, N_LAYERS)
NAMES = ("llama", "mistral", "qwen2", "qwen3")
LENGTHS, LOOKUPS = (12, 9, 11, 7, 5, 10), (5, 0, 8, 6, 2, 9)
Run = Callable[[Tensor], Tensor]


@pytest.fixture(autouse=True)
def kernels() -> Kernels:
    found = find_kernels()
    if isinstance(found, NoKernelsError):
        pytest.skip(f"no kernels on this machine: {found}")
    return found


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


@pytest.fixture
def native_rows(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many rows each run by the kernels had."""
    rows: list[int] = []
    run = NativeLayers.__call__

    def heard(self: NativeLayers, x: Tensor) -> object:
        rows.append(len(x))
        return run(self, x)

    monkeypatch.setattr(NativeLayers, "__call__", heard)
    return rows


def problem(
    model: PreTrainedModel, chosen: list[list[int]], lookups: tuple[int, ...] = LOOKUPS
) -> tuple[dict[int, LayerCall], Tensor]:
    """Packed prompts from their lookup tokens on: the layers' arguments, and the hidden states entering the first."""
    anatomy = find_anatomy(model)
    prompts = random_prompts(LENGTHS, lookups)
    recording = record(anatomy, prompts, run=N_LAYERS, keep=(LAYERS.start,))
    prefix = Pack.of(torch.tensor(chosen), torch.zeros_like(prompts.lookup), prompts.lookup)
    suffix = Pack.of(torch.tensor(chosen), prompts.lookup, prompts.lengths)
    state = keep_state(anatomy, recording, prefix, LAYERS)
    return suffix.calls(recording, LAYERS, state, prefix), suffix.gather(recording.inputs[LAYERS.start])


def output_and_gradient(run: Run, hidden: Tensor, real: Tensor) -> tuple[Tensor, Tensor]:
    hidden = hidden.detach().clone().requires_grad_()
    output = run(hidden)
    slope = torch.randn(output.shape, generator=torch.Generator().manual_seed(1)).to(output) * real[:, :, None]
    (gradient,) = torch.autograd.grad(output, hidden, slope)
    return output.detach()[real], gradient[real]


def distance(
    model: PreTrainedModel,
    chosen: list[list[int]],
    native_rows: list[int],
    lookups: tuple[int, ...] = LOOKUPS,
    by_kernels: bool = True,
) -> float:
    """The larger relative distance of the states and gradients by the kernels from the model's modules in float64."""
    double = copy.deepcopy(model).double()
    calls, hidden = problem(model, chosen, lookups)
    exact_calls, exact_hidden = problem(double, chosen, lookups)
    real = calls[LAYERS.start].real
    assert real is not None
    run = lean_layers(find_anatomy(model), calls, hidden, LAYERS)
    exact = find_anatomy(double)
    native_rows.clear()  # of the trial that they are put to
    ours = output_and_gradient(run, exact_hidden.to(hidden.dtype), real)
    assert native_rows == [int(real.sum())] * by_kernels
    theirs = output_and_gradient(
        lambda x: run_layers(exact, exact_calls, x, LAYERS.start, LAYERS.stop - 1), exact_hidden, real
    )
    return max(float((a.double() - b).norm() / b.norm()) for a, b in zip(ours, theirs, strict=True))


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("chosen", [[[0, 1, 2]], [[0, 1], [2, 3], [4, 5]], [[1]]], ids=["packed", "padded", "one"])
@pytest.mark.parametrize("name", NAMES)
def test_every_family_of_the_kind_is_as_in_double_precision(name: str, chosen: list[list[int]], native_rows: list[int]):
    assert distance(tiny_model(name).requires_grad_(False), chosen, native_rows) < 2e-6


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("heads", [(1, 1), (4, 1), (4, 4), (8, 2)], ids=str)
def test_heads_share_keys_in_any_way(heads: tuple[int, int], native_rows: list[int]):
    h, kv = heads
    settings = {**family("llama").settings, "num_attention_heads": h, "num_key_value_heads": kv, "head_dim": 16}
    model = model_of(LlamaConfig(**settings)).requires_grad_(False)
    assert distance(model, [[0, 1], [2, 3], [4, 5]], native_rows) < 2e-6


@pytest.mark.parametrize("chosen", [[[0, 1, 2]], [[0, 1], [2, 3], [4, 5]]], ids=["packed", "padded"])
@pytest.mark.parametrize("name", NAMES)
def test_models_of_two_bytes_a_weight_are_nearer_to_double_precision_than_by_torch(
    name: str,
    chosen: list[list[int]],
    native_rows: list[int],
    two_bytes: torch.dtype,
    kernels: Kernels,
    monkeypatch: pytest.MonkeyPatch,
):
    model = tiny_model(name).to(two_bytes).requires_grad_(False)
    ours = distance(model, chosen, native_rows)
    monkeypatch.setitem(kernels.most_rows, two_bytes, 0)
    theirs = distance(model, chosen, native_rows, by_kernels=False)
    assert ours <= theirs < 0.02


def test_layers_of_several_types_are_left_to_torch(native_rows: list[int], two_bytes: torch.dtype):
    model = tiny_model("llama").requires_grad_(False)
    calls, hidden = problem(model, [[0, 1, 2]])
    find_anatomy(model).layers[LAYERS.start + 1].mlp.to(two_bytes)
    run = lean_layers(find_anatomy(model), calls, hidden, LAYERS)
    with pytest.raises(RuntimeError, match="dtype"):
        run(hidden.clone().requires_grad_())
    assert native_rows == []


def test_positions_with_nothing_before_them_see_themselves_alone(native_rows: list[int]):
    assert distance(tiny_model("llama").requires_grad_(False), [[0, 1], [2, 3]], native_rows, (0,) * 6) < 2e-6


def test_a_gradient_asked_for_twice_is_the_same(native_rows: list[int]):
    model = tiny_model("qwen3").requires_grad_(False)
    calls, hidden = problem(model, [[0, 1, 2]])
    hidden.requires_grad_()
    run = lean_layers(find_anatomy(model), calls, hidden, LAYERS)
    native_rows.clear()
    first, second = run(hidden).sum(), run(2 * hidden).sum()
    assert len(native_rows) == 2
    before = torch.autograd.grad(first, hidden, retain_graph=True)[0]
    torch.autograd.grad(second, hidden)
    assert torch.equal(torch.autograd.grad(first, hidden)[0], before)


def test_states_of_other_positions_are_refused():
    model = tiny_model("llama").requires_grad_(False)
    calls, hidden = problem(model, [[0, 1, 2]])
    run = lean_layers(find_anatomy(model), calls, hidden, LAYERS)
    for other in (hidden[:, :-1], hidden.double()):
        with pytest.raises(ValueError, match="states on the CPU"):
            run(other.clone().requires_grad_())


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("chosen", [[[0, 1, 2]], [[0, 1], [2, 3], [4, 5]]], ids=["packed", "padded"])
def test_what_is_not_a_number_spoils_what_sees_it_and_nothing_else(
    chosen: list[list[int]], value: float, native_rows: list[int]
):
    model = tiny_model("llama").requires_grad_(False)
    calls, hidden = problem(model, chosen)
    run = lean_layers(find_anatomy(model), calls, hidden, LAYERS)
    native_rows.clear()
    spoiled = hidden.clone()
    spoiled[0, 0] = value
    spoiled.requires_grad_()
    found = run(spoiled)
    assert native_rows
    sound, real = run(hidden), calls[LAYERS.start].real
    assert real is not None
    seen = torch.zeros_like(real)
    seen[0, : LENGTHS[0] - LOOKUPS[0]] = True  # the first prompt of the first row
    assert found[seen & real].isnan().any(dim=-1).all()
    torch.testing.assert_close(found[real & ~seen], sound[real & ~seen])
    (gradient,) = torch.autograd.grad(found.sum(), spoiled)
    assert gradient[seen & real].isnan().any()


@pytest.mark.parametrize("default", [torch.float64, torch.bfloat16], ids=str)
def test_torchs_default_type_changes_nothing(default: torch.dtype, native_rows: list[int]):
    model = tiny_model("llama").requires_grad_(False)
    calls, hidden = problem(model, [[0, 1], [2, 3]])
    expected = lean_layers(find_anatomy(model), calls, hidden, LAYERS)(hidden.clone().requires_grad_())
    torch.set_default_dtype(default)
    try:
        assert not isinstance(find_kernels.__wrapped__(), NoKernelsError)
        native_rows.clear()
        found = lean_layers(find_anatomy(model), calls, hidden, LAYERS)(hidden.clone().requires_grad_())
        assert (len(native_rows), found.dtype) == (1, torch.float32)
    finally:
        torch.set_default_dtype(torch.float32)
    assert torch.equal(found, expected)


def test_weights_replaced_on_the_way_are_kept_until_the_way_back(native_rows: list[int]):
    model = tiny_model("llama").requires_grad_(False)
    calls, hidden = problem(model, [[0, 1, 2]])
    hidden.requires_grad_()
    run = lean_layers(find_anatomy(model), calls, hidden, LAYERS)
    (expected,) = torch.autograd.grad(run(hidden).sum(), hidden)
    native_rows.clear()
    output = run(hidden)
    assert native_rows
    for parameter in model.parameters():
        parameter.data = torch.full_like(parameter, torch.nan)
    assert torch.equal(torch.autograd.grad(output.sum(), hidden)[0], expected)


def test_two_threads_of_python_do_not_disturb_each_other():
    model = tiny_model("llama").requires_grad_(False)
    calls, hidden = problem(model, [[0, 1], [2, 3], [4, 5]])
    run = lean_layers(find_anatomy(model), calls, hidden, LAYERS)
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
    native_rows: list[int], kernels: Kernels, monkeypatch: pytest.MonkeyPatch
):
    model = tiny_model("llama").requires_grad_(False)
    anatomy = find_anatomy(model)
    calls, hidden = problem(model, [[0, 1, 2]])
    n = hidden.shape[1]
    lean_layers(anatomy, calls, hidden, LAYERS)(hidden.clone().requires_grad_())
    native_rows.clear()
    for few, expected in ((n - 1, []), (n, [n])):
        monkeypatch.setitem(kernels.most_rows, torch.float32, few)
        lean_layers(anatomy, calls, hidden, LAYERS)(hidden.clone().requires_grad_())
        assert native_rows == expected
    native_rows.clear()
    with torch.no_grad():
        lean_layers(anatomy, calls, hidden, LAYERS)(hidden)
    assert native_rows == []


def test_layers_that_the_kernels_would_compute_otherwise_are_left_to_torch(
    native_rows: list[int], monkeypatch: pytest.MonkeyPatch
):
    model = tiny_model("llama").requires_grad_(False)
    calls, hidden = problem(model, [[0, 1, 2]])
    run = NativeLayers.__call__
    monkeypatch.setattr(NativeLayers, "__call__", lambda self, x: (run(self, x)[0] * 1.01, run(self, x)[1]))
    layers = lean_layers(find_anatomy(model), calls, hidden, LAYERS)
    assert native_rows  # they were tried
    native_rows.clear()
    layers(hidden.clone().requires_grad_())
    assert native_rows == []
