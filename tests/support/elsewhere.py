"""A second device without hardware: its tensors lie in the CPU's memory, but mix with the CPU's only as a GPU's do.

What forgets ``device=``, or hands a tensor of one device to an operation on another, fails here as it would on a GPU.
A model must have its type before it is moved: ``.data = ...``, by which torch converts it, leaves ``inner`` as it was.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any
from unittest.mock import patch

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.backend_registration import _DummyBackendModule, _setup_privateuseone_for_python_backend

NAME = "elsewhere"
_aten = torch.ops.aten
_COPYING = {_aten.copy_, _aten._to_copy}
_INDEXING = {_aten.index, _aten.index_put, _aten.index_put_, _aten._index_put_impl_}
"""A GPU takes the CPU's indices for its own tensors."""
_WAITING = {_aten._local_scalar_dense, _aten.nonzero}
"""A GPU must be done before these have a result."""
_PLAIN_ATTENTION = 0
_crossings: list[str] = []


class ElsewhereTensor(torch.Tensor):
    """A tensor that says it lies elsewhere, around one of the CPU."""

    inner: torch.Tensor

    @staticmethod
    def __new__(cls, inner: torch.Tensor) -> ElsewhereTensor:
        self = torch.Tensor._make_wrapper_subclass(
            cls,
            inner.size(),
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            device=torch.device(NAME, 0),
        )
        self.inner = inner
        return self

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})

    def __repr__(self, **_: Any) -> str:
        return f"ElsewhereTensor({self.inner!r})"


class _Operations(TorchDispatchMode):
    """Makes new tensors elsewhere when that is asked for."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


class _Numbers(TorchFunctionMode):
    """What torch hides from the other mode: making tensors of numbers, and numbers of tensors."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func in (torch.tensor, torch.as_tensor) and "device" in kwargs:
            device = kwargs.pop("device")
            return func(*args, **kwargs).to(device)
        if func is torch.Tensor.numpy and isinstance(args[0], ElsewhereTensor):
            raise TypeError(f"can't convert {args[0].device} tensor to numpy")
        if func is torch.Tensor.tolist and isinstance(args[0], ElsewhereTensor):
            return func(args[0].cpu())
        if func in (torch.Tensor.__getitem__, torch.Tensor.__setitem__):
            args = (args[0], _with_tensors(args[1]), *args[2:])
        return func(*args, **kwargs)


def _with_tensors(index: Any) -> Any:
    """An index with its lists made tensors of the CPU."""
    if isinstance(index, tuple):
        return tuple(map(_with_tensors, index))
    return torch.tensor(index) if isinstance(index, list) else index


class _Module(_DummyBackendModule):
    """What ``torch.elsewhere`` offers; random numbers are the CPU's."""

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16]

    def get_rng_state(self, _: object = None) -> torch.Tensor:
        return torch.random.default_generator.get_state()

    def set_rng_state(self, state: torch.Tensor, _: object = None) -> None:
        pass


def _run(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """The operation on the CPU, its results elsewhere if that is asked for or its arguments are."""
    packet, leaves = func.overloadpacket, tree_leaves((args, kwargs))
    there = [value for value in leaves if isinstance(value, ElsewhereTensor)]
    asked = None if kwargs.get("device") is None else torch.device(kwargs["device"]).type == NAME
    if there:
        _check_mixing(func, leaves)
    if _crosses(packet, leaves, asked):
        _crossings.append(str(func))
    if there and packet is _aten._fused_sdp_choice:
        return _PLAIN_ATTENTION
    plain_args, plain_kwargs = tree_map_only(ElsewhereTensor, lambda value: value.inner, (args, kwargs))
    if asked:
        plain_kwargs["device"] = torch.device("cpu")
    found = func(*plain_args, **plain_kwargs)
    if packet is _aten._to_copy and asked is not None and found is plain_args[0]:
        found = found.clone()
    if not (bool(there) if asked is None else asked):
        return found
    wrapped = tree_map_only(torch.Tensor, ElsewhereTensor, found)
    return return_and_correct_aliasing(func, args, kwargs, wrapped) if there else wrapped


def _crosses(packet: Any, leaves: list[Any], asked: bool | None) -> bool:
    """Whether numbers go from one device to the other."""
    sides = {isinstance(value, ElsewhereTensor) for value in leaves if isinstance(value, torch.Tensor)}
    if packet in _COPYING:
        return len(sides | ({asked} if asked is not None else set())) > 1
    return packet in _WAITING and True in sides


def _check_mixing(func: Any, leaves: list[Any]) -> None:
    tensors = [value for value in leaves if isinstance(value, torch.Tensor)]
    here = [value for value in tensors if not isinstance(value, ElsewhereTensor) and value.dim() > 0]
    packet = func.overloadpacket
    taken = packet in _COPYING or (packet in _INDEXING and isinstance(leaves[0], ElsewhereTensor))
    if here and not taken:
        raise RuntimeError(f"{func}: expected all tensors to be on one device, but found cpu and {NAME}")


@contextmanager
def crossings() -> Iterator[list[str]]:
    """A context, and the operations within it for which a GPU is waited for or fed: their names."""
    _crossings.clear()
    yield _crossings


@cache
def _register() -> None:
    _setup_privateuseone_for_python_backend(NAME, _Module())


@contextmanager
def elsewhere() -> Iterator[str]:
    """A context in which there is another device, whose name it gives."""
    _register()
    # Gradients by threads of the device's own would need it to be there since the first one of the process.
    # Inference mode hides conversions from both modes, and leaves tensors that cannot be wrapped.
    no_gradients = patch.object(torch._C, "_InferenceMode", lambda on: torch.set_grad_enabled(not on))
    with torch.autograd.set_multithreading_enabled(False), no_gradients, _Operations(), _Numbers():
        yield NAME
