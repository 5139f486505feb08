from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from betaedit.errors import BetaEditError, FactError, UnchangedError
from betaedit.facts import GROUPS, LOCALITY, PORTABILITY, EvaluationCase, Fact, Probe, Question, slotted

WORDS = st.text(st.characters(exclude_characters="{}[]", exclude_categories=("Cs",)), min_size=1).filter(str.strip)


def darrieux(**changes: object) -> Fact:
    fields: dict[str, object] = {
        "prompt": "The mother tongue of {} is",
        "subject": "Danielle Darrieux",
        "target_new": "English",
        "target_true": "French",
    }
    return Fact(**(fields | changes))  # type: ignore[arg-type]  # some of these are wrong on purpose


def test_the_text_of_a_fact_has_its_subject_in_the_slot():
    assert darrieux().text == "The mother tongue of Danielle Darrieux is"


def test_a_fact_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        darrieux().subject = "Léon Blum"  # type: ignore[misc]  # on purpose


def test_equal_facts_are_equal_and_hash_alike():
    assert {darrieux(), darrieux()} == {darrieux()}


def test_white_space_around_subject_targets_and_id_goes():
    fact = Fact("{} speaks", " Léon Blum\n", " English ", "\tFrench", " a ")
    assert fact == Fact("{} speaks", "Léon Blum", "English", "French", "a")


@pytest.mark.parametrize(
    "prompt", ["{} speaks ", "user\n{} speaks?\nassistant\n", "{}\t", "\n  {} speaks", "{} sagt: „", "{} dit : «\u00a0"]
)
def test_a_prompt_begins_and_ends_where_it_was_typed(prompt: str):
    assert darrieux(prompt=prompt).text == prompt.replace("{}", "Danielle Darrieux")
    assert Fact.from_text(prompt.replace("{}", "Rome"), "Rome", "Oslo").prompt == prompt
    assert Fact.from_bracketed(prompt.replace("{}", "[Rome]"), "Oslo").prompt == prompt


@pytest.mark.parametrize("joint", ["", " ", "\u00a0", ": "])
def test_what_joins_prompt_and_answer_is_kept_as_it_is(joint: str):
    assert darrieux(joint=joint).joint == joint
    assert darrieux(joint=joint) != darrieux()


def test_what_joins_prompt_and_answer_is_text():
    with pytest.raises(FactError, match="must be text, not a number") as caught:
        darrieux(joint=0)
    assert caught.value.field == "joint"


@pytest.mark.parametrize(("prompt", "n_slots"), [("She speaks", 0), ("{} and {} speak", 2), ("", 0), ("{x} speaks", 0)])
def test_a_prompt_without_exactly_one_slot_is_refused(prompt: str, n_slots: int):
    with pytest.raises(FactError, match=f"has {n_slots} slots") as caught:
        darrieux(prompt=prompt)
    assert caught.value.field == "prompt"
    assert "exactly one {}" in caught.value.hint


@pytest.mark.parametrize("field", ["subject", "target_new", "target_true"])
@pytest.mark.parametrize("empty", ["", " \n\t"])
def test_an_empty_field_is_refused_by_name(field: str, empty: str):
    with pytest.raises(FactError, match="is empty") as caught:
        darrieux(**{field: empty})
    assert caught.value.field == field
    assert caught.value.hint


@pytest.mark.parametrize("field", ["prompt", "subject", "target_new", "target_true", "id"])
def test_a_field_that_is_no_text_is_refused_by_name(field: str):
    with pytest.raises(FactError, match="must be text, not a number") as caught:
        darrieux(**{field: 7})
    assert caught.value.field == field


def test_a_subject_with_a_slot_is_refused():
    with pytest.raises(FactError, match="contains a slot"):
        darrieux(subject="Danielle {}")


@pytest.mark.parametrize("target_true", ["English", " English "])
def test_an_edit_that_changes_nothing_is_refused(target_true: str):
    with pytest.raises(FactError, match="would change nothing") as caught:
        darrieux(target_true=target_true)
    assert caught.value.field == "target_new"


def test_the_true_target_may_be_unknown():
    assert darrieux(target_true=None).target_true is None


def test_a_literal_subject_becomes_the_slot():
    assert Fact.from_text("Danielle Darrieux speaks", "Danielle Darrieux", "English", "French").prompt == "{} speaks"


def test_a_prompt_with_a_slot_stays_as_it_is():
    assert slotted("{} is called Rome", "Rome") == "{} is called Rome"


