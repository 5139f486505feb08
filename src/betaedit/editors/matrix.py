"""One edited matrix: it takes updates and gives the original, the change and the current weight."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import cache
from typing import Any, TypeVar
from weakref import WeakKeyDictionary, WeakSet

import torch
from torch import Tensor, nn

from betaedit.errors import ModelError, WeightsChangedError
from betaedit.memory.update import Update
from betaedit.models.anatomy import Anatomy, is_transposed
from betaedit.models.module_hook import check_no_hook

_NARROWER = (torch.float32, torch.bfloat16, torch.float16)
"""Types to which a weight may have been cast in between."""


@dataclass
class Changes:
    """What was done to one matrix, so that doing it again gives the same weight bit for bit.

    Args:
        restarted: Whether the matrix was set back to its original first.
        updates: What was added then, in order, in the type it was added in.
    """

    restarted: bool = False
    updates: list[Update] = field(default_factory=list)


@dataclass(frozen=True, eq=False)
class Snapshot:
    """The state of an edited matrix at one time.

    Args:
        change: A copy of the change, (d_out, d_in).
        noted: ``Changes.restarted`` and ``Changes.updates`` at that time, within ``recording``.
    """

    change: Tensor
    noted: tuple[bool, list[Update]] | None = None


@dataclass(frozen=True, eq=False)
class _WeightState:
    """Cheap state by which a change of a weight is noticed.

    Args:
        weight: The tensor itself.
        state: Address, layout and version counter of its data.
        sample: The bytes of one entry of each row and column: the version counter misses writes through ``.data``, and
            freed memory is used again.
    """

    weight: Tensor
    state: tuple[object, ...]
    sample: Tensor

    @classmethod
    def of(cls, weight: Tensor) -> _WeightState:
        """As it is now."""
        return cls(weight, weight_state(weight), _sample(weight))

    def matches(self, weight: Tensor) -> bool:
        """Whether ``weight`` is the same tensor, not written to since."""
        return (
            weight is self.weight and weight_state(weight) == self.state and torch.equal(_sample(weight), self.sample)
        )


def _sample(weight: Tensor) -> Tensor:
    return weight.detach()[_places(*weight.shape, weight.device)].view(torch.uint8)


@cache
def _places(rows: int, columns: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """A wrapped diagonal that passes every row and column."""
    at = torch.arange(max(rows, columns), device=device)
    return at % rows, at % columns


def weight_state(weight: Tensor) -> tuple[object, ...]:
    """Address, version counter, type, device and layout of its data; differs after a change."""
    version = None if weight.is_inference() else weight._version
    return weight.data_ptr(), version, weight.dtype, weight.device, weight.shape, weight.stride()


class EditedMatrix:
    """The weight of an MLP output projection, transposed or not: the original and a change.

    The sum of all updates is kept beside the original, in float32 unless the model is in float64; the model's weight is
    the rounded sum of both. Added to the weight itself, thousands of small updates would be rounded away in bfloat16,
    and in float32 would leave too much rounding to remove facts exactly.

    Each change first checks that the model's weight is the one written last (``check``), and raises
    ``WeightsChangedError`` if it is not.

    Bytes: ``4 d_in d_out`` for the change, and a copy of the original.

    Args:
        module: The projection, whose weight is changed in place, or a module that contains it.
        path: Path of the projection in ``module``.
    """

    def __init__(self, module: nn.Module, path: str = "") -> None:
        self._module, self._path = module, path
        self._projection = module.get_submodule(path)
        weight = self._projection.get_parameter("weight")
        self._transposed = is_transposed(self._projection)
        self._original = weight.detach().clone()
        exact = torch.float64 if weight.dtype == torch.float64 else torch.float32
        self._change = torch.zeros_like(self._original, dtype=exact)
        self._changes: Changes | None = None
        self._state = _WeightState.of(weight)
        _matrices.setdefault(self._projection, WeakSet()).add(self)

    def __setstate__(self, state: dict[str, Any]) -> None:
        """A copy or an unpickled matrix belongs to another module."""
        self.__dict__.update(state)
        _matrices.setdefault(self._projection, WeakSet()).add(self)

    @property
    def path(self) -> str:
        """The projection's place in what it is part of."""
        return self._path

    @property
    def shape(self) -> tuple[int, int]:
        """(d_out, d_in)."""
        d_out, d_in = self._oriented(self._change).shape
        return d_out, d_in

    @property
    def nbytes(self) -> int:
        """Bytes of the original and the change, both beside the model's weight."""
        return self._original.nbytes + self._change.nbytes

    @property
    def device(self) -> torch.device:
        """Device of the change: that of the weight when this object was made."""
        return self._change.device

    def check(self, *, or_original: bool = False) -> Tensor:
        """The model's weight, checked to hold what was written last; microseconds if nothing touched it.

        A weight that is another tensor, of another type, or was written to, is compared entry by entry. It is accepted
        if it holds what was written, also rounded to a type that the model has or had, or with ``or_original`` the
        original. Not noticed: changes through ``.data`` that miss the entries sampled, one in each row and column.

        Raises:
            WeightsChangedError: It holds something else, or its module is no longer the model's.
        """
        weight = self._current_weight()
        if not self._state.matches(weight):
            known = _holds(weight, self._original + self._change) or (or_original and _holds(weight, self._original))
            if not known:
                raise WeightsChangedError(
                    f"{self._name} was changed since the last edit: by training, load_state_dict, another editor or "
                    "other code.",
                    hint="Restore the weight of the last edit, or the original weight and call reset(), or make "
                    "a new Editor for the present model.",
                )
            self._state = _WeightState.of(weight)
        return weight

    @property
    def is_edited(self) -> bool:
        """Whether something was added."""
        return bool(self._change.any())

    def is_in_place(self) -> bool:
        """Whether the model's weight holds what was written last, on any device."""
        try:
            self.check()
        except WeightsChangedError:
            return False
        return True

    @torch.no_grad()
    def add(self, update: Update) -> None:
        """``W <- W + left right^T``."""
        self.check()
        # Always row-major: the same sums when the factors are read back from a file.
        left, right = (factor.to(self._change).contiguous() for factor in (update.left, update.right))
        if self._changes is not None:
            self._changes.updates.append(Update(left, right))
        if self._transposed:
            left, right = right, left
        self._change.addmm_(left, right.T)
        self._write_weight()

    @torch.no_grad()
    def add_dense(self, change: Tensor) -> None:
        """``W <- W + change`` for a full (d_out, d_in) matrix."""
        self.check()
        self._change.add_(self._oriented(change).to(self._change))
        self._write_weight()

    def current(self) -> Tensor:
        """``W_t`` (d_out, d_in) before it is rounded to the model's type, on its device."""
        return self._oriented(self._original + self._change)

    def change(self) -> Tensor:
        """``W_t - W_0`` (d_out, d_in), float32 or float64, on its device: the tensor to which updates are added."""
        return self._oriented(self._change)

    def original(self) -> Tensor:
        """``W_0`` (d_out, d_in) in the type of the change."""
        return self._oriented(self._original.to(self._change))

    def snapshot(self) -> Snapshot:
        """The present state, for ``restore``."""
        noted = self._changes
        return Snapshot(self.change().clone(), None if noted is None else (noted.restarted, list(noted.updates)))

    @torch.no_grad()
    def restore(self, snapshot: Snapshot | None = None) -> None:
        """Back to ``snapshot``, bit for bit; to the original weight without one, wherever the model was moved.

        What ``recording`` noted since the snapshot is removed from its notes.
        """
        if snapshot is not None:
            self.check()
            self._change.copy_(self._oriented(snapshot.change))
            self._write_weight()
            if self._changes is not None and snapshot.noted is not None:
                self._changes.restarted, self._changes.updates[:] = snapshot.noted
            return
        self.check(or_original=True)
        if self._changes is not None:
            self._changes.restarted = True
            self._changes.updates.clear()
        self._change.zero_()
        self._copy_into_weight(self._original)

    def _write_weight(self) -> None:
        """Write the sum into the model's weight."""
        self._copy_into_weight(self._original + self._change)

    def _copy_into_weight(self, stored: Tensor) -> None:
        """Copy ``stored`` into the model's weight, the one checked last."""
        self._state.weight.copy_(stored)
        self._state = _WeightState.of(self._state.weight)

    def _current_weight(self) -> nn.Parameter:
        """The parameter that the model has now."""
        try:
            projection = self._module.get_submodule(self._path)
        except AttributeError:
            projection = None
        weight = self._projection._parameters.get("weight")
        if projection is not self._projection or weight is None:
            raise WeightsChangedError(
                f"{self._name} no longer belongs to the model: its module was replaced or wrapped.",
                hint="Restore the module, or make a new Editor for the present model.",
            )
        return weight

    @property
    def _name(self) -> str:
        return f"{self._path}.weight" if self._path else "the weight"

    def _oriented(self, stored: Tensor) -> Tensor:
        return stored.T if self._transposed else stored


