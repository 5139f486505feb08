"""Answers as a user would get them: greedy text after a plain prompt, or in chat (metrics.md G.4)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from betaedit.evaluation.continuing import BATCH_SIZE, continue_greedily
from betaedit.models.chat import chat_prompt
from betaedit.models.load import LanguageModel
from betaedit.progress import Progress

_TEXT_ENDS = ("</s>", "<|endoftext|>")
_THOUGHT_ENDS = "</think>"


@dataclass(frozen=True, slots=True)
class AnswerStyle:
    """How a model is asked, and how its answer is cut from its text.

    Args:
        max_tokens: The most new tokens.
        stops: Texts before which an answer ends.
        reasoning: The model thinks aloud first: what follows its last ``</think>`` is the answer, all of it where
            there is none, and not its first line alone.
        chat: Every prompt is put as a user's request in the model's chat template.
    """

    max_tokens: int = 50
    stops: tuple[str, ...] = (".", *_TEXT_ENDS)
    reasoning: bool = False
    chat: bool = False

    def read(self, text: str) -> str:
        """The answer in ``text``, without white space around it."""
        if self.reasoning:
            return self._until_stop(after_thinking(text)).strip()
        return self._until_stop(text).strip().partition("\n")[0].rstrip()

    def is_complete(self, text: str) -> bool:
        """Whether the answer of ``text`` is complete."""
        return self._until_stop(text) != text or (not self.reasoning and "\n" in text.lstrip())

    def _until_stop(self, text: str) -> str:
        return text[: min((at for stop in self.stops if (at := text.find(stop)) >= 0), default=len(text))]


PLAIN = AnswerStyle()
REASONING = AnswerStyle(max_tokens=1024, stops=_TEXT_ENDS, reasoning=True)
CHAT = AnswerStyle(stops=_TEXT_ENDS, reasoning=True, chat=True)


def after_thinking(text: str) -> str:
    """The text after the last ``</think>`` of a reasoning model; all of it without one."""
    return text.rpartition(_THOUGHT_ENDS)[2]


def greedy_answers(
    model: LanguageModel,
    prompts: Sequence[str],
    *,
    style: AnswerStyle = PLAIN,
    batch_size: int = BATCH_SIZE,
    progress: Progress | None = None,
    label: str = "answering",
) -> list[str]:
    """The model's answer to each prompt, in order: greedy, new text only; no chat template unless ``style`` says so.

    ``batch_size`` changes memory and time, not answers.

    Raises:
        ModelError: Chat is asked for and the model has no chat template, or it refuses a request.
    """
    tokenizer = model.tokenizer
    if style.chat:
        prompts = [chat_prompt(tokenizer, prompt) for prompt in prompts]
    width = max(map(len, style.stops), default=1) + 1  # a stop text spans no more tokens than it has characters

    def is_finished(new: list[int]) -> bool:
        return style.is_complete(str(tokenizer.decode(new[-width:] if style.reasoning else new)))

    said = continue_greedily(
        model,
        prompts,
        style.max_tokens,
        is_finished=is_finished,
        batch_size=batch_size,
        progress=progress,
        label=label,
    )
    special = tokenizer.all_special_tokens
    return [_without(style.read(str(tokenizer.decode(list(ids)))), special) for ids in said]


def _without(text: str, tokens: Sequence[str]) -> str:
    for token in tokens:
        text = text.replace(token, "")
    return text.strip()
