"""The types of the files in a run folder.

``run.json`` has the setup (``RunSetup``); ``edits.jsonl`` has a line per edit; ``checkpoints/00000030.json`` is the
model after 30 edits (``Checkpoint``), 0 being the unedited one; ``outcomes/00000030.jsonl`` has a line per prompt
measured there (``Outcome``). docs/file-formats.md describes them.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, model_validator

from betaedit.facts.fact import EARLIER_JOINT, EvaluationCase, Fact
from betaedit.writing import joint_between

Kind = Literal["rewrite", "paraphrase", "neighbor"]
EXTRAS = ("abilities", "questions", "tokens", "chat", "fluency", "latency", "retrieval")
"""Slower figures, measured on request."""

WORST_PROMPTS = 12
"""How many prompts a checkpoint lists that lost most."""

METRICS = ("efficacy", "generality", "specificity")


class Record(BaseModel):
    """Base of records on disk: immutable, and unknown fields are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Mean(Record):
    """A mean over ``count`` records, with its 95% interval."""

    mean: float
    count: int
    low: float
    high: float


Figures = dict[str, Mean | float]
"""Further figures by name (``experiments.tables`` has their groups and units)."""


class EditFigure(Record):
    """One edit metric in both forms (metrics.md G.1); ``None`` if no record has the prompts for it."""

    probability: Mean | None
    argmax: Mean | None


class LayerState(Record):
    """How far one edited layer has moved (metrics.md G.5).

    Args:
        leakage: On the held-out texts; ``None`` in runs of older versions, which did not measure it.
        relative_leakage: The same as a share of the layer's output.
        statistics_text_leakage: On the text of the statistics; ``None`` without statistics.
        relative_statistics_text_leakage: The same as a share.
        weight_change: Norm of the change.
        relative_weight_change: The same relative to the original matrix.
    """

    leakage: float | None
    relative_leakage: float | None
    statistics_text_leakage: float | None
    relative_statistics_text_leakage: float | None
    weight_change: float
    relative_weight_change: float

    @model_validator(mode="before")
    @classmethod
    def _of_an_older_version(cls, values: Any) -> Any:
        """In older runs ``leakage`` is measured on the text of the statistics."""
        if not isinstance(values, dict) or "statistics_text_leakage" in values:
            return values
        own = {f"{form}statistics_text_leakage": values.get(f"{form}leakage") for form in ("", "relative_")}
        return {**values, **own, "leakage": None, "relative_leakage": None}


class Ability(Record):
    """One task of the general suite: accuracy and F1 of the most probable answer."""

    accuracy: Mean
    macro_f1: float


class Outcome(Record):
    """One prompt of one record: mean negative log-likelihood per token of the wanted target and of the other.

    Args:
        record: The fact's id, else its number.
        kind: Kind of the prompt.
        prompt: The prompt.
        wanted: The target that counts as success; ``None`` for a neighbor without a known answer, as are then the next
            three.
        other: The target it is compared with, if any.
        wanted_nll: NLL of the wanted target.
        other_nll: NLL of the other one.
        argmax: Whether every token of the wanted target is the most probable one.
        tokens: At the unedited checkpoint, the first greedy tokens after a neighbor; ``None`` if not measured.
        kept: Whether the model still gives those tokens; ``None`` if they are not known.
        corrected: Whether a fact written by then corrects this one.
    """

    record: str
    kind: Kind
    prompt: str
    wanted: str | None
    other: str | None
    wanted_nll: float | None
    other_nll: float | None
    argmax: bool | None
    tokens: tuple[int, ...] | None = None
    kept: bool | None = None
    corrected: bool = False


class WorstPrompt(Record):
    """A prompt with one of the largest losses against the unedited model, with its continuation before and after.

    The margin is ``other_nll - wanted_nll``: positive where the wanted answer wins.
    """

    kind: Kind
    prompt: str
    wanted: str
    other: str | None
    margin_before: float
    margin_after: float
    text_before: str
    text_after: str


class HiddenView(Record):
    """Hidden states in two dimensions: the first principal components of the unedited states of all groups.

    Args:
        layer: Layer of the output, at the lookup token of facts and the last token of neighbors.
        before: Points of the unedited model by group.
        after: The same prompts now.
    """

    layer: int
    before: dict[str, list[tuple[float, float]]]
    after: dict[str, list[tuple[float, float]]]


