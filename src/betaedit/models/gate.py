"""Residuals that one layer adds at the tokens whose key matches a stored one (a gated memory, methods.md B.11).

The decision is made token by token, from what enters the layer's MLP output projection there. So padding, a cache,
and transformers' own ``generate`` change nothing about it, and where no key matches the layer's output is left as it
is, bit for bit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from betaedit.models.anatomy import Anatomy, projection_shape
from betaedit.models.prompt_hook import add_hook, check_no_hook

_MOST_PRODUCTS = 1 << 24


@dataclass(frozen=True)
class GatedResiduals:
    """Keys with thresholds, and the residuals that they stand for.

    Args:
        keys: ``(m, d_in)`` float32, each of length one.
        thresholds: ``(m,)`` cosine above which a key matches.
        owner: ``(m,)`` row of the residual that a key stands for.
        residuals: ``(n, d_out)`` float32.
    """

    keys: Tensor
    thresholds: Tensor
    owner: Tensor
    residuals: Tensor

    @classmethod
    def empty(cls, d_in: int, d_out: int, device: torch.device) -> GatedResiduals:
        """None."""
        zeros = torch.zeros(0, device=device)
        return cls(zeros.view(0, d_in), zeros, zeros.long(), zeros.view(0, d_out))

    def __len__(self) -> int:
        """How many residuals there are."""
        return len(self.residuals)

    def find(self, entering: Tensor) -> Tensor:
        """``(n,)`` row of the residual for each of ``entering`` ``(n, d_in)``; ``-1`` where no key matches.

        The key of largest cosine decides, by its own threshold.
        """
        if not len(self.keys):
            return torch.full((len(entering),), -1, device=entering.device)
        step = max(_MOST_PRODUCTS // len(self.keys), 1)
        return torch.cat([self._find(part) for part in entering.split(step)])

    def _find(self, entering: Tensor) -> Tensor:
        queries = unit(entering)
        cosines, nearest = (queries @ self.keys.T).max(dim=1)
        return self.owner[nearest].where(cosines > self.thresholds[nearest], -1)

    def with_more(self, other: GatedResiduals) -> GatedResiduals:
        """Those of ``other`` behind these."""
        return GatedResiduals(
            torch.cat([self.keys, other.keys.to(self.keys)]),
            torch.cat([self.thresholds, other.thresholds.to(self.thresholds)]),
            torch.cat([self.owner, other.owner.to(self.owner) + len(self)]),
            torch.cat([self.residuals, other.residuals.to(self.residuals)]),
        )

    def take(self, kept: Sequence[bool]) -> GatedResiduals:
        """Those residuals, with their keys, for which ``kept`` is true."""
        rows = torch.tensor(kept, dtype=torch.bool, device=self.owner.device)
        of_keys = rows[self.owner]
        return GatedResiduals(
            self.keys[of_keys],
            self.thresholds[of_keys],
            (rows.cumsum(0) - 1)[self.owner[of_keys]],
            self.residuals[rows],
        )

    def tensors(self) -> dict[str, Tensor]:
        """All of it by name."""
        return dict(vars(self))

    def save(self, file: Path, layer: int) -> None:
        """Write a safetensors file, the number of the layer in its metadata."""
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in self.tensors().items()}
        save_file(tensors, file, metadata={"layer": str(layer)})

    @classmethod
    def load(cls, file: Path, device: torch.device) -> tuple[GatedResiduals, int]:
        """What ``save`` wrote, and the layer."""
        with safe_open(file, "pt") as opened:
            tensors = {name: opened.get_tensor(name).to(device) for name in opened.keys()}  # noqa: SIM118
            return cls(**tensors), int(opened.metadata()["layer"])


def unit(keys: Tensor) -> Tensor:
    """``keys`` ``(n, d_in)`` in float32, each divided by its length."""
    return nn.functional.normalize(keys.float(), dim=1)


class GateHook:
    """Adds ``residuals`` to what the MLP of one layer gives the residual stream, while it is ``attached``.

    The keys are read before the MLP's output projection. The residuals are added behind it, or behind the norm that
    some families have there: a residual is always a change of the hidden state itself.

    Args:
        anatomy: The model.
        layer: Which decoder layer.
    """

    def __init__(self, anatomy: Anatomy, layer: int) -> None:
        self._anatomy, self.layer = anatomy, layer
        projection = anatomy.projection(layer)
        d_out, d_in = projection_shape(projection)
        self.residuals = GatedResiduals.empty(d_in, d_out, projection.get_parameter("weight").device)
        self._found: Tensor | None = None
        self._handles: list[Any] = []

    @property
    def attached(self) -> bool:
        """Whether the model's passes are changed."""
        return bool(self._handles)

    def attach(self) -> None:
        """Change the model's passes from now on.

        Raises:
            ModelError: Another hook does already.
        """
        if self.attached:
            return
        check_no_hook(self._anatomy.model)
        projection = self._anatomy.projection(self.layer)
        last = self._anatomy.norm_after_mlp(self.layer) or projection
        self._handles = [projection.register_forward_pre_hook(self._look), last.register_forward_hook(self._add)]
        add_hook(self._anatomy.model, self)

    def detach(self) -> None:
        """Leave the model's passes as they are."""
        for handle in self._handles:
            handle.remove()
        self._handles, self._found = [], None

    def _look(self, _: nn.Module, args: tuple[Tensor, ...]) -> None:
        found = self.residuals.find(args[0].detach().flatten(0, -2))
        self._found = found if bool((found >= 0).any()) else None

    def _add(self, _: nn.Module, __: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
        found, self._found = self._found, None
        if found is None:
            return None
        hits = (found >= 0).nonzero()[:, 0]
        rows = output.flatten(0, -2)
        added = rows.index_copy(0, hits, rows[hits] + self.residuals.residuals[found[hits]].to(rows))
        return added.view(output.shape)
