from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from betaedit.editors.matrix import EditedMatrix, recording, set_aside
from betaedit.memory import Update


def linear(d_out: int, d_in: int, dtype: torch.dtype = torch.float32) -> nn.Module:
    return nn.Linear(d_in, d_out, bias=False).to(dtype)


def conv1d(d_out: int, d_in: int, dtype: torch.dtype = torch.float32) -> nn.Module:
    module = Conv1D(d_out, d_in)
    nn.init.normal_(module.weight)  # its own start is far smaller
    return module.to(dtype)


Maker = Callable[..., nn.Module]
MAKERS = pytest.mark.parametrize("make", [linear, conv1d])
SHAPES = pytest.mark.parametrize("shape", [(3, 5), (5, 3), (4, 4)], ids=["wide", "tall", "square"])
DTYPES = pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
HALVES = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def dense(module: nn.Module) -> Tensor:
    """``W`` (d_out, d_in) as the module applies it, found by feeding it unit vectors."""
    weight = module.get_parameter("weight")
    d_in = weight.shape[0] if isinstance(module, Conv1D) else weight.shape[1]
    with torch.no_grad():
        rows: Tensor = module(torch.eye(d_in, dtype=weight.dtype))
        bias = getattr(module, "bias", None)
        return (rows if bias is None else rows - bias).T


