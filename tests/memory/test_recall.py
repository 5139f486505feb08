from __future__ import annotations

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from betaedit.errors import NumericalError
from memory.test_associative import LAWS, NEVER, Case, cases
from memory.test_forget import assert_same_next
from support.reference import FORGETTING, REMEMBERING


@pytest.mark.parametrize("name", [*REMEMBERING, *FORGETTING])
@LAWS
@given(case=cases(), fold_after=st.sampled_from([1, 4, NEVER]), refresh_every=st.sampled_from([1, 2, 5, NEVER]))
def test_a_memory_that_recalls_batches_goes_on_as_one_that_was_given_them_in_turn(
    name: str, case: Case, fold_after: int, refresh_every: int
):
    recalling = case.memory(name, fold_after=fold_after, refresh_every=refresh_every)
    other = case.memory(name, fold_after=NEVER, refresh_every=refresh_every)
    try:
        for K, _ in case.batches:
            if other.refresh_due():
                other.refresh()
            other.remember(K)
    except NumericalError:
        assume(False)  # no direction is left under the threshold
    recalling.recall(K for K, _ in case.batches)
    assert recalling.last_refresh == other.last_refresh
    assert_same_next(recalling, other, case)
