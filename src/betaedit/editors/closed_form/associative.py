"""What workspaces and the measurement of alignment need of an editor: facts as associations of keys and values."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

from torch import Tensor

from betaedit.editors.closed_form.live import LiveFact
from betaedit.editors.matrix import EditedMatrix
from betaedit.editors.method import EditResult
from betaedit.memory.rule import MemoryRule
from betaedit.statistics.moments import Moments


@runtime_checkable
class Associative(Protocol):
    """An editor that knows the keys and wanted values of the facts that its weights hold."""

    @property
    def matrices(self) -> Mapping[int, EditedMatrix]:
        """The edited matrices by layer."""

    @property
    def live_facts(self) -> list[LiveFact]:
        """The facts that the weights hold, in the order in which they were written."""

    @property
    def rule(self) -> MemoryRule:
        """The terms of the update."""

    @property
    def statistics(self) -> Moments:
        """``C0`` of the edited layers."""


@runtime_checkable
class Resumable(Associative, Protocol):
    """An associative editor that can be brought to any set of facts: what a workspace needs."""

    def identity(self) -> dict[str, Any]:
        """What determines, with the statistics, the weights that keys and values lead to; plain data."""

    def forget(self, results: Sequence[EditResult]) -> None:
        """See ``Forgets``."""

    def resume(self, live: Sequence[LiveFact], keys: Mapping[int, Iterable[Tensor]]) -> None:
        """Continue an earlier sequence whose weights are already in ``matrices``.

        Args:
            live: The facts that the weights hold, in the order in which they were written.
            keys: By layer, the (d_in, b) keys of each of their batches, in order.
        """

    def rewrite(self) -> None:
        """Write the live facts again, from the original weights, with the keys and values they have."""
