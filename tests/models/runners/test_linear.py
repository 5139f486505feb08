"""Linear layers give the same when products of few rows are computed another way."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from betaedit.models.runners.linear import few_row_linears
from models.runners.conftest import demand_kernels
from support.families import FAMILY_NAMES, shared_model
from support.recordings import TOLERANCE, random_prompts


def frozen(module: nn.Module) -> nn.Module:
    return module.requires_grad_(False)


def value_and_gradient(work: Callable[[Tensor], Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
    x = x.clone().requires_grad_()
    value = work(x)
    weights = torch.randn(value.shape, generator=torch.Generator().manual_seed(1)).to(value.dtype)
    (gradient,) = torch.autograd.grad((value * weights).sum(), x)
    return value.detach(), gradient


def assert_nothing_changes(
    module: nn.Module, work: Callable[[Tensor], Tensor], x: Tensor, use_kernels: bool = True
) -> None:
    plain = value_and_gradient(work, x)
    with few_row_linears([module], use_kernels=use_kernels):
        found = value_and_gradient(work, x)
    for ours, theirs in zip(found, plain, strict=True):
        assert ours.shape == theirs.shape
        size = theirs.abs().max().clamp(min=1.0)  # of many terms that cancel, rounding leaves a share of the largest
        torch.testing.assert_close(ours / size, theirs / size, **TOLERANCE)


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture(params=["AVX2", "AVX512", "kernels"])
def use_kernels(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """By torch on a processor that is slow at odd numbers of columns or one that is not, or by the kernels."""
    if request.param == "kernels":
        demand_kernels()
    else:
        monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: request.param)
    return bool(request.param == "kernels")


@pytest.mark.parametrize("name", FAMILY_NAMES)
@pytest.mark.parametrize("n", [1, 12], ids=["few rows", "many rows"])
def test_a_model_gives_the_same_logits_and_gradients(name: str, n: int):
    model = shared_model(name)
    prompts = random_prompts((9, *[7] * (n - 1)), (0,) * n)
    embedded = model.get_input_embeddings()(prompts.input_ids)
    assert_nothing_changes(
        model, lambda x: model(inputs_embeds=x, attention_mask=prompts.attention_mask).logits, embedded
    )


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("d_in", [6, 32])
@pytest.mark.parametrize("rows", [(1,), (63,), (64,), (96,), (97,), (2, 5), (3, 2, 4), (8, 20)], ids=str)
def test_inputs_of_any_shape_keep_it_with_bias_or_without(
    bias: bool, d_in: int, rows: tuple[int, ...], use_kernels: bool
):
    linear = frozen(nn.Linear(d_in, 9, bias=bias))
    assert_nothing_changes(linear, linear, torch.randn(*rows, d_in), use_kernels)


@pytest.mark.parametrize("rows", [(1,), (3, 7), (300,)], ids=str)
@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16], ids=str)
def test_two_bytes_a_number_are_multiplied_in_single_precision_and_stay_so(
    rows: tuple[int, ...], kind: torch.dtype, monkeypatch: pytest.MonkeyPatch
):
    kernels = demand_kernels()
    if kind == torch.float16 and not kernels.most_rows[kind]:
        pytest.skip("float16 cannot be read on this processor")
    monkeypatch.setitem(kernels.most_rows, kind, 256)
    linear = frozen(nn.Linear(32, 9).to(kind))
    x = torch.randn(*rows, 32).to(kind)
    exact = value_and_gradient(copy.deepcopy(linear).double(), x.double())
    with few_row_linears([linear], use_kernels=True):
        found = value_and_gradient(linear, x)
    for ours, theirs in zip(found, exact, strict=True):
        assert (ours.dtype, ours.shape) == (kind, theirs.shape)
        assert float((ours.double() - theirs).norm() / theirs.norm()) < 5e-3


def test_bfloat16_is_left_alone_where_torch_is_quicker(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(demand_kernels().most_rows, torch.bfloat16, 0)
    linear = frozen(nn.Linear(32, 9).bfloat16())
    with few_row_linears([linear], use_kernels=True):
        assert "forward" not in linear.__dict__


def test_no_rows_give_no_rows(use_kernels: bool):
    linear = frozen(nn.Linear(32, 9))
    with few_row_linears([linear], use_kernels=use_kernels):
        assert linear(torch.empty(0, 32)).shape == (0, 9)


@pytest.mark.parametrize("x", [torch.randn(3, 31), torch.randn(3, 32).double()], ids=["another width", "float64"])
def test_an_input_that_does_not_fit_is_refused_as_ever(x: Tensor, use_kernels: bool):
    linear = frozen(nn.Linear(32, 9))
    with few_row_linears([linear], use_kernels=use_kernels), pytest.raises(RuntimeError):
        linear(x)


def test_an_input_that_is_a_view_of_something_else_is_read_as_it_lies():
    linear = frozen(nn.Linear(6, 9))
    assert_nothing_changes(linear, lambda x: linear(x.transpose(0, 1)[:, ::2]), torch.randn(8, 5, 6))


@pytest.mark.parametrize(
    "module",
    [
        frozen(Conv1D(9, 6)),
        frozen(nn.Linear(6, 9)).bfloat16(),
        frozen(nn.Linear(6, 9)).double(),
        frozen(nn.Bilinear(6, 6, 9)),
    ],
    ids=["gpt-2's transposed layers", "half precision", "double precision", "what is not linear"],
)
def test_other_modules_are_left_alone(module: nn.Module):
    dtype = next(module.parameters()).dtype
    x = torch.randn(3, 6, dtype=dtype)
    args: tuple[Any, ...] = (x, x) if isinstance(module, nn.Bilinear) else (x,)
    before = module(*args)
    with few_row_linears([module], use_kernels=True):
        assert torch.equal(module(*args), before)


def test_a_weight_that_is_trained_still_gets_its_gradient():
    linear = nn.Linear(6, 9)
    with few_row_linears([linear], use_kernels=True):
        linear(torch.randn(3, 6)).sum().backward()
    assert linear.weight.grad is not None
    assert linear.bias.grad is not None


def test_a_layer_that_accelerate_wrapped_runs_through_its_wrapper():
    linear, heard = frozen(nn.Linear(6, 9)), []
    own = linear.forward
    linear.forward = lambda x: (heard.append(x), own(x))[1]  # type: ignore[method-assign]
    with few_row_linears([linear], use_kernels=True):
        linear(torch.randn(3, 6))
    assert len(heard) == 1


def test_hooks_of_a_layer_are_heard():
    linear, heard = frozen(nn.Linear(6, 9)), []
    linear.register_forward_hook(lambda *_: heard.append(1))
    with few_row_linears([linear], use_kernels=True):
        linear(torch.randn(3, 6))
    assert heard == [1]


@pytest.mark.parametrize("fails", [False, True])
def test_layers_are_themselves_again_afterwards(fails: bool):
    linear = frozen(nn.Linear(6, 9))
    work = pytest.raises(RuntimeError) if fails else few_row_linears([], use_kernels=True)
    with work, few_row_linears([nn.Sequential(linear)], use_kernels=True):
        linear(torch.randn(3, 7 if fails else 6))
    assert "forward" not in linear.__dict__


def replace(linear: nn.Linear) -> None:
    linear.weight = nn.Parameter(torch.zeros_like(linear.weight), requires_grad=False)


@pytest.mark.parametrize("d_in", [6, 32])
@pytest.mark.parametrize(
    "change",
    [lambda linear: linear.weight.zero_(), lambda linear: linear.weight.data.zero_(), replace],
    ids=["in place", "behind torch's back", "by others"],
)
def test_weights_that_change_meanwhile_are_used(change: Callable[[nn.Linear], Any], d_in: int, use_kernels: bool):
    linear = nn.Linear(d_in, 9, bias=False).requires_grad_(False)
    with few_row_linears([linear], use_kernels=use_kernels):
        assert linear(torch.randn(3, d_in)).any()
    change(linear)
    with few_row_linears([linear], use_kernels=use_kernels):
        assert not linear(torch.randn(3, d_in)).any()


@pytest.mark.parametrize("d_in", [6, 32])
def test_weights_made_in_inference_mode_are_used_as_they_are(d_in: int, use_kernels: bool):
    with torch.inference_mode():
        linear = frozen(nn.Linear(d_in, 9))
        x = torch.randn(3, d_in)
        plain = linear(x)
        with few_row_linears([linear], use_kernels=use_kernels):
            torch.testing.assert_close(linear(x), plain, **TOLERANCE)
