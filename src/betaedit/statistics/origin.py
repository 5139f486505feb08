"""The origin of statistics: read and compared without their matrices and without torch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from betaedit.errors import StatisticsError

_LABELS = ("model", "corpus")  # of an origin: what things are called, which decides nothing
TEXT = "text_sha256"
"""Under this name ``Moments.origin`` has a hash of the tokens that were read."""

NOT_RECORDED = "not recorded"
FINGERPRINT = "fingerprint"
N_TOKENS = "n_tokens"
_SHORT = len(NOT_RECORDED)  # letters of a hash that are shown


def same_statistics(kept: Mapping[str, Any], found: Mapping[str, Any]) -> bool:
    """Whether two ``Moments.to_dict`` are of the same statistics.

    The same matrices are, and the same text read on the same weights, whose matrices differ by rounding where it was
    read with other threads. Records of older versions tell neither; they are compared by the rest. What model
    and text are called is no part of it.
    """
    if FINGERPRINT in kept and kept[FINGERPRINT] == found.get(FINGERPRINT):
        return True
    left_out = {TEXT, FINGERPRINT, *_LABELS}
    for name in (TEXT, FINGERPRINT):
        both = kept.get(name, NOT_RECORDED), found.get(name, NOT_RECORDED)
        if NOT_RECORDED not in both:
            if both[0] != both[1]:
                return False
            left_out.add("corpus_hash")
            break
    rest = [{key: value for key, value in each.items() if key not in left_out} for each in (kept, found)]
    return rest[0] == rest[1]


def read_origin(path: Path) -> dict[str, Any]:
    """The origin in a file of ``Moments.save``, without its layers; matrices are not read.

    Raises:
        StatisticsError: It cannot be read.
    """
    try:
        with safe_open(path, framework="np") as file:
            origin = dict(file.metadata() or {})
    except (OSError, SafetensorError) as error:
        raise unreadable_statistics(path, error) from error
    n_tokens = origin.pop(N_TOKENS, "")
    return {"tokens": int(n_tokens) if n_tokens.isdecimal() else 0, **origin}


def statistics_label(origin: Mapping[str, Any]) -> str:
    """``Moments.to_dict`` in one line: tokens, corpus, and the short hashes of text and matrices."""
    text, matrices = (
        str(origin.get(name, NOT_RECORDED)).removeprefix("sha256:")[:_SHORT] for name in (TEXT, FINGERPRINT)
    )
    corpus = origin.get("corpus", "unknown text")
    return f"{origin.get('tokens', 0):,} tokens of {corpus}; text {text}, matrices {matrices}"


def unreadable_statistics(path: Path, error: Exception) -> StatisticsError:
    """What to raise where a file of statistics cannot be opened."""
    return StatisticsError(
        f"the statistics file {path} cannot be read: {error}", hint="Give a file made by `betaedit statistics`."
    )


def identifying_fields(origin: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of an origin that identify second moments: hashes and counts, no names."""
    return {name: value for name, value in origin.items() if name not in _LABELS}
