from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, cast

import pytest

from betaedit.evaluation import EditMeasures, Figure, Score, before_and_after, measure_edits, metrics, summarize
from betaedit.evaluation.scoring import Pair
from betaedit.facts import EvaluationCase, Fact, Probe, read_cases
from betaedit.models import LanguageModel
from support.data import data_file
from support.tiny import RecordedProgress, plain_score, tiny_llama

NO_MODEL = cast(LanguageModel, None)
YES, NO = True, False


class Oracle:
    """Stands in for the model: hand-written scores by prompt and target, and a list of what was asked."""

    def __init__(self) -> None:
        self.scores: dict[tuple[str, str], Score] = {}
        self.asked: list[tuple[str, str]] = []
        self.joints: list[str | None] = []

    def says(self, prompt: str, **targets: float | tuple[float, bool]) -> None:
        """The nll of each target, and whether all its tokens are the most probable (by default they are not)."""
        for target, value in targets.items():
            nll, argmax = value if isinstance(value, tuple) else (value, NO)
            self.scores[prompt, target] = Score(nll, argmax)

    def score_targets(self, model: LanguageModel, pairs: Sequence[Pair], **_: Any) -> list[Score]:
        self.asked.extend(pair[:2] for pair in pairs)
        self.joints.extend(pair[2] for pair in pairs if len(pair) > 2)
        return [self.scores[pair[:2]] for pair in pairs]


@pytest.fixture
def oracle(monkeypatch: pytest.MonkeyPatch) -> Oracle:
    oracle = Oracle()
    monkeypatch.setattr(metrics, "score_targets", oracle.score_targets)
    return oracle


def case(
    subject: str = "King",
    paraphrases: Sequence[str] = (),
    neighbors: Sequence[tuple[str, str | None]] = (),
    *,
    true: str | None = "old",
) -> EvaluationCase:
    fact = Fact("{} is", subject, "new", true)
    return EvaluationCase(fact, tuple(paraphrases), tuple(Probe(prompt, target) for prompt, target in neighbors))


def measured(*cases: EvaluationCase) -> EditMeasures:
    return measure_edits(NO_MODEL, cases)


# Efficacy


@pytest.mark.parametrize(("new", "old", "share"), [(1.0, 2.0, 1.0), (2.0, 1.0, 0.0), (1.0, 1.0, 0.0)])
def test_efficacy_asks_the_new_target_to_be_strictly_more_probable(
    oracle: Oracle, new: float, old: float, share: float
):
    oracle.says("King is", new=new, old=old)
    assert measured(case()).efficacy.probability == share


def test_efficacy_by_argmax_asks_only_the_new_target(oracle: Oracle):
    oracle.says("King is", new=(5.0, YES), old=(1.0, NO))
    oracle.says("Queen is", new=(1.0, NO), old=(5.0, YES))
    assert measured(case("King")).efficacy == Figure(probability=0.0, argmax=1.0)
    assert measured(case("Queen")).efficacy == Figure(probability=1.0, argmax=0.0)


def test_efficacy_is_the_mean_over_records(oracle: Oracle):
    for subject, new in (("King", 1.0), ("Queen", 1.0), ("Man", 1.0), ("Woman", 3.0)):
        oracle.says(f"{subject} is", new=(new, subject == "King"), old=2.0)
    found = measured(case("King"), case("Queen"), case("Man"), case("Woman")).efficacy
    assert found == Figure(probability=0.75, argmax=0.25)


def test_a_score_that_is_no_number_is_a_failure(oracle: Oracle):
    oracle.says("King is", new=math.nan, old=1.0)
    oracle.says("Queen is", new=1.0, old=math.nan)
    assert measured(case("King"), case("Queen")).efficacy.probability == 0.0


# Generality


