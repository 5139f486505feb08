"""The hypernetwork: from a projection's input and the gradient of its output to a change of its matrix.

``u`` is the input of a projection at a token and ``v`` the gradient of the edit's loss with respect to its output
there, so that the gradient of the weight is the sum of ``v u^T`` over tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

Rule = Literal["sum", "least squares"]
_EPSILON = 1e-7


@dataclass(frozen=True)
class Architecture:
    """What a hypernetwork is built from.

    Args:
        rule: ``sum``: the change is the sum of the tokens' transformed gradients (MEND); ``least squares``: it fits the
            change of output that each token asks for (MALMEN, RLEdit).
        shapes: ``(d_out, d_in)`` of every edited matrix, by layer.
        rank: Rank of each block's matrix.
        blocks: How many blocks.
        normalize: Whether inputs are normalized by running statistics.
        identity_init: Residual blocks that begin as the identity; otherwise Xavier without the residual.
        edit_rate: First value of the learned rates.
        seed: Of the first weights.
    """

    rule: Rule
    shapes: Mapping[int, tuple[int, int]]
    rank: int
    blocks: int
    normalize: bool = True
    identity_init: bool = True
    edit_rate: float = 1e-3
    seed: int = 0

    def to_dict(self) -> dict[str, Any]:
        """Plain data, as ``of`` reads it."""
        return {**asdict(self), "shapes": {str(layer): list(shape) for layer, shape in self.shapes.items()}}

    @classmethod
    def of(cls, plain: Mapping[str, Any]) -> Architecture:
        """What ``to_dict`` returned."""
        shapes = {int(layer): (int(shape[0]), int(shape[1])) for layer, shape in plain["shapes"].items()}
        return cls(**{**plain, "shapes": shapes})


class RunningStatistics(nn.Module):
    """Mean and standard deviation per coordinate, merged batch by batch as Welford and Chan do it.

    Sums are float64. With fewer than two rows there is no deviation yet, and rows stay as they are.
    """

    def __init__(self, size: int) -> None:
        super().__init__()
        self.register_buffer("count", torch.zeros(1, dtype=torch.float64))
        self.register_buffer("mean", torch.zeros(size, dtype=torch.float64))
        self.register_buffer("squares", torch.zeros(size, dtype=torch.float64))
        self.count: Tensor
        self.mean: Tensor
        self.squares: Tensor

    @torch.no_grad()
    def update(self, rows: Tensor) -> None:
        """Count ``rows`` ``(n, size)`` in."""
        if not len(rows):
            return
        rows = rows.double()
        total = self.count + len(rows)
        ahead = rows.mean(dim=0) - self.mean
        squares = (rows - rows.mean(dim=0)).square().sum(dim=0)
        self.squares += squares + ahead.square() * self.count * len(rows) / total
        self.mean += ahead * len(rows) / total
        self.count.copy_(total)

    def forward(self, rows: Tensor) -> Tensor:
        """``(rows - mean) / (deviation + 1e-7)``."""
        if self.count < 2:  # noqa: PLR2004 - of one row there is no deviation
            return rows
        deviation = (self.squares / (self.count - 1)).sqrt()
        return (rows - self.mean.to(rows)) / (deviation.to(rows) + _EPSILON)


class Block(nn.Module):
    """``x + max(0, scale (U V x + b) + shift)`` (MEND), or ``x + scale max(0, U V x + b) + shift`` (MALMEN).

    Scale and shift are a layer's own, all else is shared. ``U`` begins at zero, so that the block is the identity.
    """

    def __init__(self, size: int, rank: int, n_layers: int, *, clamp_first: bool, identity: bool) -> None:
        super().__init__()
        rank = min(rank, size)
        self.clamp_first, self.identity = clamp_first, identity
        self.down = nn.Parameter(torch.randn(rank, size))
        self.up = nn.Parameter(torch.zeros(size, rank))
        if not identity:
            nn.init.xavier_uniform_(self.down)
            nn.init.xavier_uniform_(self.up, gain=nn.init.calculate_gain("relu"))
        self.bias = nn.Parameter(torch.zeros(size))
        self.scale = nn.Parameter(torch.ones(n_layers, size))
        self.shift = nn.Parameter(torch.zeros(n_layers, size))

    def forward(self, rows: Tensor, index: int) -> Tensor:
        """``rows`` ``(..., size)`` of the layer number ``index``."""
        product = rows @ self.down.T @ self.up.T + self.bias
        # clamp, and not relu: at zero, where all begins, its gradient is one
        if self.clamp_first:
            changed = self.scale[index] * product.clamp(min=0) + self.shift[index]
        else:
            changed = (self.scale[index] * product + self.shift[index]).clamp(min=0)
        return rows + changed if self.identity else changed


class GradientNetwork(nn.Module):
    """``(u, v)`` of one shape of matrix to ``(u~, v~)``: statistics, then blocks on both side by side."""

    def __init__(self, shape: tuple[int, int], n_layers: int, architecture: Architecture) -> None:
        super().__init__()
        d_out, d_in = shape
        self.d_in = d_in
        self.normalize = architecture.normalize
        self.statistics = RunningStatistics(d_in + d_out)
        self.blocks = nn.ModuleList(
            Block(
                d_in + d_out,
                architecture.rank,
                n_layers,
                clamp_first=architecture.rule == "least squares",
                identity=architecture.identity_init,
            )
            for _ in range(architecture.blocks)
        )

    def forward(self, u: Tensor, v: Tensor, index: int) -> tuple[Tensor, Tensor]:
        """``(u~, v~)`` of ``u`` ``(..., d_in)`` and ``v`` ``(..., d_out)``."""
        rows = torch.cat([u, v], dim=-1)
        if self.normalize:
            rows = self.statistics(rows)
        for block in self.blocks:
            rows = block(rows, index)
        return rows[..., : self.d_in], rows[..., self.d_in :]


class Hypernetwork(nn.Module):
    """One gradient network per shape of matrix, and what each layer learns for itself: its rate and its ridge.

    The change of a matrix comes as factors ``left`` ``(d_out, t)`` and ``right`` ``(d_in, t)``, so that it is
    ``left right^T``.
    """

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        self.architecture = architecture
        self.layers = tuple(architecture.shapes)
        shapes = list(architecture.shapes.values())
        self._index = {layer: shapes[:at].count(shapes[at]) for at, layer in enumerate(self.layers)}
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(architecture.seed)
            self.networks = nn.ModuleDict(
                {_name(shape): GradientNetwork(shape, shapes.count(shape), architecture) for shape in shapes}
            )
        self.rates = nn.Parameter(torch.full((len(self.layers),), architecture.edit_rate))
        self.log_ridges = nn.Parameter(torch.zeros(len(self.layers)))

    def observe(self, layer: int, u: Tensor, v: Tensor) -> None:
        """Count tokens, ``(n, d_in)`` and ``(n, d_out)``, into the statistics that normalize them."""
        self._network(layer).statistics.update(torch.cat([u, v], dim=-1))

    def transform(self, layer: int, u: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """``(u~, v~)``, of the shapes of ``u`` and ``v``."""
        found: tuple[Tensor, Tensor] = self._network(layer)(u, v, self._index[layer])
        return found

    def sum_factors(self, layer: int, u: Tensor, v: Tensor, real: Tensor) -> tuple[Tensor, Tensor]:
        """MEND: ``-rate v~ u~^T`` summed over the tokens that are ``real`` ``(..., t)``.

        The published code has a plus there and learns the sign; the paper has the minus.

        Args:
            layer: Whose matrix.
            u: ``(..., t, d_in)``.
            v: ``(..., t, d_out)``.
            real: Which tokens count.

        Returns:
            ``(..., d_out, t)`` and ``(..., d_in, t)``.
        """
        new_u, new_v = self.transform(layer, u, v)
        rate = self.rates[self.layers.index(layer)]
        return -rate * (new_v * real[..., None]).mT, (new_u * real[..., None]).mT

    def least_squares_factors(self, layer: int, u: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """MALMEN: ``Delta^T = (U^T U + e^l I)^-1 U^T D`` with ``D_i = -rate (u_i . u~_i) v~_i``.

        Solved as ``U^T (U U^T + e^l I)^-1 D``, a system of the size of the tokens, in float64.

        Args:
            layer: Whose matrix.
            u: ``(n, d_in)`` of all tokens written together.
            v: ``(n, d_out)``.

        Returns:
            ``(d_out, n)`` and ``(d_in, n)``.
        """
        new_u, new_v = self.transform(layer, u, v)
        at = self.layers.index(layer)
        wanted = -self.rates[at] * (u * new_u).sum(dim=-1, keepdim=True) * new_v
        exact = u.double()
        system = exact @ exact.T + self.log_ridges[at].double().exp() * torch.eye(len(u)).to(exact)
        return torch.linalg.solve(system, wanted.double()).to(wanted).T, u.T

    def _network(self, layer: int) -> GradientNetwork:
        network = self.networks[_name(self.architecture.shapes[layer])]
        assert isinstance(network, GradientNetwork)
        return network


def _name(shape: tuple[int, int]) -> str:
    return f"{shape[0]}x{shape[1]}"
