"""The equality form: values as constraints (EMMET, ROME), from the system of the ridge form."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from torch import Tensor

from betaedit.errors import NumericalError
from betaedit.memory import AssociativeMemory
from memory.test_associative import LAWS, NEVER, PARITY, Case, cases, column, eye, rule_of, watched
from support.reference import DenseMemory, emmet, emmet_within, relative_error, rome


def remembered(case: Case, fast: AssociativeMemory, history: bool) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Per batch: the fast update's dense matrix, and ``lambda1 C0 + H`` with the keys so far, under the same ``K``."""
    H = torch.zeros_like(case.moment)
    found = []
    for K, R in case.batches:
        found.append((fast.solve(K, R).dense(), case.lambda1 * case.moment + H, K))
        fast.remember(K)
        H = H + history * (K @ K.T)
    return found


@pytest.mark.parametrize(("name", "history"), [("emmet", False), ("emmet-h", True)])
@PARITY
@given(case=cases(weakest=0.0))
def test_every_update_of_a_sequence_equals_the_dense_formula(name: str, history: bool, case: Case):
    fast = case.memory(name, equality_slack=0.1)
    for (delta, S, K), (_, R) in zip(remembered(case, fast, history), case.batches, strict=True):
        assert relative_error(delta, emmet(K, R, S, 0.1)) < 1e-6


@PARITY
@given(case=cases(weakest=0.0))
def test_emmet_in_a_null_space_is_the_optimum_among_updates_inside_it(case: Case):
    fast, projector = case.memory("emmet-ns", equality_slack=0.1), case.dense("betaedit").P
    for (delta, S, K), (_, R) in zip(remembered(case, fast, True), case.batches, strict=True):
        wanted = emmet_within(K, R, S, projector, case.lambda2, 0.1)
        assert relative_error(delta, wanted) < 1e-6
        assert relative_error(delta @ projector, delta) < 1e-9


@pytest.mark.parametrize(("name", "ridge_form"), [("emmet", "memit"), ("emmet-h", "memit-h"), ("emmet-ns", "memit-ns")])
@LAWS
@given(case=cases(weakest=0.0))
def test_with_a_slack_of_one_a_batch_is_written_as_the_ridge_form_does(name: str, ridge_form: str, case: Case):
    """methods.md D.8."""
    constrained, ridge = case.memory(name, equality_slack=1.0), case.memory(ridge_form)
    K, R = case.joined()
    if K.shape[1] > 1:
        assert relative_error(constrained.solve(K, R).dense(), ridge.solve(K, R).dense()) < 1e-9


@pytest.mark.parametrize("name", ["emmet", "emmet-h", "emmet-ns", "r-rome"])
@LAWS
@given(case=cases(weakest=0.0))
def test_a_single_fact_is_written_exactly_whatever_the_slack(name: str, case: Case):
    fast = case.memory(name, equality_slack=5.0, fold_after=NEVER)
    K, R = case.batches[0]
    k, r = K[:, :1], R[:, :1]
    assert relative_error(fast.solve(k, r).dense() @ k, r) < 1e-9


@LAWS
@given(case=cases(weakest=0.0))
def test_rome_writes_along_the_mean_key_and_reaches_the_value_at_the_bare_one(case: Case):
    K, R = case.batches[0]
    k, r = K[:, :1], R[:, :1]
    bare = k + 0.1 * k.norm() * torch.nn.functional.normalize(torch.ones_like(k), dim=0)
    delta = case.memory("rome").solve(k, r, reached=bare).dense()
    assert relative_error(delta, rome(k, r, case.moment, bare)) < 1e-6
    assert relative_error(delta @ bare, r) < 1e-6
    assert relative_error(case.memory("r-rome").solve(k, r).dense(), rome(k, r, case.moment, k)) < 1e-6


def test_the_weight_on_text_cancels_for_one_fact_without_history():
    key, value = column(1, 2, 3), column(1, -1)
    weak, strong = (
        AssociativeMemory(torch.diag(torch.tensor([1.0, 2.0, 5.0])), rule_of("emmet", leakage_weight=weight))
        for weight in (1.0, 1000.0)
    )
    assert relative_error(weak.solve(key, value).dense(), strong.solve(key, value).dense()) < 1e-12


@pytest.mark.parametrize("keys", [torch.zeros(3, 1), torch.ones(3, 2)], ids=["zero", "equal"])
def test_keys_that_cannot_all_be_given_their_values_are_refused(keys: Tensor):
    memory = AssociativeMemory(eye(3), rule_of("emmet", equality_slack=0.0, leakage_weight=1.0))
    with pytest.raises(NumericalError, match="constraints cannot all hold") as caught:
        memory.solve(keys, torch.ones(2, keys.shape[1]))
    assert "equality_slack" in caught.value.hint


@pytest.mark.parametrize("name", ["emmet-h", "emmet-ns"])
def test_no_edit_factorizes_more_than_two_matrices_as_wide_as_its_batch(name: str):
    memory = AssociativeMemory(0.001 * eye(30), rule_of(name, ridge=1.0))
    for _ in range(4):
        keys = torch.randn(30, 2, generator=torch.Generator().manual_seed(1))
        watch = watched(lambda keys=keys: memory.solve(keys, torch.ones(4, 2)))
        assert [side for _, side in watch.factorized] == [2, 2]
        assert watch.eigendecompositions() == 0
        memory.remember(keys)


@LAWS
@given(case=cases(weakest=0.0))
def test_without_its_leakage_term_betaedit_keeps_the_projector_of_betaedit(case: Case):
    """methods.md B.8: ``lambda1`` leaves the solve and stays in the matrix that is thresholded."""
    fast, dense = case.memory("betaedit-no-kl"), case.dense("betaedit")
    assert isinstance(dense, DenseMemory)
    for K, _ in case.batches:
        fast.remember(K)
        dense.remember(K)
    wanted = dense.thresholded()
    assert relative_error(fast._thresholded(case.moment), wanted) < 1e-9