@pytest.mark.parametrize(("new", "old", "share"), [(1.0, 2.0, 1.0), (2.0, 1.0, 0.0), (1.0, 1.0, 0.0)])
def test_generality_asks_the_new_target_of_paraphrases(oracle: Oracle, new: float, old: float, share: float):
    oracle.says("King is", new=9.0, old=1.0)
    oracle.says("A king is", new=new, old=old)
    assert measured(case(paraphrases=["A king is"])).generality.probability == share


def test_generality_is_a_mean_per_record_and_then_over_records(oracle: Oracle):
    for subject in ("King", "Queen"):
        oracle.says(f"{subject} is", new=1.0, old=2.0)
    oracle.says("one", new=(1.0, YES), old=2.0)
    oracle.says("three a", new=(3.0, NO), old=2.0)
    oracle.says("three b", new=(1.0, NO), old=2.0)
    oracle.says("three c", new=(3.0, YES), old=2.0)
    found = measured(case("King", ["one"]), case("Queen", ["three a", "three b", "three c"])).generality
    assert found.probability == pytest.approx((1 + 1 / 3) / 2)  # over all prompts it would be 1/2
    assert found.argmax == pytest.approx((1 + 1 / 3) / 2)


def test_records_without_paraphrases_are_left_out_of_generality(oracle: Oracle):
    for subject in ("King", "Queen"):
        oracle.says(f"{subject} is", new=1.0, old=2.0)
    oracle.says("one", new=(1.0, YES), old=2.0)
    found = measured(case("King", ["one"]), case("Queen"))
    assert found.generality == Figure(1.0, 1.0)
    assert found.efficacy.probability == 1.0


# Specificity


@pytest.mark.parametrize(("true", "new", "share"), [(1.0, 2.0, 1.0), (2.0, 1.0, 0.0), (1.0, 1.0, 0.0)])
def test_specificity_asks_the_neighbors_own_answer_to_stay_above_the_new_target(
    oracle: Oracle, true: float, new: float, share: float
):
    oracle.says("King is", new=1.0, old=2.0)
    oracle.says("A queen is", old=true, new=new)
    assert measured(case(neighbors=[("A queen is", "old")])).specificity.probability == share


def test_specificity_uses_each_neighbors_own_answer(oracle: Oracle):
    oracle.says("King is", new=1.0, old=2.0)
    oracle.says("A queen is", mine=(1.0, YES), new=2.0)
    found = measured(case(neighbors=[("A queen is", "mine")]))
    assert found.specificity == Figure(1.0, 1.0)
    assert ("A queen is", "mine") in oracle.asked
    assert ("A queen is", "old") not in oracle.asked


def test_specificity_by_argmax_asks_the_neighbors_answer_not_the_new_target(oracle: Oracle):
    oracle.says("King is", new=1.0, old=2.0)
    oracle.says("A queen is", old=(2.0, NO), new=(1.0, YES))
    assert measured(case(neighbors=[("A queen is", "old")])).specificity == Figure(0.0, 0.0)


def test_specificity_is_a_mean_per_record_and_then_over_records(oracle: Oracle):
    for subject in ("King", "Queen"):
        oracle.says(f"{subject} is", new=1.0, old=2.0)
    oracle.says("one", old=(3.0, NO), new=2.0)
    for prompt in ("three a", "three b", "three c"):
        oracle.says(prompt, old=(1.0, YES), new=2.0)
    first = case("King", neighbors=[("one", "old")])
    second = case("Queen", neighbors=[("three a", "old"), ("three b", "old"), ("three c", "old")])
    assert measured(first, second).specificity == Figure(0.5, 0.5)


def test_neighbors_without_an_answer_are_not_asked(oracle: Oracle):
    oracle.says("King is", new=1.0, old=2.0)
    oracle.says("A queen is", old=(1.0, YES), new=2.0)
    found = measured(case(neighbors=[("A lake is", None), ("A queen is", "old")]))
    assert found.specificity == Figure(1.0, 1.0)
    assert not any(prompt == "A lake is" for prompt, _ in oracle.asked)


