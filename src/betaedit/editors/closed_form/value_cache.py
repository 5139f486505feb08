"""Values found under the unedited weights of a model, shared by editors whose searches would be the same."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from betaedit.editors.closed_form.config import EditConfig
from betaedit.editors.closed_form.values import Value
from betaedit.facts.fact import Fact

NOT_IN_SEARCH = {
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
    "sphere_share",
    "sphere_strength",
    "update_norm_limit",
    "conflicts",
    "statistics_corpus",
    "statistics_tokens",
    "statistics_skip_first_token",
}
"""Hyper-parameters on which a value search does not depend. Searches that differ in any other one are not shared."""


class ValueCache:
    """Values found under the unedited weights of one model, shared by several editors of that model.

    An editor uses the cache for the facts that it writes first: one batch, or ``value_look_ahead`` batches. It searches
    the values of later facts under its own edited weights, so they are not shared.
    """

    def __init__(self) -> None:
        self._found: dict[tuple[tuple[Fact, ...], tuple[str, ...], str], list[Value]] = {}

    def get_or_search(
        self, facts: Sequence[Fact], contexts: tuple[str, ...], config: EditConfig, search: Callable[[], list[Value]]
    ) -> list[Value]:
        """The values of ``facts``: from an equal earlier search, or from ``search``, which is then called and kept."""
        key = tuple(facts), contexts, config.model_dump_json(exclude=NOT_IN_SEARCH)
        if key not in self._found:
            self._found[key] = search()
        return self._found[key]
