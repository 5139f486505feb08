from __future__ import annotations

import random

import pytest

from betaedit.evaluation import (
    TokenAgreement,
    choose_tokens,
    estimate,
    greedy_tokens,
    scoring,
    token_accuracy,
    token_agreement,
)
from betaedit.facts import read_cases
from betaedit.models import LanguageModel
from support.chain import chain_model
from support.data import data_file
from support.tiny import FAMILIES, WORDS, plain_logs, tiny_gpt2, tiny_llama

Pairs = list[tuple[str, str]]


def mixed_pairs() -> Pairs:
    targets = ["gold", "red river", "old king of snow", "Xylo", "sea Q"]
    return [(" ".join(random.Random(n).choices(WORDS, k=n)), target) for n in (12, 1, 5) for target in targets]


def plain_choices(model: LanguageModel, prompt: str, target: str) -> tuple[int, ...]:
    """One full forward pass for each token of the target, nothing after it."""
    ids = model.tokenizer(prompt)["input_ids"]
    target_ids = model.tokenizer(f" {target}", add_special_tokens=False)["input_ids"]
    return tuple(int(plain_logs(model, [*ids, *target_ids[:n]])[-1].argmax()) for n in range(len(target_ids)))


def plain_greedy(model: LanguageModel, prompt: str, n_tokens: int) -> tuple[int, ...]:
    ids = model.tokenizer(prompt)["input_ids"]
    new: list[int] = []
    while len(new) < n_tokens:
        new.append(int(plain_logs(model, [*ids, *new])[-1].argmax()))
        if new[-1] == model.tokenizer.eos_token_id:
            return tuple(new[:-1])
    return tuple(new)


# Accuracy on ZsRE


def test_accuracy_is_the_share_of_target_tokens_that_come_first_at_their_place():
    model = chain_model(" king is gold river")
    right, partly, wrong = choose_tokens(
        model, [("the king", "is gold"), ("the king", "is gold sea"), ("the king", "was old")]
    )
    assert (right.accuracy, right.strict) == (1.0, True)
    assert (partly.accuracy, partly.strict) == (2 / 3, False)
    assert (wrong.accuracy, wrong.strict) == (0.0, False)


def test_the_right_tokens_are_given_before_each_place():
    model = chain_model(" king is gold", " was old")
    (outcome,) = choose_tokens(model, [("the king", "was old")])
    assert model.tokenizer.decode(list(outcome.chosen)) == " is old"
    assert outcome.accuracy == 0.5


def test_figures_are_means_over_tokens_and_then_over_records():
    model = chain_model(" king is gold river")
    outcomes = choose_tokens(model, [("the king", "is"), ("the king", "is gold sea")])
    found = token_accuracy(outcomes)
    assert found.tokens == estimate([1.0, 2 / 3])  # over all tokens it would be 3/4
    assert found.strict == estimate([1.0, 0.0])
    assert found.to_dict()["strict"]["mean"] == 0.5


def test_no_records_have_no_accuracy():
    assert token_accuracy([]).tokens is None
    assert token_accuracy([]).strict is None


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("tokens_per_forward", [1, 60, 1024])
def test_choices_are_those_of_one_pass_a_token_whatever_the_batch_and_padding(
    monkeypatch: pytest.MonkeyPatch, name: str, side: str, tokens_per_forward: int
):
    model = FAMILIES[name]()
    model.tokenizer.padding_side = side
    monkeypatch.setattr(scoring, "_TOKENS_PER_FORWARD", tokens_per_forward)
    found = [outcome.chosen for outcome in choose_tokens(model, mixed_pairs())]
    assert found == [plain_choices(model, *pair) for pair in mixed_pairs()]


def test_the_official_bos_pitfall_adds_a_wrong_place_and_spoils_the_next():
    model = chain_model(" king is gold river", bos=True)
    pair = ("the king", "is gold river")
    assert choose_tokens(model, [pair])[0].accuracy == 1.0
    (outcome,) = choose_tokens(model, [pair], bos_bug=True)
    bos = model.tokenizer.bos_token_id
    king_says, bos_says = outcome.chosen[:2]
    assert outcome.target == (bos, *choose_tokens(model, [pair])[0].target)
    assert king_says == outcome.target[1]  # BOS was asked for, and never comes
    assert bos_says == bos  # what the chain says after a token that it does not know
    assert outcome.accuracy == 2 / 4