def held_bytes(matrices: Mapping[Any, EditedMatrix]) -> dict[str, int]:
    """Bytes of ``matrices``, for ``MemoryUse.editing``."""
    return {"originals and changes of the edited matrices": sum(matrix.nbytes for matrix in matrices.values())}


_matrices: WeakKeyDictionary[nn.Module, WeakSet[EditedMatrix]] = WeakKeyDictionary()
"""All living matrices, by their projections."""


def _holds(weight: Tensor, written: Tensor) -> bool:
    """Whether ``weight`` is ``written``, rounded to its type or through a narrower one."""
    if weight.is_meta or weight.shape != written.shape:
        return False
    found = weight.detach().to(written.device)
    return any(torch.equal(found, written.to(kind).to(found.dtype)) for kind in (written.dtype, *_NARROWER))


def edited_matrices(anatomy: Anatomy, layers: Iterable[int]) -> dict[int, EditedMatrix]:
    """The matrices of some layers, to be edited."""
    return {layer: EditedMatrix(anatomy.model, anatomy.projection_path(layer)) for layer in layers}


def check_unedited(anatomy: Anatomy, layers: Iterable[int]) -> None:
    """``check_modules_unedited`` for the MLP output projections of some layers.

    Raises:
        ModelError: As there, or the model answers with another editor's codebook, side memory or gated memory.
    """
    check_no_hook(anatomy.model)
    check_modules_unedited(anatomy.projection(layer) for layer in layers)


