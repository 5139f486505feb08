"""Finds facts of a sequence that a later one corrects."""

from __future__ import annotations

from collections.abc import Sequence

from betaedit.facts.fact import Fact


def corrected_later(facts: Sequence[Fact]) -> list[bool]:
    """For each fact in order, whether the last fact of the same prompt and subject has another answer."""
    last = {(fact.prompt, fact.subject): fact.target_new for fact in facts}
    return [last[fact.prompt, fact.subject] != fact.target_new for fact in facts]
