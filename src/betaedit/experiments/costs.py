"""What answering costs: latency and memory, of a model by itself or beside the unedited one (metrics.md G.8)."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from itertools import cycle, islice

from betaedit.editors.editor import Editor
from betaedit.editors.method import memory_use
from betaedit.evaluation.latency import Latency, measure_latency, measure_relative_latency, peak_memory
from betaedit.experiments.record import Figures, Mean
from betaedit.facts.fact import EvaluationCase
from betaedit.models.load import LanguageModel
from betaedit.progress import Progress

logger = logging.getLogger(__name__)

_PROMPTS, _QUERIES, _TOKENS = 5, 10, 50
_SECONDS = f"seconds per {_TOKENS} tokens"


def latency_figures(model: LanguageModel, cases: Sequence[EvaluationCase], progress: Progress) -> Figures:
    """Time of a query on the facts' own prompts, and the peak memory of this process so far."""
    prompts = _prompts(model, cases)
    if not prompts:
        return _peak(model)
    return {**_seconds(measure_latency(model, prompts, n_tokens=_TOKENS, progress=progress)), **_peak(model)}


def cost_figures(editor: Editor, cases: Sequence[EvaluationCase]) -> Figures:
    """The same of an edited model, relative to the unedited one, and the memory of its editor."""
    model, use = editor.language_model, memory_use(editor.editing)
    own = model.model.get_memory_footprint()  # type: ignore[no-untyped-call] # transformers lacks the annotation
    return {
        **_relative_seconds(editor, _prompts(model, cases)),
        "relative memory": 1 + sum(use.answering.values()) / own,
        **_bytes("memory to answer", use.answering),
        **_bytes("memory to edit", use.editing),
        **_peak(model),
    }


def _relative_seconds(editor: Editor, prompts: Sequence[str]) -> Figures:
    if not prompts:
        return {}
    found = measure_relative_latency(
        editor.language_model, prompts, editor.unedited, n_tokens=_TOKENS, progress=editor.progress
    )
    ratio = found.ratio
    return {
        **_seconds(found.edited),
        f"{_SECONDS}, unedited": found.unedited.mean,
        "relative latency": Mean(mean=ratio.mean, count=ratio.count, low=ratio.low, high=ratio.high),
    }


def _prompts(model: LanguageModel, cases: Sequence[EvaluationCase]) -> list[str]:
    """The prompts of the first facts, again and again; none, with a warning, if they leave no room for an answer."""
    texts = [case.fact.text for case in cases[:_PROMPTS]]
    rows = zip(texts, model.encode(texts), strict=True)
    fitting = [text for text, row in rows if len(row) + _TOKENS <= model.max_length]
    if not fitting:
        logger.warning("no prompt leaves room for %d tokens: latency is not measured.", _TOKENS)
    return list(islice(cycle(fitting), _QUERIES))


def _seconds(latency: Latency) -> Figures:
    parts = {f"{_SECONDS}, {name}": seconds for name, seconds in latency.mean_parts.items()}
    return {_SECONDS: latency.mean, **parts}


def _bytes(name: str, sizes: Mapping[str, int]) -> Figures:
    """All, and each part of it."""
    parts = {f"{name}, {part}": float(size) for part, size in sizes.items()}
    return {name: float(sum(sizes.values())), **parts}


def _peak(model: LanguageModel) -> Figures:
    return {"peak memory, GiB": peak_memory(model.device).process / 2**30}
