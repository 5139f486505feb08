"""Runs recorded decoder layers of one model: by its modules, or by a faster form that agrees with them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import partial
from typing import get_args

import torch
from torch import Tensor, nn

from betaedit.compiled.library import NoKernelsError
from betaedit.errors import ConfigError
from betaedit.models.anatomy import Anatomy
from betaedit.models.grid import PaddedGrid
from betaedit.models.replay import LayerCall, hooks, run_layers
from betaedit.models.runners import RunnerName
from betaedit.models.runners.fused import FusedLayer, FusedLayers, Positions, read_layer
from betaedit.models.runners.kernel_layers import KernelLayers
from betaedit.models.runners.kernels import find_kernels
from betaedit.models.runners.linear import few_row_linears
from betaedit.models.runners.trust import Trust, is_plain_layer


class LayerRunner:
    """Runs layers of one model with recorded arguments, and its head.

    The backend limits what is used. ``modules``: only the model's own modules. ``fused``: layers of the Llama kind in
    few operations of torch; few-row linear products of other layers as ``W x^T`` in float32 on a CPU. ``kernels``:
    these layers and products in compiled C, on a CPU. ``auto``: ``kernels`` where they can be used, else ``fused``.
    If one of the layers that run together cannot be computed so, or gives something else than its module does
    (trust.py), all of them run by their modules.

    Args:
        anatomy: The model; its weights are frozen while layers run.
        backend: ``auto``, ``modules``, ``fused`` or ``kernels``.

    Raises:
        ConfigError: There is no such backend, or the kernels cannot be used for this model on this machine.
    """

    def __init__(self, anatomy: Anatomy, backend: RunnerName = "auto") -> None:
        if backend not in get_args(RunnerName):
            raise ConfigError(
                f"there is no runner {backend!r}.", hint=f"Choose from {', '.join(get_args(RunnerName))}."
            )
        if backend == "kernels" and (reason := _why_no_kernels(anatomy)) is not None:
            raise ConfigError(
                f"the compiled kernels cannot run this model: {reason}.",
                hint="Choose runner auto, fused or modules; `betaedit env` shows whether there are kernels.",
            )
        self.backend: RunnerName = backend
        self._anatomy = anatomy
        self._use_kernels = backend in ("auto", "kernels")
        self._trust = Trust()

    def bind(self, calls: dict[int, LayerCall], hidden: Tensor, layers: range) -> Callable[[Tensor], Tensor]:
        """``run`` as a function of the hidden states, with a gradient for them alone.

        On padding only attention is computed; states there mean nothing.

        Args:
            calls: The layers' other arguments, those of a pack.
            hidden: ``(g, width, d)`` states entering the first layer, to try it with.
            layers: Which.
        """
        read = self._read(calls, hidden, layers)
        if read is None:
            return lambda hidden: self._by_modules(calls, hidden, layers)
        fused, grid = read
        kernels = self._kernel_layers(fused, grid, calls, hidden) if torch.is_grad_enabled() else None
        return FusedLayers(fused if kernels is None else [kernels], grid)

    def run(self, calls: dict[int, LayerCall], hidden: Tensor, first: int, last: int) -> Tensor:
        """``(g, width, d)`` states after layers ``first`` to ``last`` (both included), as ``run_layers`` gives them."""
        return self.bind(calls, hidden, range(first, last + 1))(hidden)

    @torch.no_grad()
    def pass_projection(
        self, calls: dict[int, LayerCall], hidden: Tensor, layer: int, pause: Callable[[Tensor], None]
    ) -> Tensor:
        """``(g, width, d)`` states after one layer, in which its MLP's output projection may be changed on the way.

        ``pause`` is given what enters the projection, ``(g, width, d_in)``; the states after the layer are those under
        the weight that it leaves.
        """
        read = self._read(calls, hidden, range(layer, layer + 1))
        if read is None:
            shape = *hidden.shape[:2], -1  # some families lay all positions in one row (OPT)
            projection = self._anatomy.projection(layer)
            handle = projection.register_forward_pre_hook(lambda _, args: pause(args[0].view(shape)))
            with hooks([handle]):
                return run_layers(self._anatomy, calls, hidden, layer, layer)
        (plain,), grid = read
        mlp = replace(plain.mlp, before_down=lambda entering: pause(grid.scatter(entering)))
        return FusedLayers([replace(plain, mlp=mlp)], grid)(hidden)

    def logits(self, hidden: Tensor) -> Tensor:
        """Logits ``(n, vocabulary)`` of the last layer's output ``(n, d)``, with a gradient for it."""
        with self._few_row_linears([self._anatomy.head]):
            return self._anatomy.logits(hidden)

    def _by_modules(self, calls: dict[int, LayerCall], hidden: Tensor, layers: range) -> Tensor:
        with self._few_row_linears([self._anatomy.layers[layer] for layer in layers]):
            return run_layers(self._anatomy, calls, hidden, layers.start, layers.stop - 1)

    def _few_row_linears(self, modules: Sequence[nn.Module]) -> AbstractContextManager[None]:
        return nullcontext() if self.backend == "modules" else few_row_linears(modules, use_kernels=self._use_kernels)

    def _read(
        self, calls: dict[int, LayerCall], hidden: Tensor, layers: range
    ) -> tuple[list[FusedLayer], PaddedGrid] | None:
        """The layers as a fused form; ``None`` if one of them has to run by its module."""
        modules = [self._anatomy.layers[index] for index in layers]
        if self.backend == "modules" or not modules or not all(is_plain_layer(each, hidden) for each in modules):
            return None
        grid = (calls[layers.start].grid or PaddedGrid.full(hidden)).to(hidden.device)
        shared: dict[tuple[int, ...], Positions] = {}
        fused: list[FusedLayer] = []
        for index, module in zip(layers, modules, strict=True):
            layer = read_layer(module, calls[index], index, grid, shared, use_kernels=self._use_kernels)
            if layer is None or not self._trust.holds(
                "fused", module, calls[index], hidden, partial(FusedLayers, [layer.without_recorder()], grid)
            ):
                return None
            fused.append(layer)
        return fused, grid

    def _kernel_layers(
        self, fused: list[FusedLayer], grid: PaddedGrid, calls: dict[int, LayerCall], hidden: Tensor
    ) -> KernelLayers | None:
        """The layers by the kernels; ``None`` if the kernels cannot compute one of them as its module does."""
        kernels = KernelLayers.of(fused) if self._use_kernels else None

        def form(layer: FusedLayer) -> FusedLayers:
            alone = KernelLayers.of([layer])
            assert alone is not None, "one of several that the kernels take"
            return FusedLayers([alone], grid)

        def agrees(layer: FusedLayer) -> bool:
            index = layer.attention.index
            module = self._anatomy.layers[index]
            return self._trust.holds("kernels", module, calls[index], hidden, partial(form, layer))

        return kernels if kernels is not None and all(map(agrees, fused)) else None


def _why_no_kernels(anatomy: Anatomy) -> str | None:
    """Why the kernels cannot compute products with the weights of a model; ``None`` if they can."""
    weight = next(anatomy.layers[0].parameters())
    if weight.device.type != "cpu":
        return f"its weights are on {weight.device.type}"
    kernels = find_kernels()
    if isinstance(kernels, NoKernelsError):
        return str(kernels)
    if kernels.most_rows.get(weight.dtype, 0) == 0:
        return f"they do not compute in {weight.dtype} on this processor, or torch is quicker there"
    return None
