"""Finds the subject of a fact in a prompt without a slot."""

from __future__ import annotations

import re

from betaedit.errors import FactError
from betaedit.facts.hints import absent_subject
from betaedit.writing import stands_as_word

Span = tuple[int, int]
_SHOWN = 20


def find_subject(prompt: str, subject: str, *, any_case: bool = False, last: bool = False) -> Span:
    """The half-open span of characters of ``subject`` as a word in ``prompt``.

    Args:
        prompt: Without a slot.
        subject: Without white space around it.
        any_case: Whether case is ignored if the exact subject is not a word of the prompt.
        last: Whether to take the last of several places, or if there is none, the last inside another word: the rule
            of the published data sets (methods.md A.1).

    Raises:
        FactError: The subject does not occur, or is ambiguous; the places are named.
    """
    spellings = [_spans(prompt, subject, flags) for flags in ((0, re.IGNORECASE) if any_case else (0,))]
    words = next(filter(None, ([span for span in spans if stands_as_word(prompt, *span)] for spans in spellings)), [])
    if len(words) == 1 or (last and words):
        return words[-1]
    parts = next(filter(None, spellings), [])
    if last and parts:
        return parts[-1]
    raise _no_place(prompt, subject, words, parts)


def names_subject(text: str, subject: str) -> bool:
    """Whether ``subject`` occurs in ``text`` as a word; case is ignored."""
    return any(stands_as_word(text, *span) for span in _spans(text, subject, re.IGNORECASE))


def _spans(prompt: str, subject: str, flags: int) -> list[Span]:
    if not subject:
        return []
    return [match.span(1) for match in re.finditer(f"(?=({re.escape(subject)}))", prompt, flags)]


def _no_place(prompt: str, subject: str, words: list[Span], parts: list[Span]) -> FactError:
    if words:
        problem, spans = f"occurs {len(words)} times in the prompt", words
        hint = f"Put {{}} at the right place, as in {_excerpt(prompt, words[-1], '{}')}."
    elif parts:
        problem, spans = "occurs only inside other words of the prompt", parts
        hint = "Write the subject as a word of the prompt, or put {} at the right place."
    else:
        return absent_subject(prompt, subject)
    places = ", ".join(_excerpt(prompt, span, f">{prompt[slice(*span)]}<") for span in spans)
    return FactError(f"the subject {subject!r} {problem}: {places}.", hint=hint, field="subject")


def _excerpt(prompt: str, span: Span, subject: str) -> str:
    """The text around a place, with ``subject`` there."""
    start, end = span
    return repr(prompt[max(0, start - _SHOWN) : start] + subject + prompt[end : end + _SHOWN])
