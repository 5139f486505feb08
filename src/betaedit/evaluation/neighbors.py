"""Whether neighbors still say what the unedited model says, with or without a known answer (metrics.md G.1)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import chain, islice, zip_longest

from betaedit.evaluation.continuing import continue_greedily
from betaedit.evaluation.scoring import Continuation, score_continuations
from betaedit.facts.fact import EvaluationCase
from betaedit.models.load import LanguageModel
from betaedit.progress import Progress

FIRST_TOKENS = 8
MOST_NEIGHBORS = 500

Ids = tuple[int, ...]


def followed_neighbors(cases: Sequence[EvaluationCase]) -> list[str]:
    """Neighbors to be followed, each once, ``MOST_NEIGHBORS`` at most: the first of every case, then the second, ..."""
    by_rank = zip_longest(*([probe.prompt for probe in case.neighbors] for case in cases))
    prompts = (prompt for prompt in chain.from_iterable(by_rank) if prompt is not None)
    return list(islice(dict.fromkeys(prompts), MOST_NEIGHBORS))


def first_tokens(model: LanguageModel, prompts: Sequence[str], progress: Progress | None = None) -> dict[str, Ids]:
    """The next ``FIRST_TOKENS`` greedy tokens after each prompt; prompts that fill the model are left out.

    They are fewer where the model ends its text: its end token is the last of them then.
    """
    said = continue_greedily(model, prompts, FIRST_TOKENS, keep_end=True, progress=progress, label="neighbors")
    return {prompt: ids for prompt, ids in zip(prompts, said, strict=True) if ids}


def still_says(
    model: LanguageModel, said: Mapping[str, Ids], prompts: Iterable[str], progress: Progress | None = None
) -> dict[str, bool]:
    """Whether the model as it is now would say the same tokens, for each of ``prompts`` that ``said`` has.

    It would if each of them is the most probable one after those before it: one pass for all, and no generation.
    """
    asked = [prompt for prompt in dict.fromkeys(prompts) if prompt in said]
    rows = zip(model.encode(asked), asked, strict=True)
    continuations = [Continuation(tuple(row), said[prompt]) for row, prompt in rows]
    scores = score_continuations(model, continuations, progress=progress, label="neighbors")
    return {prompt: score.argmax for prompt, score in zip(asked, scores, strict=True)}
