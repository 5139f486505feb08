"""What is said of a value that cannot be used: each kind of value has its own cause, and so its own hint."""

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

# What two texts that look alike may differ in, and how to make them equal there.
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
    """Whether ``text`` is nothing but special tokens, which other tools write where an answer is not known."""
    return _PLACEHOLDER.fullmatch(text.strip()) is not None


def refuse_placeholder(answer: str, field: str) -> None:
    """Refuse an ``answer`` that a user gave and that is none.

    Raises:
        FactError: It is a special token.
    """
    if is_placeholder(answer):
        hint = "Say what the model should answer." if field == "target_new" else "Leave it out when it is not known."
        raise FactError(f"{answer!r} is a special token, which is no answer.", hint=hint, field=field)


def kind_of(value: object) -> str:
    """What kind of value it is, in words; NaN is what pandas writes for null."""
    if value is None or (isinstance(value, float) and value != value):  # noqa: PLR0124 - only NaN differs from itself
        return "null"
    if type(value) in _KINDS:
        return _KINDS[type(value)]
    return "a number" if isinstance(value, int | float) else type(value).__name__


def not_text(value: object, field: str) -> FactError:
    """The error for a ``value`` that stands where a text is expected; ``field`` is its path in the record."""
    kind, name = kind_of(value), field.rpartition(".")[2]
    hints = {
        "null": f"Leave the record out, or {_ABSENT.get(name, 'give a text here')}.",
        "a list": f"{'One answer is written: give' if name == 'target_new' else 'Give'} one text.",
        "an object": "Give the text alone, without an object around it.",
        "a truth value": "Give the words that stand in the sentence, such as yes or no.",
        "a number": f'Give it as a text, as in "{value}".',
    }
    return FactError(
        f"must be text, not {kind}.", hint=hints.get(kind, f"Give it as a text: str({name})."), field=field
    )


def absent_subject(prompt: str, subject: str) -> FactError:
    """The error for a subject that its prompt does not hold; it says so when a reader would see no difference."""
    message = f"the subject {subject!r} does not occur in the prompt {prompt!r}"
    hint = "Write the subject exactly as it stands in the prompt, or put {} in its place."
    found = _difference(prompt, subject)
    if not subject or found is None:
        return FactError(f"{message}.", hint=hint, field="subject")
    return FactError(f"{message}: the two differ in {found}.", hint=f"Copy it from the prompt. {hint}", field="subject")


def _difference(prompt: str, subject: str) -> str | None:
    """The least that has to be looked over for ``prompt`` to hold ``subject``."""
    for number in range(1, len(_FOLDS) + 1):
        for chosen in combinations(_FOLDS, number):
            folded = [prompt, subject]
            for _, fold in chosen:
                folded = [fold(text) for text in folded]
            if folded[1] and folded[1] in folded[0]:
                return " and ".join(name for name, _ in chosen)
    return None
