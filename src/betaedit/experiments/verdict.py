"""Verdict on an edited model, by the limits that the report shows."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from math import inf, isfinite, isnan
from typing import Any, Literal

from betaedit.experiments.record import Checkpoint, EditFigure

Level = Literal["unedited", "safe", "watch", "collapsed"]
_SEVERITY: tuple[Level, ...] = ("safe", "watch", "collapsed")
_LONGEST_PERCENTAGE = 10.0


@dataclass(frozen=True)
class Limit:
    """A figure of damage with its limits.

    Args:
        name: Name of the figure.
        damage: The figure from the unedited checkpoint (if there is one) and a later one; more is worse, ``None``
            if unknown.
        watch: From this value on the model shows damage.
        collapsed: From this value on the model has collapsed.
    """

    name: str
    damage: Callable[[Checkpoint | None, Checkpoint], float | None]
    watch: float
    collapsed: float

    def level(self, damage: float) -> Level:
        """The level of a figure; one that is not a number is the worst."""
        return "safe" if damage < self.watch else "watch" if damage < self.collapsed else "collapsed"


@dataclass(frozen=True)
class Verdict:
    """The verdict on one run.

    Args:
        level: Level of its last checkpoint; at least ``watch`` after an earlier collapse.
        edits: Facts written by then.
        summary: The latest figures in one sentence.
        judgement: The level in words, with reasons.
        collapse: The first checkpoint found collapsed, if any.
        sound: The checkpoint before that one.
        damage: Known figures of the last checkpoint by the names of the limits.
    """

    level: Level
    edits: int
    summary: str
    judgement: str
    collapse: int | None = None
    sound: int | None = None
    damage: Mapping[str, float] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """The verdict as ``--json`` prints it."""
        damage = {name: value if isfinite(value) else None for name, value in self.damage.items()}
        return {**asdict(self), "damage": damage}


def judge(checkpoints: Sequence[Checkpoint]) -> Verdict:
    """Judge a run by its checkpoints, given in order; the others are compared with the one without edits."""
    base = next((checkpoint for checkpoint in checkpoints if checkpoint.edits == 0), None)
    edited = [checkpoint for checkpoint in checkpoints if checkpoint.edits > 0]
    if not edited:
        return Verdict("unedited", 0, "No facts written yet.", "Nothing to judge yet.")
    found = [findings(base, checkpoint) for checkpoint in edited]
    levels = [max((level for _, _, level in rows), key=_SEVERITY.index) for rows in found]
    broken = levels.index("collapsed") if "collapsed" in levels else None
    level: Level = "watch" if broken is not None and levels[-1] == "safe" else levels[-1]
    collapse = None if broken is None else edited[broken].edits
    earlier = [] if broken is None else [c.edits for c in checkpoints if c.edits < edited[broken].edits]
    sound = earlier[-1] if earlier else None
    reasons = [f"{limit.name} {shown_damage(damage)}" for limit, damage, row in found[-1] if row != "safe"]
    return Verdict(
        level,
        edited[-1].edits,
        summarize(base, edited[-1]),
        _judgement(level, reasons, collapse, sound),
        collapse,
        sound,
        {limit.name: damage for limit, damage, _ in found[-1]},
    )


def findings(base: Checkpoint | None, checkpoint: Checkpoint) -> list[tuple[Limit, float, Level]]:
    """Every limit that can be checked, with the damage and its level."""
    rows = [(limit, limit.damage(base, checkpoint)) for limit in LIMITS]
    return [(limit, damage, limit.level(damage)) for limit, damage in rows if damage is not None]


def summarize(base: Checkpoint | None, checkpoint: Checkpoint) -> str:
    """The figures of a checkpoint in one sentence; before -> after where the unedited model is known."""
    said, rephrased = said_share(checkpoint.efficacy), said_share(checkpoint.generality)
    parts_of_edits = [
        None if said is None else f"{percent(said)} said",
        None if rephrased is None else f"{percent(rephrased)} of paraphrases",
        _neighbors(base, checkpoint),
        None if (kept := checkpoint.neighbors_kept) is None else f"{percent(kept.mean)} of neighbors kept",
    ]
    parts = [
        f"{checkpoint.edits:,} fact{'' if checkpoint.edits == 1 else 's'} written{_grouped(checkpoint)}",
        ", ".join(part for part in parts_of_edits if part),
        _prose(base, checkpoint),
        "drift not measured"
        if checkpoint.agreement is None
        else f"{percent(checkpoint.agreement, 1)} of next tokens unchanged",
    ]
    return "; ".join(part for part in parts if part)


def _grouped(checkpoint: Checkpoint) -> str:
    groups = checkpoint.groups
    return "" if groups is None else f" in groups of {groups.size:,}, each into the unedited model"


def said_share(figure: EditFigure) -> float | None:
    """Share of prompts that say the new target: by argmax where measured, else by probability."""
    found = figure.argmax or figure.probability
    return None if found is None else found.mean


def kept_share(figure: EditFigure) -> float | None:
    """Share of neighbors that keep their answer: by probability where measured, else by argmax.

    A model need not say a neighbor's exact answer even before the first edit, so argmax begins low.
    """
    found = figure.probability or figure.argmax
    return None if found is None else found.mean


def percent(share: float, digits: int = 0) -> str:
    """A share in percent; 99.9% is not rounded to all, nor 0.1% to none."""
    shown = f"{share:.{digits}%}"
    whole = {f"{1:.{digits}%}": 1.0, f"{0:.{digits}%}": 0.0}
    return f"{share:.{digits + 1}%}" if whole.get(shown, share) != share else shown


def growth(base: Checkpoint, checkpoint: Checkpoint) -> str:
    """Change of perplexity: in percent, or as a factor where it is large; a dash where it was not measured."""
    change = _perplexity(base, checkpoint)
    if change is None:
        return "-"
    return f"{change:+.1%}" if change < _LONGEST_PERCENTAGE else shown_damage(change)


def _prose(base: Checkpoint | None, checkpoint: Checkpoint) -> str | None:
    if checkpoint.perplexity is None:
        return None
    return f"perplexity {checkpoint.perplexity:.1f}" if base is None else f"perplexity {growth(base, checkpoint)}"


def _neighbors(base: Checkpoint | None, checkpoint: Checkpoint) -> str | None:
    now = kept_share(checkpoint.specificity)
    if now is None:
        return None
    before = None if base is None else kept_share(base.specificity)
    return f"neighbors {percent(now)}" if before is None else f"neighbors {percent(before)} → {percent(now)}"


def _judgement(level: Level, reasons: list[str], collapse: int | None, sound: int | None) -> str:
    began = "" if sound is None else f"began after {sound:,} edits and "
    where = "" if collapse is None else f"The collapse {began}was seen at {collapse:,}."
    because = f": {', '.join(reasons)}" if reasons else ""
    sentences = {
        "safe": "Every figure that was measured is within its limits.",
        "watch": f"The model shows damage{because}." if reasons else "The model had collapsed and came back.",
        "collapsed": f"The model is no longer usable{because}.",
    }
    return f"{sentences[level]} {where}".strip()


def shown_damage(damage: float) -> str:
    """A figure of damage: in percent, or as a factor where it is large."""
    if isnan(damage):
        return "not a number"
    if damage == inf:
        return "without bound"
    return percent(max(damage, 0.0)) if damage < _LONGEST_PERCENTAGE else f"{damage + 1:,.0f}-fold"


def _perplexity(base: Checkpoint | None, checkpoint: Checkpoint) -> float | None:
    if base is None or base.perplexity is None or checkpoint.perplexity is None:
        return None
    return checkpoint.perplexity / base.perplexity - 1


def _changed_tokens(_: Checkpoint | None, checkpoint: Checkpoint) -> float | None:
    return None if checkpoint.agreement is None else 1 - checkpoint.agreement


def _neighbors_lost(base: Checkpoint | None, checkpoint: Checkpoint) -> float | None:
    before = None if base is None else kept_share(base.specificity)
    now = kept_share(checkpoint.specificity)
    return 1 - now / before if now is not None and before else None


def _ability_lost(base: Checkpoint | None, checkpoint: Checkpoint) -> float | None:
    shared = checkpoint.abilities.keys() & base.abilities.keys() if base else set()
    if base is None or not shared:
        return None
    lost = [base.abilities[task].accuracy.mean - checkpoint.abilities[task].accuracy.mean for task in shared]
    return sum(lost) / len(lost)


def _not_said(_: Checkpoint | None, checkpoint: Checkpoint) -> float | None:
    said = said_share(checkpoint.efficacy)
    return None if said is None else 1 - said


LIMITS = (
    Limit("perplexity up", _perplexity, 0.10, 1.00),
    Limit("next tokens changed", _changed_tokens, 0.10, 0.50),
    Limit("neighbors' answers lost", _neighbors_lost, 0.15, 0.50),
    Limit("accuracy lost over the ability tasks", _ability_lost, 0.05, 0.15),
    Limit("written facts not said", _not_said, 0.20, inf),
)
