"""Which stored key a token matches, and what is added there: against the formula in float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from betaedit.models import gate
from betaedit.models.gate import GatedResiduals, GateHook, KeyIndex, unit
from support.families import HIDDEN, MLP, language_model

SHAPES = st.tuples(st.integers(1, 9), st.integers(1, 12), st.integers(2, 40), st.integers(1, 5))


def random_residuals(n_keys: int, d_in: int, d_out: int, generator: torch.Generator) -> GatedResiduals:
    """With as many residuals as keys need, some of several keys."""
    owner = torch.arange(n_keys) // 2
    return GatedResiduals.empty(d_in, d_out, torch.device("cpu")).with_more(
        GatedResiduals(
            unit(torch.randn(n_keys, d_in, generator=generator)),
            torch.rand(n_keys, generator=generator) * 0.9,
            owner,
            torch.randn(int(owner[-1]) + 1, d_out, generator=generator),
        )
    )


def dense(residuals: GatedResiduals, entering: Tensor) -> tuple[list[int], float]:
    """Per token the row of the residual by the definition, in float64; and how near the nearest decision was."""
    found, near = [], 1.0
    keys, thresholds = residuals.keys.double(), residuals.thresholds.double()
    for query in entering.double():
        cosines = keys @ query / (keys.norm(dim=1) * query.norm())
        near = min(near, float((cosines - thresholds).abs().min()))
        matching = [at for at in range(len(keys)) if cosines[at] > thresholds[at]]
        best = max(matching, key=lambda at: float(cosines[at]), default=-1)
        ranked = sorted((float(cosines[at]) for at in matching), reverse=True)
        near = min(near, ranked[0] - ranked[1]) if len(ranked) > 1 else near
        found.append(-1 if best < 0 else int(residuals.owner[best]))
    return found, near


@settings(max_examples=40, deadline=None)
@given(shape=SHAPES, seed=st.integers(0, 1000), indexed=st.booleans())
def test_a_token_finds_the_nearest_key_among_those_whose_threshold_it_passes(
    shape: tuple[int, int, int, int], seed: int, indexed: bool
) -> None:
    n_tokens, n_keys, d_in, d_out = shape
    generator = torch.Generator().manual_seed(seed)
    residuals = random_residuals(n_keys, d_in, d_out, generator)
    noise = torch.randn(n_tokens, d_in, generator=generator)
    entering = residuals.keys[torch.arange(n_tokens) % n_keys] * 3 + 0.5 * noise
    if indexed:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(gate, "_INDEX_WIDTH", max(d_in // 3, 1))
            index = KeyIndex.of(residuals.keys)
        residuals = GatedResiduals(**residuals.tensors(), index=index)
    wanted, near = dense(residuals, entering)
    if near > 1e-4:
        assert residuals.find(entering).tolist() == wanted


def test_an_index_is_made_for_many_keys_and_goes_with_what_is_added_and_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gate, "_INDEXED_FROM", 8)
    monkeypatch.setattr(gate, "_INDEX_WIDTH", 4)
    generator = torch.Generator().manual_seed(0)
    few = random_residuals(6, 12, 3, generator)
    many = few.with_more(random_residuals(6, 12, 3, generator))
    assert few.index is None
    assert many.index is not None
    more = many.with_more(random_residuals(4, 12, 3, generator))
    less = more.take([at % 2 == 0 for at in range(len(more))])
    for residuals in (many, more, less):
        plain = GatedResiduals(**residuals.tensors())
        assert residuals.index is not None
        assert len(residuals.index.bounds) == len(residuals.keys)
        entering = residuals.keys + 0.1 * torch.randn(residuals.keys.shape, generator=generator)
        assert residuals.find(entering).tolist() == plain.find(entering).tolist()


@settings(max_examples=20, deadline=None)
@given(n_keys=st.integers(1, 12), seed=st.integers(0, 1000))
def test_taking_some_leaves_what_adding_only_those_gives(n_keys: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    parts = [random_residuals(n_keys, 6, 3, generator) for _ in range(3)]
    empty = GatedResiduals.empty(6, 3, torch.device("cpu"))
    n = len(parts[0])
    taken = (
        empty.with_more(parts[0]).with_more(parts[1]).with_more(parts[2]).take([True] * n + [False] * n + [True] * n)
    )
    wanted = empty.with_more(parts[0]).with_more(parts[2])
    assert all(torch.equal(taken.tensors()[name], tensor) for name, tensor in wanted.tensors().items())


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2", "opt"])
def test_the_hidden_state_behind_the_layer_gets_the_residual_of_each_token_that_matches(family: str) -> None:
    model = language_model(family)
    ids = torch.tensor([[5, 6, 7, 8, 9], [9, 5, 8, 6, 7]])
    keys, before = states(model, ids)
    hook = GateHook(model.anatomy, 1, 2)
    chosen = keys[[2, 8]]
    hook.residuals = hook.residuals.with_more(
        GatedResiduals(unit(chosen), torch.tensor([0.99, 0.99]), torch.tensor([0, 1]), torch.randn(2, HIDDEN))
    )
    hook.attach()
    _, after = states(model, ids)
    hook.detach()
    wanted = torch.zeros(10, HIDDEN)
    found = hook.residuals.find(keys)
    assert set(found.tolist()) == {-1, 0, 1}
    wanted[found >= 0] = hook.residuals.residuals[found[found >= 0]]
    assert torch.allclose(after - before, wanted, atol=1e-5)
    assert torch.equal((after == before).all(dim=1), found < 0)


@torch.no_grad()
def states(model: Any, ids: Tensor) -> tuple[Tensor, Tensor]:
    """``(n, MLP)`` keys of layer 1 and ``(n, HIDDEN)`` states behind layer 2, of all tokens."""
    found: list[Tensor] = []
    handles = [
        model.anatomy.projection(1).register_forward_pre_hook(lambda _, args: found.append(args[0])),
        model.anatomy.layers[2].register_forward_hook(
            lambda *a: found.append(a[2][0] if isinstance(a[2], tuple) else a[2])
        ),
    ]
    model.model(input_ids=ids)
    for handle in handles:
        handle.remove()
    return found[0].reshape(-1, MLP), found[1].reshape(-1, HIDDEN)
