"""A measured run: measure, edit, measure at chosen counts, and store all of it, so that it can be interrupted."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any, Literal

from betaedit.editors.editor import Editor
from betaedit.editors.method import EditResult, WrittenBatch
from betaedit.errors import CollapseError, ConfigError
from betaedit.evaluation.holding import STATUSES, Holding, measure_holding
from betaedit.experiments.evaluate import Evaluator
from betaedit.experiments.figures import Measures
from betaedit.experiments.folder import Checkpoints, RunFolder
from betaedit.experiments.groups import check_group_size, group_ends, group_start, pool
from betaedit.experiments.record import (
    METRICS,
    Checkpoint,
    EditFigure,
    Outcome,
    RunSetup,
    describe_cases,
    mean_known,
)
from betaedit.experiments.resume import open_run, unedited_beside
from betaedit.experiments.state import count_edits, load_batches, save_batch
from betaedit.experiments.verdict import judge
from betaedit.facts.corrections import corrected_later
from betaedit.facts.fact import EvaluationCase, Fact
from betaedit.models.machine import describe_machine
from betaedit.progress import Progress
from betaedit.statistics.corpus import placed_corpus
from betaedit.versions import library_versions

logger = logging.getLogger(__name__)

OnCollapse = Literal["ignore", "warn", "stop"]


@dataclass(frozen=True)
class RunReport:
    """The edits and figures of a run.

    Args:
        setup: Model, method, hyper-parameters, statistics.
        results: Every edit.
        checkpoints: The unedited model first, the finished one last.
        holdings: How the finished model, or that of the fact's group, holds each fact; ``None`` if a later one corrects
            it.
        folder: Folder of the run, if any.
    """

    setup: dict[str, Any]
    results: tuple[EditResult, ...]
    checkpoints: tuple[Checkpoint, ...]
    holdings: tuple[Holding | None, ...]
    folder: Path | None = None

    @property
    def before(self) -> Checkpoint:
        """The unedited model."""
        return self.checkpoints[0]

    @property
    def after(self) -> Checkpoint:
        """The model at the end."""
        return self.checkpoints[-1]

    @property
    def seconds_per_edit(self) -> float:
        """Mean wall-clock time of an edit; statistics and evaluation are not in it."""
        return sum(result.seconds for result in self.results) / max(len(self.results), 1)

    def to_dict(self) -> dict[str, Any]:
        """The report as plain data, as ``--json`` prints it."""
        return {
            "edits": len(self.results),
            "held": count_held(self.results, self.holdings),
            "method": self.setup["method"],
            "model": self.setup["model"],
            "seconds_per_edit": self.seconds_per_edit,
            **{name: _both_forms(getattr(self.before, name), getattr(self.after, name)) for name in METRICS},
            "neighbors_kept": None if (kept := self.after.neighbors_kept) is None else kept.model_dump(),
            "corrected": self.after.corrected,
            "leakage": self._layers("leakage"),
            "statistics_text_leakage": self._layers("statistics_text_leakage"),
            "weight_change": self._layers("weight_change"),
            "perplexity": {"before": self.before.perplexity, "after": self.after.perplexity},
            "agreement": self.after.agreement,
            "kl": self.after.kl,
            "verdict": judge(self.checkpoints).to_dict(),
            "checkpoints": [checkpoint.model_dump(mode="json") for checkpoint in self.checkpoints],
            "folder": None if self.folder is None else str(self.folder),
            "setup": self.setup,
            "results": [
                result.to_dict() | {"at_end": None if holding is None else asdict(holding)}
                for result, holding in zip(self.results, self.holdings, strict=True)
            ],
        }

    def _layers(self, name: str) -> dict[str, Any]:
        layers = {str(layer): getattr(state, name) for layer, state in self.after.layers.items()}
        relative = {str(layer): getattr(state, f"relative_{name}") for layer, state in self.after.layers.items()}
        return {
            "mean": mean_known(list(layers.values())),
            "relative": mean_known(list(relative.values())),
            "layers": layers,
            "relative_layers": relative,
        }


def measure_held(editor: Editor, results: Sequence[EditResult]) -> list[Holding | None]:
    """How the model holds the facts of ``results`` now; ``None`` if a later one corrects it."""
    facts = [result.fact for result in results]
    corrected = corrected_later(facts)
    asked = [fact for fact, mark in zip(facts, corrected, strict=True) if not mark]
    found = iter(measure_holding(editor.language_model, asked))
    return [None if mark else next(found) for mark in corrected]


def count_held(results: Sequence[EditResult], holdings: Sequence[Holding | None]) -> dict[str, int]:
    """The number of facts by status, and of those that were not kept."""
    known = [holding.status for holding in holdings if holding is not None]
    counts: dict[str, int] = {status: known.count(status) for status in STATUSES}
    return {"facts": len(known), **counts, "taken back": sum(not result.kept for result in results)}


@dataclass
class _Done:
    """The progress of a run."""

    results: list[EditResult] = field(default_factory=list)
    checkpoints: list[Checkpoint] = field(default_factory=list)
    groups: list[Checkpoint] = field(default_factory=list)
    holdings: list[Holding | None] = field(default_factory=list)
    before: list[Outcome] = field(default_factory=list)

    def seconds_editing(self, start: int = 0) -> float:
        return sum(result.seconds for result in self.results[start:])


def run_edits(
    editor: Editor,
    cases: Sequence[EvaluationCase],
    *,
    batch_size: int = 1,
    reset_every: int | None = None,
    evaluate_at: Sequence[int] = (),
    measures: Measures | None = None,
    folder: Path | str | None = None,
    source: str | None = None,
    on_collapse: OnCollapse = "warn",
    on_edit: Callable[[EditResult], None] | None = None,
    beside: Path | None = None,
) -> RunReport:
    """Measure, write every case's fact, measure at each count of ``evaluate_at`` and at the end.

    Everything is checked before the first weight changes (see ``Editor.edit`` for what is refused). With a folder,
    every edit and every checkpoint is on disk as soon as it is made; the same call continues an interrupted run and
    ends with the same weights and figures. A call with more cases after those of a stored run continues from its end;
    only the unedited model is measured again, on all of them.

    With ``reset_every`` the facts are written in groups, each into the unedited model. A group is measured after its
    last edit; a checkpoint pools all groups so far (``experiments.groups``). In the end the model holds the last group.

    Args:
        editor: Holds the unedited model, which is changed.
        cases: The facts with the prompts they are measured on.
        batch_size: Facts solved together.
        reset_every: Facts per group; all are written one after another when not given.
        evaluate_at: Numbers of edits after which to measure; the beginning and the end are always measured.
        measures: What to measure; the edit metrics and drift when not given.
        folder: Folder to store the run in.
        source: The file of the facts, for the record.
        on_collapse: What to do when a checkpoint finds the model collapsed (``experiments.verdict``).
        on_edit: Called with every result.
        beside: A folder of runs. If one of them has measured the same unedited model in the same way, that is reused.

    Raises:
        ConfigError: A count of ``evaluate_at`` does not lie between two batches or groups, a group is smaller than a
            batch, the model already holds edits, or a folder is given without drift.
        RunFolderError: The folder holds another run, or is damaged.
        StatisticsError: The stored run was made with other statistics.
        CollapseError: The model collapsed and ``on_collapse`` is ``stop``; the folder has the run so far.
    """
    if editor.results:
        raise ConfigError("the model already holds edits.", hint="Call reset() first: a run starts unedited.")
    measures = measures or Measures()
    if folder is not None and not measures.drift:
        raise ConfigError("drift=False and a folder cannot be combined.", hint="Leave out one of them.")
    check_group_size(reset_every, batch_size)
    step = reset_every or editor.editing.stride(batch_size)
    points = measuring_points(evaluate_at, len(cases), step)
    editor.plan(cases)
    editor.prepare()
    setup = _setup(editor, cases, points, batch_size, reset_every, source, measures)
    kept = None if folder is None else open_run(Path(folder), setup, cases, measures, step)
    unedited = None if beside is None else unedited_beside(beside, setup)
    evaluator = Evaluator(editor, cases, measures, reset_every)
    done = _Done()
    batches = _batches(editor, cases, batch_size, reset_every or len(cases), kept)
    for point in points:
        if reset_every is None or point == 0:
            _edit_until(point, batches, done, editor.progress, on_edit)
            checkpoint = _measure(evaluator, kept, point, done, unedited)
        else:
            for end in group_ends(point, reset_every)[len(done.groups) :]:
                _edit_until(end, batches, done, editor.progress, on_edit)
                done.groups.append(_measure(evaluator, None if kept is None else kept.groups, end, done))
                done.holdings += measure_held(editor, done.results[len(done.holdings) :])
            checkpoint = _pooled(kept, done, reset_every)
        done.checkpoints.append(checkpoint)
        _guard(done.checkpoints, on_collapse)
    plain = {key: value for key, value in editor.to_dict().items() if key != "edits"}
    plain |= {name: getattr(setup, name) for name in ("reset_every", "dtype", "measured", "versions", "machine")}
    path = None if kept is None else kept.path
    holdings = done.holdings + measure_held(editor, done.results[len(done.holdings) :])
    return RunReport(plain, tuple(done.results), tuple(done.checkpoints), tuple(holdings), path)


def _edit_until(
    point: int,
    batches: Iterator[WrittenBatch],
    done: _Done,
    progress: Progress,
    on_edit: Callable[[EditResult], None] | None,
) -> None:
    """Write batches until ``point`` facts are done."""
    with progress.task("editing", point, "facts", done=len(done.results)) as task:
        while len(done.results) < point:
            batch = next(batches)
            done.results += batch.results
            task.advance(len(batch.results))
            if on_edit is not None:
                for result in batch.results:
                    on_edit(result)


def measuring_points(evaluate_at: Sequence[int], total: int, step: int) -> list[int]:
    """The counts at which a run of ``total`` edits is measured, ``step`` of them searched or written together.

    Raises:
        ConfigError: One of ``evaluate_at`` lies beyond the last edit or within a step, which may be a group.
    """
    wrong = [count for count in evaluate_at if not 0 <= count <= total or (count % step and count != total)]
    if wrong:
        steps = "" if step == 1 else f" in steps of {step} (a group, or batch size times look-ahead)"
        raise ConfigError(f"cannot measure after {wrong[0]} edits.", hint=f"Give numbers from 0 to {total}{steps}.")
    return sorted({0, *evaluate_at, total})


def _batches(
    editor: Editor, cases: Sequence[EvaluationCase], batch_size: int, group_size: int, kept: RunFolder | None
) -> Iterator[WrittenBatch]:
    """Every batch of the run; the model is reset when the first one of another group is asked for."""
    facts = [case.fact for case in cases]
    listed = 0 if kept is None else sum(1 for _ in kept.edits())
    start = 0
    for end in group_ends(len(cases), group_size):
        if start:
            editor.reset()
        done = start
        for batch in _of_group(editor, facts, start, end, batch_size, kept):
            done += len(batch.results)
            listed = _list_edits(kept, batch, done, listed)
            yield batch
        start = end


def _of_group(
    editor: Editor, facts: Sequence[Fact], start: int, end: int, batch_size: int, kept: RunFolder | None
) -> Iterator[WrittenBatch]:
    """The batches of ``facts[start:end]``: those on disk first, replayed without a search; then new ones, stored."""
    done = start
    if kept is not None:
        usable = _whole_windows(editor, kept, start, end, batch_size)
        for batch in load_batches(kept.path / "state", usable, start):
            editor.replay(batch)
            done += len(batch.results)
            yield batch
    for batch in editor.write(facts[done:end], batch_size=batch_size):
        if kept is not None:
            save_batch(kept.path / "state", done + 1, batch)
        done += len(batch.results)
        yield batch


def _whole_windows(editor: Editor, kept: RunFolder, start: int, end: int, batch_size: int) -> int:
    """Up to which edit of a group stored ones can be used: values searched together must be searched together again."""
    count = count_edits(kept.path / "state")
    return end if count >= end else count - (count - start) % editor.editing.stride(batch_size)


def _list_edits(kept: RunFolder | None, batch: WrittenBatch, done: int, listed: int) -> int:
    """Add a batch's edits to ``edits.jsonl`` unless they are there; returns the number of lines."""
    if kept is None or listed >= done:
        return listed
    for number, result in enumerate(batch.results, start=done - len(batch.results) + 1):
        if number > listed:
            kept.append_edit({"number": number, **result.to_dict()})
    return done