def test_the_place_of_a_repeated_subject_is_asked_for():
    with pytest.raises(FactError, match="occurs 2 times"):
        Fact.from_text("Rome was not built in a day, but Rome is in", "Rome", "France")
    fact = Fact.from_text("{} was not built in a day, but Rome is in", "Rome", "France")
    assert fact.text == "Rome was not built in a day, but Rome is in"


def test_a_subject_is_slotted_where_it_is_a_word():
    assert Fact.from_text("Romans live in Rome, Romans say", "Rome", "x").prompt == "Romans live in {}, Romans say"
    with pytest.raises(FactError, match="only inside other words"):
        Fact.from_text("Romans live in", "Rom", "France")


def test_white_space_around_the_subject_does_not_hide_it():
    assert Fact.from_text("Rome is in", " Rome ", "France") == Fact("{} is in", "Rome", "France")


@pytest.mark.parametrize("subject", ["Paris", "rome", "", " "])
def test_a_subject_that_is_not_in_the_prompt_is_refused(subject: str):
    with pytest.raises(FactError, match="does not occur in the prompt") as caught:
        Fact.from_text("Rome is in", subject, "France")
    assert caught.value.field == "subject"
    assert "exactly as in the prompt" in caught.value.hint


def test_unicode_subjects_are_found_letter_for_letter():
    fact = Fact.from_text("東京 is the capital of", "東京", "中国", "日本")
    assert (fact.prompt, fact.text) == ("{} is the capital of", "東京 is the capital of")


def test_a_subject_in_brackets_becomes_the_slot():
    fact = Fact.from_bracketed("The mother tongue of [Danielle Darrieux] is", "English", "French")
    assert fact == darrieux()


@pytest.mark.parametrize(
    ("prompt", "n_subjects"), [("Rome is in", 0), ("[Rome] and [Paris] are in", 2), ("[Rome is", 0)]
)
def test_anything_but_one_subject_in_brackets_is_refused(prompt: str, n_subjects: int):
    with pytest.raises(FactError, match=f"has {n_subjects} subjects in brackets"):
        Fact.from_bracketed(prompt, "France")


@pytest.mark.parametrize("prompt", ["[] is in", "[ ] is in"])
def test_empty_brackets_are_refused(prompt: str):
    with pytest.raises(FactError, match="the subject is empty"):
        Fact.from_bracketed(prompt, "France")


@given(before=WORDS, subject=WORDS, after=WORDS)
def test_slotting_and_filling_gives_the_text_back(before: str, subject: str, after: str):
    text = f"{before} {subject.strip()} {after}"
    assume(text.count(subject.strip()) == 1)
    assert slotted(text, subject).replace("{}", subject.strip()) == text


@given(before=WORDS, subject=WORDS, after=WORDS)
def test_brackets_and_slots_say_the_same(before: str, subject: str, after: str):
    bracketed = Fact.from_bracketed(f"{before} [{subject}] {after}", "x", "y")
    assert bracketed == Fact(f"{before} {{}} {after}", subject, "x", "y")


def test_a_case_may_have_no_prompts_to_measure():
    assert EvaluationCase(darrieux()) == EvaluationCase(darrieux(), (), ())
    assert Probe("Léon Blum speaks").target is None


def test_a_question_that_cannot_be_scored_is_refused():
    with pytest.raises(FactError, match="has no answer"):
        Question("Who?", (), "reasoning")
    with pytest.raises(FactError, match="no group 'logic'"):
        Question("Who?", ("He",), "logic")  # type: ignore[arg-type]


def test_a_group_of_questions_tests_one_thing():
    assert set(PORTABILITY) < set(GROUPS)
    assert set(LOCALITY) < set(GROUPS)
    assert not set(PORTABILITY) & set(LOCALITY)


def test_an_edit_that_changes_nothing_is_an_error_of_its_own_wherever_it_is_located():
    with pytest.raises(UnchangedError) as caught:
        Fact("{} is in", "Rome", "Italy", "Italy")
    error = caught.value.within("edits.2").at(Path("f.jsonl"), 3)
    assert isinstance(error, UnchangedError)
    assert (error.field, error.line) == ("edits.2.target_new", 3)
    assert FactError("it is missing.").within("edits").field == "edits"


def test_a_located_error_tells_file_line_field_and_mend():
    error = FactError("it is wrong.", hint="Correct it.", field="subject")
    assert str(error) == "[subject] it is wrong. Correct it."
    assert str(error.at(Path("facts.jsonl"), 3)) == "facts.jsonl:3: [subject] it is wrong. Correct it."
    assert isinstance(error, BetaEditError)


def test_an_error_about_a_whole_file_tells_no_line():
    assert str(FactError("it is missing.", path=Path("facts.jsonl"))) == "facts.jsonl: it is missing."
