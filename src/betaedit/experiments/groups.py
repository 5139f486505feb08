"""Facts written in groups, each group into the unedited model, and their figures pooled."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from betaedit.errors import ConfigError
from betaedit.evaluation.interval import estimate
from betaedit.experiments.figures import mean_of
from betaedit.experiments.record import (
    WORST_PROMPTS,
    Ability,
    Checkpoint,
    EditFigure,
    Groups,
    LayerState,
    Mean,
    mean_known,
)

WHOLE_MODEL = 10
"""In the first so many groups the figures of the model itself are measured: drift, abilities, latency."""


def check_group_size(reset_every: int | None, batch_size: int) -> None:
    """Refuse groups that hold no batch.

    Raises:
        ConfigError: ``reset_every`` is smaller than ``batch_size``, or than 1.
    """
    if reset_every is not None and reset_every < max(batch_size, 1):
        raise ConfigError(
            f"cannot reset the model after every {reset_every} facts in batches of {batch_size}.",
            hint=f"Reset it after {max(batch_size, 1)} or more facts.",
        )


def group_ends(total: int, size: int) -> list[int]:
    """How many facts are written when each group of ``total`` facts ends; the last group may be smaller."""
    return [*range(size, total, size), total]


def group_start(edits: int, size: int | None) -> int:
    """How many facts come before the group of fact number ``edits``; 0 without groups."""
    return 0 if size is None else max(edits - 1, 0) // size * size


def pool(groups: Sequence[Checkpoint], size: int) -> Checkpoint:
    """The figures over all facts of ``groups``, which are in order and have ``size`` facts each.

    Figures of facts are means over all records, with the interval of that many records. Drift and other figures of the
    model are means over the groups in which they were measured; the count of an ability task stays that of its items.
    There is no view of hidden states.
    """
    worst = sorted(
        (prompt for group in groups for prompt in group.worst), key=lambda p: p.margin_after - p.margin_before
    )
    return Checkpoint(
        edits=groups[-1].edits,
        efficacy=_edit_figure([group.efficacy for group in groups]),
        generality=_edit_figure([group.generality for group in groups]),
        specificity=_edit_figure([group.specificity for group in groups]),
        neighbors_kept=_over_records(group.neighbors_kept for group in groups),
        corrected=sum(group.corrected for group in groups),
        perplexity=_over_groups(group.perplexity for group in groups),
        agreement=_over_groups(group.agreement for group in groups),
        kl=_over_groups(group.kl for group in groups),
        layers=_layers([group.layers for group in groups if group.layers]),
        abilities=_abilities([group.abilities for group in groups if group.abilities]),
        measures=_measures(groups),
        worst=worst[:WORST_PROMPTS],
        seconds_editing=math.fsum(group.seconds_editing for group in groups),
        seconds_evaluating=math.fsum(group.seconds_evaluating for group in groups),
        groups=Groups(size=size, count=len(groups), drift=sum(group.perplexity is not None for group in groups)),
    )


def _over_records(means: Iterable[Mean | None]) -> Mean | None:
    """The mean over the records of all groups."""
    found = estimate([mean.mean for mean in means if mean is not None for _ in range(mean.count)])
    return None if found is None else mean_of(found)


def _over_groups(values: Iterable[float | None]) -> float | None:
    """The mean over the groups that have the figure."""
    return mean_known([value for value in values if value is not None])


def _edit_figure(figures: Sequence[EditFigure]) -> EditFigure:
    return EditFigure(
        probability=_over_records(figure.probability for figure in figures),
        argmax=_over_records(figure.argmax for figure in figures),
    )


def _layers(groups: Sequence[dict[int, LayerState]]) -> dict[int, LayerState]:
    found = {}
    for layer in groups[0] if groups else ():
        states = [group[layer] for group in groups]
        means = {name: mean_known([getattr(state, name) for state in states]) for name in LayerState.model_fields}
        found[layer] = LayerState.model_validate(means)
    return found


def _abilities(groups: Sequence[dict[str, Ability]]) -> dict[str, Ability]:
    """The mean over the groups, which were all asked the same items."""
    found = {}
    for task in groups[0] if groups else ():
        results = [group[task] for group in groups]
        n_items = results[0].accuracy.count
        accuracy = estimate([math.fsum(result.accuracy.mean for result in results) / len(results)] * n_items)
        assert accuracy is not None  # a task has items
        f1 = math.fsum(result.macro_f1 for result in results) / len(results)
        found[task] = Ability(accuracy=mean_of(accuracy), macro_f1=f1)
    return found


def _measures(groups: Sequence[Checkpoint]) -> dict[str, Mean | float]:
    """Means over records where a figure is one, else over the groups that have it."""
    found: dict[str, Mean | float] = {}
    for name in dict.fromkeys(name for group in groups for name in group.measures):
        values = [group.measures[name] for group in groups if name in group.measures]
        means = [value for value in values if isinstance(value, Mean)]
        pooled = _over_records(means) if means else _over_groups(v for v in values if not isinstance(v, Mean))
        if pooled is not None:
            found[name] = pooled
    return found
