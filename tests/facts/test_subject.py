"""Where a subject stands in a prompt without a slot."""

from __future__ import annotations

import pytest

from betaedit.errors import FactError
from betaedit.facts.subject import find_subject


@pytest.mark.parametrize(
    ("prompt", "subject", "start"),
    [
        ("Iran, home of the Iranians, has the capital", "Iran", 0),
        ("The art taught at the Bartlett is called", "art", 4),
        ("In 2016 the number 1 was", "1", 19),
        ("The Romans left Rome for", "Rome", 16),
        ("日本的首都是", "日本", 0),
        ("Romanus sum, non Rome", "Rome", 17),
    ],
)
def test_a_subject_is_found_as_a_word(prompt: str, subject: str, start: int):
    assert find_subject(prompt, subject) == (start, start + len(subject))


@pytest.mark.parametrize(
    ("prompt", "subject", "place"),
    [
        ("The queen of Canada was born in", "ada", "'The queen of Can>ada< was born in'"),
        ("The Iranians live in", "Iran", "'The >Iran<ians live in'"),
        ("In 2016 it was", "1", "'In 20>1<6 it was'"),
    ],
)
def test_a_subject_inside_other_words_alone_is_asked_about(prompt: str, subject: str, place: str):
    with pytest.raises(FactError, match="only inside other words") as caught:
        find_subject(prompt, subject)
    assert place in caught.value.message
    assert "put {}" in caught.value.hint


def test_a_subject_at_several_places_is_asked_about_with_all_of_them():
    with pytest.raises(FactError, match="occurs 2 times") as caught:
        find_subject("Rome was not built by Romans, but Rome is in", "Rome")
    assert "'>Rome< was not built by Ro', 'uilt by Romans, but >Rome< is in'" in caught.value.message
    assert "'uilt by Romans, but {} is in'" in caught.value.hint
    assert caught.value.field == "subject"


@pytest.mark.parametrize(
    ("prompt", "subject", "start"),
    [
        ("Rome was not built by Romans, but Rome is in", "Rome", 34),
        ("Iran, home of the Iranians, has", "Iran", 0),
        ("The queen of Canada was born in", "ada", 16),
        ("rome, ROME is in", "Rome", 6),
    ],
)
def test_the_rule_of_published_data_takes_the_last_place_as_a_word_or_else_the_last(
    prompt: str, subject: str, start: int
):
    assert find_subject(prompt, subject, any_case=True, last=True) == (start, start + len(subject))


def test_other_capitals_are_taken_only_where_the_spelling_itself_is_no_word():
    assert find_subject("The rome of Rome is", "Rome", any_case=True) == (12, 16)
    assert find_subject("THE EIFFEL TOWER is in", "Eiffel Tower", any_case=True) == (4, 16)
    with pytest.raises(FactError, match="occurs 2 times"):
        find_subject("ROME, that is rome, lies in", "Rome", any_case=True)
    with pytest.raises(FactError, match="does not occur"):
        find_subject("ROME is in", "Rome")
