"""Values that several editors of one unedited model would find alike, sought once."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from betaedit.editors.config import EditConfig
from betaedit.editors.values import Value
from betaedit.facts.fact import Fact

AFTERWARDS = {
    "retries",
    "keep_missed",
    "value_look_ahead",
    "leakage_weight",
    "ridge",
    "frobenius_ridge",
    "nullspace_threshold",
    "refresh_every",
    "refresh_rule",
    "solver_basis",
    "equality_slack",
    "rect_fraction",
    "prune_base",
    "simie_ridge",
    "adaedit_fraction",
    "update_norm_limit",
    "conflicts",
    "statistics_corpus",
    "statistics_tokens",
    "statistics_skip_first_token",
}
"""Hyper-parameters that no search for a value looks at; whatever else differs makes it another search."""


class KnownValues:
    """The values found under one model's unedited weights, for editors of that model to share.

    An editor looks here for the facts that it writes first: one batch, or ``value_look_ahead`` of them. Later ones are
    sought under weights that are its own.
    """

    def __init__(self) -> None:
        self._found: dict[tuple[tuple[Fact, ...], tuple[str, ...], str], list[Value]] = {}

    def of(
        self, facts: Sequence[Fact], contexts: tuple[str, ...], config: EditConfig, search: Callable[[], list[Value]]
    ) -> list[Value]:
        """The values of ``facts``: those of an earlier search for them in all that it depends on, or of ``search``."""
        asked = tuple(facts), contexts, config.model_dump_json(exclude=AFTERWARDS)
        if asked not in self._found:
            self._found[asked] = search()
        return self._found[asked]
