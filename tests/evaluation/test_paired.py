"""Paired tests against numbers worked out by hand, and the laws that hold for all numbers."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from betaedit.evaluation.paired import PairedTest, holm, paired_test

COUNTS = st.integers(0, 300)
SHARES = st.lists(st.tuples(st.sampled_from((0.0, 0.5, 1.0)), st.sampled_from((0.0, 0.5, 1.0))), max_size=40)


@pytest.mark.parametrize(
    ("first", "second", "p"),
    [
        (0, 0, 1.0),
        (1, 0, 1.0),  # 2 * 1/2
        (5, 0, 2 / 32),
        (6, 0, 2 / 64),
        (8, 2, 2 * (1 + 10 + 45) / 1024),
        (14, 2, 2 * (1 + 16 + 120) / 65536),  # 0.0042
        (3, 3, 1.0),  # both tails hold the middle
    ],
)
def test_the_probability_is_the_sum_of_both_tails_of_a_fair_coin(first: int, second: int, p: float) -> None:
    assert PairedTest(first, second, 100).p == pytest.approx(p, rel=1e-12)


@given(COUNTS, COUNTS)
def test_which_method_comes_first_does_not_matter(first: int, second: int) -> None:
    one, other = PairedTest(first, second, 600), PairedTest(second, first, 600)
    assert one.p == other.p
    assert one.records_needed() == other.records_needed()


@given(COUNTS, COUNTS)
def test_a_probability_is_above_0_and_at_most_1(first: int, second: int) -> None:
    assert 0 < PairedTest(first, second, 600).p <= 1


def test_a_probability_is_above_0_where_no_float_is_as_small() -> None:
    assert 0 < PairedTest(2000, 0, 2000).p < 1e-300


@given(COUNTS, COUNTS)
def test_a_more_uneven_division_is_less_probable(first: int, second: int) -> None:
    if first >= second:
        assert PairedTest(first + 1, second, 602).p <= PairedTest(first, second, 602).p


def test_records_are_compared_one_by_one_and_equal_ones_say_nothing() -> None:
    found = paired_test([1, 1, 0, 0.5, 0.2], [1, 0, 1, 0.25, 0.2])
    assert found == PairedTest(2, 1, 5)
    assert paired_test([], []) == PairedTest(0, 0, 0)


@given(SHARES, st.randoms(use_true_random=False))
def test_the_order_of_records_does_not_matter(pairs: list[tuple[float, float]], draw: random.Random) -> None:
    mixed = draw.sample(pairs, len(pairs))
    assert paired_test(*_columns(mixed)) == paired_test(*_columns(pairs))


def test_records_that_do_not_pair_up_are_refused() -> None:
    with pytest.raises(ValueError, match="zip"):
        paired_test([1.0], [1.0, 0.0])


@pytest.mark.parametrize(
    ("test", "needed"),
    [
        (PairedTest(5, 0, 5), 6),  # six heads of six are the first below 5%: 2/64
        (PairedTest(0, 4, 80), 120),  # six such records, one in twenty differs
        (PairedTest(3, 1, 40), 291),  # (0.980 + 0.433 * 0.842)^2 / 0.25^2 = 28.9 records that differ; ceil(28.85 * 10)
        (PairedTest(4, 4, 80), None),
        (PairedTest(0, 0, 80), None),
    ],
)
def test_how_many_records_would_be_needed(test: PairedTest, needed: int | None) -> None:
    found = test.records_needed()
    assert found == needed if needed is None else found == pytest.approx(needed, abs=3)


@given(COUNTS, COUNTS)
def test_more_records_are_needed_than_there_were_and_more_still_for_a_stricter_level(first: int, second: int) -> None:
    test = PairedTest(first, second, 600)
    needed = test.records_needed()
    assert (needed is None) == (first == second)
    if needed is not None:
        assert needed > 600
        assert (test.records_needed(0.01) or 0) >= needed


def test_as_many_records_as_are_said_to_be_needed_decide_where_all_go_one_way() -> None:
    for level in (0.05, 0.05 / 3, 0.05 / 10):
        needed = PairedTest(2, 0, 2).records_needed(level)
        assert needed is not None
        assert PairedTest(needed, 0, needed).p <= level < PairedTest(needed - 1, 0, needed).p


def test_several_tests_are_corrected_step_by_step() -> None:
    # 0.01 * 3; 0.02 * 2; 0.03 * 1, but no less than the one before it
    assert holm([0.03, 0.01, 0.02]) == pytest.approx([0.04, 0.03, 0.04])
    assert holm([0.4]) == [0.4]
    assert holm([]) == []
    assert holm([0.9, 0.6]) == [1.0, 1.0]


@given(st.lists(st.floats(0, 1), max_size=12))
def test_a_corrected_probability_is_no_smaller_and_keeps_its_rank(probabilities: list[float]) -> None:
    corrected = holm(probabilities)
    assert all(p <= c <= 1 for p, c in zip(probabilities, corrected, strict=True))
    ranked = [c for _, c in sorted(zip(probabilities, corrected, strict=True))]
    assert ranked == sorted(ranked)


def _columns(pairs: list[tuple[float, float]]) -> tuple[list[float], list[float]]:
    return [a for a, _ in pairs], [b for _, b in pairs]
