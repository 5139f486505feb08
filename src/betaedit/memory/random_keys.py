"""Random keys, for the control experiment with a random history (memit-r)."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from betaedit.memory.projector import Spectrum


class RandomKeys:
    """Draws from N(0, C0), the same for the same seed.

    Args:
        moment: ``C0`` (d_in, d_in).
        seed: Seed of the draws.
    """

    def __init__(self, moment: Float[Tensor, "d_in d_in"], seed: int) -> None:
        spectrum = Spectrum.of(moment)
        self._root = spectrum.vectors * spectrum.values.clamp(min=0).sqrt()
        self._generator = torch.Generator().manual_seed(seed)

    def snapshot(self) -> Tensor:
        """The state of the generator, for ``restore``."""
        return self._generator.get_state()

    def restore(self, snapshot: Tensor) -> None:
        """Continue the draws from ``snapshot``."""
        self._generator.set_state(snapshot)

    def like(self, keys: Float[Tensor, "d_in b"]) -> Float[Tensor, "d_in b"]:
        """The next draws, one for each of ``keys`` and of the same length; float64."""
        noise = torch.randn(keys.shape, generator=self._generator, dtype=torch.float64).to(self._root.device)
        draws: Tensor = self._root @ noise
        draws *= keys.to(draws).norm(dim=0) / draws.norm(dim=0)
        return draws
