"""Operators on updates equal their plain definitions, and the carried error is Algorithm 1 of the OTE-SE paper."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from betaedit.errors import NumericalError
from betaedit.memory import AssociativeMemory, Postprocessing, Postprocessor, RandomKeys, Update
from betaedit.memory.postprocess import Whitening, prune, rect, sphere
from betaedit.memory.rule import PostprocessKind
from memory.test_associative import LAWS, Case, cases, eye
from support.reference import (
    AlignedSequence,
    keep_top,
    log_compressed,
    one_time_solution,
    relative_error,
    simie_solution,
    spared,
    sparse_in_whitened_keys,
)

OPERATORS: list[PostprocessKind] = ["rect", "prune", "adaedit", "simie"]
MANY = settings(derandomize=True, deadline=None, max_examples=25)


def numbers(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# --- operators -----------------------------------------------------------------------------------------------------


@MANY
@given(st.integers(0, 10**6), st.integers(2, 12), st.integers(3, 20), st.floats(0.05, 1.0))
def test_rect_keeps_the_entries_of_largest_relative_change(seed: int, d_out: int, d_in: int, fraction: float):
    change, weight = numbers(seed, d_out, d_in), numbers(seed + 1, d_out, d_in)
    wanted = keep_top(change, (change / (weight + 1e-8)).abs(), fraction)
    assert torch.equal(rect(change, weight, fraction), wanted)


def test_rect_by_hand():
    """Relative changes 1, 0.1, 2, 0.5, 0.02: of five, 40% keeps from the third smallest on, as the OTE-SE code."""
    change = torch.tensor([[1.0, 1.0, 2.0, -5.0, 0.2]])
    weight = torch.tensor([[1.0, -10.0, 1.0, 10.0, 10.0]])
    assert rect(change, weight, 0.4).tolist() == [[1.0, 0.0, 2.0, -5.0, 0.0]]
    assert rect(change, weight, 1.0).tolist() == change.tolist()


@MANY
@given(st.integers(0, 10**6), st.floats(-2.0, 2.0), st.sampled_from([math.e, 2.0, 1.2]))
def test_prune_compresses_singular_values_above_the_largest_of_the_weight(seed: int, power: float, base: float):
    change, weight = 10**power * numbers(seed, 6, 9), numbers(seed + 1, 6, 9)
    assert relative_error(prune(change, weight, base), log_compressed(change, weight, base)) < 1e-10


def test_prune_by_hand():
    """``s* = 2``: 1 stays, ``2 e`` becomes ``log(2 e) - log(2) + 2 = 3``."""
    weight, change = torch.diag(torch.tensor([2.0, 1.0]).double()), torch.diag(torch.tensor([2 * math.e, 1.0]).double())
    torch.testing.assert_close(prune(change, weight, math.e), torch.diag(torch.tensor([3.0, 1.0]).double()))


def test_an_update_that_is_small_beside_its_weight_passes_prune_bit_for_bit():
    change = 1e-3 * numbers(0, 5, 7)
    assert torch.equal(prune(change, numbers(1, 5, 7), math.e), change)


@MANY
@given(case=cases(), fraction=st.floats(0.05, 1.0))
def test_adaedit_as_read_here_is_sparse_in_whitened_keys(case: Case, fraction: float):
    change = numbers(3, 4, case.moment.shape[0])
    wanted = sparse_in_whitened_keys(change, case.moment, fraction)
    assert relative_error(Whitening(case.moment).sparsify(change, fraction), wanted) < 1e-6


@MANY
@given(
    st.integers(0, 10**6), st.integers(2, 12), st.integers(2, 20), st.floats(0.05, 0.95), st.sampled_from([0.5, 1.0])
)
def test_sphere_spares_the_main_directions_of_the_weights_rows(
    seed: int, d_out: int, d_in: int, share: float, strength: float
):
    change, weight = numbers(seed, d_out, d_in), numbers(seed + 1, d_out, d_in)
    wanted = spared(change, weight, share, strength)
    assert relative_error(sphere(change, weight, share, strength), wanted) < 1e-8


def test_sphere_by_hand():
    """Rows along the first axis twice and the second once: the first alone has two thirds of the energy."""
    weight = torch.tensor([[5.0, 0.0], [-2.0, 0.0], [0.0, 9.0]]).double()
    change = torch.tensor([[1.0, 1.0]]).double()
    torch.testing.assert_close(sphere(change, weight, 0.5, 0.5), torch.tensor([[0.5, 1.0]]).double())
    torch.testing.assert_close(sphere(change, weight, 0.7, 0.5), torch.tensor([[0.5, 0.5]]).double())


@LAWS
@given(st.integers(0, 10**6), st.integers(3, 16), st.integers(1, 5), st.floats(-1.0, 2.0))
def test_simie_is_its_least_squares_solution_at_every_step(seed: int, d_in: int, steps: int, power: float):
    """methods.md D.11: ``min_W sum ||(W - W^e_s) X_s||^2 + lambda ||W - W_0||^2``, whatever the base edits."""
    ridge, start = 10**power, numbers(seed, 4, d_in)
    processor = Postprocessor(Postprocessing("simie", False, simie_ridge=ridge), eye(d_in))
    weight, edited, tokens = start.clone(), [], []
    for step in range(steps):
        X = numbers(seed + 10 * step + 1, d_in, 3)
        update = Update(numbers(seed + 10 * step + 2, 4, 1), numbers(seed + 10 * step + 3, d_in, 1))
        edited.append(weight + update.dense())
        tokens.append(X)
        weight = weight + processor.process(update, weight, X)
        processor.settle(X)
        assert relative_error(weight, simie_solution(start, edited, tokens, ridge)) < 1e-9


# --- the carried error ---------------------------------------------------------------------------------------------


def in_sequence(case: Case, operator: PostprocessKind, aligned: bool, start: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Per step: the weight before the operator acts, and after; keys and values fixed, memit-h below."""
    memory = case.memory("memit-h")
    rule = Postprocessing(operator, aligned, rect_fraction=0.4, adaedit_fraction=0.4, prune_base=2.0)
    processor = Postprocessor(rule, case.moment)
    weight, found = start.clone(), []
    for K, V in case.batches:
        update = memory.solve(K, processor.residuals(K, V - weight @ K))
        held = 0 if processor.removed is None else processor.removed
        unprocessed = weight + update.dense() + held
        weight = weight + processor.process(update, weight, K)
        memory.remember(K)
        processor.settle(K)
        found.append((unprocessed, weight))
    return found


