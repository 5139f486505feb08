"""Removing facts from a memory, and giving them new values: exact, because the sum of all updates is one solution.

Under a rule of the ridge form with history and a fixed projector the updates of a sequence add up to the one
least-squares solution over the facts it holds (methods.md D.1),

    (V - W_0 K) K^T U (lambda2 I + U^T (lambda1 C0 + K K^T) U)^-1 U^T        K, V: all of them, column by column

so with the key and value of every fact, columns can be removed from it (D.5 to D.7). The value of a fact is
the output **wanted** of the matrix, ``V = W k + R`` with the residual of its solve, and not the output reached: a ridge
does not reach it, and the solution contains the wanted value.

The matrix ``W`` and the values may both be taken relative to ``W_0``, as ``W - W_0`` and ``V - W_0 K``: the
formulas do not change, and lose fewer digits.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from betaedit.errors import MethodError, NumericalError
from betaedit.memory.associative import AssociativeMemory
from betaedit.memory.rule import MemoryRule
from betaedit.memory.update import Update


@dataclass(frozen=True)
class Associations:
    """Keys of facts and the outputs wanted there: ``W K -> V``, a column per key of each fact.

    Args:
        keys: (d_in, b), exactly as they were solved with and remembered.
        values: (d_out, b) wanted outputs.
    """

    keys: Float[Tensor, "d_in b"]
    values: Float[Tensor, "d_out b"]

    @classmethod
    def written(
        cls,
        weight: Float[Tensor, "d_out d_in"],
        keys: Float[Tensor, "d_in b"],
        residuals: Float[Tensor, "d_out b"],
    ) -> Associations:
        """The associations of a solve for ``keys`` and ``residuals``; ``weight`` is the matrix before its update."""
        return cls(keys, weight @ keys.to(weight) + residuals.to(weight))

    @classmethod
    def joined(cls, parts: Iterable[Associations]) -> Associations:
        """The columns of all ``parts``, in order."""
        keys, values = zip(*((part.keys, part.values) for part in parts), strict=True)
        return cls(torch.cat(keys, dim=1), torch.cat(values, dim=1))

    def __len__(self) -> int:
        return self.keys.shape[1]

    def __getitem__(self, columns: slice) -> Associations:
        """Some columns, copied, so that they do not keep the others in memory."""
        return Associations(self.keys[:, columns].clone(), self.values[:, columns].clone())

    def residuals(self, weight: Float[Tensor, "d_out d_in"]) -> Float[Tensor, "d_out b"]:
        """``V - W K``: what ``weight`` still lacks."""
        return self.values.to(weight) - weight @ self.keys.to(weight)

    def to(self, device: torch.device | str) -> Associations:
        """The same on ``device``."""
        return Associations(self.keys.to(device), self.values.to(device))


def forget(
    memory: AssociativeMemory,
    weight: Float[Tensor, "d_out d_in"],
    facts: Associations,
    *,
    amplification: float = math.inf,
) -> Update:
    """The update that removes ``facts`` from ``weight``; ``memory`` forgets their keys.

    Law: ``weight`` becomes the original with only the remaining facts written, with their keys and values:
    ``Delta = -(V_o - W K_o) K_o^T U M^-1 U^T`` with ``M`` the system of the remaining facts (methods.md D.6). Holds
    unless a refresh came after the first fact.
    Raises: MethodError without history or in the equality form, whose updates do not add up to one solution (write the
    others again: ``segments``), or when the keys were not remembered.
    Raises: NumericalError when that would multiply the rounding of ``weight`` by more than ``amplification``: few
    other facts use their directions. Write the others again (``segments``). After any failure nothing has changed.
    Cost: that of ``AssociativeMemory.forget`` and of one ``solve``.
    """
    if not _adds_up(memory.rule):
        written = "in the equality form" if memory.rule.form == "equality" else "without history"
        raise MethodError(
            f"facts written {written} cannot be removed from the sum of their updates.",
            hint="Write the other facts again, from the original weights.",
        )
    with memory.undone_by_failure():
        memory.forget(facts.keys)
        return _subtraction(memory, weight, facts, amplification)


def _subtraction(
    memory: AssociativeMemory, weight: Float[Tensor, "d_out d_in"], facts: Associations, amplification: float
) -> Update:
    """The update that removes ``facts`` from ``weight``; ``memory`` has forgotten them."""
    solved = memory.solve(facts.keys, facts.residuals(weight))
    # The solve has the keys in its system, right = U (M + P P^T)^-1 P; without them it is right (I - P^T right)^-1.
    b = len(facts)
    reach = torch.eye(b).to(solved.right) - facts.keys.to(solved.right).T @ solved.right
    unreached, info = torch.linalg.inv_ex(reach)
    if int(info) != 0 or not float(torch.linalg.matrix_norm(unreached, 1)) <= amplification:
        raise NumericalError(
            "these facts cannot be removed exactly enough.",
            hint="Write the other facts again, from the original weights.",
        )
    return Update(-solved.left, solved.right @ unreached)


def replace(
    memory: AssociativeMemory, weight: Float[Tensor, "d_out d_in"], old: Associations, new: Associations
) -> Update:
    """The update that replaces ``old`` by ``new``; ``memory`` then has the new keys instead of the old.

    This is Proposition 3.5 (equation 30) with the values that ``old`` was **written** with: the paper says resolved
    values, with which the facts overruled would cancel out of the right-hand side and never be written (methods.md
    D.5). With ``old`` all that was written so far it memorises the latest (equations 31 and 32, D.7): ``weight``
    becomes the original edited by ``new`` alone.
    Law: as for ``forget``, with ``new`` among the remaining facts. Raises and cost: as ``forget`` and a ``solve``.
    """
    memory.check_keys(new.keys)
    with memory.undone_by_failure():
        taken = forget(memory, weight, old)
        lacking = new.residuals(weight) - taken.left.to(weight) @ (taken.right.T.to(weight) @ new.keys.to(weight))
        given = memory.solve(new.keys, lacking)
        memory.remember(new.keys)
    return Update(torch.cat([taken.left, given.left], dim=1), torch.cat([taken.right, given.right], dim=1))


def segments(memory: AssociativeMemory, batches: Iterable[Associations]) -> Iterator[Associations]:
    """``batches`` joined as far as the result does not change, for a new ``memory`` that will write them again.

    Solve and remember each segment before asking for the next. In the ridge form with history the order and grouping of
    facts between two refreshes does not matter (methods.md D.2), so as many as a fold takes are solved at once; other
    batches are not joined. ``memory`` is refreshed where that is due before a batch.
    """
    waiting: list[Associations] = []
    for batch in batches:
        if waiting and (not _adds_up(memory.rule) or _is_full(memory, waiting)):
            yield Associations.joined(waiting)
            waiting = []
        if not waiting and memory.refresh_due():
            memory.refresh()
        waiting.append(batch)
    if waiting:
        yield Associations.joined(waiting)


def _adds_up(rule: MemoryRule) -> bool:
    """Whether updates add up to one solution; in the equality form a later update moves the values of earlier ones."""
    return rule.history and rule.form == "ridge"


def _is_full(memory: AssociativeMemory, waiting: Sequence[Associations]) -> bool:
    count, rule = sum(map(len, waiting)), memory.rule
    since = memory.n_written + count - memory.last_refresh
    return count >= memory.fold_after or (rule.projector == "refreshed" and since >= rule.refresh_every)
