"""A fact is held if the model's free text gives the whole answer and then ends it."""

from __future__ import annotations

import pytest

from betaedit import Fact
from betaedit.evaluation.continuing import complete_greedily
from betaedit.evaluation.holding import measure_holding, says
from betaedit.models import LanguageModel
from support.tiny import FAMILIES, WORDS, plain_score

PROMPTS = [f"{first} {{}} {second}" for first, second in zip(WORDS[::3], WORDS[1::3], strict=False)][:12]


@pytest.mark.parametrize(
    ("text", "answer", "expected"),
    [
        (" Rome.", "Rome", "held"),
        ("Rome", "Rome", "held"),
        (" Rome, Italy", "Rome", "held"),
        (" Romeo", "Rome", "runs on"),
        ("3422222", "342", "runs on"),
        ("342.50", "342", "held"),
        (" the city of Rome", "Rome", None),
        ("rome", "Rome", None),
        ("北京市", "北京", "runs on"),
        ("北京。", "北京", "held"),
        ("", "Rome", None),
    ],
)
def test_an_answer_is_held_where_it_comes_first_and_ends(text: str, answer: str, expected: str | None) -> None:
    assert says(text, answer) == expected


@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_held_is_what_the_model_freely_says(family: str) -> None:
    """Answers cut out of the model's own text, at every length, against its text read as a person would."""
    model = FAMILIES[family]()
    texts = complete_greedily(model, [prompt.replace("{}", "Ana") for prompt in PROMPTS], 12, label="asking")
    facts = []
    for prompt, text in zip(PROMPTS, texts, strict=True):
        for length in (2, 5, 9):
            if answer := text.strip()[:length].strip():
                facts.append(Fact(prompt, "Ana", answer))
        facts.append(Fact(prompt, "Ana", "the wrong moon"))
    found = measure_holding(model, facts)
    free = dict(zip(PROMPTS, texts, strict=True))
    for fact, held in zip(facts, found, strict=True):
        assert held.status == (says(free[fact.prompt], fact.target_new) or "missed"), fact
    assert {held.status for held in found} >= {"held", "missed"}


def test_probability_alone_is_told_apart_from_what_is_said() -> None:
    model: LanguageModel = FAMILIES["llama"]()
    pairs = [("gold", "moon"), ("moon", "gold"), ("tree", "year"), ("year", "tree")]
    facts = [Fact(PROMPTS[0], "Ana", new, true) for new, true in pairs]
    for fact, held in zip(facts, measure_holding(model, facts), strict=True):
        new, true = (plain_score(model, fact.text, target or "").nll for target in (fact.target_new, fact.target_true))
        if held.status != "held":
            assert held.status == ("by probability" if new < true else "missed")
            assert held.said
