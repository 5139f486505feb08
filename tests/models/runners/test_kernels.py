"""Products by the kernels are what the formulas say, for any number of threads."""

from __future__ import annotations

import platform
from collections.abc import Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from betaedit.compiled.library import NoKernelsError
from betaedit.models.runners import kernels as module
from betaedit.models.runners.kernels import Kernels, Matrices, find_kernels, kernels_for


def skip_unless_read(kernels: Kernels, kind: torch.dtype) -> None:
    if kind == torch.float16 and not kernels.most_rows[kind]:
        pytest.skip("float16 cannot be read on this processor")


class Wrapped(Tensor):
    """As quantized weights are: what they say of themselves is not how they lie."""


@pytest.fixture(scope="module")
def kernels() -> Kernels:
    found = find_kernels()
    if isinstance(found, NoKernelsError):
        pytest.skip(f"no kernels on this machine: {found}")
    return found


@pytest.fixture(autouse=True)
def same_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def assert_near(found: Tensor, expected: Tensor) -> None:
    """To float32 rounding of sums of many terms."""
    assert found.shape == expected.shape
    assert float((found.double() - expected).norm()) <= 2e-6 * float(expected.norm()) + 1e-12


SHAPES = st.tuples(
    st.integers(1, 100),  # rows
    st.integers(1, 12).map(lambda n: 16 * n),  # d_in
    st.lists(st.integers(4, 200), min_size=1, max_size=3),  # d_out of each
    st.integers(1, 5),  # threads
    st.integers(0, 2**31),  # seed
)
KINDS = pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16, torch.float16], ids=str)


@KINDS
@settings(max_examples=60, deadline=None)
@given(shape=SHAPES)
def test_products_are_x_w_transposed_plus_b_side_by_side(
    kernels: Kernels, kind: torch.dtype, shape: tuple[int, int, list[int], int, int]
):
    skip_unless_read(kernels, kind)
    n, d_in, d_outs, threads, seed = shape
    random = torch.Generator().manual_seed(seed)
    weights = [torch.randn(d_out, d_in, generator=random).to(kind) for d_out in d_outs]
    biases = [torch.randn(d_out, generator=random) if d_out % 2 else None for d_out in d_outs]
    x = torch.randn(n, d_in, generator=random)
    torch.set_num_threads(threads)
    found = kernels.product(Matrices(weights, biases), x)
    expected = [
        x.double() @ weight.double().t() + (0 if bias is None else bias.double())
        for weight, bias in zip(weights, biases, strict=True)
    ]
    assert_near(found, torch.cat(expected, dim=1))


@KINDS
@settings(max_examples=60, deadline=None)
@given(shape=SHAPES)
def test_the_gradient_is_the_sum_of_g_w(
    kernels: Kernels, kind: torch.dtype, shape: tuple[int, int, list[int], int, int]
):
    skip_unless_read(kernels, kind)
    n, d_in, d_outs, threads, seed = shape
    random = torch.Generator().manual_seed(seed)
    weights = [torch.randn(d_out, d_in, generator=random).to(kind) for d_out in d_outs]
    gradients = [torch.randn(n, d_out, generator=random) for d_out in d_outs]
    torch.set_num_threads(threads)
    found = kernels.product_backward(Matrices(weights, [None] * len(weights)), torch.cat(gradients, dim=1))
    assert_near(found, sum(g.double() @ w.double() for g, w in zip(gradients, weights, strict=True)))


def test_rows_that_do_not_lie_one_after_the_other_are_read_as_they_are(kernels: Kernels):
    weight, x = torch.randn(20, 32), torch.randn(32, 10).t()[::2]
    gradient = torch.randn(20, 10).t()[::2]
    matrices = Matrices([weight], [None])
    assert_near(kernels.product(matrices, x), x.double() @ weight.double().t())
    assert_near(kernels.product_backward(matrices, gradient), gradient.double() @ weight.double())


def test_what_is_not_a_number_stays_so(kernels: Kernels):
    weight, x = torch.randn(20, 32), torch.randn(5, 32)
    x[2, 3] = torch.nan
    matrices = Matrices([weight], [None])
    assert kernels.product(matrices, x).isnan().any(dim=1).tolist() == [False, False, True, False, False]


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="other processors take no longer for them")
@pytest.mark.parametrize("threads", [1, 3])
def test_numbers_too_small_to_be_normal_count_as_zero_and_only_here(kernels: Kernels, threads: int):
    torch.set_num_threads(threads)
    tiny = torch.full((3, 32), 1e-40)
    matrices = Matrices([torch.full((32, 32), 0.5)], [None])
    assert not kernels.product(matrices, tiny).any()
    assert not kernels.product_backward(matrices, tiny).any()
    assert bool((tiny * 0.5).all())  # another time


