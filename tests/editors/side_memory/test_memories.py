"""Distances, routing and merging of side memories (methods.md F.2)."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from betaedit.editors.side_memory.memories import Memory, choose, distances, merge_ties, served_distances

BASE = torch.arange(12.0).view(3, 4) / 10 - 0.5
FIRST = BASE + torch.tensor([[0.3, -0.2, 0.05, 0.9], [-0.4, 0.1, 0.6, -0.7], [0.02, 0.8, -0.35, 0.15]])
SECOND = BASE + torch.tensor([[-0.5, -0.25, 0.45, 0.2], [0.33, 0.12, -0.61, -0.3], [0.7, -0.11, -0.36, 0.04]])
# Of EasyEdit's code (merge of kind "ties", weights 1/2, density 0.53; euc; WISEAdapter), run on the same inputs.
EASYEDIT_TIES = [-1.0, -0.4, 0.15, 0.7, -0.5, 0.0, -0.51, -0.5, 1.0, 1.2, 0.145, 0.6]
EASYEDIT_DISTANCES = [0.75272822, 3.06743073]
EASYEDIT_ROUTES = [-1, -1, 1, 1, 0, 1]
"""0: the stored memory SECOND, 1: the current one FIRST, -1: the model."""

silu = nn.functional.silu


def dense_ties(base: Tensor, weights: list[Tensor], density: float) -> Tensor:
    """Entry by entry, in float64."""
    changes = [(weight.double() - base.double()).flatten().tolist() for weight in weights]
    count = int(density * base.numel())
    for change in changes:
        smallest = sorted(range(len(change)), key=lambda at: -abs(change[at]))[count:]
        for at in smallest:
            change[at] = 0.0
    merged = []
    for entries in zip(*changes, strict=True):
        sign = 1 if sum(entries) >= 0 else -1
        agreeing = [entry for entry in entries if entry * sign > 0]
        merged.append(sum(agreeing) / len(agreeing) if agreeing else 0.0)
    return base.double() + torch.tensor(merged, dtype=torch.float64).view_as(base)


@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("density", [0.1, 0.53, 1.0])
def test_ties_is_the_dense_reference(count: int, density: float) -> None:
    generator = torch.Generator().manual_seed(count)
    base, *weights = (torch.randn(6, 7, generator=generator) for _ in range(count + 1))
    assert torch.allclose(merge_ties(base, weights, density).double(), dense_ties(base, weights, density), atol=1e-6)


def test_ties_agrees_with_easyedit() -> None:
    assert merge_ties(BASE, [FIRST, SECOND], 0.53).flatten().tolist() == pytest.approx(EASYEDIT_TIES, abs=1e-5)


def test_distances_agree_with_easyedit() -> None:
    own = (torch.arange(24.0).view(2, 3, 4) - 11) / 3
    other = (torch.arange(24.0).view(2, 3, 4).flip(-1) * 1.3 - 9) / 4
    found = distances(silu, own, other, torch.ones(2, 3, dtype=torch.bool))
    assert found.tolist() == pytest.approx(EASYEDIT_DISTANCES, abs=1e-5)


def test_routes_agree_with_easyedit() -> None:
    rows = [torch.tensor([[1, 2, -1, 0.5], [0.5, -1, 2, 1]]) * scale for scale in (0.1, 0.5, 1, 2)]
    rows += [torch.tensor([[2.0, 0, 0, 0], [1, 0, 0, 0]]), torch.tensor([[0.0, 0, 0, 2], [0, 0, 0, 1.5]])]
    entering, projection = torch.stack(rows), nn.Linear(4, 3, bias=False)
    memories = [Memory(SECOND, 0.8), Memory(FIRST, 1.0)]
    own, whole = entering @ BASE.T, torch.ones(6, 2, dtype=torch.bool)
    found = [served_distances(silu, own, memory.output(projection, entering), whole) for memory in memories]
    assert choose(torch.stack(found), memories, 0.88).tolist() == EASYEDIT_ROUTES


def test_the_memory_of_the_largest_distance_answers_if_that_is_above_its_share() -> None:
    memories = [Memory(BASE, 10.0), Memory(BASE, 20.0)]
    found = torch.tensor([[9.0, 5.0, 9.0, 11.0], [18.0, 15.0, 15.0, 19.0]])
    assert choose(found, memories, 0.88).tolist() == [1, -1, 0, 1]


def test_only_the_counted_tokens_have_a_distance() -> None:
    own, other = torch.zeros(1, 3, 2), torch.tensor([[[3.0, 4], [6, 8], [100, 100]]])
    counted = torch.tensor([[True, True, False]])
    assert distances(nn.Identity(), own, other, counted).tolist() == [7.5]
    assert served_distances(nn.Identity(), own, other, counted).tolist() == [7.5]


def test_a_long_prompt_is_as_far_as_its_farthest_token() -> None:
    own, other = torch.zeros(2, 101, 1), torch.zeros(2, 101, 1)
    other[:, 50] = 7
    prompt = torch.ones(2, 101, dtype=torch.bool)
    prompt[1, 100] = False
    assert served_distances(nn.Identity(), own, other, prompt).tolist() == pytest.approx([7, 0.07])
