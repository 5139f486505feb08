"""Chat: the text of messages in a model's own template, and the token that ends a turn."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from betaedit.errors import ModelError
from betaedit.models.lookup import tokenize

Message = Mapping[str, str]
_MARK = "A1B2C3"
_COMPLETE = "Complete the sentence: "
ASKS = re.compile(r"[:：?？؟]$")  # noqa: RUF001 - full-width signs are meant
"""Ends of prompts that ask for an answer instead of the rest of a sentence."""


def has_chat(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the tokenizer has a chat template."""
    return bool(getattr(tokenizer, "chat_template", None))


def chat_text(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], *, opened: bool = True) -> str:
    """The text of ``messages`` in the tokenizer's own template.

    Tokenizing it gives the template's tokens: a BOS token that the tokenizer adds to every text is left out.

    Args:
        tokenizer: The model's.
        messages: Each with ``role`` (system, user, assistant) and ``content``.
        opened: Whether the model's turn is opened at the end.

    Raises:
        ModelError: There is no template, or it refuses the messages.
    """
    if not has_chat(tokenizer):
        raise ModelError(
            "the model has no chat template.", hint="Ask in plain text, or use the chat version of the model."
        )
    try:
        text: Any = tokenizer.apply_chat_template(
            [dict(message) for message in messages], add_generation_prompt=opened, tokenize=False
        )
    except (TemplateError, ValueError, KeyError) as error:
        raise ModelError(
            f"the model's chat template refuses these messages: {error}.",
            hint="Leave out the system message, and alternate user and assistant.",
        ) from error
    bos = tokenizer.bos_token
    adds = isinstance(bos, str) and tokenize(tokenizer, "a")[:1] == [tokenizer.bos_token_id]
    return str(text).removeprefix(bos) if adds else str(text)


def takes_system_message(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the template accepts a system message."""
    try:
        return _MARK in chat_text(tokenizer, [{"role": "system", "content": _MARK}, {"role": "user", "content": "a"}])
    except ModelError:
        return False


def turn_end(tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """The token with which the model ends its turn: the one after an answer in the template, else end of text."""
    end = () if tokenizer.eos_token_id is None else (int(tokenizer.eos_token_id),)
    if not has_chat(tokenizer):
        return end
    asked = [{"role": "user", "content": "a"}, {"role": "assistant", "content": _MARK}]
    _, found, behind = chat_text(tokenizer, asked, opened=False).rpartition(_MARK)
    ids = list(tokenizer(behind, add_special_tokens=False)["input_ids"]) if found and behind else []
    return (int(ids[0]),) if ids and ids[0] in special_tokens(tokenizer).values() else end


def chat_request(prompt: str) -> str:
    """The user message for ``prompt``: itself if it asks (it ends with ``?`` or ``:``), else a request to complete it.

    A chat model answers an unfinished sentence with a new one; with the request it continues the sentence.
    """
    said = prompt.strip()
    return said if ASKS.search(said) else _COMPLETE + said


def special_tokens(tokenizer: PreTrainedTokenizerBase) -> dict[str, int]:
    """All special tokens with their ids: named ones (BOS, EOS) and those only marked as special."""
    named = dict(zip(tokenizer.all_special_tokens, tokenizer.all_special_ids, strict=True))
    marked = {token.content: index for index, token in tokenizer.added_tokens_decoder.items() if token.special}
    return {**named, **marked}


def typed_specials(tokenizer: PreTrainedTokenizerBase, text: str) -> tuple[str, ...]:
    """The special tokens that are typed in ``text``, as in a chat template's text."""
    return tuple(token for token in special_tokens(tokenizer) if token in text)


def split_request(tokenizer: PreTrainedTokenizerBase, prompt: str) -> tuple[str, str, str]:
    """The template's text before a user's message, the message, and the template's text after it.

    If the prompt is not a single request in the template, the first and last are empty.
    """
    if not has_chat(tokenizer):
        return "", prompt, ""
    before, _, after = chat_text(tokenizer, [{"role": "user", "content": _MARK}]).partition(_MARK)
    if len(prompt) < len(before) + len(after) or not (prompt.startswith(before) and prompt.endswith(after)):
        return "", prompt, ""
    return before, prompt[len(before) : len(prompt) - len(after)], after


def chat_prompt(tokenizer: PreTrainedTokenizerBase, prompt: str) -> str:
    """``prompt`` as a user's request in the model's chat template; the answer follows without a space.

    A prompt with typed special tokens is already a template's text and is not changed.

    Raises:
        ModelError: There is no template, or it refuses the request.
    """
    if typed_specials(tokenizer, prompt):
        return prompt
    return chat_text(tokenizer, [{"role": "user", "content": chat_request(prompt)}])
