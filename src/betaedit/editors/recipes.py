"""Every closed-form method as one entry of one table.

A recipe names the terms of the one update rule (memory/rule.py) that a method switches on; the strengths come from the
configuration. The bare name of a method is what its authors' code runs. Adding a method is an entry here and its dense
formula in the tests' reference table.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from typing import Any

from betaedit.editors.config import EditConfig
from betaedit.errors import MethodError
from betaedit.memory.rule import MemoryRule, ProjectorKind


@dataclass(frozen=True, slots=True)
class Recipe:
    """A closed-form editing method as data.

    Args:
        name: What to call it on the command line.
        title: One line on its idea.
        projector: The null space it writes in; see ``MemoryRule``.
        leakage: Whether ``lambda1 C0`` is penalized.
        history: Whether earlier edits are protected.
        ridge: Whether ``lambda2 I`` is added.
        paper: Where it was published.
        equation: Its rule there.
        notes: Where paper and code differ, and what is done here.
        aliases: Other names it answers to.
    """

    name: str
    title: str
    projector: ProjectorKind
    leakage: bool
    history: bool
    ridge: bool
    paper: str
    equation: str
    notes: str = ""
    aliases: tuple[str, ...] = ()

    def rule(self, config: EditConfig) -> MemoryRule:
        """The terms of this recipe with the strengths of ``config``."""
        return MemoryRule(
            projector=self.projector,
            leakage_weight=config.leakage_weight if self.leakage else 0.0,
            ridge=config.ridge if self.ridge else 0.0,
            history=self.history,
            threshold=config.nullspace_threshold,
            refresh_every=config.refresh_every,
            refresh_rule=config.refresh_rule,
        )

    def to_dict(self) -> dict[str, Any]:
        """What ``betaedit methods --json`` prints."""
        return {
            "name": self.name,
            "title": self.title,
            "projector": self.projector,
            "leakage": self.leakage,
            "history": self.history,
            "ridge": self.ridge,
            "paper": self.paper,
            "equation": self.equation,
            "notes": self.notes,
            "aliases": list(self.aliases),
        }


_MEMIT = "Meng et al., Mass-Editing Memory in a Transformer (2023)"
_ALPHAEDIT = "Fang et al., AlphaEdit: Null-Space Constrained Knowledge Editing (2025)"
_BETAEDIT = "BetaEdit: Null-Space Constrained Sequential Model Editing"
_ALIGNMENT = "The Labyrinth and the Thread (OTE-SE alignment)"

RECIPES: tuple[Recipe, ...] = (
    Recipe(
        name="memit",
        title="ridge regression that protects the average key statistics; forgets its own edits",
        projector="none",
        leakage=True,
        history=False,
        ridge=False,
        paper=_MEMIT,
        equation="R K^T (lambda1 C0 + K K^T)^-1",
        notes="History-agnostic, as the original code runs one batch.",
        aliases=("memit-naive",),
    ),
    Recipe(
        name="memit-h",
        title="memit that also protects every earlier edit",
        projector="none",
        leakage=True,
        history=True,
        ridge=False,
        paper=_ALIGNMENT,
        equation="R K^T (lambda1 C0 + H + K K^T)^-1  (Remark A.1)",
        notes="A sequence of edits equals one edit of all facts (Proposition 3.2).",
        aliases=("memit-sequential",),
    ),
    Recipe(
        name="alphaedit",
        title="writes only where ordinary keys have almost no energy, and protects earlier edits",
        projector="fixed",
        leakage=False,
        history=True,
        ridge=True,
        paper=_ALPHAEDIT,
        equation="R K^T P ((K K^T + H) P + lambda2 I)^-1",
        notes=(
            "The official code computes the keys it remembers again after each batch. These equal the keys it solved "
            "with: a layer's keys depend on the layers below it alone, which have their final weights by then."
        ),
        aliases=("alphaedit-h",),
    ),
    Recipe(
        name="alphaedit-naive",
        title="alphaedit without a memory of earlier edits",
        projector="fixed",
        leakage=False,
        history=False,
        ridge=True,
        paper=_ALPHAEDIT,
        equation="R K^T P (K K^T P + lambda2 I)^-1",
    ),
    Recipe(
        name="betaedit",
        title="null space that follows the edits, knowledge leakage penalized, earlier edits protected",
        projector="refreshed",
        leakage=True,
        history=True,
        ridge=True,
        paper=_BETAEDIT,
        equation="R K^T P_t (lambda2 I + (K K^T + lambda1 C0 + H) P_t)^-1  (equations 8 and 9)",
        notes=(
            "Paper and code refresh the projector differently: refresh_rule=normalised is the code's (the default: it "
            "keeps the scale of C0), refresh_rule=literal the paper's."
        ),
    ),
)

_BY_NAME = {name: recipe for recipe in RECIPES for name in (recipe.name, *recipe.aliases)}


def find_recipe(name: str) -> Recipe:
    """The recipe of that name or alias.

    Raises:
        MethodError: There is none; the nearest names are suggested.
    """
    if name in _BY_NAME:
        return _BY_NAME[name]
    near = difflib.get_close_matches(name, _BY_NAME, n=2)
    hint = f"Did you mean {' or '.join(near)}?" if near else f"Methods: {', '.join(r.name for r in RECIPES)}."
    raise MethodError(f"there is no method {name!r}.", mend=hint)
