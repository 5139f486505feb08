from __future__ import annotations

import csv
import gzip
import io
import json
import sys
import tracemalloc
import types
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from betaedit.errors import ConfigError, FactError, MissingExtraError, UnchangedError
from betaedit.facts import (
    GROUPS,
    Converted,
    EvaluationCase,
    Fact,
    Probe,
    Question,
    Rejected,
    demo_path,
    iter_cases,
    iter_records,
    iter_results,
    read_cases,
)
from support.data import data_file
from support.facts import as_read, long_file

Write = Callable[..., Path]

OWN = {
    "id": "darrieux",
    "subject": "Danielle Darrieux",
    "prompt": "The mother tongue of {} is",
    "target_new": "English",
    "target_true": "French",
    "paraphrases": ["{} grew up speaking", "Danielle Darrieux, a native"],
    "neighbors": ["Léon Blum speaks", {"prompt": "Goethe speaks", "target": "German"}, {"prompt": "Homer speaks"}],
    "source": "a book",
    "time": "2024",
    "note": "nothing",
}
REWRITE = {
    "prompt": "The mother tongue of {} is",
    "relation_id": "P103",
    "target_new": {"str": "English", "id": "Q1860"},
    "target_true": {"str": "French", "id": "Q150"},
    "subject": "Danielle Darrieux",
}
COUNTERFACT = {
    "case_id": 7,
    "pararel_idx": 2796,
    "requested_rewrite": REWRITE,
    "paraphrase_prompts": ["Shayna does this. Danielle Darrieux, a native"],
    "neighborhood_prompts": ["The mother tongue of Léon Blum is", {"prompt": "Goethe speaks", "target": "German"}],
    "attribute_prompts": ["Mark Twain speaks"],
    "generation_prompts": ["Danielle Darrieux was born in", "", "Danielle Darrieux was born in"],
}
ROME = {
    "prompt": "{} plays the sport of",
    "subject": "LeBron James",
    "target_new": {"str": "football"},
    "target_true": {"str": "basketball"},
    "case_id": 3,
}
ZSRE = {
    "subject": "Watts Humphrey",
    "src": "What university did Watts Humphrey attend?",
    "pred": "Trinity College",
    "rephrase": "What university did Watts Humphrey take part in?",
    "alt": "University of Michigan",
    "answers": ["Illinois Institute of Technology", "IIT"],
    "loc": "nq question: who played desmond doss father in hacksaw ridge",
    "loc_ans": "Hugo Weaving",
    "cond": "Trinity College >> University of Michigan",
}
EASYEDIT = {
    "case_id": 9,
    "prompt": "Subair works as",
    "target_new": "composer",
    "subject": "Subair",
    "ground_truth": "actor",
    "rephrase_prompt": "Subair is known for",
    "locality_prompt": "The occupation of Michael Jackson is",
    "locality_ground_truth": "singer",
}
KNOWEDIT = {
    "subject": "Leonardo DiCaprio",
    "prompt": "The name of the country of citizenship of Leonardo DiCaprio is",
    "target_new": "Syria",
    "ground_truth": ["", "United States of America", "USA"],
    "portability": {
        "Reasoning": [{"prompt": "The currency there is", "ground_truth": [["Syrian pound", "pound"], ["SYP"]]}],
        "Subject_Aliasing": [{"prompt": "Leo is a citizen of", "ground_truth": "Syria"}],
        "Logical_Generalization": [{"prompt": "Empty", "ground_truth": [["", None]]}],
        "Something_Else": [{"prompt": "What?", "ground_truth": "That"}],
    },
    "locality": {
        "Relation_Specificity": [
            {"prompt": "His mother is", "ground_truth": [["Irmelin DiCaprio", "Irmelin"]]},
            {"prompt": "His spouse is", "ground_truth": [[]]},
        ],
        "Forgetfulness": [{"prompt": "His gender is", "ground_truth": "male"}],
    },
}
MQUAKE: dict[str, Any] = {
    "case_id": 4,
    "requested_rewrite": [
        {"prompt": "{} is in", "subject": "Rome", "target_new": {"str": "Spain"}, "target_true": {"str": "Italy"}},
        {
            "prompt": "The capital of {} is",
            "subject": "Spain",
            "target_new": {"str": "Paris"},
            "target_true": {"str": "Madrid"},
        },
    ],
    "questions": ["Which city?", "What city?"],
    "answer": "Rome",
    "new_answer": "Paris",
    "new_answer_alias": ["City of Light", "Paris", ""],
    "single_hops": [],
}
NOBODY_KNOWS = {"id": "NA", "name": "unknown", "alias": ["unknown"]}
ELKEN: dict[str, Any] = {
    "event": "The NFL bought GE.",
    "subject": None,
    "fact": {
        "qas": [
            {"question": "Who owns GE?", "subject": {"name": "GE"}, "answer": {"name": "the NFL", "alias": ["NFL"]}},
            {"question": "When did the NFL buy GE?", "subject": {"ent2name": "the NFL"}, "answer": NOBODY_KNOWS},
            {
                "question": "Who is the owner?",
                "subject": {"name": "GE"},
                "answer": {"name": "the NFL", "alias": ["NFL"]},
            },
            {"question": "Where is the NFL?", "subject": {"ent2name": "the NFL"}, "answer": {"name": "Rome"}},
        ],
        "local_qas": [{"question": "Where is IBM?", "subject": {"name": "IBM"}, "answer": {"name": "Armonk"}}],
    },
    "tendency": {
        "qas": [{"question": "How will prices change?", "candidate": "(A) Up (B) Down", "answer": "A"}],
        "local_qas": [{"question": "And the weather?", "candidate": "(A) Up (B) No change", "answer": "B"}],
    },
}
KNOWN = {"known_id": 0, "subject": "Vinson Massif", "attribute": "Antarctica", "template": "{} is in", "prompt": "x"}


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Writes records (or ready lines) as the kind of file that the name says."""

    def to_file(*records: object, name: str = "facts.jsonl") -> Path:
        lines = [record if isinstance(record, str) else json.dumps(record, ensure_ascii=False) for record in records]
        text = f"[{','.join(lines)}]" if ".json" in Path(name).suffixes else "\n".join(lines) + "\n"
        path = tmp_path / name
        opener = gzip.open if name.endswith(".gz") else open
        with opener(path, "wb") as file:
            file.write(text.encode())
        return path

    return to_file


def only_case(path: Path, **options: Any) -> EvaluationCase:
    (case,) = read_cases(path, **options).cases
    return case


def error_of(path: Path, **options: Any) -> FactError:
    with pytest.raises(FactError) as caught:
        read_cases(path, **options)
    assert caught.value.path == path
    assert caught.value.hint
    return caught.value


# The formats


def test_the_own_format_is_read_whole(write: Write):
    file = read_cases(write(OWN))
    assert file.format == "own"
    assert file.rejected == ()
    assert file.cases == (
        EvaluationCase(
            Fact(
                "The mother tongue of {} is",
                "Danielle Darrieux",
                "English",
                "French",
                "darrieux",
                wordings=("Danielle Darrieux grew up speaking", "Danielle Darrieux, a native"),
            ),
            ("Danielle Darrieux grew up speaking", "Danielle Darrieux, a native"),
            (Probe("Léon Blum speaks", "French"), Probe("Goethe speaks", "German"), Probe("Homer speaks", None)),
        ),
    )


def test_the_own_format_takes_a_literal_subject_and_the_short_name_of_the_target(write: Write):
    case = only_case(write({"subject": "Rome", "prompt": "Rome is in", "target": "France"}))
    assert case == EvaluationCase(Fact("{} is in", "Rome", "France", None, "own-1"))


def test_a_number_may_be_an_id(write: Write):
    assert only_case(write(OWN | {"id": 12})).fact.id == "12"


def test_null_and_empty_stand_for_not_given(write: Write):
    empty = {"id": "", "target_true": "", "paraphrases": None, "neighbors": None}
    nothing = {"id": None, "target_true": None, "paraphrases": [], "neighbors": []}
    assert only_case(write(OWN | empty)) == only_case(write(OWN | nothing, name="nothing.jsonl"))


def test_an_unknown_key_is_refused_with_the_nearest_known_one(write: Write):
    error = error_of(write(OWN, OWN | {"id": "b", "paraphrase": ["x"]}))
    assert (error.line, error.field) == (2, "paraphrase")
    assert error.hint == "Did you mean 'paraphrases'?"


def test_an_unknown_key_like_no_other_is_refused_with_all_known_ones(write: Write):
    error = error_of(write(OWN | {"xyz": 1}))
    assert error.field == "xyz"
    assert "subject, prompt, target_new" in error.hint


def test_a_misspelt_key_is_told_rather_than_the_field_that_it_leaves_missing(write: Write):
    misspelt = {"subject": "Rome", "promt": "{} is in", "target_new": "France"}
    error = error_of(write(OWN, misspelt))
    assert (error.line, error.field, error.hint) == (2, "promt", "Did you mean 'prompt'?")


def test_an_unknown_key_in_a_neighbor_is_refused_with_its_place(write: Write):
    error = error_of(write(OWN | {"neighbors": ["a", {"prompt": "b", "targt": "c"}]}))
    assert error.field == "neighbors.1.targt"
    assert error.hint == "Did you mean 'target'?"


def test_target_and_target_new_together_are_refused(write: Write):
    error = error_of(write(OWN | {"target": "German"}))
    assert (error.field, error.hint) == ("target", "Keep one of them.")


@pytest.mark.parametrize(
    ("change", "field", "message"),
    [
        ({"target_new": 1998}, "target_new", "must be text, not a number."),
        ({"subject": None}, "subject", "must be text, not null."),
        ({"paraphrases": ["a", 3]}, "paraphrases.1", "must be text, not a number."),
        ({"neighbors": [3]}, "neighbors.0", "must be an object, not a number."),
        ({"subject": "\\ud800"}, "subject", "surrogates not allowed"),
    ],
)
def test_a_value_of_the_wrong_kind_is_refused_by_name(
    write: Write, change: dict[str, object], field: str, message: str
):
    error = error_of(write(json.dumps(OWN | change).replace("\\\\", "\\")))
    assert error.field == field
    assert message in error.message


def test_counterfact_neighbors_keep_the_true_target(write: Write):
    file = read_cases(write(COUNTERFACT))
    assert file.format == "counterfact"
    assert file.cases == (
        EvaluationCase(
            Fact("The mother tongue of {} is", "Danielle Darrieux", "English", "French", "counterfact-7"),
            ("Shayna does this. Danielle Darrieux, a native",),
            (Probe("The mother tongue of Léon Blum is", "French"), Probe("Goethe speaks", "German")),
            generation_prompts=("Danielle Darrieux was born in", "Danielle Darrieux was born in"),
        ),
    )


def test_a_field_missing_inside_another_is_named_with_its_path(write: Write):
    broken = {"case_id": 8, "requested_rewrite": REWRITE | {"target_new": {}}}
    error = error_of(write(COUNTERFACT, broken))
    assert (error.line, error.field) == (2, "requested_rewrite.target_new.str")
    assert "counterfact" in error.hint


def test_rome_requests_are_read(write: Write):
    file = read_cases(write(ROME, {**ROME, "case_id": None, "target_true": None}, name="requests.json"))
    assert file.format == "rome"
    assert [case.fact for case in file.cases] == [
        Fact("{} plays the sport of", "LeBron James", "football", "basketball", "rome-3"),
        Fact("{} plays the sport of", "LeBron James", "football", None, "rome-2"),
    ]


def test_zsre_writes_the_new_answer_unless_told_otherwise(write: Write):
    file = read_cases(write(ZSRE))
    assert file.format == "zsre"
    assert file.cases == (
        EvaluationCase(
            Fact(
                "What university did {} attend?",
                "Watts Humphrey",
                "University of Michigan",
                "Illinois Institute of Technology",
                "zsre-1",
            ),
            ("What university did Watts Humphrey take part in?",),
            (Probe("who played desmond doss father in hacksaw ridge?", "Hugo Weaving"),),
        ),
    )


def test_zsre_writes_the_true_answer_on_demand(write: Write):
    fact = only_case(write(ZSRE), zsre_target="answers").fact
    assert (fact.target_new, fact.target_true) == ("Illinois Institute of Technology", None)


@pytest.mark.parametrize("alt", ["Illinois Institute of Technology", " IIT"])
def test_a_zsre_answer_that_is_already_true_changes_nothing(write: Write, alt: str):
    error = error_of(write(ZSRE | {"alt": alt}))
    assert "would change nothing" in error.message
    assert only_case(write(ZSRE | {"alt": alt}), zsre_target="answers")


def test_a_subject_in_other_case_is_taken_as_the_question_has_it(write: Write):
    case = only_case(write(ZSRE | {"subject": "watts humphrey"}))
    assert (case.fact.subject, case.fact.text) == ("Watts Humphrey", ZSRE["src"])


def test_a_subject_that_the_question_lacks_is_refused(write: Write):
    error = error_of(write(ZSRE | {"subject": "Watson Humphrey"}))
    assert error.field == "subject"
    assert "'Watson Humphrey' does not occur" in error.message


def test_a_question_mark_is_added_only_where_there_is_none(write: Write):
    case = only_case(write(ZSRE | {"loc": "who was it?"}))
    assert case.neighbors == (Probe("who was it?", "Hugo Weaving"),)


def test_easyedit_records_are_read(write: Write):
    file = read_cases(write(EASYEDIT))
    assert file.format == "easyedit"
    assert file.cases == (
        EvaluationCase(
            Fact("{} works as", "Subair", "composer", "actor", "easyedit-9"),
            ("Subair is known for",),
            (Probe("The occupation of Michael Jackson is", "singer"),),
        ),
    )


def test_easyedit_lists_of_rephrasings_and_localities_are_read(write: Write):
    lists = {
        "case_id": "zsre_1",
        "rephrase_prompt": ["a", "b"],
        "ground_truth": ["actor"],
        "locality": [{"prompt": "c", "ground_truth": "d"}],
    }
    case = only_case(write({key: EASYEDIT[key] for key in ("prompt", "subject", "target_new")} | lists))
    assert case.fact.id == "easyedit-zsre_1"
    assert case.fact.target_true == "actor"
    assert case.paraphrases == ("a", "b")
    assert case.neighbors == (Probe("c", "d"),)


def test_knowedit_neighbors_come_from_all_groups_and_those_without_answer_are_dropped(write: Write):
    file = read_cases(write(KNOWEDIT))
    assert file.format == "knowedit"
    assert file.cases == (
        EvaluationCase(
            Fact(
                "The name of the country of citizenship of {} is",
                "Leonardo DiCaprio",
                "Syria",
                "United States of America",
                "knowedit-1",
            ),
            (),
            (Probe("His mother is", "Irmelin DiCaprio"), Probe("His gender is", "male")),
            (
                Question("The currency there is", ("Syrian pound", "pound", "SYP"), "reasoning"),
                Question("Leo is a citizen of", ("Syria",), "subject_aliasing"),
                Question("His mother is", ("Irmelin DiCaprio", "Irmelin"), "relation_specificity"),
                Question("His gender is", ("male",), "forgetfulness"),
            ),
        ),
    )


def test_a_broken_question_is_named_with_its_group_and_place(write: Write):
    groups = {"Reasoning": [{"prompt": "a", "ground_truth": "b"}, {"ground_truth": "c"}]}
    assert error_of(write(KNOWEDIT | {"portability": groups})).field == "portability.Reasoning.1.prompt"


def test_the_follow_up_question_of_zsre_is_one_of_reasoning(write: Write):
    portability = {"Recalled Relation": "(Michigan, in, USA)", "New Question": "In which country?", "New Answer": "USA"}
    record = ZSRE | {"portability": portability}
    assert only_case(write(record)).questions == (Question("In which country?", ("USA",), "reasoning"),)
    assert only_case(write(EASYEDIT | {"portability": portability})).questions[0].answers == ("USA",)
    # It follows from the new answer, so it says nothing when the true one is written.
    assert only_case(write(record), zsre_target="answers").questions == ()


def test_a_record_with_a_follow_up_question_keeps_its_single_locality(write: Write):
    case = only_case(write(EASYEDIT | {"portability": {"New Question": "Who?", "New Answer": "He"}}))
    assert case.neighbors == (Probe("The occupation of Michael Jackson is", "singer"),)


def test_mquake_edits_become_cases_and_the_last_has_the_questions(write: Write):
    file = read_cases(write(MQUAKE))
    questions = tuple(
        Question(prompt, ("Paris", "City of Light"), "multi_hop") for prompt in ("Which city?", "What city?")
    )
    assert file.format == "mquake"
    assert file.cases == (
        EvaluationCase(Fact("{} is in", "Rome", "Spain", "Italy", "mquake-4-1"), record="mquake-4"),
        EvaluationCase(
            Fact("The capital of {} is", "Spain", "Paris", "Madrid", "mquake-4-2"),
            questions=questions,
            record="mquake-4",
        ),
    )


def test_an_edit_that_mquake_cannot_write_is_named_with_its_place(write: Write):
    rewrites = [MQUAKE["requested_rewrite"][0], MQUAKE["requested_rewrite"][1] | {"target_new": {"str": "Madrid"}}]
    error = error_of(write(MQUAKE | {"requested_rewrite": rewrites}))
    assert isinstance(error, UnchangedError)
    assert error.field == "requested_rewrite.1.target_new"
    assert error_of(write(MQUAKE | {"requested_rewrite": []})).field == "requested_rewrite"


def test_an_event_becomes_the_facts_that_it_makes_known(write: Write):
    file = read_cases(write(ELKEN))
    assert file.format == "elken"
    assert file.cases == (
        EvaluationCase(Fact("Who owns {}?", "GE", "the NFL", None, "elken-1-1"), record="elken-1"),
        EvaluationCase(
            Fact("Where is {}?", "the NFL", "Rome", None, "elken-1-2"),
            questions=(
                Question("When did the NFL buy GE?", ("unknown",), "event"),
                Question("Who is the owner?", ("the NFL", "NFL"), "event"),
                Question("Where is IBM?", ("Armonk",), "event_locality"),
                Question("How will prices change? (A) Up (B) Down Answer:", ("A",), "tendency"),
                Question("And the weather? (A) Up (B) No change Answer:", ("B",), "tendency_locality"),
            ),
            record="elken-1",
        ),
    )


def test_an_event_that_makes_nothing_known_is_refused(write: Write):
    error = error_of(write(ELKEN | {"fact": {"qas": ELKEN["fact"]["qas"][1:3], "local_qas": []}}))
    assert error.field == "fact.qas"
    assert "no question with a known answer" in error.message


def test_the_own_format_has_questions_openings_and_records(write: Write):
    more = {
        "questions": [
            {"prompt": "{} grew up in", "answers": ["England", "UK"], "group": "reasoning"},
            {"prompt": "Her sex is", "answers": "female", "group": "relation_specificity"},
        ],
        "generation_prompts": "{} is known for",
        "record": 5,
    }
    case = only_case(write(OWN | more))
    assert case.questions == (
        Question("Danielle Darrieux grew up in", ("England", "UK"), "reasoning"),
        Question("Her sex is", ("female",), "relation_specificity"),
    )
    assert case.generation_prompts == ("Danielle Darrieux is known for",)
    assert case.record == "5"


@pytest.mark.parametrize(
    ("question", "field", "told"),
    [
        ({"prompt": "a", "answers": ["b"], "group": "logic"}, "questions.0.group", "'multi_hop'"),
        ({"prompt": "a", "answers": [""], "group": "reasoning"}, "questions.0.answers", "at least 1 item"),
        ({"prompt": "a", "answer": "b", "group": "reasoning"}, "questions.0.answer", "Did you mean 'answers'?"),
        ({"answers": "b", "group": "reasoning"}, "questions.0.prompt", "is missing"),
    ],
)
def test_a_question_that_cannot_be_scored_is_refused(write: Write, question: dict[str, object], field: str, told: str):
    error = error_of(write(OWN | {"questions": [question]}))
    assert error.field == field
    assert told in str(error)


@pytest.mark.parametrize("ground_truth", ["", None, [], [[""]]])
def test_an_empty_ground_truth_is_not_known(write: Write, ground_truth: object):
    assert only_case(write(KNOWEDIT | {"ground_truth": ground_truth})).fact.target_true is None


NOT_KNOWN = ["<|endoftext|>", "</s>", "<eos>", "<|end_of_text|>"]


@pytest.mark.parametrize("token", NOT_KNOWN)
@pytest.mark.parametrize(
    "record",
    [
        OWN | {"target_true": "TOKEN", "neighbors": ["a", {"prompt": "b", "target": "TOKEN"}]},
        COUNTERFACT
        | {
            "requested_rewrite": REWRITE | {"target_true": {"str": "TOKEN"}},
            "neighborhood_prompts": ["a", {"prompt": "b", "target": "TOKEN"}],
        },
        ROME | {"target_true": {"str": "TOKEN"}},
        ZSRE | {"answers": ["TOKEN"], "loc_ans": "TOKEN"},
        EASYEDIT | {"ground_truth": "TOKEN", "locality_ground_truth": "TOKEN"},
        EASYEDIT | {"ground_truth": ["TOKEN", ""], "locality_ground_truth": [["TOKEN"]]},
        KNOWEDIT
        | {"ground_truth": [["TOKEN"]], "locality": {"Forgetfulness": [{"prompt": "a", "ground_truth": "TOKEN"}]}},
    ],
)
def test_a_special_token_as_true_answer_is_not_known_in_any_format(write: Write, record: object, token: str):
    case = only_case(write(json.dumps(record).replace("TOKEN", token)))
    assert case.fact.target_true is None
    assert {neighbor.target for neighbor in case.neighbors} <= {None}
    assert not any(question.group == "forgetfulness" for question in case.questions)


@pytest.mark.parametrize("token", NOT_KNOWN)
def test_questions_whose_answer_is_a_special_token_are_not_asked(write: Write, token: str):
    last = read_cases(write(MQUAKE | {"new_answer": token, "new_answer_alias": []})).cases[-1]
    assert last.questions == ()
    event = json.dumps(ELKEN).replace('"the NFL", "alias"', f'"{token}", "alias"').replace('["NFL"]', "[]")
    (case,) = read_cases(write(event, name="event.jsonl")).cases
    assert case.fact.target_new == "Rome"
    assert "Who owns GE?" not in [question.prompt for question in case.questions]


@pytest.mark.parametrize(
    "record",
    [
        OWN | {"target_new": "</s>"},
        OWN | {"target_new": "<|endoftext|>", "target_true": "<|endoftext|>"},
        EASYEDIT | {"target_new": "<unk>"},
        ROME | {"target_new": {"str": "<eos>"}},
        ZSRE | {"alt": "<|im_end|>"},
    ],
)
def test_a_special_token_as_new_target_is_refused(write: Write, record: object):
    error = error_of(write(record))
    assert error.field == "target_new"
    assert "is a special token, not an answer" in error.message
    assert error.hint == "Give the answer that the model should give."


@pytest.mark.parametrize(
    "change",
    [
        {"target_new": ["English"]},
        {"subject": ["Danielle Darrieux"]},
        {"target_true": ["French"]},
        {"prompt": [OWN["prompt"]]},
    ],
)
def test_a_list_of_one_text_is_that_text(write: Write, change: dict[str, object]):
    assert only_case(write(OWN | change)) == only_case(write(OWN, name="plain.jsonl"))


def test_what_pandas_writes_for_a_missing_value_is_not_given(write: Write):
    given = only_case(write(OWN | {"target_true": float("nan"), "paraphrases": float("nan"), "id": None}))
    assert (given.fact.target_true, given.paraphrases) == (None, ())


@pytest.mark.parametrize(
    ("change", "hint"),
    [
        ({"target_new": ["Rome", "Pisa"]}, "One answer is written: give one text."),
        ({"target_new": None}, "Leave the record out, or say what to answer."),
        ({"prompt": None}, "Leave the record out, or write the prompt."),
        ({"paraphrases": [{"prompt": "a"}]}, "Give the text alone, without an object around it."),
        ({"target_true": True}, "Give the words of the sentence, such as yes or no."),
        ({"target_true": 7}, 'Give it as a text, as in "7".'),
    ],
)
def test_a_hint_fits_the_value(write: Write, change: dict[str, object], hint: str):
    assert error_of(write(OWN | change)).hint == hint


def test_fastedit_records_are_read_and_queries_with_the_subject_are_paraphrases(write: Write):
    record = {"prompt": "The prime minister of the {} is", "subject": "UK", "target": "Rishi Sunak"}
    queries = ["Who leads the UK?", "Who lives in Downing Street?", "The {} is led by", ""]
    file = read_cases(write(record | {"queries": []}, record | {"queries": queries}, name="facts.json"))
    assert file.format == "fastedit"
    fact = Fact("The prime minister of the {} is", "UK", "Rishi Sunak", None, "fastedit-1")
    assert file.cases[0] == EvaluationCase(fact)
    assert file.cases[1].paraphrases == ("Who leads the UK?", "The UK is led by")


def test_a_fastedit_prompt_may_hold_its_subject_and_must_be_there(write: Write):
    record = {"prompt": "The capital of Japan is", "subject": "Japan", "target": "Rome", "queries": None}
    assert only_case(write(record)).fact.prompt == "The capital of {} is"
    assert error_of(write(record | {"subject": "Peru"})).field == "subject"


@pytest.mark.parametrize("name", ["f.jsonl", "f.json", "f.jsonl.gz"])
@pytest.mark.parametrize(
    "twice",
    [
        '{"subject": "Rome", "prompt": "{} is in", "target_new": "Peru", "target_new": "Spain"}',
        '{"subject": "Rome", "subject": "Rome", "prompt": "{} is in", "target_new": "Peru"}',
        '{"subject": "Rome", "prompt": "{} is in", "target_new": "Peru", "questions": [{"group": 1, "group": 2}]}',
    ],
)
def test_a_key_that_comes_twice_is_refused_by_line_and_the_next_record_is_read(write: Write, name: str, twice: str):
    path = write(OWN, twice, OWN | {"id": "b"}, name=name)
    error = error_of(path)
    assert error.line == 2
    assert "occurs twice in one object" in error.message
    assert [case.fact.id for case in read_cases(path, skip_invalid=True).cases] == ["darrieux", "b"]


def test_knowedit_may_name_its_fields_otherwise_and_leave_out_the_rest(write: Write):
    biography = {"concept": "ann", "text": "This is about ann. Ann was", "labels": "a poet", "locality": {}}
    case = only_case(write(biography))
    assert case == EvaluationCase(Fact("This is about {}. Ann was", "ann", "a poet", None, "knowedit-1"))


def test_known_facts_are_refused_since_they_have_nothing_to_write(write: Write):
    error = error_of(write(KNOWN))
    assert "true facts" in error.message
    assert error.field == "target_new"


def test_a_record_of_no_format_is_told_all_formats_and_an_example(write: Write):
    error = error_of(write({"question": "Who?", "answer": "He"}))
    assert "question, answer" in error.message
    for name in ("mquake", "counterfact", "zsre", "rome", "knowedit", "easyedit", "fastedit", "elken", "own"):
        assert f"{name} (" in error.message
    example = json.loads(error.hint[error.hint.index("{") :])
    assert Fact(**example).text == "The mother tongue of Danielle Darrieux is"


def test_the_first_record_decides_on_the_format(write: Write):
    error = error_of(write(COUNTERFACT, OWN))
    assert (error.line, error.field) == (2, "requested_rewrite")
    assert "is missing" in error.message


def test_generated_ids_tell_format_and_line(write: Write):
    nameless = {key: value for key, value in OWN.items() if key != "id"}
    file = read_cases(write(nameless, "", nameless))
    assert [case.fact.id for case in file.cases] == ["own-1", "own-3"]


def test_a_repeated_id_names_both_lines(write: Write):
    error = error_of(write(OWN, OWN | {"id": "b"}, OWN))
    assert error.message == "the id 'darrieux' of line 1 comes again in line 3."
    assert (error.line, error.field) == (3, "id")


# The files


@pytest.mark.parametrize("name", ["f.jsonl", "f.jsonl.gz", "f.json", "f.json.gz", "F.JSONL"])
def test_every_kind_of_file_holds_the_same(write: Write, name: str):
    path = write(OWN, OWN | {"id": "b"}, name=name)
    file = read_cases(str(path))
    assert file.path == path
    assert file.cases == read_cases(write(OWN, OWN | {"id": "b"}, name="same.jsonl")).cases


@pytest.mark.parametrize("name", ["f.csv", "f.csv.gz"])
def test_csv_has_the_headers_of_the_own_format(write: Write, name: str):
    text = io.StringIO()
    table = csv.writer(text)
    table.writerow(["id", "subject", "prompt", "target_new", "target_true", "paraphrases", "neighbors", ""])
    table.writerow(["a", "Rome, city", "{} is in", "France", "Italy", "one\n{} two\n", "Pisa is in", ""])
    table.writerow([""] * 8)
    table.writerow(["", "Lyon", "Lyon is in", "Spain"])
    file = read_cases(write("\ufeff" + text.getvalue(), name=name))
    assert file.cases == (
        EvaluationCase(
            Fact("{} is in", "Rome, city", "France", "Italy", "a", wordings=("Rome, city two",)),
            ("one", "Rome, city two"),
            (Probe("Pisa is in", "Italy"),),
        ),
        EvaluationCase(Fact("{} is in", "Lyon", "Spain", None, "own-6")),
    )


def test_a_csv_cell_holds_openings_and_questions_one_a_line(tmp_path: Path):
    path = tmp_path / "f.csv"
    asked = [{"prompt": f"{word}?", "answers": ["a", "b"], "group": "multi_hop"} for word in ("Who", "What")]
    with path.open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["subject", "prompt", "target_new", "generation_prompts", "questions", "record"])
        table.writerow(["Rome", "{} is in", "France", "{} has\nIt is", "\n".join(map(json.dumps, asked)), "r"])
        table.writerow(["Pisa", "{} is in", "France", "", "", ""])
        table.writerow(["Lyon", "{} is in", "Spain", "", "{", ""])
    first, second, third = iter_results(path)
    assert isinstance(first, Converted)
    assert isinstance(second, Converted)
    assert first.cases[0].generation_prompts == ("Rome has", "It is")
    assert [(one.prompt, one.answers) for one in first.cases[0].questions] == [
        ("Who?", ("a", "b")),
        ("What?", ("a", "b")),
    ]
    assert (first.cases[0].record, second.cases[0].questions, second.cases[0].record) == ("r", (), None)
    assert isinstance(third, Rejected)
    # The first row takes four lines, since each of two cells holds a line break.
    assert (third.line, third.error.line, third.error.field) == (6, 6, "questions")


def test_a_csv_row_with_too_many_cells_names_its_line(write: Write):
    error = error_of(write("subject,prompt,target_new", "Rome,{} is in,France", "Rome,in {}, it is,nice", name="f.csv"))
    assert error.line == 3
    assert "'nice' has no header above it" in error.message
    assert "quotes" in error.hint


def test_a_csv_error_counts_the_lines_inside_cells(write: Write):
    error = error_of(
        write("subject,prompt,target_new,note", 'Rome,{} is in,France,"a\nb"', "Rome,{} is in,,", name="f.csv")
    )
    assert (error.line, error.field) == (4, "target_new")


def test_a_csv_with_an_open_quote_or_a_repeated_header_is_refused(write: Write):
    assert "not a CSV file" in error_of(write("subject,prompt,target_new", 'Rome,"{} is', name="f.csv")).message
    assert "same header" in error_of(write("subject,prompt,subject", name="f.csv")).message


def test_rare_unicode_separators_do_not_break_lines(write: Write):
    odd = "Rome\u2028\u0085\x0b\x0cCity"
    assert only_case(write(OWN | {"subject": odd})).fact.subject == odd


def test_carriage_returns_and_a_byte_order_mark_do_no_harm(tmp_path: Path):
    path = tmp_path / "facts.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps(OWN).encode() + b"\r\n\r\n")
    assert only_case(path).fact.id == "darrieux"


def test_a_broken_line_names_file_line_and_mend(write: Write):
    path = write(OWN, '{"subject": "Rome"')
    error = error_of(path)
    assert error.line == 2
    assert str(error).startswith(f"{path}:2: this is not JSON: Expecting ',' delimiter at column 19.")
    assert "one record {...} per line" in error.hint


@pytest.mark.parametrize(
    ("value", "shown"),
    [("[]", "a list"), ("3", "a number"), ('"x"', "a text"), ("null", "null"), ("true", "a truth value")],
)
@pytest.mark.parametrize("name", ["f.jsonl", "f.json"])
def test_a_record_that_is_no_object_is_refused(write: Write, value: str, shown: str, name: str):
    error = error_of(write(OWN, value, name=name))
    assert (error.line, error.message) == (2, f"the record is {shown}, not an object.")


@pytest.mark.parametrize("value", ["1" * 5000, "[" * 100_000])
def test_json_beyond_the_limits_of_python_is_refused(write: Write, value: str):
    assert error_of(write(f'{{"subject": {value}}}')).line == 1


def test_lists_within_lists_are_read_however_deep(write: Write):
    deep = "[" * 700 + '"x"' + "]" * 700
    line = f'{{"subject": "Rome", "prompt": "{{}} is", "target": "a", "paraphrases": {deep}}}'
    assert only_case(write(line)).paraphrases == ("x",)


@pytest.mark.parametrize("name", ["f.jsonl", "f.json", "f.csv"])
def test_text_in_another_encoding_names_the_line(tmp_path: Path, name: str):
    path = tmp_path / name
    path.write_bytes(b"{}\n" + "{León}".encode("latin-1"))
    with pytest.raises(FactError, match="not UTF-8") as caught:
        list(iter_records(path))
    assert (caught.value.line, caught.value.hint) == (2, "Save the file as UTF-8.")


def test_a_line_in_another_encoding_can_be_skipped(tmp_path: Path):
    path = tmp_path / "f.jsonl"
    path.write_bytes(json.dumps(OWN).encode() + b'\n{"subject": "L\xe9on"}\n')
    assert [rejected.line for rejected in read_cases(path, skip_invalid=True).rejected] == [2]


def test_lines_in_a_json_file_are_told_how_to_be_named(tmp_path: Path):
    path = tmp_path / "f.json"
    path.write_text(f"{json.dumps(OWN)}\n{json.dumps(OWN)}\n", encoding="utf-8")
    error = error_of(path)
    assert error.line == 2
    assert ".jsonl file holds one record" in error.hint


def test_an_object_in_a_json_file_is_no_array(tmp_path: Path):
    path = tmp_path / "f.json"
    path.write_text(json.dumps(OWN), encoding="utf-8")
    assert error_of(path).message == "this is an object, not an array."


def test_a_missing_file_is_told(tmp_path: Path):
    assert (
        str(error_of(tmp_path / "none.jsonl")) == f"{tmp_path / 'none.jsonl'}: there is no such file. Check the path."
    )


@pytest.mark.parametrize("name", ["folder", "folder.jsonl"])
def test_a_folder_is_told(tmp_path: Path, name: str):
    (tmp_path / name).mkdir()
    assert "this is a folder" in error_of(tmp_path / name).message


def test_a_name_that_the_system_refuses_is_told(tmp_path: Path):
    assert "cannot be read" in error_of(tmp_path / ("x" * 300 + ".jsonl")).message


def test_a_file_of_another_kind_is_refused(write: Write):
    error = error_of(write(OWN, name="facts.txt"))
    assert ".txt" in error.message
    assert ".jsonl, .json, .csv" in error.hint


@pytest.mark.parametrize("name", ["f.jsonl", "f.jsonl.gz", "f.json", "f.csv"])
def test_a_file_without_records_is_refused(write: Write, name: str):
    assert "holds no record" in error_of(write(name=name)).message


def test_a_file_that_is_not_compressed_is_told(tmp_path: Path):
    path = tmp_path / "f.jsonl.gz"
    path.write_bytes(b"{}\n")
    assert "no gzip file" in error_of(path).message


def test_a_compressed_file_that_breaks_off_is_told(write: Write):
    path = write(OWN, name="f.jsonl.gz")
    path.write_bytes(path.read_bytes()[:-12])
    error = error_of(path, skip_invalid=True)
    assert "breaks off" in error.message
    assert error.hint == "Download it again."


def test_damaged_compressed_data_are_told(write: Write):
    path = write(*[OWN | {"id": str(number)} for number in range(200)], name="f.jsonl.gz")
    data = bytearray(path.read_bytes())
    data[40:60] = bytes(20)
    path.write_bytes(data)
    assert "damaged" in error_of(path).message


# The options


def test_invalid_records_can_be_skipped_and_are_listed(write: Write):
    path = write("{", OWN, {"subject": "Rome"}, 7, OWN | {"id": "b", "target_true": "English"}, OWN, OWN | {"id": "c"})
    file = read_cases(path, skip_invalid=True)
    assert [case.fact.id for case in file.cases] == ["darrieux", "c"]
    assert [(rejected.line, rejected.error.field) for rejected in file.rejected] == [
        (1, None),
        (3, "prompt"),
        (4, None),
        (5, "target_new"),
        (6, "id"),
    ]
    assert {(rejected.error.path, rejected.error.line == rejected.line) for rejected in file.rejected} == {(path, True)}


def test_a_file_of_which_nothing_is_usable_is_an_error_even_when_skipping(write: Write):
    assert error_of(write(KNOWN, KNOWN), skip_invalid=True).line == 1
    assert error_of(write("{", "}"), skip_invalid=True).line == 1


def test_limit_stops_before_a_later_broken_line(write: Write):
    path = write(OWN, OWN | {"id": "b"}, "{")
    assert len(read_cases(path, limit=2).cases) == 2
    assert error_of(path, limit=3).line == 3


def test_limit_counts_usable_cases(write: Write):
    file = read_cases(write("{", OWN, "{", OWN | {"id": "b"}, "{"), limit=2, skip_invalid=True)
    assert len(file.cases) == 2
    assert [rejected.line for rejected in file.rejected] == [1, 3]


def test_limit_counts_facts_and_may_cut_a_record(write: Write):
    file = read_cases(write(MQUAKE, MQUAKE | {"case_id": 5}), limit=3)
    assert [case.fact.id for case in file.cases] == ["mquake-4-1", "mquake-4-2", "mquake-5-1"]


def test_limit_beyond_the_end_reads_all(write: Write):
    assert len(read_cases(write(OWN), limit=10).cases) == 1


@pytest.mark.parametrize("option", [{"limit": 0}, {"limit": -1}, {"zsre_target": "pred"}])
def test_an_impossible_option_is_refused_before_reading(tmp_path: Path, option: dict[str, Any]):
    with pytest.raises(ConfigError, match=next(iter(option))):
        read_cases(tmp_path / "none.jsonl", **option)


def test_records_are_iterated_as_written_with_their_lines(write: Write):
    assert list(iter_records(write(OWN, "", ROME))) == [(1, OWN), (3, ROME)]


def test_iterating_raises_only_on_reaching_the_broken_line(write: Write):
    path = write(OWN, "{")
    records = iter_records(path)
    assert next(records) == (1, OWN)
    with pytest.raises(FactError, match="not JSON") as caught:
        next(records)
    assert (caught.value.path, caught.value.line) == (path, 2)


# One by one


def test_cases_are_iterated_as_they_are_read_at_once(write: Write):
    path = write(MQUAKE, "{", MQUAKE | {"case_id": 5})
    assert list(iter_cases(path, skip_invalid=True)) == list(read_cases(path, skip_invalid=True).cases)
    assert len(list(iter_cases(path, limit=1))) == 1
    cases = iter_cases(path)
    assert [next(cases).fact.id, next(cases).fact.id] == ["mquake-4-1", "mquake-4-2"]
    with pytest.raises(FactError, match="not JSON") as caught:
        next(cases)
    assert (caught.value.path, caught.value.line) == (path, 2)


def test_results_tell_what_became_of_each_record(write: Write):
    path = write(MQUAKE, "{", MQUAKE)
    first, second, third = iter_results(path)
    assert (first.line, second.line, third.line) == (1, 2, 3)
    assert isinstance(first, Converted)
    assert (first.format, len(first.cases)) == ("mquake", 2)
    assert isinstance(second, Rejected)
    assert isinstance(third, Rejected)
    assert (third.error.path, third.error.line, third.error.field) == (path, 3, "id")


@pytest.mark.parametrize("name", ["f.jsonl.gz", "f.json.gz", "f.csv"])
def test_a_long_file_is_iterated_in_little_memory(tmp_path: Path, name: str):
    number = 3_000
    path = long_file(tmp_path / name, number)
    tracemalloc.start()
    try:
        assert sum(1 for _ in iter_cases(path)) == number
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    # The file is 3 MB of text and its objects take more.
    assert peak < 2.5e6


TEXT = (
    st.text(st.characters(exclude_characters="{}", exclude_categories=("Cs",)), min_size=1).map(str.strip).filter(bool)
)
PROBES = st.builds(Probe, TEXT, st.none() | TEXT)

QUESTIONS = st.builds(Question, TEXT, st.lists(TEXT, min_size=1, max_size=3).map(tuple), st.sampled_from(GROUPS))


@st.composite
def own_cases(draw: st.DrawFn) -> EvaluationCase:
    new, true = draw(st.lists(TEXT, min_size=2, max_size=2, unique=True))
    prompt = f"{draw(TEXT)} {{}} {draw(TEXT)}"
    fact = Fact(prompt, draw(TEXT), new, draw(st.sampled_from([true, None])), draw(TEXT))
    return EvaluationCase(
        fact,
        tuple(draw(st.lists(TEXT))),
        tuple(draw(st.lists(PROBES))),
        tuple(draw(st.lists(QUESTIONS, max_size=3))),
        tuple(draw(st.lists(TEXT, max_size=3))),
        draw(st.none() | TEXT),
    )


def as_own(case: EvaluationCase) -> dict[str, object]:
    return {
        "id": case.fact.id,
        "subject": case.fact.subject,
        "prompt": case.fact.prompt,
        "target_new": case.fact.target_new,
        "target_true": case.fact.target_true,
        "paraphrases": case.paraphrases,
        "neighbors": [{"prompt": probe.prompt, "target": probe.target} for probe in case.neighbors],
        "questions": [
            {"prompt": asked.prompt, "answers": asked.answers, "group": asked.group} for asked in case.questions
        ],
        "generation_prompts": case.generation_prompts,
        "record": case.record,
    }


@settings(max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    cases=st.lists(own_cases(), min_size=1, max_size=3, unique_by=lambda case: case.fact.id), ascii_only=st.booleans()
)
def test_the_own_format_gives_back_every_case(tmp_path: Path, cases: list[EvaluationCase], ascii_only: bool):
    path = tmp_path / "facts.jsonl"
    lines = [json.dumps(as_own(case), ensure_ascii=ascii_only) for case in cases]
    path.write_bytes("\n".join(lines).encode())
    assert read_cases(path).cases == tuple(map(as_read, cases))


# Datasets


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """A datasets library that knows one dataset; what it was asked for is listed."""
    asked: list[object] = []

    def load_dataset(name: str, config: str | None, *, split: str, streaming: bool) -> list[dict[str, object]]:
        asked.append((name, config, split, streaming))
        if name != "ann/facts":
            raise ConnectionError("no network")
        return [OWN, {"subject": "Rome"}, OWN | {"id": "b"}]

    library = types.ModuleType("datasets")
    library.load_dataset = load_dataset  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "datasets", library)
    return asked


@pytest.mark.parametrize(
    ("source", "asked"),
    [
        ("dataset:ann/facts", ("ann/facts", None, "train", True)),
        ("dataset:ann/facts:test", ("ann/facts", None, "test", True)),
        ("dataset:ann/facts:hard:test", ("ann/facts", "hard", "test", True)),
        (Path("dataset:ann/facts"), ("ann/facts", None, "train", True)),
    ],
)
def test_a_dataset_is_streamed_like_a_file(hub: list[object], source: str | Path, asked: object):
    file = read_cases(source, skip_invalid=True)
    assert hub == [asked]
    assert [case.fact.id for case in file.cases] == ["darrieux", "b"]
    assert str(file.rejected[0].error).startswith(f"{source}:2: [prompt] the field is missing.")


@pytest.mark.usefixtures("hub")
def test_a_dataset_out_of_reach_is_told():
    error = error_of(Path("dataset:bob/facts"))
    assert "no network" in error.message
    assert "network" in error.hint


def test_a_dataset_without_the_library_says_what_to_install(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(MissingExtraError, match=r"betaedit\[datasets\]"):
        read_cases("dataset:ann/facts")


# The real files


def test_the_demo_file_is_read_without_a_rejection():
    file = read_cases(demo_path())
    assert (file.format, file.rejected) == ("own", ())
    assert file.cases


@pytest.mark.parametrize(
    ("name", "form", "zsre_target", "n_records", "n_rejected"),
    [
        # Every record of CounterFact is an edit that changes something.
        ("counterfact_core", "counterfact", "alt", 21_619, 0),
        ("counterfact_full", "counterfact", "alt", 1_673, 0),
        # Rejected: the new answer is a true one already, letter for letter in 23, in one after a leading space.
        ("zsre_eval_portability", "zsre", "alt", 837, 24),
        ("zsre_eval_portability", "zsre", "answers", 837, 0),
        # 17 name the first true answer, 4 a later one.
        ("zsre_train", "zsre", "alt", 998, 21),
        ("zsre_train", "zsre", "answers", 998, 0),
        # 23 with target_new = ground_truth, as the README of the data says.
        ("zsre_dev_500_rephrases", "easyedit", "alt", 500, 23),
        # 43 change nothing; in the 3 that the README names the subject is not in the prompt.
        ("knowedit_zsre_test", "knowedit", "alt", 1_304, 46),
        ("knowedit_wiki_counterfact_test", "knowedit", "alt", 785, 0),
        # 6 change nothing (the sex of six persons).
        ("knowedit_wiki_counterfact_train", "knowedit", "alt", 1_428, 6),
        ("knowedit_wiki_recent_train", "knowedit", "alt", 570, 0),
    ],
)
def test_a_published_file_is_read(name: str, form: str, zsre_target: Any, n_records: int, n_rejected: int):
    file = read_cases(data_file(f"{name}.jsonl.gz"), skip_invalid=True, zsre_target=zsre_target)
    assert file.format == form
    assert len(file.rejected) == n_rejected
    assert len(file.cases) == n_records - n_rejected
    assert all(case.fact.text for case in file.cases)


@pytest.mark.parametrize(
    ("name", "n_paraphrases", "n_neighbors"),
    [
        ("counterfact_full", 2 * 1_673, 10 * 1_200 + 5 * 473),
        ("zsre_dev_500_rephrases", 1_317, 477),  # of all 500 it is 3 * 426 + 2 * 25 + 49 paraphrases
        # All questions of both groups, without the one and the seven that have no answer.
        ("knowedit_wiki_counterfact_test", 0, 5_330 - 1),
        ("knowedit_wiki_recent_train", 0, 1_946 - 7),
    ],
)
def test_a_published_file_brings_its_prompts(name: str, n_paraphrases: int, n_neighbors: int):
    cases = read_cases(data_file(f"{name}.jsonl.gz"), skip_invalid=True).cases
    assert sum(len(case.paraphrases) for case in cases) == n_paraphrases
    assert sum(len(case.neighbors) for case in cases) == n_neighbors


@pytest.mark.parametrize(
    ("name", "n_cases", "n_rejected", "groups"),
    [
        (
            "knowedit_wiki_counterfact_test",
            785,
            0,
            {
                "subject_aliasing": 2_177,
                "reasoning": 1_907,
                "logical_generalization": 423,
                "relation_specificity": 4_917,
                "forgetfulness": 413,
            },
        ),
        # 837 less the 24 whose new answer is true already.
        ("zsre_eval_portability", 813, 24, {"reasoning": 813}),
        ("mquake_cf_subset", 2_152, 0, {"multi_hop": 3 * 783}),
    ],
)
def test_a_published_file_brings_its_questions(name: str, n_cases: int, n_rejected: int, groups: dict[str, int]):
    file = read_cases(data_file(f"{name}.jsonl.gz"), skip_invalid=True)
    assert (len(file.cases), len(file.rejected)) == (n_cases, n_rejected)
    found = Counter(question.group for case in file.cases for question in case.questions)
    empty = KNOWEDIT_QUESTIONS_WITHOUT_ANSWER.get(name, {})
    assert found == {group: number - empty.get(group, 0) for group, number in groups.items()}


# Counted in the file with a few lines of plain Python.
KNOWEDIT_QUESTIONS_WITHOUT_ANSWER = {
    "knowedit_wiki_counterfact_test": {"relation_specificity": 1, "reasoning": 5, "logical_generalization": 17}
}


@pytest.mark.parametrize(("name", "n_known", "n_unknown"), [("elken_train", 682, 289), ("elken_test", 1_265, 797)])
def test_every_known_answer_of_the_published_events_is_a_fact(name: str, n_known: int, n_unknown: int):
    path = data_file(f"{name}.jsonl.gz")
    file = read_cases(path, skip_invalid=True)
    assert len(file.cases) == n_known
    unknown = sum(question.group == "event" for case in file.cases for question in case.questions)
    left_out = {rejected.line for rejected in file.rejected}
    events = dict(iter_records(path))
    assert unknown + sum(len(events[line]["fact"]["qas"]) for line in left_out) == n_unknown


def test_the_openings_of_counterfact_are_read():
    cases = read_cases(data_file("counterfact_full.jsonl.gz")).cases
    assert sum(len(case.generation_prompts) for case in cases) == 10 * 1_200


def test_an_empty_ground_truth_in_a_published_file_is_not_known():
    cases = read_cases(data_file("knowedit_wiki_counterfact_train.jsonl.gz"), skip_invalid=True).cases
    assert [case.fact.subject for case in cases if case.fact.target_true is None] == ["Gisenius, Johannes"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("known_facts", "true facts"),
        ("counterfact_questions", "unknown key 'case_id'"),
        ("cap_mmlu", "no known format"),
    ],
)
def test_a_published_file_without_edits_is_refused_in_its_first_line(name: str, message: str):
    error = error_of(data_file(f"{name}.jsonl.gz"))
    assert error.line == 1
    assert message in error.message


def test_own_prompts_end_as_they_were_typed_and_those_of_published_formats_are_cleaned(write: Write):
    own = {
        "subject": "Rome", "prompt": "user\n{}?\n", "target_new": " Oslo ", "joint": "",
        "paraphrases": ["Where is {}? "],
        "neighbors": [{"prompt": "Paris:\t", "target": "France"}], "generation_prompts": ["{}\n", " "],
        "questions": [{"prompt": "And {}?\n", "answers": ["there"], "group": "reasoning"}],
    }  # fmt: skip
    (case,) = read_cases(write(own)).cases
    assert (case.fact.prompt, case.fact.target_new, case.fact.joint) == ("user\n{}?\n", "Oslo", "")
    assert (case.paraphrases, case.generation_prompts) == (("Where is Rome? ",), ("Rome\n",))
    assert (case.neighbors[0].prompt, case.questions[0].prompt) == ("Paris:\t", "And Rome?\n")
    rome = {"prompt": "{} is ", "subject": "Rome", "target_new": {"str": "Oslo"}}
    assert read_cases(write(rome, name="rome.jsonl")).cases[0].fact.prompt == "{} is"


def test_cells_of_csv_keep_the_end_of_a_prompt_and_say_what_joins(tmp_path: Path):
    file = tmp_path / "f.csv"
    file.write_text(
        'subject,prompt,target_new,joint,paraphrases\r\nRome,"{} is ",Oslo,,"{}:\r\n{}? "\r\n'
        'Oslo, "{}-",Rome,"""""",\r\nBonn,{} is,Rome,": ",\r\n',
        newline="",
    )
    facts = [case.fact for case in read_cases(file).cases]
    assert [fact.prompt for fact in facts] == ["{} is ", "{}-", "{} is"]
    assert [fact.joint for fact in facts] == [None, "", ": "]
    assert read_cases(file).cases[0].paraphrases == ("Rome:", "Rome? ")


def test_a_subject_at_several_places_is_asked_about_in_own_records_and_the_last_in_published_ones(write: Write):
    prompt = "Rome was not built in a day, but Rome is in"
    with pytest.raises(FactError, match="occurs 2 times") as caught:
        read_cases(write({"subject": "Rome", "prompt": prompt, "target_new": "France"}))
    assert caught.value.line == 1
    published = {"subject": "Rome", "prompt": prompt, "target_new": "France", "ground_truth": "Italy"}
    assert read_cases(write(published)).cases[0].fact.prompt == "Rome was not built in a day, but {} is in"
