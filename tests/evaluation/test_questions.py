from __future__ import annotations

from collections.abc import Sequence

import pytest

from betaedit.evaluation import (
    MatchJudge,
    QuestionMeasures,
    QuestionOutcome,
    estimate,
    measure_questions,
    summarize_questions,
)
from support.chain import chain_model
from support.tiny import RecordedProgress

YES, NO = True, False


def outcome(group: str, right: bool | None, agrees: bool | None = None) -> QuestionOutcome:
    return QuestionOutcome("?", ("gold",), group, "answer", right, agrees)


def summarized(*records: Sequence[QuestionOutcome]) -> QuestionMeasures:
    return summarize_questions([tuple(record) for record in records])


# Figures of recorded outcomes


def test_a_group_is_a_mean_per_record_and_then_over_records():
    found = summarized(
        [outcome("reliability", YES)],
        [outcome("reliability", NO), outcome("reliability", YES), outcome("reliability", NO)],
    )
    assert found.groups == {"reliability": estimate([1.0, 1 / 3])}  # over all questions it would be 1/2


def test_records_without_a_group_are_left_out_of_it():
    found = summarized([outcome("reliability", NO)], [outcome("reliability", YES), outcome("generalization", YES)])
    assert found.groups == {"reliability": estimate([0.0, 1.0]), "generalization": estimate([1.0])}
    assert found.portability is found.locality_gold is found.locality_agree is None


def test_portability_pools_a_records_questions_of_all_sub_keys():
    found = summarized(
        [outcome("Subject_Aliasing", YES), outcome("Reasoning", NO), outcome("Reasoning", NO), outcome("x", NO)],
        [outcome("Logical_Generalization", YES)],
    )
    assert found.portability == estimate([1 / 3, 1.0])
    assert found.groups["Reasoning"] == estimate([0.0])


def test_locality_is_measured_against_gold_and_against_the_answer_before():
    found = summarized(
        [outcome("Relation_Specificity", NO, YES), outcome("Forgetfulness", YES, NO), outcome("Reasoning", YES, NO)],
        [outcome("Forgetfulness", NO, YES)],
    )
    assert found.locality_gold == estimate([1 / 2, 0.0])
    assert found.locality_agree == estimate([1 / 2, 1.0])


@pytest.mark.parametrize("group", ["locality/Relation_Specificity", "Locality/anything", "relation specificity"])
def test_groups_are_pooled_by_path_or_by_the_papers_names(group: str):
    assert summarized([outcome(group, YES)]).locality_gold == estimate([1.0])


def test_a_path_decides_before_the_papers_names():
    found = summarized([outcome("locality/Reasoning", YES)])
    assert found.portability is None
    assert found.locality_gold == estimate([1.0])


def test_questions_without_a_right_answer_count_for_agreement_alone():
    found = summarized([outcome("Forgetfulness", None, YES)])
    assert found.groups == {}
    assert found.locality_gold is None
    assert found.locality_agree == estimate([1.0])


def test_figures_are_plain_data():
    data = summarized([outcome("reliability", YES)]).to_dict()
    assert set(data) == {"groups", "portability", "locality_gold", "locality_agree"}
    assert data["groups"]["reliability"]["mean"] == 1.0


# Asking a model

PROMPTS = [["the king", "the queen"], ["the ship"]]
ANSWERS = [[["gold", "snow"], ["old"]], [["", " "]]]
GROUPS = [["reliability", "Forgetfulness"], ["Forgetfulness"]]
BEFORE = chain_model(" king is snow.", " queen was old.", " ship by land.")
AFTER = chain_model(" king is gold.", " queen was new.", " ship by land.")


def test_answers_are_judged_and_compared_with_those_before():
    before = measure_questions(BEFORE, PROMPTS, ANSWERS, GROUPS, MatchJudge())
    after = measure_questions(AFTER, PROMPTS, ANSWERS, GROUPS, MatchJudge(), answers_before=before.answers)
    assert before.answers == [["is snow", "was old"], ["by land"]]
    assert before.groups == {"reliability": estimate([1.0]), "Forgetfulness": estimate([1.0])}
    assert before.locality_agree is None
    assert after.answers == [["is gold", "was new"], ["by land"]]
    assert after.groups == {"reliability": estimate([1.0]), "Forgetfulness": estimate([0.0])}
    assert after.locality_gold == estimate([0.0])  # the ship has no right answer
    assert after.locality_agree == estimate([0.0, 1.0])


def test_outcomes_hold_every_question():
    after = measure_questions(
        AFTER, PROMPTS, ANSWERS, GROUPS, MatchJudge(), answers_before=[["", "The was new!"], [""]]
    )
    assert after.outcomes == (
        (
            QuestionOutcome("the king", ("gold", "snow"), "reliability", "is gold", YES, NO),
            QuestionOutcome("the queen", ("old",), "Forgetfulness", "was new", NO, YES),
        ),
        (QuestionOutcome("the ship", (), "Forgetfulness", "by land", None, NO),),
    )
    assert summarize_questions(after.outcomes) == after


@pytest.mark.parametrize("batch_size", [1, 2, 32])
def test_the_batch_changes_no_figure(batch_size: int):
    whole = measure_questions(AFTER, PROMPTS, ANSWERS, GROUPS, MatchJudge())
    assert measure_questions(AFTER, PROMPTS, ANSWERS, GROUPS, MatchJudge(), batch_size=batch_size) == whole


def test_arguments_of_different_shape_are_refused():
    with pytest.raises(ValueError, match="zip"):
        measure_questions(AFTER, PROMPTS, ANSWERS, [["reliability"]], MatchJudge())


def test_answering_and_judging_report_their_progress():
    progress = RecordedProgress()
    measure_questions(AFTER, PROMPTS, ANSWERS, GROUPS, MatchJudge(), progress=progress)
    assert [(task.description, task.total, sum(task.steps)) for task in progress.tasks] == [
        ("answering", 3, 3),
        ("judging", 3, 3),
    ]
