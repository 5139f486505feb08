"""What a ledger and a measurement of alignment need of an editor: its facts as associations of keys and values."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from torch import Tensor

from betaedit.editors.closed_form.live import LiveFact
from betaedit.editors.matrix import EditedMatrix
from betaedit.memory.rule import MemoryRule
from betaedit.statistics.moments import Moments

if TYPE_CHECKING:
    from betaedit.editors.closed_form.engine import Engine


@runtime_checkable
class Associative(Protocol):
    """An editor whose weights follow from keys and wanted values of the facts they hold."""

    @property
    def matrices(self) -> Mapping[int, EditedMatrix]:
        """The edited matrices by layer."""

    @property
    def live(self) -> list[LiveFact]:
        """The facts that the weights hold, in the order in which they were written."""

    @property
    def rule(self) -> MemoryRule:
        """The terms of the update."""

    @property
    def statistics(self) -> Moments:
        """``C0`` of the edited layers."""
