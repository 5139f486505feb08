"""Products of few rows computed the quick way round are the same products."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from betaedit.models.linear import column_product, narrow_linears, rounded_width
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


def assert_narrow_changes_nothing(module: nn.Module, work: Callable[[Tensor], Tensor], x: Tensor) -> None:
    plain = value_and_gradient(work, x)
    with narrow_linears([module]):
        narrow = value_and_gradient(work, x)
    for ours, theirs in zip(narrow, plain, strict=True):
        assert ours.shape == theirs.shape
        torch.testing.assert_close(ours, theirs, **TOLERANCE)


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture(params=["AVX2", "AVX512"])
def processor(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """A processor that is slow at odd numbers of columns, or one that is not."""
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: request.param)
    name: str = request.param
    return name


@pytest.mark.parametrize("name", FAMILY_NAMES)
@pytest.mark.parametrize("n", [1, 12], ids=["few rows", "many rows"])
def test_a_model_gives_the_same_logits_and_gradients(name: str, n: int):
    model = shared_model(name)
    prompts = random_prompts((9, *[7] * (n - 1)), (0,) * n)
    embedded = model.get_input_embeddings()(prompts.input_ids)
    assert_narrow_changes_nothing(
        model, lambda x: model(inputs_embeds=x, attention_mask=prompts.attention_mask).logits, embedded
    )


@pytest.mark.usefixtures("processor")
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("rows", [(1,), (63,), (64,), (65,), (2, 5), (3, 2, 4), (8, 20)], ids=str)
def test_inputs_of_any_shape_keep_it_with_bias_or_without(bias: bool, rows: tuple[int, ...]):
    linear = frozen(nn.Linear(6, 9, bias=bias))
    assert_narrow_changes_nothing(linear, linear, torch.randn(*rows, 6))


def test_an_input_that_is_a_view_of_something_else_is_read_as_it_lies():
    linear = frozen(nn.Linear(6, 9))
    assert_narrow_changes_nothing(linear, lambda x: linear(x.transpose(0, 1)[:, ::2]), torch.randn(8, 5, 6))


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
    with narrow_linears([module]):
        assert torch.equal(module(*args), before)


def test_a_weight_that_is_trained_still_gets_its_gradient():
    linear = nn.Linear(6, 9)
    with narrow_linears([linear]):
        linear(torch.randn(3, 6)).sum().backward()
    assert linear.weight.grad is not None
    assert linear.bias.grad is not None


def test_a_layer_that_accelerate_wrapped_runs_through_its_wrapper():
    linear, heard = frozen(nn.Linear(6, 9)), []
    own = linear.forward
    linear.forward = lambda x: (heard.append(x), own(x))[1]  # type: ignore[method-assign]
    with narrow_linears([linear]):
        linear(torch.randn(3, 6))
    assert len(heard) == 1


def test_hooks_of_a_layer_are_heard():
    linear, heard = frozen(nn.Linear(6, 9)), []
    linear.register_forward_hook(lambda *_: heard.append(1))
    with narrow_linears([linear]):
        linear(torch.randn(3, 6))
    assert heard == [1]


@pytest.mark.parametrize("fails", [False, True])
def test_layers_are_themselves_again_afterwards(fails: bool):
    linear = frozen(nn.Linear(6, 9))
    work = pytest.raises(RuntimeError) if fails else narrow_linears([])
    with work, narrow_linears([nn.Sequential(linear)]):
        linear(torch.randn(3, 7 if fails else 6))
    assert "forward" not in linear.__dict__


def test_weights_written_in_place_meanwhile_are_used():
    linear = frozen(nn.Linear(6, 9, bias=False))
    with narrow_linears([linear]):
        linear.weight.zero_()
        assert not linear(torch.randn(3, 6)).any()


@pytest.fixture(params=[1, 2, 3])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("shape", [(12, 8), (8, 12), (7, 5)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("n", [1, 28, 29, 48, 49, 200])
def test_products_of_columns_are_the_same_however_many_threads_share_them(
    shape: tuple[int, int], dtype: torch.dtype, n: int
):
    weight, columns, onto = torch.randn(shape), torch.randn(shape[1], n), torch.randn(shape[0], n)
    weight, columns, onto = (each.to(dtype) for each in (weight, columns, onto))
    sum_before = onto + weight @ columns
    tolerance = {"rtol": 2e-2, "atol": 5e-2} if dtype == torch.bfloat16 else TOLERANCE
    torch.testing.assert_close(column_product(weight, columns), weight @ columns, **tolerance)
    assert column_product(weight, columns, onto) is onto
    torch.testing.assert_close(onto, sum_before, **tolerance)


def test_a_matrix_whose_rows_do_not_lie_side_by_side_can_be_a_factor():
    weight, columns = torch.randn(8, 12).t(), torch.randn(8, 60)
    torch.testing.assert_close(column_product(weight, columns), weight @ columns, **TOLERANCE)


def test_where_columns_left_over_from_eight_are_slow_products_have_none(processor: str):
    float32, half = torch.zeros(1), torch.zeros(1, dtype=torch.bfloat16)
    widths = [1, 16, 17, 24, 39, 40, 41]
    rounded = [16, 16, 24, 24, 40, 40, 48] if processor == "AVX2" else widths
    assert [rounded_width(n, float32) for n in widths] == rounded
    assert [rounded_width(n, half) for n in widths] == widths