class Groups(Record):
    """The groups of facts, each written into the unedited model, whose figures a checkpoint pools.

    Args:
        size: Facts per group; the last one may have fewer.
        count: Number of groups.
        drift: In how many of them, the first ones, drift, abilities and latency were measured.
    """

    size: int
    count: int
    drift: int


class Checkpoint(Record):
    """The figures of the model after a number of edits.

    Args:
        edits: Number of edits.
        efficacy: The edit prompt gives the new target.
        generality: Paraphrases give it.
        specificity: Neighbors keep their own answer.
        neighbors_kept: Neighbors, with or without a known answer, are answered as by the unedited model; ``None``
            without neighbors, and in runs of older versions.
        corrected: Number of facts corrected by a later one; they are left out of efficacy and generality.
        perplexity: On held-out prose; without drift ``None``, as the next two, and ``layers`` is empty.
        agreement: Share of that prose's tokens at which the most probable next token is that of the unedited model.
        kl: Mean ``KL(unedited || edited)`` of the next token there, in nats.
        layers: Every edited layer.
        abilities: Tasks of the general suite, by name.
        measures: Further figures by name: fluency, portability, latency, ...
        worst: The prompts with the largest losses.
        hidden: Two-dimensional view of hidden states.
        seconds_editing: Time of all edits so far.
        seconds_evaluating: Time of this checkpoint.
        groups: The groups whose figures these are; ``None`` for one model that holds all facts.
    """

    edits: int
    efficacy: EditFigure
    generality: EditFigure
    specificity: EditFigure
    perplexity: float | None
    agreement: float | None
    kl: float | None
    neighbors_kept: Mean | None = None
    corrected: int = 0
    layers: dict[int, LayerState]
    abilities: dict[str, Ability] = {}
    measures: Figures = {}
    worst: list[WorstPrompt] = []
    hidden: HiddenView | None = None
    seconds_editing: float = 0.0
    seconds_evaluating: float = 0.0
    groups: Groups | None = None


class RunSetup(Record):
    """What was run, with all that is needed to run it again.

    Args:
        format: Version of the folder's format.
        method: Its name.
        model: Name and fingerprint.
        dtype: Type of the weights; ``None`` in older runs.
        config: Every hyper-parameter.
        data: File, its sha256, number of records.
        measured: Which figures, with hashes of the prompts and texts they are measured on; empty in older runs.
        evaluate_at: Edit counts.
        batch_size: Facts solved together.
        reset_every: Facts per group, if each group is written into the unedited model; else ``None``.
        versions: betaedit, torch, transformers, python.
        machine: Where the run began: device, processor, threads; empty in older runs. Not compared on resuming.
        details: Statistics, contexts, command line.
    """

    format: Literal[1] = 1
    method: str
    model: dict[str, Any]
    dtype: str | None = None
    config: dict[str, Any]
    data: dict[str, Any]
    measured: dict[str, Any] = {}
    evaluate_at: list[int]
    batch_size: int
    reset_every: int | None = None
    versions: dict[str, str]
    machine: dict[str, Any] = {}
    details: dict[str, Any] = {}


def mean_known(values: Sequence[float | None]) -> float | None:
    """The mean of a figure over layers; ``None`` without layers, or where one of them was not measured."""
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known and len(known) == len(values) else None


def case_name(index: int, case: EvaluationCase) -> str:
    """Name of a case in a run folder: its fact's id, else its number."""
    return case.fact.id or str(index + 1)


def describe_cases(cases: Sequence[EvaluationCase], source: str | None) -> dict[str, Any]:
    """The facts of a run, for the record: source, number and hash."""
    facts = [[case_name(index, case), *_written(case.fact)] for index, case in enumerate(cases)]
    digest = hashlib.sha256(json.dumps(facts, ensure_ascii=False).encode()).hexdigest()
    return {"source": source, "facts_sha256": digest, "records": len(cases)}


def _written(fact: Fact) -> tuple[str, ...]:
    """The texts of a fact; the joint is included unless it is a space, for hashes of older versions."""
    joint = joint_between(fact.text, fact.target_new) if fact.joint is None else fact.joint
    return (fact.text, fact.target_new) if joint == EARLIER_JOINT else (fact.text, fact.target_new, joint)
