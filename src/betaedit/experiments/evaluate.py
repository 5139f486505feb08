"""One checkpoint of a run: every figure of the present model, compared with the unedited one."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property, partial

import torch
from torch import Tensor

from betaedit.editors.editor import Editor
from betaedit.editors.method import EditsMatrices
from betaedit.evaluation.continuing import complete_greedily
from betaedit.evaluation.drift import UneditedStates, compare, leakage, leakage_on, perplexity
from betaedit.evaluation.interval import estimate
from betaedit.evaluation.metrics import CaseOutcome, PromptOutcome, measure_edits
from betaedit.evaluation.neighbors import Ids, first_tokens, followed_neighbors, still_says
from betaedit.experiments.costs import cost_figures, latency_figures
from betaedit.experiments.figures import (
    FreeAnswers,
    Measures,
    TokenChoices,
    edit_figures,
    extra_figures,
    free_answers,
    mean_of,
    measure_task_abilities,
    neighbor_tokens,
)
from betaedit.experiments.groups import WHOLE_MODEL, group_start
from betaedit.experiments.record import (
    WORST_PROMPTS,
    Checkpoint,
    Figures,
    HiddenView,
    Kind,
    LayerState,
    Mean,
    Outcome,
    WorstPrompt,
    case_name,
)
from betaedit.facts.corrections import corrected_later
from betaedit.facts.fact import SLOT, EvaluationCase
from betaedit.models.lookup import LookupStrategy, Prompt, encode_prompts
from betaedit.models.replay import record

_VIEWED = 100
_SAID = 12


class Evaluator:
    """Measures one editor's model on one list of cases, at every checkpoint.

    Args:
        editor: Prepared; its original weights are restored for figures that compare.
        cases: The facts with the prompts they are measured on, in the order in which they are written.
        measures: What to measure.
        group_size: Facts per group, if the model holds only one group at a time. The figures of the model itself are
            measured in the first ``WHOLE_MODEL`` groups.
    """

    def __init__(
        self, editor: Editor, cases: Sequence[EvaluationCase], measures: Measures, group_size: int | None = None
    ) -> None:
        self._editor, self._cases, self._measures = editor, list(cases), measures.usable_on(editor.language_model)
        self.group_size = group_size
        self._unedited, self._unedited_keys = UneditedStates(), UneditedStates()

    def checkpoint(
        self, edits: int, before: Sequence[Outcome], seconds_editing: float
    ) -> tuple[Checkpoint, list[Outcome]]:
        """The model after ``edits`` edits, measured on the facts that it holds; on all of them before the first.

        Args:
            edits: How many facts are written.
            before: The outcomes of the unedited model, on all cases.
            seconds_editing: Time of the edits.
        """
        started = time.perf_counter()
        model, progress = self._editor.language_model, self._editor.progress
        first = group_start(edits, self.group_size)
        measures = self._measures
        if self.group_size is not None and first >= WHOLE_MODEL * self.group_size:
            measures = measures.of_facts
        cases = self._cases[first:edits] if edits else self._cases
        # Nothing is corrected before anything is written.
        corrected = corrected_later([case.fact for case in cases]) if edits else [False] * len(cases)
        measured = measure_edits(model, cases, corrected=corrected, progress=progress, label="measuring")
        said, kept = self._neighbors(edits, cases, before)
        outcomes = list(_outcomes(cases, measured.outcomes, said, kept, first))
        drifted = measures.drift
        prose, agreement, kl = self._drift(edits) if drifted else (None, None, None)
        figures = edit_figures(measured)
        checkpoint = Checkpoint(
            edits=edits,
            efficacy=figures["efficacy"],
            generality=figures["generality"],
            specificity=figures["specificity"],
            neighbors_kept=_share_kept(cases, kept),
            corrected=sum(corrected),
            perplexity=prose,
            agreement=agreement,
            kl=kl,
            layers=layer_states(self._editor, measures.texts, self._unedited_keys) if drifted else {},
            abilities=measure_task_abilities(model, measures, progress),
            measures=self._extras(edits, cases, corrected, measures, first),
            worst=self._worst(before, outcomes) if drifted else [],
            hidden=self._hidden(cases) if edits and drifted and self._layers() else None,
            seconds_editing=seconds_editing,
        )
        return checkpoint.model_copy(update={"seconds_evaluating": time.perf_counter() - started}), outcomes

    def taken_over(self, unedited: Checkpoint) -> Checkpoint:
        """The unedited checkpoint, reused from another method on the same cases; only edited layers are measured."""
        layers = layer_states(self._editor, self._measures.texts, self._unedited_keys)
        return unedited.model_copy(update={"layers": layers, "seconds_evaluating": 0.0})

    def _neighbors(
        self, edits: int, cases: Sequence[EvaluationCase], before: Sequence[Outcome]
    ) -> tuple[dict[str, Ids], dict[str, bool]]:
        """The unedited answers of neighbors, found only before the first edit; and which of them are unchanged."""
        model, progress = self._editor.language_model, self._editor.progress
        if edits == 0:
            said = first_tokens(model, followed_neighbors(cases), progress)
            return said, dict.fromkeys(said, True)
        said = {outcome.prompt: outcome.tokens for outcome in before if outcome.tokens is not None}
        return {}, still_says(model, said, (probe.prompt for case in cases for probe in case.neighbors), progress)

    def _drift(self, edits: int) -> tuple[float, float, float]:
        """Perplexity, agreement and divergence; the unedited model is not compared with itself."""
        model, texts, progress = self._editor.language_model, self._measures.texts, self._editor.progress
        if edits == 0:
            return perplexity(model, texts, states=self._unedited, progress=progress), 1.0, 0.0
        drift = compare(model, texts, self._editor.unedited, states=self._unedited, progress=progress)
        return drift.perplexity, drift.agreement.mean, drift.kl

    @cached_property
    def _answers_before(self) -> FreeAnswers | None:
        """Of the unedited model, to all questions; ``None`` if they are not asked."""
        if "questions" not in self._measures.extras:
            return None
        with self._editor.unedited():
            return free_answers(self._editor.language_model, self._cases, self._measures, self._editor.progress)

    @cached_property
    def _tokens_before(self) -> TokenChoices | None:
        """Of the unedited model, after all neighbors; ``None`` if tokens are not compared."""
        if "tokens" not in self._measures.extras:
            return None
        with self._editor.unedited():
            return neighbor_tokens(self._editor.language_model, self._cases)

    def _extras(
        self,
        edits: int,
        cases: Sequence[EvaluationCase],
        corrected: Sequence[bool],
        measures: Measures,
        first: int,
    ) -> Figures:
        """The further figures of ``measures``; ``cases`` are those from number ``first`` on."""
        model, progress, last = self._editor.language_model, self._editor.progress, first + len(cases)
        said, tokens = self._answers_before, self._tokens_before
        before = None if said is None else {name: answers[first:last] for name, answers in said.items()}
        chosen = None if tokens is None else tokens[first:last]
        found = extra_figures(model, cases, measures, progress, before, corrected, chosen)
        if "latency" in measures.extras:
            found |= cost_figures(self._editor, cases) if edits else latency_figures(model, cases, progress)
        return found

    def _worst(self, before: Sequence[Outcome], now: Sequence[Outcome]) -> list[WorstPrompt]:
        """The prompts on which the wanted answer lost most against the other one, with what is said there."""
        old = {(o.record, o.kind, o.prompt, o.wanted): _margin(o) for o in before}
        lasting = [o for o in now if not o.corrected or o.kind == "neighbor"]
        rows = [(old.get((o.record, o.kind, o.prompt, o.wanted)), _margin(o), o) for o in lasting]
        lost = sorted(
            ((was, margin, o) for was, margin, o in rows if was is not None and margin is not None and margin < was),
            key=lambda row: row[1] - row[0],
        )[:WORST_PROMPTS]
        after = self._says(lost)
        with self._editor.unedited():
            earlier = self._says(lost)
        return [
            WorstPrompt(
                kind=o.kind,
                prompt=o.prompt,
                wanted=o.wanted or "",
                other=o.other,
                margin_before=was,
                margin_after=margin,
                text_before=said,
                text_after=says,
            )
            for (was, margin, o), said, says in zip(lost, earlier, after, strict=True)
        ]

    def _says(self, lost: Sequence[tuple[float, float, Outcome]]) -> list[str]:
        """The present continuations of the prompts."""
        model, prompts = self._editor.language_model, [outcome.prompt for *_, outcome in lost]
        return complete_greedily(model, prompts, _SAID, progress=self._editor.progress, label="worst prompts")

    def _hidden(self, cases: Sequence[EvaluationCase]) -> HiddenView:
        layer = self._layers()[-1]
        facts = [Prompt.fill(SLOT, case.fact.prompt, case.fact.subject) for case in cases[:_VIEWED]]
        probes = [probe.prompt for case in cases for probe in case.neighbors[:1]][:_VIEWED]
        neighbors = [Prompt.fill(SLOT, SLOT, probe) for probe in probes]
        groups = {"edited facts": facts, "neighbors": neighbors}
        groups = {name: prompts for name, prompts in groups.items() if prompts}
        now = {name: self._states(prompts, name, layer) for name, prompts in groups.items()}
        with self._editor.unedited():
            before = {name: self._states(prompts, name, layer) for name, prompts in groups.items()}
        middle, axes = _principal(torch.cat(list(before.values())))
        return HiddenView(
            layer=layer,
            before={name: _points(states, middle, axes) for name, states in before.items()},
            after={name: _points(states, middle, axes) for name, states in now.items()},
        )

    def _layers(self) -> tuple[int, ...]:
        """The edited layers, in order; none for editors that change no matrices."""
        editing = self._editor.editing
        return tuple(sorted(editing.matrices)) if isinstance(editing, EditsMatrices) else ()

    def _states(self, prompts: Sequence[Prompt], name: str, layer: int) -> Tensor:
        """``(n, hidden_size)`` output of a layer, at the lookup token of facts and the last token of neighbors."""
        model = self._editor.language_model
        strategy: LookupStrategy = "last"
        if name == "edited facts":
            strategy = getattr(self._editor.config, "lookup", "subject_last")
        encoded = encode_prompts(model.tokenizer, prompts, strategy=strategy, device=model.device)
        recording = record(model.anatomy, encoded, run=layer + 1, keep=(layer + 1,))
        hidden = recording.inputs[layer + 1]
        rows = torch.arange(len(prompts), device=hidden.device)
        return hidden[rows, encoded.lookup.to(hidden.device)].float().cpu()


def layer_states(
    editor: Editor, texts: Sequence[str], unedited_keys: UneditedStates | None = None
) -> dict[int, LayerState]:
    """Leakage on ``texts`` and weight change of every edited layer (metrics.md G.5).

    Empty for editors that change no matrices.
    """
    if not isinstance(editor.editing, EditsMatrices):
        return {}
    model, matrices, moments = editor.language_model, editor.editing.matrices, editor.resources.moments
    held_out = leakage_on(model, texts, matrices, editor.unedited, keys=unedited_keys, progress=editor.progress)
    states = {}
    for layer, matrix in matrices.items():
        change, original, length = matrix.change(), matrix.original(), float(matrix.change().norm())
        leaked = of_original = None
        if moments is not None:
            moment = moments.matrices[layer].to(change)
            leaked, of_original = leakage(change, moment), leakage(original, moment)
        states[layer] = LayerState(
            leakage=held_out[layer].change,
            relative_leakage=held_out[layer].relative,
            statistics_text_leakage=leaked,
            relative_statistics_text_leakage=None if leaked is None or of_original is None else leaked / of_original,
            weight_change=length,
            relative_weight_change=length / float(original.norm()),
        )
    return states


def _outcomes(
    cases: Sequence[EvaluationCase],
    outcomes: Sequence[CaseOutcome],
    said: Mapping[str, Ids],
    kept: Mapping[str, bool],
    first: int,
) -> Iterator[Outcome]:
    for index, (case, outcome) in enumerate(zip(cases, outcomes, strict=True), start=first):
        fact = case.fact
        of_record = partial(_outcome, case_name(index, case), outcome.corrected)
        yield of_record("rewrite", fact.text, fact.target_new, fact.target_true, outcome.rewrite[0])
        for text, found in zip(case.paraphrases, outcome.paraphrases, strict=True):
            yield of_record("paraphrase", text, fact.target_new, fact.target_true, found)
        known = iter(outcome.neighbors)
        for probe in case.neighbors:
            if probe.target or probe.prompt in kept:
                neighbor = of_record(
                    "neighbor",
                    probe.prompt,
                    probe.target or None,
                    fact.target_new if probe.target else None,
                    next(known) if probe.target else None,
                )
                yield neighbor.model_copy(update={"tokens": said.get(probe.prompt), "kept": kept.get(probe.prompt)})


def _outcome(
    record: str,
    corrected: bool,
    kind: Kind,
    prompt: str,
    wanted: str | None,
    other: str | None,
    found: PromptOutcome | None,
) -> Outcome:
    return Outcome(
        record=record,
        kind=kind,
        prompt=prompt,
        wanted=wanted,
        other=other,
        wanted_nll=None if found is None else found.wanted.nll,
        other_nll=None if found is None or found.other is None else found.other.nll,
        argmax=None if found is None else found.wanted.argmax,
        corrected=corrected,
    )


def _share_kept(cases: Sequence[EvaluationCase], kept: Mapping[str, bool]) -> Mean | None:
    """The mean over a record's neighbors that are followed, then over the records that have any."""
    records = [[kept[probe.prompt] for probe in case.neighbors if probe.prompt in kept] for case in cases]
    found = estimate([sum(record) / len(record) for record in records if record])
    return None if found is None else mean_of(found)


def _margin(outcome: Outcome) -> float | None:
    wanted, other = outcome.wanted_nll, outcome.other_nll
    return None if wanted is None or other is None else other - wanted


def _principal(states: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and the first two principal axes ``(hidden_size, 2)`` of states ``(n, hidden_size)``."""
    middle = states.mean(dim=0)
    axes = torch.linalg.svd(states - middle, full_matrices=False).Vh[:2].T
    largest = axes.abs().argmax(dim=0)
    signs = axes[largest, torch.arange(axes.shape[1])].sign()  # a decomposition may flip an axis
    return middle, axes * signs


def _points(states: Tensor, middle: Tensor, axes: Tensor) -> list[tuple[float, float]]:
    flat = (states - middle) @ axes
    if flat.shape[1] == 1:
        flat = torch.cat([flat, torch.zeros_like(flat)], dim=1)
    return [(float(x), float(y)) for x, y in flat.tolist()]