def _measure(
    evaluator: Evaluator, kept: Checkpoints | None, point: int, done: _Done, unedited: RunFolder | None = None
) -> Checkpoint:
    """The checkpoint at ``point``: from the folder if it is there, else measured and stored."""
    if kept is not None and point in kept.measured():
        checkpoint, outcomes = kept.checkpoint(point), list(kept.outcomes(point)) if point == 0 else []
    else:
        if point == 0 and unedited is not None:
            checkpoint, outcomes = evaluator.taken_over(unedited.checkpoint(0)), list(unedited.outcomes(0))
        else:
            seconds = done.seconds_editing(group_start(point, evaluator.group_size))
            checkpoint, outcomes = evaluator.checkpoint(point, done.before, seconds)
        if kept is not None:
            kept.write_checkpoint(checkpoint, outcomes)
    if point == 0:
        done.before = outcomes
    return checkpoint


def _pooled(kept: RunFolder | None, done: _Done, size: int) -> Checkpoint:
    """The checkpoint over all groups so far, stored if it is not in the folder yet."""
    checkpoint = pool(done.groups, size)
    if kept is not None and checkpoint.edits not in kept.measured():
        outcomes = (kept.groups.outcomes(group.edits) for group in done.groups)
        kept.write_checkpoint(checkpoint, chain.from_iterable(outcomes))
    return checkpoint


