"""Chat: messages as the text that a model's own template makes of them, and the token that ends a turn."""

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
"""How a prompt ends that asks for an answer, rather than for the rest of a sentence."""


def has_chat(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the tokenizer brings a chat template."""
    return bool(getattr(tokenizer, "chat_template", None))


def chat_text(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], *, opened: bool = True) -> str:
    """``messages`` as the text that is put before the model, by the tokenizer's own template.

    Tokenizing it gives the template's tokens: a BOS token that the tokenizer puts before every text is left out.

    Args:
        tokenizer: The model's.
        messages: Each with ``role`` (system, user, assistant) and ``content``.
        opened: Whether the model's turn is opened at the end.

    Raises:
        ModelError: There is no template, or it refuses the messages.
    """
    if not has_chat(tokenizer):
        raise ModelError("the model has no chat template.", hint="Ask it in plain text, or use its chat version.")
    try:
        text: Any = tokenizer.apply_chat_template(
            [dict(message) for message in messages], add_generation_prompt=opened, tokenize=False
        )
    except (TemplateError, ValueError, KeyError) as error:
        raise ModelError(
            f"the model's chat template refuses these messages: {error}.",
            hint="Leave out the system message, and let user and assistant take turns.",
        ) from error
    bos = tokenizer.bos_token
    adds = isinstance(bos, str) and tokenize(tokenizer, "a")[:1] == [tokenizer.bos_token_id]
    return str(text).removeprefix(bos) if adds else str(text)


def takes_system_message(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the template has a place for a system message."""
    try:
        return _MARK in chat_text(tokenizer, [{"role": "system", "content": _MARK}, {"role": "user", "content": "a"}])
    except ModelError:
        return False


def turn_end(tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """The token with which the model ends its turn: what the template puts behind an answer, else end of text."""
    end = () if tokenizer.eos_token_id is None else (int(tokenizer.eos_token_id),)
    if not has_chat(tokenizer):
        return end
    asked = [{"role": "user", "content": "a"}, {"role": "assistant", "content": _MARK}]
    _, found, behind = chat_text(tokenizer, asked, opened=False).rpartition(_MARK)
    ids = list(tokenizer(behind, add_special_tokens=False)["input_ids"]) if found and behind else []
    return (int(ids[0]),) if ids and ids[0] in special_tokens(tokenizer).values() else end


def chat_request(prompt: str) -> str:
    """What a user says to have ``prompt`` answered: itself where it asks (it ends with ``?`` or ``:``), else a request.

    A chat model answers an unfinished sentence with a sentence of its own; asked to complete it, it goes on from there.
    """
    said = prompt.strip()
    return said if ASKS.search(said) else _COMPLETE + said


def special_tokens(tokenizer: PreTrainedTokenizerBase) -> dict[str, int]:
    """All special tokens with their ids: those with a name of their own (BOS, EOS) and those only marked as special."""
    named = dict(zip(tokenizer.all_special_tokens, tokenizer.all_special_ids, strict=True))
    marked = {token.content: index for index, token in tokenizer.added_tokens_decoder.items() if token.special}
    return {**named, **marked}


def typed_specials(tokenizer: PreTrainedTokenizerBase, text: str) -> tuple[str, ...]:
    """The special tokens that stand in ``text`` as if typed: it is a chat template's text, or was meant to be."""
    return tuple(token for token in special_tokens(tokenizer) if token in text)


def split_request(tokenizer: PreTrainedTokenizerBase, prompt: str) -> tuple[str, str, str]:
    """What the chat template puts before a user's message, the message, and what it puts behind it.

    Of a prompt that is no single request in the template, the first and the last are empty.
    """
    if not has_chat(tokenizer):
        return "", prompt, ""
    before, _, after = chat_text(tokenizer, [{"role": "user", "content": _MARK}]).partition(_MARK)
    if len(prompt) < len(before) + len(after) or not (prompt.startswith(before) and prompt.endswith(after)):
        return "", prompt, ""
    return before, prompt[len(before) : len(prompt) - len(after)], after


def chat_prompt(tokenizer: PreTrainedTokenizerBase, prompt: str) -> str:
    """``prompt`` as a user's request in the model's chat template; the answer follows at once, without a space.

    A prompt in which special tokens are typed is a template's text already, and stays as it is.

    Raises:
        ModelError: There is no template, or it refuses the request.
    """
    if typed_specials(tokenizer, prompt):
        return prompt
    return chat_text(tokenizer, [{"role": "user", "content": chat_request(prompt)}])
