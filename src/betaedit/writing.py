"""Rules of running text: the text between a prompt and its answer, and the ends of words."""

from __future__ import annotations

import re
import unicodedata

# Scripts that put no spaces between words: Thai, Lao, Tibetan, Burmese, Khmer, Tai, Balinese, Javanese, and Chinese and
# Japanese with their punctuation and full-width forms. Korean is not among them.
_SPACELESS = re.compile(
    "[\u0e00-\u0fff\u1000-\u109f\u1780-\u17ff\u1950-\u19ff\u1a20-\u1aaf\u1b00-\u1b7f\u2e80-\u312f\u3190-\u31ff"
    "\u3400-\u4dbf\u4e00-\ua4cf\ua980-\ua9ff\uaa60-\uaadf\uf900-\ufaff\uff01-\uff9f"
    "\U0001b000-\U0001b16f\U00020000-\U000323af]"
)
_HANGUL = re.compile("[\u1100-\u11ff\u3130-\u318f\uac00-\ud7af]")
_IRISH = re.compile(r"\bO['’]$")  # noqa: RUF001 - the apostrophe is meant
# Marks of one kind open and close each other, whichever way they point.
_QUOTES = ('"“”„‟«»', "'‘’‚‛‹›", "`")  # noqa: RUF001 - these are meant
# After these an answer follows at once: a word and its hyphen or slash, an address, a control token of a chat template,
# an elided article or pronoun of French or Italian.
_JOINING = re.compile(
    r"\w[-‐‑–—/\\]$|[:/\\][/\\]$|<[|｜][^<>]*[|｜]>$|"  # noqa: RUF001 - dashes and full-width bars are meant
    r"(?<!['’])\b([cdjlmnst]|qu|jusqu|lorsqu|puisqu|(all?|d[ae]ll|nell|sull|un|quell))['’]$",  # noqa: RUF001 - so is the apostrophe
    re.IGNORECASE,
)

# A currency or number sign, with no number before it that it could belong to.
_NUMBERED = re.compile(r"[^\d\s]([ \t]*[$£€¥₩₹₽₺₿]|[ \t]+#)$")


def joint_between(prompt: str, answer: str) -> str:
    """``" "`` if ``answer`` follows ``prompt`` as the next word, ``""`` if it follows without a space.

    The default is ``" "``, as in published data sets; the ``joint`` of a fact overrides the rule. Without a space:
    after white space, an opening quote or bracket, a word's hyphen or slash, a control token, an elision (``l'``),
    between ``$`` or ``#`` and a number, and in scripts without spaces. A Chinese answer in an English sentence has its
    space.

    Args:
        prompt: With its subject filled in.
        answer: Without white space around it.
    """
    joins = (
        not prompt
        or prompt[-1].isspace()
        or _opens(prompt)
        or _JOINING.search(prompt) is not None
        or (answer[:1].isdecimal() and _NUMBERED.search(prompt) is not None)
        or _spaceless(prompt, answer)
    )
    return "" if joins else " "


def stands_as_word(text: str, start: int, end: int) -> bool:
    """Whether ``text[start:end]`` is not part of a longer word or number.

    Apostrophes, hyphens and other punctuation end a word, except for the O of O'Neil. In scripts without spaces every
    place is an end, and a word in Korean text may have particles after it.
    """
    goes_on = _goes_on(text, end) and not _HANGUL.match(text, end)
    return not (goes_on or _goes_on(text, start) or _IRISH.search(text[:start]))


def _goes_on(text: str, at: int) -> bool:
    """Whether what stands before and after the place ``at`` is one word or one number."""
    before, after = text[max(0, at - 2) : at], text[at : at + 2]
    if not before or not after:
        return False
    number = re.fullmatch(r".?\d[.,]\d|\d[.,]\d.?", before + after, re.DOTALL) is not None
    return number or (_is_letter(before[-1]) and _is_letter(after[0]))


def _is_letter(sign: str) -> bool:
    """Whether it is a letter, an accent or a digit, of a script that puts spaces between words."""
    return unicodedata.category(sign)[0] in "LMN" and not _SPACELESS.match(sign)


def _opens(prompt: str) -> bool:
    """Whether the prompt ends in a bracket or quote that opens."""
    last = prompt[-1]
    quotes = next((marks for marks in _QUOTES if last in marks), None)
    if quotes is None:
        return unicodedata.category(last) in ("Ps", "Pi")
    before = prompt[-2:-1]
    if before.isalnum() or before in tuple(".,;!?)]}…%"):
        return False
    # An apostrophe between letters is no quote.
    marks = f"[{re.escape(quotes)}]"
    return len(re.findall(rf"(?<!\w){marks}|{marks}(?!\w)", prompt)) % 2 == 1


def _spaceless(prompt: str, answer: str) -> bool:
    """Whether prompt and answer are in a script without spaces."""
    if _SPACELESS.match(prompt[-1]):
        return True
    if not _SPACELESS.match(answer):
        return False
    foreign = len(_SPACELESS.findall(prompt))
    words = re.findall(r"[^\W\d_]+", _SPACELESS.sub(" ", prompt))
    return foreign >= len(words)
