"""Errors for values that cannot be used, with a hint for each kind of value."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable
from functools import partial
from itertools import combinations

from betaedit.errors import FactError

_PLACEHOLDER = re.compile(
    r"(?:<\|[^<>|]+\|>|<\uff5c[^<>\uff5c]+\uff5c>|</s>|<(?:eos|unk|pad|end_of_turn)>|\[(?:eos|unk|pad)\])+",
    re.IGNORECASE,
)
_KINDS: dict[type, str] = {dict: "an object", list: "a list", tuple: "a list", str: "a text", bool: "a truth value"}
_ABSENT = {"subject": "name the subject", "prompt": "write the prompt", "target_new": "say what to answer"}
_TYPOGRAPHY = str.maketrans("\u2018\u2019\u201c\u201d\u2010\u2011\u2012\u2013\u2014", "''\"\"-----")

# Differences of texts that look alike, and functions that remove them.
_FOLDS: tuple[tuple[str, Callable[[str], str]], ...] = (
    (
        "composed and decomposed letters (é as one character, or as e and an accent)",
        partial(unicodedata.normalize, "NFC"),
    ),
    ("plain and non-breaking spaces", partial(re.sub, r"\s", " ")),
    ("straight and curly quotes, or dashes", lambda text: text.translate(_TYPOGRAPHY)),
    ("invisible characters", lambda text: "".join(one for one in text if unicodedata.category(one) != "Cf")),
    ("upper and lower case", str.casefold),
)


def is_placeholder(text: str) -> bool:
    """Whether ``text`` consists of special tokens, which other tools write for an unknown answer."""
    return _PLACEHOLDER.fullmatch(text.strip()) is not None


def refuse_placeholder(answer: str, field: str) -> None:
    """Refuse an ``answer`` of a user that is a placeholder.

    Raises:
        FactError: It is a special token.
    """
    if is_placeholder(answer):
        hint = (
            "Give the answer that the model should give."
            if field == "target_new"
            else "Leave it out if it is not known."
        )
        raise FactError(f"{answer!r} is a special token, not an answer.", hint=hint, field=field)


def kind_of(value: object) -> str:
    """The kind of a value in words; NaN, as pandas writes null, is null."""
    if value is None or (isinstance(value, float) and value != value):  # noqa: PLR0124 - only NaN differs from itself
        return "null"
    if type(value) in _KINDS:
        return _KINDS[type(value)]
    return "a number" if isinstance(value, int | float) else type(value).__name__


def not_text(value: object, field: str) -> FactError:
    """The error for a ``value`` where a text is expected; ``field`` is its path in the record."""
    kind, name = kind_of(value), field.rpartition(".")[2]
    hints = {
        "null": f"Leave the record out, or {_ABSENT.get(name, 'give a text here')}.",
        "a list": f"{'One answer is written: give' if name == 'target_new' else 'Give'} one text.",
        "an object": "Give the text alone, without an object around it.",
        "a truth value": "Give the words of the sentence, such as yes or no.",
        "a number": f'Give it as a text, as in "{value}".',
    }
    return FactError(
        f"must be text, not {kind}.", hint=hints.get(kind, f"Give it as a text: str({name})."), field=field
    )


def absent_subject(prompt: str, subject: str) -> FactError:
    """The error for a subject that does not occur in its prompt; it names differences that are hard to see."""
    message = f"the subject {subject!r} does not occur in the prompt {prompt!r}"
    hint = "Write the subject exactly as in the prompt, or put {} in its place."
    found = _difference(prompt, subject)
    if not subject or found is None:
        return FactError(f"{message}.", hint=hint, field="subject")
    return FactError(f"{message}: the two differ in {found}.", hint=f"Copy it from the prompt. {hint}", field="subject")


def _difference(prompt: str, subject: str) -> str | None:
    """The fewest differences to ignore so that ``subject`` occurs in ``prompt``."""
    for number in range(1, len(_FOLDS) + 1):
        for chosen in combinations(_FOLDS, number):
            folded = [prompt, subject]
            for _, fold in chosen:
                folded = [fold(text) for text in folded]
            if folded[1] and folded[1] in folded[0]:
                return " and ".join(name for name, _ in chosen)
    return None
