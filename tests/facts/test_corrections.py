"""Which facts of a sequence a later one corrects."""

from __future__ import annotations

import pytest

from betaedit.facts.corrections import corrected_later
from betaedit.facts.fact import Fact


def sequence(*facts: tuple[str, str, str]) -> list[bool]:
    return corrected_later([Fact(*fact) for fact in facts])


@pytest.mark.parametrize(
    ("facts", "corrected"),
    [
        ([("{} opens at", "Bo", "nine"), ("{} opens at", "Bo", "ten")], [True, False]),
        ([("{} opens at", "Bo", "nine"), ("{} opens at", "Bo", "nine")], [False, False]),
        ([("{} opens at", "Bo", "nine"), ("{} opens at", "Ada", "ten")], [False, False]),
        ([("{} opens at", "Bo", "nine"), ("{} closes at", "Bo", "ten")], [False, False]),
        (
            [("{} is", "Bo", "a"), ("{} is", "Cy", "a"), ("{} is", "Bo", "b"), ("{} is", "Bo", "c")],
            [True, False, True, False],
        ),
        ([("{} is", "Bo", "a"), ("{} is", "Bo", "b"), ("{} is", "Bo", "a")], [False, True, False]),
        ([], []),
    ],
)
def test_a_fact_is_corrected_by_a_last_one_of_its_prompt_and_subject_that_wants_another_answer(
    facts: list[tuple[str, str, str]], corrected: list[bool]
) -> None:
    assert sequence(*facts) == corrected
