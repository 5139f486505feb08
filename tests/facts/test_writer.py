from __future__ import annotations

from pathlib import Path

import pytest

from betaedit.errors import OutputError
from betaedit.facts import EvaluationCase, Fact, Probe, Question, demo_path, read_cases, save_facts
from support.facts import as_read

FACT = Fact("The mother tongue of {} is", "Zoë \u2028 Ana", "English", "French", "f1")
CASE = EvaluationCase(
    FACT,
    paraphrases=("Zoë speaks", "What does Zoë speak?"),
    neighbors=(Probe("The mother tongue of Bob is", "French"), Probe("Bob speaks", None)),
    questions=(Question("Where is it spoken?", ("London", "England"), "reasoning"),),
    generation_prompts=("Zoë was",),
    record="r1",
)


def test_what_is_written_is_read_back_whole(tmp_path: Path):
    file = tmp_path / "new" / "facts.jsonl"
    save_facts([CASE, Fact("{} is in", "Rome", "Spain", id="2")], file)
    assert read_cases(file).cases == (as_read(CASE), EvaluationCase(Fact("{} is in", "Rome", "Spain", id="2")))


@pytest.mark.parametrize("joint", ["", " ", "\u00a0"])
@pytest.mark.parametrize("prompt", ["{} is in", "Where is {}?\n", "It is said: «{} "])
def test_the_end_of_a_prompt_and_its_joint_are_read_back(joint: str, prompt: str, tmp_path: Path):
    fact = Fact(prompt, "Rome", "Spain", id="2", joint=joint)
    case = EvaluationCase(fact, ("Rome? ", "\tRome\n"), (Probe("Oslo is \n", "Norway"),), generation_prompts=("Rome ",))
    save_facts([case], tmp_path / "f.jsonl")
    assert read_cases(tmp_path / "f.jsonl").cases == (as_read(case),)


def test_what_is_not_known_is_not_written(tmp_path: Path):
    save_facts([Fact("{} is in", "Rome", "Spain")], tmp_path / "f.jsonl")
    assert (tmp_path / "f.jsonl").read_text() == '{"subject": "Rome", "prompt": "{} is in", "target_new": "Spain"}\n'


def test_facts_of_several_files_are_read_back_under_ids_of_their_own(tmp_path: Path):
    ids = [None, "own-1", "own-1", "own-1-2", None, "own-5"]
    facts = [Fact("{} is number", f"Ana {at}", "two", id=given) for at, given in enumerate(ids)]
    save_facts(facts, tmp_path / "f.jsonl")
    read = [case.fact for case in read_cases(tmp_path / "f.jsonl").cases]
    assert [fact.id for fact in read] == ["own-1-3", "own-1", "own-1-4", "own-1-2", "own-5-2", "own-5"]
    assert [fact.subject for fact in read] == [fact.subject for fact in facts]


def test_a_place_that_is_no_file_is_refused(tmp_path: Path):
    with pytest.raises(OutputError, match=r"cannot be written.*Name a file"):
        save_facts([FACT], tmp_path)


def test_the_demo_survives_the_way_through_a_file(tmp_path: Path):
    cases = read_cases(demo_path()).cases
    save_facts(cases, tmp_path / "f.jsonl")
    assert read_cases(tmp_path / "f.jsonl").cases == cases
