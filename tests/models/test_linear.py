"""Products of few columns computed the quick way are the same products."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from betaedit.models.linear import column_product, rounded_width
from support.recordings import TOLERANCE


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


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
    weight, columns = torch.randn(shape).to(dtype), torch.randn(shape[1], n).to(dtype)
    tolerance = {"rtol": 2e-2, "atol": 5e-2} if dtype == torch.bfloat16 else TOLERANCE
    torch.testing.assert_close(column_product(weight, columns), weight @ columns, **tolerance)


def test_a_matrix_whose_rows_do_not_lie_side_by_side_can_be_a_factor():
    weight, columns = torch.randn(8, 12).t(), torch.randn(8, 60)
    torch.testing.assert_close(column_product(weight, columns), weight @ columns, **TOLERANCE)


def test_where_columns_left_over_from_eight_are_slow_products_have_none(processor: str):
    float32, half = torch.zeros(1), torch.zeros(1, dtype=torch.bfloat16)
    widths = [1, 16, 17, 24, 39, 40, 41]
    rounded = [16, 16, 24, 24, 40, 40, 48] if processor == "AVX2" else widths
    assert [rounded_width(n, float32) for n in widths] == rounded
    assert [rounded_width(n, half) for n in widths] == widths