def check_modules_unedited(modules: Iterable[nn.Module]) -> None:
    """Refuse modules that hold the edits of another editor: they would be taken for the original weights.

    An editor whose matrices were changed by other code cannot continue, so it does not block another editor.

    Raises:
        ModelError: These modules hold edits of a living editor, workspace or replica.
    """
    by_module = [[matrix for matrix in _matrices.get(module, ()) if matrix.is_edited] for module in modules]
    held = [any(matrix.is_in_place() for matrix in edited) for edited in by_module if edited]
    if held and all(held):
        raise ModelError(
            "the model holds the edits of another editor or workspace in the layers to be edited.",
            hint="Use the first editor, call its reset(), or load the model again.",
        )


@contextmanager
def undone_by_failure(matrices: Mapping[_Key, EditedMatrix]) -> Iterator[None]:
    """A context that begins with ``check`` of ``matrices`` and puts them back, bit for bit, if it ends by an exception.

    Raises:
        WeightsChangedError: One of them does not hold what was written last.
    """
    for matrix in matrices.values():
        matrix.check()
    before = {key: matrix.snapshot() for key, matrix in matrices.items()}
    try:
        yield
    except BaseException:
        for key, matrix in matrices.items():
            matrix.restore(before[key])
        raise


@contextmanager
def recording(matrices: Mapping[int, EditedMatrix]) -> Iterator[dict[int, Changes]]:
    """A context that notes what is done to ``matrices``, by layer."""
    noted: dict[int, Changes] = {layer: Changes() for layer in matrices}
    with ExitStack() as stop:
        for layer, matrix in matrices.items():
            stop.callback(setattr, matrix, "_changes", None)
            matrix._changes = noted[layer]
        yield noted


_Key = TypeVar("_Key")


@contextmanager
def set_aside(matrices: Mapping[_Key, EditedMatrix]) -> Iterator[None]:
    """A context in which ``matrices`` have their original weights."""
    kept = {layer: matrix.snapshot() for layer, matrix in matrices.items()}
    try:
        for matrix in matrices.values():
            matrix.restore()
        yield
    finally:
        for layer, matrix in matrices.items():
            matrix.restore(kept[layer])