def _guard(checkpoints: Sequence[Checkpoint], on_collapse: OnCollapse) -> None:
    verdict = judge(checkpoints)
    if verdict.level != "collapsed" or on_collapse == "ignore":
        return
    if on_collapse == "stop" and len(checkpoints) > 1:
        raise CollapseError(
            verdict.judgement, hint="Use an earlier checkpoint or another method; --on-collapse warn continues."
        )
    logger.warning("%s", verdict.judgement)


def _setup(
    editor: Editor,
    cases: Sequence[EvaluationCase],
    points: Sequence[int],
    batch_size: int,
    reset_every: int | None,
    source: str | None,
    measures: Measures,
) -> RunSetup:
    plain = editor.to_dict()
    model = editor.language_model
    config = plain["config"]
    if "statistics_corpus" in config:
        config |= {"statistics_corpus": placed_corpus(config["statistics_corpus"])}
    return RunSetup(
        method=plain["method"],
        model={"name": model.place, "weights": model.fingerprint()},
        dtype=str(model.model.dtype).removeprefix("torch."),
        config=_as_stored(config),
        data=describe_cases(cases, source),
        measured=measures.describe(cases),
        evaluate_at=list(points),
        batch_size=batch_size,
        reset_every=reset_every,
        versions=library_versions(),
        machine=describe_machine(model),
        details=_as_stored({"preset": plain["preset"], **editor.editing.describe()}),
    )


def _as_stored(values: dict[str, Any]) -> dict[str, Any]:
    """``values`` as read back from JSON: lists for tuples, strings for keys."""
    stored: dict[str, Any] = json.loads(json.dumps(values))
    return stored


def _both_forms(before: EditFigure, after: EditFigure) -> dict[str, Any]:
    return {
        form: {
            "before": None if (old := getattr(before, form)) is None else old.mean,
            "after": None if (new := getattr(after, form)) is None else new.mean,
            "interval": None if new is None else [new.low, new.high],
            "count": 0 if new is None else new.count,
        }
        for form in ("probability", "argmax")
    }