@pytest.mark.parametrize("neighbors", [[], [("A lake is", None)]])
def test_without_neighbors_there_is_no_specificity(oracle: Oracle, neighbors: list[tuple[str, None]]):
    oracle.says("King is", new=1.0, old=2.0)
    assert measured(case(neighbors=neighbors)).specificity == Figure(None, None)


# What is missing


def test_without_a_true_target_only_the_argmax_form_exists(oracle: Oracle):
    oracle.says("King is", new=(1.0, YES))
    oracle.says("A king is", new=(1.0, NO))
    found = measured(case(paraphrases=["A king is"], true=None))
    assert found.efficacy == Figure(probability=None, argmax=1.0)
    assert found.generality == Figure(probability=None, argmax=0.0)


def test_records_without_a_true_target_are_left_out_of_the_probability_form_alone(oracle: Oracle):
    oracle.says("King is", new=(1.0, YES))
    oracle.says("Queen is", new=(3.0, NO), old=2.0)
    found = measured(case("King", true=None), case("Queen"))
    assert found.efficacy == Figure(probability=0.0, argmax=0.5)


def test_specificity_needs_no_true_target(oracle: Oracle):
    oracle.says("King is", new=1.0)
    oracle.says("A queen is", mine=(1.0, YES), new=2.0)
    assert measured(case(neighbors=[("A queen is", "mine")], true=None)).specificity == Figure(1.0, 1.0)


def test_no_records_have_no_figures(oracle: Oracle):
    found = measured()
    assert found.efficacy == found.generality == found.specificity == Figure(None, None)
    assert found.outcomes == ()


# What is kept


def test_outcomes_hold_every_score_by_record_and_kind(oracle: Oracle):
    oracle.says("King is", new=(1.0, YES), old=2.0)
    oracle.says("A king is", new=3.0, old=4.0)
    oracle.says("A queen is", mine=5.0, new=6.0)
    oracle.says("Queen is", new=7.0)
    first = case("King", ["A king is"], [("A lake is", None), ("A queen is", "mine")])
    one, two = measured(first, case("Queen", true=None)).outcomes
    (rewrite,), (paraphrase,), (neighbor,) = one.rewrite, one.paraphrases, one.neighbors
    assert (rewrite.wanted, rewrite.other) == (Score(1.0, YES), Score(2.0, NO))
    assert (paraphrase.wanted.nll, getattr(paraphrase.other, "nll", None)) == (3.0, 4.0)
    assert (neighbor.wanted.nll, getattr(neighbor.other, "nll", None)) == (5.0, 6.0)
    assert [outcome.wanted.nll for outcome in two.rewrite] == [7.0]
    assert two.rewrite[0].other is None
    assert two.rewrite[0].probability is None
    assert two.paraphrases == two.neighbors == ()


def test_outcomes_alone_give_the_same_figures_again(oracle: Oracle):
    oracle.says("King is", new=(1.0, YES), old=2.0)
    oracle.says("A king is", new=3.0, old=2.0)
    found = measured(case(paraphrases=["A king is"]))
    assert summarize(iter(found.outcomes)) == found


@pytest.mark.parametrize("joint", [None, "", ": "])
def test_all_prompts_of_a_record_are_joined_to_their_answers_as_its_fact_says(oracle: Oracle, joint: str | None):
    oracle.says("King is", new=1.0, old=2.0)
    oracle.says("A king is", new=1.0, old=2.0)
    oracle.says("Bob is", new=1.0, big=2.0)
    plain = case(paraphrases=["A king is"], neighbors=[("Bob is", "big")])
    measured(replace(plain, fact=replace(plain.fact, joint=joint)))
    assert oracle.joints == [joint] * 6