@pytest.mark.parametrize(
    ("weight", "taken"),
    [
        (torch.randn(4, 16), True),
        (torch.randn(3, 16), False),
        (torch.randn(4, 17), False),
        (torch.randn(16, 16).t(), False),
        (torch.randn(4, 16).double(), False),
        (torch.randn(4, 16).to(torch.float8_e4m3fn), False),
        (torch.randn(4, 16, device="meta"), False),
        (torch.randn(4, 16).as_subclass(Wrapped), False),
        (torch.randn(4, 16).to_sparse(), False),
        (torch.randn(4, 0), False),
    ],
    ids=[
        "fits",
        "few outputs",
        "odd width",
        "transposed",
        "float64",
        "float8",
        "elsewhere",
        "wrapped",
        "sparse",
        "empty",
    ],
)
@pytest.mark.usefixtures("kernels")
def test_weights_that_the_kernels_cannot_read_are_left_to_torch(weight: Tensor, taken: bool):
    assert (kernels_for(weight) is not None) == taken
    assert kernels_for(torch.randn(8, 32), torch.randn(3, 16)) is None


@pytest.mark.parametrize("other", [torch.randn(8, 32).bfloat16(), torch.randn(8, 16)], ids=["type", "width"])
def test_weights_that_differ_are_not_read_together(kernels: Kernels, other: Tensor, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(kernels.most_rows, torch.bfloat16, 256)
    first = torch.randn(8, 32)
    assert kernels_for(first) is not None
    assert kernels_for(other) is not None
    assert kernels_for(first, other) is None


@pytest.mark.parametrize("way", ["product", "product_backward"])
def test_rows_of_another_width_are_refused(kernels: Kernels, way: str):
    with pytest.raises(ValueError, match=r"rows are \(n, "):
        getattr(kernels, way)(Matrices([torch.randn(48, 32)], [None]), torch.randn(3, 16))


@KINDS
def test_weights_of_a_type_that_torch_multiplies_sooner_are_left_to_it(
    kernels: Kernels, kind: torch.dtype, monkeypatch: pytest.MonkeyPatch
):
    for rows in (0, 96):
        monkeypatch.setitem(kernels.most_rows, kind, rows)
        assert (kernels_for(torch.randn(4, 16).to(kind)) is not None) == (rows > 0)


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("way", ["product", "product_backward"])
def test_kernels_that_compute_something_else_are_not_used(way: str, monkeypatch: pytest.MonkeyPatch):
    right = getattr(Kernels, way)
    monkeypatch.setattr(Kernels, way, lambda *args: right(*args) * 1.001)
    assert isinstance(find_kernels.__wrapped__(), NoKernelsError)
    monkeypatch.undo()
    assert isinstance(find_kernels.__wrapped__(), Kernels)


def test_looking_for_kernels_leaves_random_numbers_as_they_were():
    torch.manual_seed(3)
    expected = torch.randn(2)
    torch.manual_seed(3)
    module.find_kernels.__wrapped__()
    assert torch.equal(torch.randn(2), expected)


def test_biases_are_read_as_they_lie_and_added_once(kernels: Kernels):
    """The last four outputs overlap those before, which another thread may be computing."""
    torch.set_num_threads(2)
    weight, bias, x = torch.randn(5, 16), torch.randn(10)[::2], torch.randn(96, 16)
    matrices = Matrices([weight], [bias])
    expected = x.double() @ weight.double().t() + bias.double()
    for _ in range(300):
        assert_near(kernels.product(matrices, x), expected)


@pytest.mark.parametrize("threads", [1, 2])
def test_gradients_of_a_vocabulary_that_sum_to_zero_are_as_exact_as_torchs(kernels: Kernels, threads: int):
    """Those of log-probabilities do: of tens of thousands of terms nearly nothing is left."""
    torch.set_num_threads(threads)
    weight = torch.randn(50_000, 32) + 3
    gradient = torch.randn(7, 50_000).softmax(dim=1)
    gradient[:, 17] -= 1
    exact = gradient.double() @ weight.double()
    found, theirs = kernels.product_backward(Matrices([weight], [None]), gradient), gradient @ weight
    assert float((found - exact).norm()) <= 2 * float((theirs - exact).norm())
