"""Forgetting and replacing against dense float64 solutions over the facts that are left."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, reject, settings
from hypothesis import strategies as st
from torch import Tensor

from betaedit.errors import MethodError, NumericalError, ShapeError
from betaedit.memory import Associations, AssociativeMemory, forget, replace, segments
from memory.test_associative import NEVER, Case, cases, column, eye, removable, rule_of, watched, write_in_sequence
from support.reference import FORGETTING, REMEMBERING, reference_projector, relative_error

SEQUENCES = settings(derandomize=True, deadline=None, max_examples=30)


class Sheet:
    """One matrix and its memory, and every fact it should hold."""

    def __init__(self, case: Case, name: str) -> None:
        self.case, self.name, self.memory = case, name, case.memory(name)
        d_out = case.batches[0][1].shape[0]
        self.first = torch.randn(d_out, len(case.moment), generator=torch.Generator().manual_seed(3)).double()
        self.weight = self.first.clone()
        self.live: list[Associations] = []

    def write(self, keys: Tensor, values: Tensor) -> None:
        update = self.memory.solve(keys, values - self.weight @ keys)
        facts = Associations.written(self.weight, keys, update.left)
        assert relative_error(facts.values, values) < 1e-12
        self.weight = self.weight + update.dense()
        self.memory.remember(keys)
        self.live += [facts[at : at + 1] for at in range(len(facts))]

    def take(self, chosen: set[int]) -> Associations:
        gone = [self.live[at] for at in sorted(chosen)]
        self.live = [fact for at, fact in enumerate(self.live) if at not in chosen]
        return Associations.joined(gone)

    def forget(self, chosen: set[int]) -> None:
        self.weight = self.weight + forget(self.memory, self.weight, self.take(chosen)).dense()

    def replace(self, chosen: set[int], new: Associations) -> None:
        self.weight = self.weight + replace(self.memory, self.weight, self.take(chosen), new).dense()
        self.live += [new[at : at + 1] for at in range(len(new))]

    def solution(self) -> Tensor:
        """``W_0 + (V - W_0 K) K^T Q (Q S Q + lambda2 I)^-1`` over the live facts (methods.md D.1), term by term."""
        case, d = self.case, len(self.case.moment)
        free = self.name in ("memit-h", "encore")
        Q = eye(d) if free else reference_projector(case.moment, case.threshold)
        lambda1 = 0.0 if self.name in ("alphaedit", "betaedit-no-kl") else case.lambda1
        lambda2 = 0.0 if self.name == "memit-h" else case.lambda2
        S, B = lambda1 * case.moment, torch.zeros_like(self.first)
        for fact in self.live:
            S = S + fact.keys @ fact.keys.T
            B = B + (fact.values - self.first @ fact.keys) @ fact.keys.T
        return self.first + torch.linalg.solve(Q @ S @ Q + lambda2 * eye(d), Q @ B.T).T


@pytest.mark.parametrize("name", REMEMBERING)
@SEQUENCES
@given(case=cases(least_steps=3, weakest=0.0), data=st.data())
def test_after_any_writes_replacements_and_forgetting_the_weights_are_the_one_solution_over_the_facts_left(
    name: str, case: Case, data: st.DataObject
):
    sheet = Sheet(case, name)
    for keys, values in case.batches:
        held = range(len(sheet.live))
        chosen = data.draw(st.sets(st.sampled_from(held), min_size=1)) if held else set()
        step = data.draw(st.sampled_from(["write", "replace", "forget"])) if chosen else "write"
        if step == "write":
            sheet.write(keys, values)
        elif step == "replace":
            sheet.replace(chosen, Associations(keys, values))
        else:
            sheet.forget(chosen)
        if data.draw(st.booleans()):
            sheet.memory.fold()
        assert relative_error(sheet.weight, sheet.solution()) < 1e-8
        assert sheet.memory.n_written == len(sheet.live)


@pytest.mark.parametrize("name", REMEMBERING)
@SEQUENCES
@given(case=cases(weakest=0.0))
def test_forgetting_everything_brings_the_original_weights_back(name: str, case: Case):
    sheet = Sheet(case, name)
    for keys, values in case.batches:
        sheet.write(keys, values)
    sheet.forget(set(range(len(sheet.live))))
    assert relative_error(sheet.weight, sheet.first) < 1e-8


# --- the papers' equations -----------------------------------------------------------------------------------------


@SEQUENCES
@given(case=cases(least_steps=2, weakest=0.0))
def test_replacing_one_batch_is_equation_30_with_the_values_it_was_written_with(case: Case):
    sheet = Sheet(case, "memit-h")
    for keys, values in case.batches[:-1]:
        sheet.write(keys, values)
    (K_o, V_o), (K_t, V_t), W = case.batches[0], case.batches[-1], sheet.weight
    S = case.lambda1 * case.moment + sum(K @ K.T for K, _ in case.batches) - K_o @ K_o.T
    wanted = torch.linalg.solve(S, K_t @ (V_t - W @ K_t).T - K_o @ (V_o - W @ K_o).T).T
    got = replace(sheet.memory, W, Associations(K_o, V_o), Associations(K_t, V_t)).dense()
    assert float((got - wanted).norm()) < 1e-8 * float(wanted.norm() + W.norm())


def test_equation_30_with_resolved_values_would_never_write_them():
    """One key of length 1, lambda1 C0 = I: writing 4 gives 4 / 2 = 2, and 10 in its place should give 10 / 2 = 5."""
    memory = AssociativeMemory(eye(1), rule_of("memit-h", leakage_weight=1.0))
    key, weight = column(1.0), column(0.0)
    weight = weight + memory.solve(key, column(4.0)).dense()
    memory.remember(key)
    assert weight.item() == pytest.approx(2.0)
    as_printed = (10 - weight) - (10 - weight)
    assert as_printed.item() == 0, "the overlap's resolved value cancels the new fact"
    update = replace(memory, weight, Associations(key, column(4.0)), Associations(key, column(10.0)))
    assert (weight + update.dense()).item() == pytest.approx(5.0)


@SEQUENCES
@given(case=cases(least_steps=3, weakest=0.0))
def test_memorising_the_latest_is_equations_31_and_32_and_one_edit_from_scratch(case: Case):
    memory = case.memory("memit-h")
    first = torch.zeros(case.batches[0][1].shape[0], len(case.moment), dtype=torch.float64)
    C0, weight, before = case.lambda1 * case.moment, first, None
    for K, V in case.batches:
        new, C = Associations(K, V), C0 + K @ K.T
        right = (V - weight @ K) @ K.T
        if before is None:
            update = memory.solve(K, V - weight @ K).dense()
            memory.remember(K)
            equation_31, equation_32 = right, right
        else:
            update = replace(memory, weight, before, new).dense()
            equation_31 = right - (before.values - weight @ before.keys) @ before.keys.T
            equation_32 = right - (weight - first) @ C0
        for equation in (equation_31, equation_32):
            wanted = torch.linalg.solve(C, equation.T).T
            assert float((update - wanted).norm()) < 1e-8 * float(wanted.norm() + weight.norm())
        weight, before = weight + update, new
        assert relative_error(weight, torch.linalg.solve(C, K @ V.T).T) < 1e-8


# --- writing again -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*REMEMBERING, *FORGETTING])
@SEQUENCES
@given(case=cases(least_steps=2, weakest=0.0))
def test_facts_written_again_in_segments_give_the_weights_of_one_batch_after_another(name: str, case: Case):
    """With refreshes on, too: a segment never reaches over one."""
    try:
        wanted = sum(write_in_sequence(case.memory(name, refresh_every=case.refresh_every), case.batches))
    except NumericalError:
        reject()  # the facts have filled the null space
    memory, weight = case.memory(name, refresh_every=case.refresh_every, fold_after=NEVER), torch.zeros_like(wanted)
    for facts in segments(memory, [Associations(K, V) for K, V in case.batches]):
        weight = weight + memory.solve(facts.keys, facts.residuals(weight)).dense()
        memory.remember(facts.keys)
    assert relative_error(weight, wanted) < 1e-8


def test_without_refreshes_facts_are_written_again_by_one_solve_with_history_and_batch_by_batch_without():
    facts = [Associations(eye(4)[:, at : at + 2], eye(4)[:, :2]) for at in (0, 2)]
    with_history, without = (AssociativeMemory(eye(4), rule_of(name)) for name in ("memit-h", "memit"))
    assert [len(segment) for segment in segments(with_history, facts)] == [4]
    assert [len(segment) for segment in segments(without, facts)] == [2, 2]


def test_in_the_equality_form_batches_are_written_again_one_by_one():
    """A later batch moves the values of those before it, with history too: their order and grouping matter."""
    batches = [Associations(eye(4)[:, at : at + 2], eye(4)[:, :2]) for at in (0, 2)]
    memory = AssociativeMemory(eye(4), rule_of("emmet-h"))
    assert [len(segment) for segment in segments(memory, batches)] == [2, 2]


# --- what is refused, and what it costs ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", FORGETTING)
def test_a_rule_without_history_has_no_closed_form_to_forget_by(name: str):
    memory = AssociativeMemory(eye(3), rule_of(name, nullspace_threshold=2.0))
    memory.remember(eye(3)[:, :1])
    with pytest.raises(MethodError, match="without history") as caught:
        forget(memory, eye(3), Associations(eye(3)[:, :1], eye(3)[:, :1]))
    assert caught.value.hint
    assert memory.n_written == 1


def test_the_equality_form_has_no_closed_form_to_forget_by():
    memory = AssociativeMemory(eye(3), rule_of("emmet-h"))
    memory.remember(eye(3)[:, :1])
    fact = Associations(eye(3)[:, :1], eye(3)[:, :1])
    for taking in (lambda: forget(memory, eye(3), fact), lambda: replace(memory, eye(3), fact, fact)):
        with pytest.raises(MethodError, match="in the equality form") as caught:
            taking()
        assert caught.value.hint
        assert memory.n_written == 1


NAN, INF = torch.nan, torch.inf
KEYS = torch.tensor([[0.2, 0.0, 0.1], [0.0, 0.3, 0.1], [0.1, 0.1, 0.0], [0.0, 0.2, 0.4]], dtype=torch.float64)


def refreshed_with_a_folded_and_a_carried_key() -> AssociativeMemory:
    memory = removable(9)
    memory.remember(KEYS[:, :2])
    memory.refresh()
    memory.remember(KEYS[:, 2:])
    return memory


def assert_nothing_taken(memory: AssociativeMemory) -> None:
    """Bit for bit, and so after whatever comes next."""
    fresh, key = refreshed_with_a_folded_and_a_carried_key(), column(1, 2, 3, 4)
    assert (memory.n_written, memory.last_refresh) == (fresh.n_written, fresh.last_refresh) == (3, 2)
    for change in (
        lambda _: None,
        lambda each: each.remember(key),
        lambda each: each.fold(),
        lambda each: each.refresh(),
    ):
        for each in (memory, fresh):
            change(each)
        assert torch.equal(memory.solve(key, column(1.0)).right, fresh.solve(key, column(1.0)).right)


@pytest.mark.parametrize("taken", [slice(0, 1), slice(2, 3), slice(0, 3)], ids=["folded", "carried", "all"])
def test_facts_that_cannot_be_taken_out_exactly_enough_leave_keys_and_the_last_refresh_as_they_were(taken: slice):
    memory, keys = refreshed_with_a_folded_and_a_carried_key(), KEYS[:, taken]
    with pytest.raises(NumericalError, match="exactly enough"):
        forget(memory, eye(4), Associations(keys, keys), amplification=0.5)
    assert_nothing_taken(memory)


@pytest.mark.parametrize(
    ("keys", "values", "error"),
    [
        (column(INF, 0, 0, 0), column(1, 0, 0, 0), NumericalError),
        (column(1, 0, 0), column(1, 0, 0, 0), ShapeError),
        (column(1, 0, 0, 0), column(NAN, 0, 0, 0), NumericalError),
        (column(1, 0, 0, 0), column(1, 0, 0), RuntimeError),
    ],
    ids=["keys not finite", "keys of another width", "values not finite", "values of another width"],
)
@pytest.mark.parametrize("taken", [slice(0, 1), slice(2, 3)], ids=["folded", "carried"])
def test_new_facts_that_cannot_be_written_leave_the_old_ones_where_they_were(
    taken: slice, keys: Tensor, values: Tensor, error: type[Exception]
):
    memory = refreshed_with_a_folded_and_a_carried_key()
    with pytest.raises(error):
        replace(memory, eye(4), Associations(KEYS[:, taken], KEYS[:, taken]), Associations(keys, values))
    assert_nothing_taken(memory)


@pytest.mark.parametrize(
    ("key", "error"), [(column(0, 1, 0, 0), MethodError), (column(torch.nan, 0, 0, 0), NumericalError)]
)
def test_a_fact_that_was_not_written_is_refused_and_nothing_changes(key: Tensor, error: type[Exception]):
    memory = removable(9)
    memory.remember(eye(4)[:, :1])
    with pytest.raises(error):
        forget(memory, eye(4), Associations(key, key))
    assert memory.n_written == 1


def test_what_is_amplified_is_bounded_however_many_facts_are_taken_out_at_once():
    """Unit keys and lambda1 C0 = I: a fact alone stands beside 1 of something else, so rounding counts 1 + 1 times."""
    n = 64
    facts = Associations(eye(n), torch.randn(n, n, generator=torch.Generator().manual_seed(1)).double())
    memory = AssociativeMemory(eye(n), rule_of("memit-h", leakage_weight=1.0))
    weight = memory.solve(facts.keys, facts.values).dense()
    memory.remember(facts.keys)
    with pytest.raises(NumericalError, match="exactly enough"):
        forget(memory, weight, facts, amplification=1.9)
    assert memory.n_written == n
    taken = forget(memory, weight, facts, amplification=2.1)
    assert float((weight + taken.dense()).norm()) < 1e-12 * float(weight.norm())


def test_forgetting_a_recent_fact_needs_no_eigendecomposition():
    memory = AssociativeMemory(eye(4), rule_of("betaedit", nullspace_threshold=2.0))
    memory.remember(eye(4)[:, :2])
    fact = Associations(eye(4)[:, :1], eye(4)[:, :1])
    assert watched(lambda: forget(memory, eye(4), fact)).eigendecompositions() == 0
