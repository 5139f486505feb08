"""Free-text questions to a model: its greedy answer, and its most probable answers."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from textwrap import shorten
from typing import Any

from torch import Tensor

from betaedit.errors import ModelError
from betaedit.evaluation.continuing import BATCH_SIZE, complete_greedily, in_batches
from betaedit.evaluation.scoring import Continuation, read_targets
from betaedit.models.chat import special_tokens
from betaedit.models.generate import continue_rows, end_tokens, most_likely
from betaedit.models.load import LanguageModel
from betaedit.progress import Progress

_TOKENS_OF_A_PHRASE = 7
_SHOWN = 60
_PHRASE_END = re.compile(r"(?<=\S)([.,;:!?…]+\s|\n|[。，；：！？])")  # noqa: RUF001 - full-width signs are meant
_SENTENCE_END = re.compile(r"(?<=\S)([.!?…]+(\s|$)|\n|[。！？])")  # noqa: RUF001 - full-width signs are meant
_LAST_WORD = re.compile(r"(?<=\S)\s+\S*$")
_CLOSING = ".,;:!?…"


@dataclass(frozen=True, slots=True)
class Likely:
    """One answer among the most probable ones.

    Args:
        text: Its first words: greedily from its first token to the end of the phrase, at most a few tokens. Empty
            if the first token ends the text or is another control token.
        probability: Probability of its first token.
    """

    text: str
    probability: float


@dataclass(frozen=True, slots=True)
class Answer:
    """A model's answer to one prompt.

    Args:
        text: The greedy answer, control tokens left out.
        likely: The answers with the most probable first tokens, the most probable one first. Empty if the model's
            output is NaN.
    """

    text: str
    likely: tuple[Likely, ...]

    def differs(self, other: Answer) -> bool:
        """Whether the first sentences of the two greedy answers differ."""
        return _first_sentence(self.text) != _first_sentence(other.text)

    def to_dict(self) -> dict[str, Any]:
        """The answer as plain data."""
        return asdict(self)


def ask(
    model: LanguageModel,
    prompts: Sequence[str],
    *,
    n_tokens: int = 32,
    top: int = 3,
    progress: Progress | None = None,
) -> list[Answer]:
    """The answers of ``model`` to each prompt, in order: greedy, and the ``top`` most probable ones.

    Args:
        model: The model.
        prompts: The prompts; for chat, the texts of ``models.chat.chat_text``.
        n_tokens: Maximum number of new tokens of the greedy answer, at least 1.
        top: Number of answers, at least 1.
        progress: Shows the progress.

    Raises:
        ModelError: A prompt has no tokens, or leaves no position for an answer.
    """
    rows = model.encode(prompts)
    for prompt, row in zip(prompts, rows, strict=True):
        _check_length(model, prompt, len(row))
    said = complete_greedily(model, prompts, n_tokens, progress=progress, label="answering")
    first = _first_tokens(model, rows, top)
    phrases = iter(
        _phrases(model, [[*row, token] for row, found in zip(rows, first, strict=True) for token, _ in found])
    )
    return [
        Answer(text, tuple(Likely(next(phrases), probability) for _, probability in found))
        for text, found in zip(said, first, strict=True)
    ]


def _check_length(model: LanguageModel, prompt: str, n_tokens: int) -> None:
    shown = shorten(prompt, _SHOWN, placeholder=" ...")
    if n_tokens == 0:
        raise ModelError(f"the question {shown!r} has no tokens.", hint="Write a question.")
    if n_tokens >= model.max_length:
        raise ModelError(
            f"the question {shown!r} has {n_tokens} tokens; the model has {model.max_length} positions.",
            hint="Shorten the question.",
        )


def _first_tokens(model: LanguageModel, rows: Sequence[Sequence[int]], top: int) -> list[list[tuple[int, float]]]:
    """The most probable next tokens of each row with their probabilities; none if they are NaN."""

    def read(logs: Tensor, _: tuple[int, ...]) -> list[tuple[int, float]]:
        if logs.isnan().any():
            return []
        found, tokens = logs[0].exp().topk(min(top, logs.shape[-1]))
        return list(zip(tokens.tolist(), found.tolist(), strict=True))

    unread = 0  # a continuation needs a token; its probability is not used
    return read_targets(model, [Continuation(tuple(row), (unread,)) for row in rows], read)


def _phrases(model: LanguageModel, rows: Sequence[Sequence[int]]) -> list[str]:
    """The last token of each row, and the greedy tokens after it, as text up to the end of the phrase."""
    tokenizer = model.tokenizer
    ends = end_tokens(model) | set(special_tokens(tokenizer).values())

    def work(batch: list[int]) -> list[str]:
        started = [rows[index] for index in batch]
        limits = [0 if row[-1] in ends else _TOKENS_OF_A_PHRASE for row in started]
        new = continue_rows(
            model,
            started,
            limits,
            most_likely,
            is_finished=lambda ids: ids[-1] in ends,
            n_prompt=[len(row) - 1 for row in started],
        )
        said = [[row[-1], *ids] for row, ids in zip(started, new, strict=True)]
        texts = [str(tokenizer.decode(ids, skip_special_tokens=True)) for ids in said]
        return [first_phrase(text, ended=ids[-1] in ends) for text, ids in zip(texts, said, strict=True)]

    return in_batches([len(row) for row in rows], BATCH_SIZE, work, label="answering")


def _first_sentence(text: str) -> str:
    """``text`` up to the end of its first sentence or line, without white space around it."""
    found = _SENTENCE_END.search(text)
    return (text if found is None else text[: found.start()]).strip()


def first_phrase(text: str, *, ended: bool) -> str:
    """The first words of ``text``, up to punctuation or a line end; white space before them stays.

    Args:
        text: The answer of a model.
        ended: Whether the answer is complete; otherwise the last of several words may be cut, and is left out.
    """
    found = _PHRASE_END.search(text)
    if found is not None:
        return text[: found.start()]
    words = (text if ended else _LAST_WORD.sub("", text)).rstrip()
    return words.rstrip(_CLOSING) or words
