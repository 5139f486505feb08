"""Layers of the Llama kind (fused.py) by the kernels: one call for all of them, and one for their gradient."""

from __future__ import annotations

import ctypes
import itertools
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from betaedit.models.prefix_cache import PrefixCache
from betaedit.models.runners.fused import Backward, FusedLayer, Norm
from betaedit.models.runners.kernels import Kernels, MatricesStruct
from betaedit.models.runners.linear import Linears

_POINTER, _SIZE, _FLOAT = ctypes.c_void_p, ctypes.c_int64, ctypes.c_float
_KEPT = ("x", "raw", "rows", "shares", "middle", "gates")
_ROOM = ("narrow", "other", "mixed", "wide", "wider", "slopes", "scores", "partial")
_FLOAT_BYTES = 4


class _Norm(ctypes.Structure):
    _fields_ = (("w", _POINTER), ("epsilon", _FLOAT))


class _Shape(ctypes.Structure):
    _fields_ = (
        *((name, _POINTER) for name in ("row", "entry", "place")),
        *((name, _SIZE) for name in ("n", "d", "h", "kv", "dim", "m", "width")),
    )


class _Layer(ctypes.Structure):
    _fields_ = (
        *((name, _Norm) for name in ("first", "second", "query", "key")),
        *((name, MatricesStruct) for name in ("entering", "leaving", "both", "down")),
        *((name, _POINTER) for name in ("prior_keys", "prior_values", "cosines", "sines", "mask")),
        ("prior", _SIZE),
        ("scaling", _FLOAT),
        *((name, _POINTER) for name in _KEPT),
    )


class _Run(ctypes.Structure):
    _fields_ = (
        ("shape", _POINTER),
        ("layers", _POINTER),
        ("count", _SIZE),
        *((name, _POINTER) for name in ("y", *_ROOM)),
        ("meeting", ctypes.c_int * 2),
    )