def kept_in(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def random_update(d_out: int, d_in: int, b: int = 2) -> Update:
    return Update(torch.randn(d_out, b, dtype=torch.float64), torch.randn(d_in, b, dtype=torch.float64))


@MAKERS
@SHAPES
def test_an_update_is_added_the_way_round_that_the_module_applies_its_weight(make: Maker, shape: tuple[int, int]):
    module, update = make(*shape), random_update(*shape)
    before = dense(module)
    EditedMatrix(module).add(update)
    torch.testing.assert_close(dense(module), before + update.dense().float(), rtol=1e-5, atol=1e-6)


@MAKERS
def test_an_edited_module_answers_a_key_with_its_value_moved_by_the_update(make: Maker):
    module, key = make(4, 4), torch.randn(1, 4)
    with torch.no_grad():
        before = module(key)
        EditedMatrix(module).add(Update(torch.ones(4, 1), key.T / key.square().sum()))
        torch.testing.assert_close(module(key), before + 1)


@MAKERS
@DTYPES
def test_the_weight_is_changed_in_place_and_stays_the_same_parameter(make: Maker, dtype: torch.dtype):
    module = make(3, 5, dtype)
    weight, where = module.weight, module.weight.data_ptr()
    EditedMatrix(module).add(random_update(3, 5))
    assert module.weight is weight
    assert weight.data_ptr() == where
    assert weight.dtype == dtype
    assert weight.requires_grad
    assert weight.grad_fn is None


@MAKERS
@DTYPES
def test_restoring_gives_the_original_weight_bit_for_bit(make: Maker, dtype: torch.dtype):
    module = make(3, 5, dtype)
    original, matrix = module.weight.detach().clone(), EditedMatrix(module)
    for _ in range(3):
        matrix.add(random_update(3, 5))
    assert not torch.equal(module.weight, original)
    matrix.restore()
    assert torch.equal(module.weight, original)
    assert not matrix.change().any()


@MAKERS
@DTYPES
def test_a_snapshot_brings_back_the_weight_and_what_follows_bit_for_bit(make: Maker, dtype: torch.dtype):
    module = make(3, 5, dtype)
    matrix = EditedMatrix(module)
    matrix.add(random_update(3, 5))
    at_snapshot, snapshot = module.weight.detach().clone(), matrix.snapshot()
    following = Update(torch.full((3, 1), 1e-3), torch.full((5, 1), 1e-2))
    matrix.add(following)
    expected, kept = module.weight.detach().clone(), snapshot.change.clone()
    matrix.add(random_update(3, 5))
    assert torch.equal(snapshot.change, kept), "a snapshot is a copy"
    matrix.restore(snapshot)
    assert torch.equal(module.weight, at_snapshot)
    matrix.add(following)
    assert torch.equal(module.weight, expected)


@MAKERS
@SHAPES
@DTYPES
def test_the_original_and_the_change_lie_as_outputs_by_inputs(make: Maker, shape: tuple[int, int], dtype: torch.dtype):
    module, update = make(*shape, dtype), random_update(*shape)
    exact = kept_in(dtype)
    before, matrix = dense(module).to(exact), EditedMatrix(module)
    torch.testing.assert_close(matrix.change(), torch.zeros(shape, dtype=exact))
    matrix.add(update)
    assert matrix.shape == shape
    assert matrix.original().dtype == matrix.change().dtype == exact
    assert torch.equal(matrix.original(), before)
    torch.testing.assert_close(matrix.change(), update.dense().to(exact), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_a_change_far_below_the_weights_own_rounding_keeps_its_digits(dtype: torch.dtype):
    matrix = EditedMatrix(linear(3, 5, dtype))
    for _ in range(10):
        matrix.add(Update(torch.full((3, 1), 1e-4), torch.full((5, 1), 1e-6)))
    torch.testing.assert_close(matrix.change(), torch.full((3, 5), 1e-9, dtype=dtype), rtol=1e-6, atol=0)


@MAKERS
@DTYPES
def test_what_was_noted_of_a_matrix_gives_the_same_weight_bit_for_bit(make: Maker, dtype: torch.dtype):
    module, other = make(3, 5, dtype), make(3, 5, dtype)
    other.load_state_dict(module.state_dict())
    matrices, again = {1: EditedMatrix(module)}, EditedMatrix(other)
    matrices[1].add(random_update(3, 5))
    with recording(matrices) as noted:
        matrices[1].restore()
        for _ in range(3):
            matrices[1].add(random_update(3, 5, 3))
    matrices[1].add(random_update(3, 5))
    assert noted[1].restarted
    assert len(noted[1].updates) == 3
    for update in noted[1].updates:
        again.add(update)
    with set_aside(matrices):
        matrices[1].restore(again.snapshot())
        assert torch.equal(module.weight, other.weight)
    assert not torch.equal(module.weight, other.weight)


@HALVES
@MAKERS
def test_two_thousand_tiny_updates_in_half_precision_land_where_single_precision_puts_them(
    make: Maker, dtype: torch.dtype
):
    """Weights near 1 have a spacing of 2^-7 (bfloat16) or 2^-10 (float16); every step is far below half of it."""
    module, single = make(8, 8, dtype), make(8, 8)
    with torch.no_grad():
        module.weight.copy_(1 + torch.rand(8, 8))
        single.weight.copy_(module.weight)
    naive, exact = module.weight.detach().clone(), module.weight.detach().double()
    matrix, reference = EditedMatrix(module), EditedMatrix(single)
    for _ in range(2000):
        step = Update(torch.rand(8, 1, dtype=torch.float64) * 0.01, torch.rand(8, 1, dtype=torch.float64) * 0.01)
        matrix.add(step)
        reference.add(step)
        stored = step.dense().T if make is conv1d else step.dense()
        naive += stored.to(dtype)
        exact += stored
    assert torch.equal(module.weight, single.weight.to(dtype)), "the sum in single precision, rounded once"
    error = ((module.weight.detach().double() - exact) / exact).abs().max()
    assert float(error) < 0.51 * torch.finfo(dtype).eps
    start = matrix.original().T if make is conv1d else matrix.original()
    assert torch.equal(naive.float(), start), "adding each to the half weight loses every one of them"
    assert float((exact - start).min()) > 0.02


@MAKERS
@SHAPES
@DTYPES
def test_a_full_matrix_is_added_as_the_update_it_is(make: Maker, shape: tuple[int, int], dtype: torch.dtype):
    module, update = make(*shape, dtype), random_update(*shape)
    exact = kept_in(dtype)
    before, matrix = dense(module).to(exact), EditedMatrix(module)
    matrix.add_dense(update.dense())
    torch.testing.assert_close(matrix.change(), update.dense().to(exact), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(matrix.current(), before + update.dense().to(exact), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(dense(module), matrix.current().to(dtype))
