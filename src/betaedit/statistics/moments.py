"""Second moments of keys, and their file."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from betaedit.errors import OutputError, StatisticsError
from betaedit.files import atomic_write, file_errors
from betaedit.models.load import fingerprint_weights
from betaedit.statistics.origin import FINGERPRINT, N_TOKENS, NOT_RECORDED, TEXT, unreadable_statistics

logger = logging.getLogger(__name__)

FORMAT = "betaedit-moments-1"
_NAME = "layer.{}.second_moment"
_SYMMETRY = 1e-4
_MATRIX = 2


@dataclass(frozen=True)
class Moments:
    """``C0`` of every edited layer, with its origin.

    Args:
        matrices: (d_in, d_in) float32 mean of ``k k^T`` per token, by layer.
        n_tokens: How many tokens were averaged.
        origin: Model, fingerprint, corpus, settings and the hash of the text read (``TEXT``), as text.
    """

    matrices: dict[int, Tensor]
    n_tokens: int
    origin: dict[str, str] = field(default_factory=dict)

    @property
    def layers(self) -> tuple[int, ...]:
        """The layers present."""
        return tuple(sorted(self.matrices))

    @cached_property
    def fingerprint(self) -> str:
        """A hash of the matrices; it differs for other text, and for the same text on another machine."""
        return fingerprint_weights((str(layer), self.matrices[layer]) for layer in self.layers)

    def save(self, path: str | Path) -> Path:
        """Write a safetensors file: one matrix per layer, origin in the metadata.

        Raises:
            OutputError: It cannot be written.
        """
        path = Path(path)
        metadata = {"format": FORMAT, N_TOKENS: str(self.n_tokens), FINGERPRINT: self.fingerprint, **self.origin}
        tensors = {_NAME.format(layer): matrix.contiguous() for layer, matrix in self.matrices.items()}
        with file_errors(path, OutputError), atomic_write(path) as scratch:
            save_file(tensors, scratch, metadata=metadata)
        return path

    @classmethod
    def load(cls, path: str | Path) -> Moments:
        """Read what ``save`` wrote, or any safetensors file with ``layer.N.second_moment`` matrices.

        Raises:
            StatisticsError: The file is missing, damaged, or a matrix is not a second moment.
        """
        path = Path(path)
        try:
            with safe_open(path, framework="pt") as file:
                metadata = dict(file.metadata() or {})
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
        except (OSError, SafetensorError) as error:
            raise unreadable_statistics(path, error) from error
        matrices = {int(name.split(".")[1]): tensor.float() for name, tensor in tensors.items() if _is_moment(name)}
        if not matrices:
            raise StatisticsError(
                f"{path} holds no second moments.", hint=f"Tensors must be named {_NAME.format('N')!r}."
            )
        for layer, matrix in matrices.items():
            _check(path, layer, matrix)
        known = {key: value for key, value in metadata.items() if key not in ("format", N_TOKENS, FINGERPRINT)}
        n_tokens = metadata.get(N_TOKENS, "0")
        if not n_tokens.isdecimal():
            raise StatisticsError(
                f"{path} has an unreadable number of tokens: {n_tokens!r}.", hint="n_tokens must be a number."
            )
        return cls(matrices, int(n_tokens), known)

    def require(self, widths: dict[int, int]) -> None:
        """Refuse moments that do not cover the given layers with matrices of those widths.

        Raises:
            StatisticsError: A layer is absent or of another size, or there were too few tokens to say anything.
        """
        for layer, width in widths.items():
            if layer not in self.matrices:
                raise StatisticsError(
                    f"the statistics cover layers {list(self.layers)}, not layer {layer}.",
                    hint="Collect them for the layers to be edited, or edit other layers.",
                )
            if self.matrices[layer].shape[0] != width:
                raise StatisticsError(
                    f"the statistics of layer {layer} are {self.matrices[layer].shape[0]} wide, the model {width}.",
                    hint="They belong to another model.",
                )
            if 0 < self.n_tokens < width:
                raise StatisticsError(
                    f"{self.n_tokens} tokens cannot describe {width} directions.",
                    hint=f"Collect at least {10 * width} tokens (--set statistics_tokens={10 * width}).",
                )

    def to_dict(self) -> dict[str, Any]:
        """Plain data for reports: layers, tokens, fingerprint, hash of the text, and the rest of the origin."""
        recorded = {"layers": list(self.layers), "tokens": self.n_tokens, FINGERPRINT: self.fingerprint}
        return {**recorded, TEXT: NOT_RECORDED, **self.origin}


def _is_moment(name: str) -> bool:
    parts = name.split(".")
    return len(parts) == 3 and parts[0] == "layer" and parts[1].isdigit() and parts[2] == "second_moment"  # noqa: PLR2004


def _check(path: Path, layer: int, matrix: Tensor) -> None:
    square = matrix.numel() > 0 and matrix.dim() == _MATRIX and matrix.shape[0] == matrix.shape[1]
    if not square or not bool(torch.isfinite(matrix).all()):
        raise StatisticsError(f"{path}: layer {layer} is not a finite square matrix.", hint="The file is damaged.")
    scale = float(matrix.abs().max())
    if float((matrix - matrix.T).abs().max()) > _SYMMETRY * scale or float(matrix.diagonal().min()) < 0:
        raise StatisticsError(f"{path}: layer {layer} is not a second moment.", hint="It must be symmetric, E[k k^T].")