class KernelLayers:
    """All layers of a run as one part: rows ``(n, d)`` after them, and their backward function.

    Args:
        kernels: That take all their weights.
        layers: Layers of one size, after a prefix.
    """

    def __init__(self, kernels: Kernels, layers: Sequence[FusedLayer]) -> None:
        self._kernels = kernels
        self._held: list[object] = [*layers]
        """The memory to which the structs point."""
        d, h, kv, dim, m = _sizes(layers[0])
        positions = layers[0].attention.positions
        self._dtype = layers[0].first_norm.weight.dtype
        row, entry = positions.grid.index
        place = torch.full(positions.grid.shape, -1, dtype=torch.int64, device="cpu")
        place[row, entry] = torch.arange(len(row), device="cpu")
        n, width = len(row), positions.grid.shape[1]
        self._shape = _Shape(*map(self._at, (row, entry, place)), n, d, h, kv, dim, m, width)
        self._layers = (_Layer * len(layers))(*map(self._layer, layers))
        heads = n * (h + 2 * kv) * dim
        self._kept = [(n * d, heads, heads, n * h * (layer.prior + width), n * d, 2 * n * m) for layer in self._layers]
        scores = max(shares for _, _, _, shares, _, _ in self._kept)
        self._room = n * d, n * d, n * h * dim, n * m, 2 * n * m, heads, scores
        self._most = n * max(d, h * dim, m)

    @classmethod
    def of(cls, layers: Sequence[FusedLayer]) -> KernelLayers | None:
        """For layers whose weights the kernels accept, at few positions after a prefix; otherwise ``None``."""
        n = len(layers[0].attention.positions.grid.index[0])
        kinds = {tuple((each.sizes, each.weights[0].dtype) for each in _linears(layer)) for layer in layers}
        compiled = [each.compiled_at(n) for layer in layers for each in _linears(layer)]
        after_prefix = all(isinstance(each.attention.cache, PrefixCache) for each in layers)
        if compiled[0] is None or None in compiled or not after_prefix or len(kinds) > 1:
            return None
        return cls(compiled[0][0], layers)

    def __call__(self, x: Tensor) -> tuple[Tensor, Backward]:
        """Rows ``(n, d)`` after the layers, and their backward function.

        Raises:
            ValueError: There are more or fewer rows than positions, or they are not of the weights' type.
        """
        shape = self._shape.n, self._shape.d
        if x.shape != shape or x.dtype != self._dtype or x.device.type != "cpu":
            raise ValueError(f"layers of {shape} {self._dtype} states on the CPU are given {tuple(x.shape)} {x.dtype}")
        y = _floats(*shape)
        kept = _floats(sum(map(sum, self._kept)))
        kept[: x.numel()] = x.flatten()  # the first layer's
        layers = type(self._layers).from_buffer_copy(self._layers)
        addresses = _addresses(kept, [size for sizes in self._kept for size in sizes])
        for layer in layers:
            for name in _KEPT:
                setattr(layer, name, next(addresses))
            if layer.query.w is None:  # without norms heads are rotated in place
                layer.rows = layer.raw
        self._run("forward", layers, y)

        def backward(gradient: Tensor, kept: Tensor = kept) -> Tensor:  # kept: what the structs point to
            slope = _floats(*shape).copy_(gradient)
            self._run("backward", layers, slope)
            return slope.to(self._dtype)

        return y.to(self._dtype), backward

    def _run(self, name: str, layers: ctypes.Array[_Layer], y: Tensor) -> None:
        threads = torch.get_num_threads()
        sizes = *self._room, self._most * (threads - 1)
        room = _floats(sum(sizes))
        run = _Run(ctypes.addressof(self._shape), ctypes.addressof(layers), len(layers), y.data_ptr())
        for field, address in zip(_ROOM, _addresses(room, sizes), strict=True):
            setattr(run, field, address)
        self._kernels.call(name, run, threads)

    def _layer(self, layer: FusedLayer) -> _Layer:
        attention, cache = layer.attention, layer.attention.cache
        assert isinstance(cache, PrefixCache)
        prior = cache.held[attention.index]
        positions = attention.positions
        head_norms = [self._norm(norm) for norm in attention.norms] or [_Norm(), _Norm()]
        return _Layer(
            self._norm(layer.first_norm),
            self._norm(layer.second_norm),
            *head_norms,
            *map(_matrices, _linears(layer)),
            *map(self._at, (*prior, positions.cosines, positions.sines, positions.mask)),
            prior[0].shape[2],
            attention.scaling,
        )

    def _norm(self, norm: Norm) -> _Norm:
        return _Norm(self._at(norm.weight), float(norm.epsilon))

    def _at(self, tensor: Tensor) -> int:
        """The address of the tensor (indices or floats), which is kept alive."""
        tensor = (tensor.float() if tensor.is_floating_point() else tensor.long()).detach().contiguous()
        self._held.append(tensor)
        return tensor.data_ptr()


def _linears(layer: FusedLayer) -> tuple[Linears, ...]:
    return layer.attention.entering, layer.attention.leaving, layer.mlp.entering, layer.mlp.leaving


def _matrices(linears: Linears) -> MatricesStruct:
    assert linears.compiled is not None
    return linears.compiled[1].struct


def _sizes(layer: FusedLayer) -> tuple[int, int, int, int, int]:
    """``d``, heads, heads of keys, their width, and that of the MLP."""
    dim = layer.attention.head_dim
    h, kv = (size // dim for size in layer.attention.entering.sizes[:2])
    return layer.mlp.leaving.sizes[0], h, kv, dim, layer.mlp.entering.sizes[0]


def _floats(*shape: int) -> Tensor:
    """A buffer of floats, independent of torch's defaults."""
    return torch.empty(shape, dtype=torch.float32, device="cpu")


def _addresses(room: Tensor, sizes: Sequence[int]) -> Iterator[int]:
    """The addresses in ``room`` of consecutive arrays of those numbers of floats."""
    return itertools.accumulate((_FLOAT_BYTES * size for size in sizes[:-1]), initial=room.data_ptr())
