"""How a fact is asked while its value is sought: wordings, forms and contexts, and the answer wanted after each."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from betaedit.editors.closed_form.config import EditConfig
from betaedit.facts.fact import SLOT, Fact
from betaedit.facts.subject import find_subject
from betaedit.models.chat import (
    ASKS,
    chat_request,
    chat_text,
    has_chat,
    takes_system_message,
    turn_end,
    typed_specials,
)
from betaedit.models.load import LanguageModel
from betaedit.models.lookup import Prompt, encode_target

AUTOMATIC = "auto"
_SYSTEM = "You are a helpful assistant."
_ENDED = re.compile(r"[.!?…。！？؟।]['\"”’»)\]]*$")  # noqa: RUF001 - full-width signs are meant
_IDEOGRAPHIC = re.compile("[\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff]")


@dataclass(frozen=True)
class Wording:
    """One prompt of a fact and the answer wanted after it.

    Args:
        prompt: The prompt, its subject marked.
        target_ids: The tokens that shall follow: the new target, and what ends it.
        key: Number of the key that is taken from this prompt, counted from zero.
        weight: The prompt's share of that key.
    """

    prompt: Prompt
    target_ids: tuple[int, ...]
    key: int
    weight: float


def wordings(model: LanguageModel, fact: Fact, contexts: Sequence[str], config: EditConfig) -> tuple[Wording, ...]:
    """All prompts that take part in writing ``fact``, the one whose change is the value first.

    The first key is of the fact's prompt in all ``contexts``, the bare one weighing one half (methods.md A.4). With
    ``paraphrases=written`` each wording of the fact has a key of its own, and with ``form=both`` so has each
    of the two requests of the chat form; with ``form=chat`` there is no other.

    Raises:
        LookupTokenError: The target has no tokens.
        FactError: A wording lacks the subject.
    """
    found: list[Wording] = []

    def add(prompts: Sequence[tuple[Prompt, tuple[int, ...]]], weights: Sequence[float]) -> None:
        key = found[-1].key + 1 if found else 0
        found.extend(Wording(prompt, ids, key, weight) for (prompt, ids), weight in zip(prompts, weights, strict=True))

    if config.form != "chat":
        ids = target_tokens(model, fact, fact.text, config)
        filled = [(Prompt.fill(template, fact.prompt, fact.subject), ids) for template in contexts]
        others = len(contexts) - 1
        add(filled, [1.0] if others == 0 else [0.5] + [0.5 / others] * others)
        if config.paraphrases == "written":
            for text in fact.wordings:
                prompt = Prompt(text, *find_subject(text, fact.subject, any_case=True, last=True))
                add([(prompt, target_tokens(model, fact, text, config))], [1.0])
    if config.form != "completion" and has_chat(model.tokenizer) and not typed_specials(model.tokenizer, fact.text):
        for request in _chat_requests(model, fact, config):
            add([request], [1.0])
    return tuple(found)


def target_tokens(model: LanguageModel, fact: Fact, text: str, config: EditConfig) -> tuple[int, ...]:
    """The tokens wanted after ``text``: the new target and what ends it.

    With ``answer_end=auto`` a full stop ends a sentence, a line end the answer to a question, the end of the turn an
    answer behind a chat template's text; nothing a target that ends in such a sign itself.
    """
    end = config.answer_end
    if end != AUTOMATIC:
        return tuple(encode_target(model.tokenizer, text, fact.target_new + end, fact.joint))
    if typed_specials(model.tokenizer, text):
        return (*encode_target(model.tokenizer, text, fact.target_new, fact.joint), *turn_end(model.tokenizer))
    if ASKS.search(text.rstrip()):
        end = "\n"
    elif _ENDED.search(fact.target_new):
        end = ""
    else:
        end = "。" if _IDEOGRAPHIC.search(text[-4:] + fact.target_new) else "."
    return tuple(encode_target(model.tokenizer, text, fact.target_new + end, fact.joint))


def _chat_requests(model: LanguageModel, fact: Fact, config: EditConfig) -> Iterator[tuple[Prompt, tuple[int, ...]]]:
    """The prompt as a user's message: put as a request, and as it is behind a system message."""
    tokenizer, prompt = model.tokenizer, fact.prompt.strip()
    said = prompt.replace(SLOT, fact.subject)
    system = [{"role": "system", "content": _SYSTEM}] if takes_system_message(tokenizer) else []
    answer = tuple(encode_target(tokenizer, "\n", fact.target_new, ""))
    ending = turn_end(tokenizer) if config.answer_end == AUTOMATIC else ()
    for before, content in (([], chat_request(said)), (system, said)):
        text = chat_text(tokenizer, [*before, {"role": "user", "content": content}])
        start = text.rindex(said) + prompt.index(SLOT)
        yield Prompt(text, start, start + len(fact.subject)), (*answer, *ending)