@pytest.mark.parametrize("operator", OPERATORS)
@LAWS
@given(case=cases(least_steps=2, weakest=0.0))
def test_before_the_operator_acts_an_aligned_sequence_is_the_one_time_solution(operator: PostprocessKind, case: Case):
    """methods.md D.3, at every step and for every operator."""
    start = 0.1 * numbers(9, case.batches[0][1].shape[0], case.moment.shape[0])
    for step, (unprocessed, _) in enumerate(in_sequence(case, operator, True, start), 1):
        K, V = (torch.cat(part, dim=1) for part in zip(*case.batches[:step], strict=True))
        wanted = one_time_solution(start, K, V, case.lambda1 * case.moment)
        assert relative_error(unprocessed, wanted) < 1e-6


@pytest.mark.parametrize("operator", OPERATORS)
@LAWS
@given(case=cases(least_steps=2, weakest=0.0))
def test_an_aligned_sequence_is_algorithm_one_as_printed(operator: PostprocessKind, case: Case):
    start = 0.1 * numbers(9, case.batches[0][1].shape[0], case.moment.shape[0])
    processor = Postprocessor(Postprocessing(operator, False, prune_base=2.0), case.moment)
    printed = AlignedSequence(start, case.lambda1 * case.moment)
    for (K, V), (_, weight) in zip(case.batches, in_sequence(case, operator, True, start), strict=True):

        def operate(change: Tensor, weight: Tensor, K: Tensor = K) -> Tensor:
            return processor.process(Update(change, eye(change.shape[1])), weight, K)

        printed.step(K, V, operate)
        processor.settle(K)
        assert relative_error(weight, printed.W) < 1e-6


@pytest.mark.parametrize("operator", ["rect", "adaedit"])
def test_without_error_correction_a_sequence_is_not_the_one_time_solution(operator: PostprocessKind):
    case = Case(eye(6), 2.0, 1.0, 1.0, 9, 9, [(numbers(s, 6, 2), numbers(s + 50, 4, 2)) for s in range(4)])
    start = numbers(9, 4, 6)
    K, V = case.joined()
    wanted = one_time_solution(start, K, V, case.moment)
    assert relative_error(in_sequence(case, operator, False, start)[-1][0], wanted) > 1e-2
    assert relative_error(in_sequence(case, operator, True, start)[-1][0], wanted) < 1e-10


def test_a_step_that_was_not_settled_never_happened():
    processor = Postprocessor(Postprocessing("rect", True), eye(5))
    weight, first, second = numbers(0, 3, 5), Update(numbers(1, 3, 1), numbers(2, 5, 1)), numbers(3, 5, 1)
    once = processor.process(first, weight)
    assert torch.equal(processor.process(first, weight), once)
    residuals = numbers(4, 3, 1)
    assert torch.equal(processor.residuals(second, residuals), residuals)
    processor.settle()
    assert not torch.equal(processor.residuals(second, residuals), residuals)


def test_a_processed_update_that_is_not_finite_is_refused():
    processor = Postprocessor(Postprocessing("rect", True), eye(2))
    with pytest.raises(NumericalError, match="not finite"):
        processor.process(Update(torch.full((2, 1), math.inf), torch.ones(2, 1)), torch.ones(2, 2))


# --- random keys ---------------------------------------------------------------------------------------------------


def test_random_keys_have_the_directions_of_text_and_the_lengths_of_the_keys_they_replace():
    moment = torch.diag(torch.tensor([9.0, 1.0, 0.0]))
    keys = numbers(0, 3, 4000)
    drawn = RandomKeys(moment, seed=1).like(keys)
    torch.testing.assert_close(drawn.norm(dim=0), keys.norm(dim=0))
    assert float(drawn[2].abs().max()) == 0.0
    unit = drawn / drawn.norm(dim=0)
    # For (3 x, y) with x, y standard normal the mean of 9 x^2 / (9 x^2 + y^2) is 3 / (3 + 1).
    assert float(unit[0].square().mean()) == pytest.approx(0.75, abs=0.02)


def test_random_keys_repeat_with_their_seed_and_go_on_within_it():
    first, again, other = (RandomKeys(eye(4), seed) for seed in (1, 1, 2))
    keys = torch.ones(4, 2)
    drawn = first.like(keys)
    assert torch.equal(again.like(keys), drawn)
    assert not torch.equal(first.like(keys), drawn)
    assert not torch.equal(other.like(keys), drawn)


def test_a_memory_of_random_keys_protects_none_of_those_written():
    keys = torch.eye(4, dtype=torch.float64)[:, :1]
    written, random = (AssociativeMemory(eye(4), Case(eye(4), 1, 1, 1, 9, 9, []).memory("memit-h").rule) for _ in "ab")
    written.remember(100 * keys)
    random.remember(RandomKeys(eye(4), 0).like(100 * keys))
    moved = [memory.solve(keys, torch.ones(1, 1)).norm() for memory in (written, random)]
    assert moved[0] < moved[1]
