"""Residuals of families whose MLP output is normed before it joins the residual stream (Gemma 2 and 3, OLMo 2).

The norm fixes the length of what the MLP adds, so writing the residual itself does not move the stream by it: the
output would become very long, and the norm would keep little but its direction.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

_HALVINGS = 60
_WIDEST = 12.0  # powers of ten around the mean squared gain


@torch.no_grad()
def before_norm(norm: nn.Module, outputs: Tensor, residuals: Tensor) -> Tensor:
    """What to add to the MLP's ``outputs`` so that after ``norm`` they move by ``residuals`` as closely as possible.

    Both ``(d_out, b)``. A root-mean-square norm multiplies its input, entry by entry, by a gain ``g`` that depends on
    the input's length alone. Among all inputs as long as the old one, which keep that gain, this takes the one whose
    normed output is nearest to the wanted ``v + r``: ``y = g (v + r) / (g^2 + mu)``, with ``mu`` found by bisection.
    Keeping the length keeps the update small, and with it the effect on other tokens.
    """
    before, wanted = outputs.double(), residuals.double()
    normed = norm(outputs.T).T.double()
    gain = torch.where(before == 0, 0.0, normed / before)
    squared, pull = gain**2, gain * (normed + wanted)
    length, scale = before.norm(dim=0), squared.mean(dim=0)
    above_least = squared - squared.min(dim=0).values  # mu starts at minus the smallest, where wanted may be reachable
    low, high = torch.full_like(length, -_WIDEST), torch.full_like(length, _WIDEST)
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        too_long = (pull / (above_least + scale * 10**middle)).norm(dim=0) > length
        low, high = torch.where(too_long, middle, low), torch.where(too_long, high, middle)
    found = pull / (above_least + scale * 10**high)
    change: Tensor = found * (length / found.norm(dim=0)) - before
    return change.to(residuals)
