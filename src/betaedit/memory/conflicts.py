"""Taking facts back from a memory, and giving them new values: exact, because the sum of all updates is one solution.

Under a rule of the ridge form with history and a fixed projector the updates of a sequence add up to the one
least-squares solution over the facts it holds (methods.md D.1),

    (V - W_0 K) K^T U (lambda2 I + U^T (lambda1 C0 + K K^T) U)^-1 U^T        K, V: all of them, column by column

so whoever knows the key and the value of every fact can take columns out of it (D.5 to D.7). The value of a fact is
the output **wanted** of the matrix, ``V = W k + R`` with the residual of its solve, and not the output reached: a ridge
stops short of what is wanted, and it is the wanted value that stands in the solution.

The matrix ``W`` and the values may both be taken relative to ``W_0``, as ``W - W_0`` and ``V - W_0 K``: all formulas
stay as they are, and lose fewer digits.
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
    """What facts ask of one matrix: ``W K -> V``, a column per key of each fact.

    Args:
        keys: (d_in, b), exactly as they were solved with and remembered.
        values: (d_out, b) outputs wanted.
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
        """What a solve for ``keys`` and ``residuals`` asked of ``weight``, the matrix before its update."""
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
    """The update that takes ``facts`` out of ``weight``; ``memory`` forgets their keys.

    Law: ``weight`` becomes what the facts left would have made of the original, with the keys and values they have:
    ``Delta = -(V_o - W K_o) K_o^T U M^-1 U^T`` with ``M`` the system of the facts left (methods.md D.6). Holds as long
    as no refresh came between the first fact and now.
    Raises: MethodError without history or in the equality form, whose updates are no common solution (write the others
    again: ``segments``), or when the keys were not remembered.
    Raises: NumericalError when that would multiply the rounding of ``weight`` by more than ``amplification``: the facts
    fill directions that little else holds. Write the others again (``segments``).
    Whatever is raised, nothing has changed then.
    Cost: that of ``AssociativeMemory.forget`` and of one ``solve``.
    """
    if not _adds_up(memory.rule):
        written = "in the equality form" if memory.rule.form == "equality" else "without history"
        raise MethodError(
            f"facts written {written} cannot be taken out of the sum of their updates.",
            hint="Write the other facts again, from the original weights.",
        )
    with memory.undone_by_failure():
        memory.forget(facts.keys)
        return _subtraction(memory, weight, facts, amplification)


def _subtraction(
    memory: AssociativeMemory, weight: Float[Tensor, "d_out d_in"], facts: Associations, amplification: float
) -> Update:
    """What takes ``facts`` out of ``weight``; ``memory`` has forgotten them."""
    solved = memory.solve(facts.keys, facts.residuals(weight))
    # The solve has the keys in its system, right = U (M + P P^T)^-1 P; without them it is right (I - P^T right)^-1.
    b = len(facts)
    reach = torch.eye(b).to(solved.right) - facts.keys.to(solved.right).T @ solved.right
    unreached, info = torch.linalg.inv_ex(reach)
    if int(info) != 0 or not float(torch.linalg.matrix_norm(unreached, 1)) <= amplification:
        raise NumericalError(
            "these facts cannot be taken out of the sum exactly enough.",
            hint="Write the other facts again, from the original weights.",
        )
    return Update(-solved.left, solved.right @ unreached)


def replace(
    memory: AssociativeMemory, weight: Float[Tensor, "d_out d_in"], old: Associations, new: Associations
) -> Update:
    """The update that puts ``new`` in the place of ``old``; ``memory`` holds the new keys instead of the old.

    This is Proposition 3.5 (equation 30) with the values that ``old`` was **written** with: the paper says resolved
    values, with which the facts overruled would cancel out of the right-hand side and never be written (methods.md
    D.5). With ``old`` all that was written so far it memorises the latest (equations 31 and 32, D.7): ``weight``
    becomes the original edited by ``new`` alone.
    Law: as for ``forget``, with ``new`` among the facts left. Raises and cost: those of ``forget`` and of a ``solve``.
    """
    memory.check_keys(new.keys)
    with memory.undone_by_failure():
        taken = forget(memory, weight, old)
        lacking = new.residuals(weight) - taken.left.to(weight) @ (taken.right.T.to(weight) @ new.keys.to(weight))
        given = memory.solve(new.keys, lacking)
        memory.remember(new.keys)
    return Update(torch.cat([taken.left, given.left], dim=1), torch.cat([taken.right, given.right], dim=1))


def segments(memory: AssociativeMemory, batches: Iterable[Associations]) -> Iterator[Associations]:
    """``batches`` joined as far as that leaves the result as it is, for a fresh ``memory`` that shall write them again.

    Solve and remember each segment before asking for the next. In the ridge form with history the order and grouping of
    facts between two refreshes does not matter (methods.md D.2), so as many as a fold takes are solved at once; else
    every batch stays alone. ``memory`` is refreshed where a batch finds that due.
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
    """Whether updates add up to one solution; a later one of the equality form moves the values of those before it."""
    return rule.history and rule.form == "ridge"


def _is_full(memory: AssociativeMemory, waiting: Sequence[Associations]) -> bool:
    count, rule = sum(map(len, waiting)), memory.rule
    since = memory.n_written + count - memory.last_refresh
    return count >= memory.fold_after or (rule.projector == "refreshed" and since >= rule.refresh_every)