def test_the_bos_pitfall_equals_the_published_loop_over_text():
    model = tiny_llama()
    tokenizer = model.tokenizer
    for prompt, target in mixed_pairs():
        (outcome,) = choose_tokens(model, [(prompt, target)], bos_bug=True)
        ids = tokenizer(f" {target}")["input_ids"]  # opens with BOS
        inputs = [prompt + tokenizer.decode(ids[:n]) for n in range(len(ids))]
        expected = [int(plain_logs(model, tokenizer(text)["input_ids"])[-1].argmax()) for text in inputs]
        assert (outcome.target, outcome.chosen) == (tuple(ids), tuple(expected))


def test_tokenizers_without_bos_know_no_pitfall():
    model = tiny_gpt2()
    assert choose_tokens(model, mixed_pairs(), bos_bug=True) == choose_tokens(model, mixed_pairs())


# Locality


def test_agreement_counts_equal_positions_of_each_query():
    found = token_agreement([(1, 2, 3, 4), (5, 6), (7,)], [(1, 2, 9, 4), (5, 6), (8,)])
    assert found == TokenAgreement(estimate([3 / 4, 1.0, 0.0]), estimate([0.0, 1.0, 0.0]))


def test_texts_of_different_length_are_compared_over_the_longer():
    found = token_agreement([(1, 2), (1, 2, 3, 4), (), ()], [(1, 2, 3, 4), (1,), (), (1,)])
    assert found == TokenAgreement(estimate([0.5, 0.25, 1.0, 0.0]), estimate([0.0, 0.0, 1.0, 0.0]))


def test_no_queries_have_no_agreement():
    assert token_agreement([], []).to_dict() == {"match_ratio": None, "exact_match": None}


def test_lists_of_different_queries_cannot_be_compared():
    with pytest.raises(ValueError, match="zip"):
        token_agreement([(1,)], [])


def test_free_text_ends_before_the_end_token_or_at_the_limit():
    model = chain_model(" king is gold river", " red red")
    king, red = greedy_tokens(model, ["the king", "a red"], 6)
    assert model.tokenizer.decode(list(king)) == " is gold river"
    assert model.tokenizer.decode(list(red)) == " red" * 6


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize(("side", "batch_size"), [("left", 1), ("right", 2), ("left", 32)])
def test_free_text_is_that_of_one_prompt_at_a_time(name: str, side: str, batch_size: int):
    model = FAMILIES[name]()
    model.tokenizer.padding_side = side
    prompts = [prompt for prompt, _ in mixed_pairs()[::5]]
    expected = [plain_greedy(model, prompt, 6) for prompt in prompts]
    assert greedy_tokens(model, [*prompts, prompts[0]], 6, batch_size=batch_size) == [*expected, expected[0]]


# The default model


def test_token_accuracy_of_real_records_equals_a_plain_loop_over_text(smollm2: LanguageModel):
    cases = read_cases(data_file("knowedit_zsre_test.jsonl.gz"), limit=50, skip_invalid=True).cases
    pairs = [(case.fact.text, case.fact.target_true or case.fact.target_new) for case in cases]
    outcomes = choose_tokens(smollm2, pairs)
    tokenizer = smollm2.tokenizer
    for (prompt, target), outcome in zip(pairs, outcomes, strict=True):
        ids = tokenizer(f" {target}")["input_ids"]
        inputs = [prompt + tokenizer.decode(ids[:n]) for n in range(len(ids))]
        said = [int(plain_logs(smollm2, tokenizer(text)["input_ids"])[-1].argmax()) for text in inputs]
        assert outcome.accuracy == sum(a == b for a, b in zip(said, ids, strict=True)) / len(ids)
    assert any(outcome.accuracy > 0 for outcome in outcomes)
