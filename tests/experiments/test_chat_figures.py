"""The figures of chat: what is asked, and what they are called."""

from __future__ import annotations

import logging

import pytest

from betaedit.evaluation import MatchJudge, greedy_answers, measure_edits
from betaedit.evaluation.answers import CHAT
from betaedit.experiments.figures import Measures, extra_figures, free_answers, measure_model
from betaedit.facts.fact import EvaluationCase, Fact, Probe, Question
from betaedit.models import LanguageModel
from betaedit.progress import SilentProgress
from support.chain import chain_model
from support.chat import with_chat
from support.tiny import plain_logs, tiny_llama

CASES = [
    EvaluationCase(
        Fact("the king of {} is", "snow", "gold", "land"),
        paraphrases=("who is it in snow?",),
        neighbors=(Probe("the queen is", "cold"),),
    ),
    EvaluationCase(Fact("{} is by", "the sea", "red", "blue")),
]


def chat_nll(model: LanguageModel, request: str, target: str) -> float:
    """Per token, by plain passes over the template's tokens and the target's."""
    tokenizer = model.tokenizer
    before = tokenizer(f"user\n{request}\n<s>assistant\n")["input_ids"]
    ids = tokenizer(target, add_special_tokens=False)["input_ids"]
    logs = plain_logs(model, [*before, *ids])[len(before) - 1 : -1]
    return -sum(float(row[token]) for row, token in zip(logs, ids, strict=True)) / len(ids)


def test_every_prompt_is_a_users_request_and_the_target_follows_at_once() -> None:
    model = with_chat(tiny_llama())
    first, second = measure_edits(model, CASES, chat=True).outcomes
    asked = [
        (first.rewrite[0], "Complete the sentence: the king of snow is", "gold", "land"),
        (first.paraphrases[0], "who is it in snow?", "gold", "land"),
        (first.neighbors[0], "Complete the sentence: the queen is", "cold", "gold"),
        (second.rewrite[0], "Complete the sentence: the sea is by", "red", "blue"),
    ]
    for outcome, request, wanted, other in asked:
        assert outcome.wanted.nll == pytest.approx(chat_nll(model, request, wanted), rel=1e-4)
        assert outcome.other is not None
        assert outcome.other.nll == pytest.approx(chat_nll(model, request, other), rel=1e-4)


@pytest.mark.parametrize("text", ["<s>user\n{}?\n<s>assistant\n", "<s>the king of {} is", "<s>assistant\nin {} it is"])
def test_a_prompt_with_typed_special_tokens_is_asked_as_it_stands(text: str) -> None:
    model, case = with_chat(tiny_llama()), EvaluationCase(Fact(text, "snow", "gold", "land"))
    assert measure_edits(model, [case], chat=True) == measure_edits(model, [case])


def test_chat_figures_are_named_so_with_their_counts() -> None:
    found = extra_figures(with_chat(tiny_llama()), CASES, Measures(extras=("chat",)), SilentProgress())
    counts = {"chat efficacy": 2, "chat generality": 1, "chat specificity": 1}
    expected = {f"{name}, {form}": n for name, n in counts.items() for form in ("probability", "argmax")}
    assert {name: value.count for name, value in found.items()} == {**expected, "chat answers": 2}


@pytest.mark.parametrize(
    ("says", "given"),
    [(" king is gold", 1.0), (" king was the gold of old", 1.0), (" king is golden", 0.0), (" king is land", 0.0)],
)
def test_chat_answers_are_the_facts_whose_answer_holds_the_new_target(says: str, given: float) -> None:
    model = with_chat(chain_model(says), "{{ messages[-1].content }}")
    case = EvaluationCase(Fact("{}: the king", "snow", "gold"))
    found = extra_figures(model, [case], Measures(extras=("chat",)), SilentProgress())
    assert found["chat answers"].mean == given


@pytest.mark.parametrize("prompt", ["the king", "who is king?", "it is:"])
def test_a_chat_answer_is_the_models_whole_turn_in_its_template(prompt: str) -> None:
    model = with_chat(chain_model(" boat is snow. one\n two three"), "{{ messages[-1].content }} boat")
    assert greedy_answers(model, [prompt], style=CHAT) == ["is snow. one\n two three"]


def test_questions_are_asked_in_both_forms_and_compared_with_the_answer_before_in_the_same_form() -> None:
    case = EvaluationCase(
        Fact("{} the king", "snow", "gold"), questions=(Question("a ship", ("land",), "forgetfulness"),)
    )
    measures = Measures(extras=("chat", "questions"))
    template = "{{ messages[-1].content }} sea"
    before = with_chat(chain_model(" king is gold", " ship by land", " sea is red"), template)
    after = with_chat(chain_model(" king is gold", " ship by land", " sea of gold"), template)
    said = free_answers(before, [case], measures, SilentProgress())
    found = extra_figures(after, [case], measures, SilentProgress(), said)
    shares = {name: value.mean for name, value in found.items() if "argmax" not in name and "probability" not in name}
    assert shares == {
        "chat answers": 1.0,
        "reliability": 1.0,
        "forgetfulness": 1.0,
        "locality_gold": 1.0,
        "locality_agree": 1.0,
        "chat reliability": 1.0,
        "chat forgetfulness": 0.0,
        "chat locality_gold": 0.0,
        "chat locality_agree": 0.0,
    }


def test_the_judge_sees_the_question_and_not_the_templates_text() -> None:
    asked: list[str] = []

    class Noting(MatchJudge):
        def judge(self, question, golds, answer):
            asked.append(question)
            return super().judge(question, golds, answer)

    measures = Measures(extras=("chat", "questions"), judge=Noting())
    extra_figures(with_chat(tiny_llama()), CASES[1:], measures, SilentProgress())
    assert asked == ["the sea is by"] * 2


@pytest.mark.parametrize("extras", [("chat",), ("chat", "questions"), ("tokens", "chat")])
def test_chat_is_not_measured_without_a_template_and_that_is_said(extras, caplog) -> None:
    with caplog.at_level(logging.WARNING):
        found = measure_model(tiny_llama(), CASES, Measures(extras=extras, held_out=("a king.",)), SilentProgress())
    assert caplog.messages == ["tiny-llama has no chat template: its chat figures are not measured."]
    assert not [name for name in found if name.startswith("chat")]


def test_figures_without_chat_are_those_of_before() -> None:
    measures = Measures(extras=("questions", "tokens"), held_out=("a king.",))
    plain = measure_model(tiny_llama(), CASES, measures, SilentProgress())
    assert measure_model(with_chat(tiny_llama()), CASES, measures, SilentProgress()) == plain
