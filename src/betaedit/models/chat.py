"""Chat: messages as the text that a model's own template makes of them, and the token that ends a turn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from betaedit.errors import ModelError
from betaedit.models.lookup import tokenize

Message = Mapping[str, str]
_MARK = "A1B2C3"


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
        raise ModelError("the model has no chat template.", mend="Ask it in plain text, or use its chat version.")
    try:
        text: Any = tokenizer.apply_chat_template(
            [dict(message) for message in messages], add_generation_prompt=opened, tokenize=False
        )
    except (TemplateError, ValueError, KeyError) as error:
        raise ModelError(
            f"the model's chat template refuses these messages: {error}.",
            mend="Leave out the system message, and let user and assistant take turns.",
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
    return (int(ids[0]),) if ids and ids[0] in tokenizer.all_special_ids else end