def test_every_prompt_of_every_record_is_scored_in_one_go(oracle: Oracle, monkeypatch: pytest.MonkeyPatch):
    calls: list[int] = []

    def once(model: LanguageModel, pairs: Sequence[Pair], **options: Any) -> list[Score]:
        calls.append(len(pairs))
        assert options["label"] == "after the edits"
        return oracle.score_targets(model, pairs)

    monkeypatch.setattr(metrics, "score_targets", once)
    for subject in ("King", "Queen"):
        oracle.says(f"{subject} is", new=1.0, old=2.0)
    measure_edits(NO_MODEL, [case("King"), case("Queen")], label="after the edits")
    assert calls == [4]


def test_before_and_after_stand_side_by_side_in_both_forms():
    assert before_and_after(Figure(0.1, 0.2), Figure(0.9, None)) == {
        "probability": {"before": 0.1, "after": 0.9},
        "argmax": {"before": 0.2, "after": None},
    }


# On models


def by_definition(model: LanguageModel, cases: Sequence[EvaluationCase]) -> dict[str, Figure]:
    """The three metrics of methods.md G.1, spelled out prompt by prompt."""
    figures: dict[str, Figure] = {}
    for kind in ("efficacy", "generality", "specificity"):
        records: list[tuple[float, float]] = []
        for one in cases:
            new, old = one.fact.target_new, str(one.fact.target_true)
            asked = {
                "efficacy": [(one.fact.text, new, old)],
                "generality": [(prompt, new, old) for prompt in one.paraphrases],
                "specificity": [(probe.prompt, str(probe.target), new) for probe in one.neighbors],
            }[kind]
            scores = [(plain_score(model, p, wanted), plain_score(model, p, other)) for p, wanted, other in asked]
            records.append(
                (
                    sum(wanted.nll < other.nll for wanted, other in scores) / len(scores),
                    sum(wanted.argmax for wanted, _ in scores) / len(scores),
                )
            )
        figures[kind] = Figure(*(sum(column) / len(records) for column in zip(*records, strict=True)))
    return figures


def assert_figures(found: EditMeasures, expected: dict[str, Figure]) -> None:
    for kind, figure in expected.items():
        assert getattr(found, kind).probability == pytest.approx(figure.probability), kind
        assert getattr(found, kind).argmax == pytest.approx(figure.argmax), kind


def test_a_tiny_model_is_measured_as_the_definition_has_it():
    model = tiny_llama()
    subjects = ["king", "queen", "blue bird", "fish of snow", "man", "old Xylo"]
    cases = [
        EvaluationCase(
            Fact("the {} is in the", subject, new, old),
            (f"the home of the {subject} is", f"near the {subject} is a")[: 1 + index % 2],
            (Probe("the horse is in the", old), Probe(f"two and {index} ten is", "house of wood")),
        )
        for index, (subject, new, old) in enumerate(
            zip(subjects, ["sea", "red town", "lake", "garden", "gold", "hill"], ["city", "river"] * 3, strict=True)
        )
    ]
    progress = RecordedProgress()
    found = measure_edits(model, cases, progress=progress)
    assert_figures(found, by_definition(model, cases))
    assert progress.tasks[0].total == sum(2 + 2 * len(one.paraphrases) + 4 for one in cases)


@pytest.mark.real_model
def test_smollm2_is_measured_as_the_definition_has_it(smollm2: LanguageModel):
    file = read_cases(data_file("counterfact_full.jsonl.gz"), limit=50)
    cases = [
        dataclasses.replace(one, paraphrases=one.paraphrases[:1], neighbors=one.neighbors[:1]) for one in file.cases
    ]
    assert all(one.paraphrases and one.neighbors for one in cases)
    found = measure_edits(smollm2, cases)
    assert_figures(found, by_definition(smollm2, cases))
    fact, outcome = cases[0].fact, found.outcomes[0].rewrite[0]
    assert outcome.wanted.nll == pytest.approx(plain_score(smollm2, fact.text, fact.target_new).nll, abs=1e-4)
