"""Side memories: how far one moves an output, which one answers a prompt, and how several become one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from betaedit.models.anatomy import is_transposed

Activation = Callable[[Tensor], Tensor]

_MOST_AVERAGED = 100


@dataclass(frozen=True)
class Memory:
    """A matrix beside the model's own.

    Args:
        weight: ``(d_out, d_in)``.
        least: The smallest distance of a fact's prompts when that was written.
    """

    weight: Tensor
    least: float

    def output(self, projection: nn.Module, entering: Tensor) -> Tensor:
        """What the projection would give with this matrix, ``(..., d_out)``."""
        bias = projection._parameters.get("bias")
        return nn.functional.linear(entering, self.weight.to(entering), bias)


def original_weight(projection: nn.Module) -> Tensor:
    """``(d_out, d_in)`` the model's own, in float32 at least."""
    weight = projection.get_parameter("weight").detach()
    exact = weight.to(torch.promote_types(weight.dtype, torch.float32))
    return (exact.T if is_transposed(projection) else exact).contiguous()


def distances(activation: Activation, own: Tensor, other: Tensor, counted: Tensor) -> Tensor:
    """``(n,)`` mean of ``|act(other) - act(own)|``, both ``(n, width, d)``, over ``counted`` ``(n, width)`` tokens."""
    lengths = _lengths(activation, own, other)
    counted = counted.to(lengths)
    return (lengths * counted).sum(dim=1) / counted.sum(dim=1).clamp(min=1)


def served_distances(activation: Activation, own: Tensor, other: Tensor, prompt: Tensor) -> Tensor:
    """The same of prompts that are asked; of long ones the largest over their tokens."""
    largest = _lengths(activation, own, other).masked_fill(~prompt, 0).amax(dim=1)
    return largest.where(prompt.sum(dim=1) > _MOST_AVERAGED, distances(activation, own, other, prompt))


def _lengths(activation: Activation, own: Tensor, other: Tensor) -> Tensor:
    lengths: Tensor = (activation(other.float()) - activation(own.float())).norm(dim=-1)
    return lengths


def choose(found: Tensor, memories: Sequence[Memory], ratio: float) -> Tensor:
    """``(n,)`` the memory that answers each row, ``-1`` for the model itself.

    Args:
        found: ``(m, n)`` distance of each row in each memory.
        memories: ``m``.
        ratio: Share of a memory's ``least`` from which on it may answer.
    """
    thresholds = found.new_tensor([memory.least for memory in memories]) * ratio
    allowed = found.masked_fill(found <= thresholds[:, None], -torch.inf)
    best, at = allowed.max(dim=0)
    return at.where(best > -torch.inf, -1)


def merge_ties(base: Tensor, weights: Sequence[Tensor], density: float) -> Tensor:
    """The matrices ``weights`` as one, by TIES: of each change of ``base`` its largest entries, where signs agree.

    The sign of an entry is that of the sum of the changes; the changes that have it are averaged.
    """
    changes = torch.stack([_largest(weight - base, density) for weight in weights])
    positive = changes.sum(dim=0) >= 0
    agreeing = torch.where(positive, changes > 0, changes < 0)
    counts = agreeing.sum(dim=0).clamp(min=1)
    return base + (changes * agreeing).sum(dim=0) / counts


def _largest(change: Tensor, density: float) -> Tensor:
    """``change`` with all but the share ``density`` of its largest entries at zero."""
    count = max(int(density * change.numel()), 1)
    kept = torch.zeros_like(change).view(-1)
    at = change.abs().view(-1).topk(count).indices
    kept[at] = change.view(-1)[at]
    return kept.view_as(change)
