"""Residuals that one layer adds at the tokens whose key matches a stored one (a gated memory, methods.md B.11).

The decision is made token by token, from what enters an MLP's output projection there. So padding, a cache,
and transformers' own ``generate`` change nothing about it, and where no key matches the layer's output is left as it
is, bit for bit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from betaedit.errors import ModelError
from betaedit.models.anatomy import Anatomy, projection_shape
from betaedit.models.module_hook import ModuleHook

GATE_FILE = Path("betaedit", "gated.safetensors")
"""In its own folder: servers read every safetensors file beside those of a model as part of it."""

_MOST_PRODUCTS = 1 << 22
_MOST_PAIRS = 1 << 13
_INDEXED_FROM = 4096
_INDEX_WIDTH = 320
_INDEX_SAMPLE = 4096
_ROUNDING = 1e-5


@dataclass(frozen=True)
class KeyIndex:
    """Few numbers for each of many keys, by which most of them are ruled out without reading them whole.

    For an orthonormal basis ``B``, keys ``k`` and ``q`` of length one and what is left of them outside the basis,
    ``cos(k, q) <= (B^T k)^T (B^T q) + |rest of k| |rest of q|``. The bound holds for any basis; one that fits the keys
    rules out more.

    Args:
        basis: ``(d_in, r)``, orthonormal columns.
        bounds: ``(m, r + 1)`` of each key its part in the basis, and the length of the rest.
    """

    basis: Tensor
    bounds: Tensor

    @classmethod
    def of(cls, keys: Tensor) -> KeyIndex:
        """Of ``keys`` ``(m, d_in)``, in the basis of the largest eigenvectors of a sample's second moment."""
        sample = keys[:: max(len(keys) // _INDEX_SAMPLE, 1)].double()
        _, vectors = torch.linalg.eigh(sample.T @ sample)
        basis = vectors[:, -_INDEX_WIDTH:].to(keys).contiguous()
        return cls(basis, _in_basis(keys, basis))

    def candidates(self, queries: Tensor, thresholds: Tensor) -> Tensor:
        """``(c, 2)`` pairs of a query, of length one, and a key that may match it."""
        bounds = _in_basis(queries, self.basis) @ self.bounds.T
        return (bounds > thresholds - _ROUNDING).nonzero()

    def with_more(self, keys: Tensor) -> KeyIndex:
        """Of further keys, too."""
        return KeyIndex(self.basis, torch.cat([self.bounds, _in_basis(keys, self.basis)]))

    def take(self, rows: Tensor) -> KeyIndex:
        """Of some of the keys."""
        return KeyIndex(self.basis, self.bounds[rows])


def _in_basis(keys: Tensor, basis: Tensor) -> Tensor:
    inside = keys @ basis
    rest = (1 - inside.square().sum(dim=1, keepdim=True)).clamp(min=0).sqrt()
    return torch.cat([inside, rest], dim=1)


@dataclass(frozen=True)
class GatedResiduals:
    """Keys with thresholds, and the residuals that they stand for.

    Args:
        keys: ``(m, d_in)`` float32, each of length one.
        thresholds: ``(m,)`` cosine above which a key matches.
        owner: ``(m,)`` row of the residual that a key stands for.
        residuals: ``(n, d_out)`` float32.
        index: Of the keys, where there are many.
    """

    keys: Tensor
    thresholds: Tensor
    owner: Tensor
    residuals: Tensor
    index: KeyIndex | None = None

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

        Of the keys whose threshold it passes, that of largest cosine decides.
        """
        if not len(self.keys) or not len(entering):
            return torch.full((len(entering),), -1, device=entering.device)
        step = max(_MOST_PRODUCTS // len(self.keys), 1)
        return torch.cat([self._find(unit(part)) for part in torch.split(entering, step)])

    def _find(self, queries: Tensor) -> Tensor:
        if self.index is not None:
            return self._find_indexed(queries, self.index)
        cosines = queries @ self.keys.T
        best, nearest = cosines.where(cosines > self.thresholds, -torch.inf).max(dim=1)
        return self.owner[nearest].where(best > -torch.inf, -1)

    def _find_indexed(self, queries: Tensor, index: KeyIndex) -> Tensor:
        best = queries.new_full((len(queries),), -torch.inf)
        found = torch.full_like(best, -1, dtype=torch.long)
        for pairs in torch.split(index.candidates(queries, self.thresholds), _MOST_PAIRS):
            row, key = pairs.unbind(dim=1)
            cosines = (queries[row] * self.keys[key]).sum(dim=1)
            matching = (cosines > self.thresholds[key]).nonzero()[:, 0].tolist()
            for at in matching:  # few: a token seldom matches any key
                if cosines[at] > best[row[at]]:
                    best[row[at]], found[row[at]] = cosines[at], self.owner[key[at]]
        return found

    def with_more(self, other: GatedResiduals) -> GatedResiduals:
        """Those of ``other`` behind these."""
        keys = torch.cat([self.keys, other.keys.to(self.keys)])
        index = _index(keys) if self.index is None else self.index.with_more(other.keys.to(self.keys))
        return GatedResiduals(
            keys,
            torch.cat([self.thresholds, other.thresholds.to(self.thresholds)]),
            torch.cat([self.owner, other.owner.to(self.owner) + len(self)]),
            torch.cat([self.residuals, other.residuals.to(self.residuals)]),
            index,
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
            None if self.index is None else self.index.take(of_keys),
        )

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        held = [*self.tensors().values(), *(() if self.index is None else (self.index.basis, self.index.bounds))]
        return sum(tensor.nbytes for tensor in held)

    def tensors(self) -> dict[str, Tensor]:
        """All of it by name; the index follows from the keys."""
        return {"keys": self.keys, "thresholds": self.thresholds, "owner": self.owner, "residuals": self.residuals}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor], device: torch.device) -> GatedResiduals:
        """What ``tensors`` returned."""
        found = {name: tensor.to(device) for name, tensor in tensors.items()}
        return cls(**found, index=_index(found["keys"]))


def _index(keys: Tensor) -> KeyIndex | None:
    """An index where one pays."""
    return KeyIndex.of(keys) if len(keys) >= _INDEXED_FROM and keys.shape[1] > 2 * _INDEX_WIDTH else None


def unit(keys: Tensor) -> Tensor:
    """``keys`` ``(n, d_in)`` in float32, each divided by its length."""
    return nn.functional.normalize(keys.float(), dim=1)


class GateHook(ModuleHook):
    """Adds ``residuals`` to the hidden state behind one layer, while it is ``attached``.

    Keys are read before the MLP's output projection of ``key_layer``. Residuals are added to what the MLP of ``layer``
    gives the residual stream: behind its output projection, or behind the norm that some families have there.

    Args:
        anatomy: The model.
        key_layer: Where keys are read.
        layer: Where residuals are added; the same layer or a later one.
    """

    def __init__(self, anatomy: Anatomy, key_layer: int, layer: int) -> None:
        super().__init__(anatomy.model)
        self._anatomy, self.key_layer, self.layer = anatomy, key_layer, layer
        projection = anatomy.projection(key_layer)
        d_out, d_in = projection_shape(projection)
        self.residuals = GatedResiduals.empty(d_in, d_out, projection.get_parameter("weight").device)
        self._found: Tensor | None = None

    def _register(self) -> Sequence[Any]:
        read, changed = map(self._model.get_submodule, self._places())
        return read.register_forward_pre_hook(self._look), changed.register_forward_hook(self._add)

    def _detached(self) -> None:
        self._found = None

    def save(self, folder: Path) -> None:
        """Write ``GATE_FILE`` into the folder of a model: what is added, at which layers, and the modules there."""
        read, changed = self._places()
        layers = {"key_layer": str(self.key_layer), "layer": str(self.layer)}
        tensors = {name: tensor.cpu().contiguous() for name, tensor in self.residuals.tensors().items()}
        (folder / GATE_FILE).parent.mkdir(exist_ok=True)
        save_file(tensors, folder / GATE_FILE, metadata={**layers, "read": read, "changed": changed})

    @classmethod
    def load(cls, anatomy: Anatomy, folder: Path) -> GateHook:
        """What ``save`` wrote, not attached yet.

        Raises:
            ModelError: The file is damaged, or of another model.
        """
        try:
            with safe_open(folder / GATE_FILE, "pt") as opened:
                tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 - no mapping
                layers = opened.metadata()
            hook = cls(anatomy, int(layers["key_layer"]), int(layers["layer"]))
            hook.residuals = hook.residuals.with_more(GatedResiduals.from_tensors(tensors, anatomy.model.device))
        except (OSError, SafetensorError, KeyError, TypeError, ValueError, RuntimeError) as error:
            raise ModelError(
                f"{folder / GATE_FILE} cannot be used: {error}",
                hint="Save the edited model again; without this file the folder is the unedited model.",
            ) from error
        return hook

    def _places(self) -> tuple[str, str]:
        """The modules where keys are read and residuals are added."""
        anatomy = self._anatomy
        norm, block = anatomy.norm_after_mlp(self.layer), anatomy.layers[self.layer]
        names = [name for name, module in block.named_children() if module is norm]
        changed = f"{anatomy.layers_path}.{self.layer}.{names[0]}" if names else anatomy.projection_path(self.layer)
        return anatomy.projection_path(self.key_layer), changed

    def _look(self, _: nn.Module, args: tuple[Tensor, ...]) -> None:
        found = self.residuals.find(args[0].detach().flatten(0, -2))
        self._found = found if bool((found >= 0).any()) else None

    def _add(self, _: nn.Module, __: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
        found, self._found = self._found, None
        if found is None:
            return None
        hits = (found >= 0).nonzero()[:, 0]
        added = self.residuals.residuals[found[hits]].to(output)
        rows = output.flatten(0, -2)
        places = hits.to(rows.device)
        return rows.index_copy(0, places, rows[places] + added).view(output.shape)
