from __future__ import annotations

import random
from collections.abc import Iterator

import pytest
import torch

from betaedit.evaluation import Score, score_targets, scoring
from betaedit.models import LanguageModel
from support.tiny import (
    FAMILIES,
    WORDS,
    Calls,
    RecordedProgress,
    count_calls,
    plain_logs,
    plain_score,
    tiny_llama,
)

Pairs = list[tuple[str, str]]


@pytest.fixture(scope="module", params=FAMILIES)
def model(request: pytest.FixtureRequest) -> LanguageModel:
    return FAMILIES[request.param]()


@pytest.fixture(scope="module")
def llama() -> LanguageModel:
    return tiny_llama()


@pytest.fixture
def calls(llama: LanguageModel) -> Iterator[Calls]:
    with count_calls(llama.model.base_model) as counted:
        yield counted


def words(n: int, seed: int) -> str:
    return " ".join(random.Random(seed).choices(WORDS, k=n))


def mixed_pairs() -> Pairs:
    """Prompts of 1 to 12 words with targets of 1 to 4 tokens and of words that fall into letters."""
    targets = ["gold", "red river", "old king of snow", "Xylo", "night", "Ägypten", "sea Q"]
    return [(f"The {words(n, n)}", target) for n in (12, 1, 5, 3, 9) for target in targets]


def greedy(model: LanguageModel, prompt: str, n_tokens: int) -> list[str] | None:
    """The model's own continuation as words, if it consists of words."""
    ids = model.tokenizer(prompt)["input_ids"]
    said = []
    for _ in range(n_tokens):
        ids = [*ids, int(plain_logs(model, ids)[-1].argmax())]
        said.append(model.tokenizer.decode(ids[-1:]).strip())
    return said if set(said) <= set(WORDS) else None


def assert_same(found: list[Score], expected: list[Score]) -> None:
    assert [score.nll for score in found] == pytest.approx([score.nll for score in expected], abs=1e-5)
    assert [score.argmax for score in found] == [score.argmax for score in expected]


# What a score is


@pytest.mark.parametrize("side", ["left", "right"])
def test_scores_are_what_one_full_forward_pass_a_pair_gives(model: LanguageModel, side: str):
    model.tokenizer.padding_side = side
    assert_same(score_targets(model, mixed_pairs()), [plain_score(model, *pair) for pair in mixed_pairs()])


@pytest.mark.parametrize("tokens_per_forward", [1, 20, 60])
def test_the_size_of_a_batch_changes_no_score(
    model: LanguageModel, monkeypatch: pytest.MonkeyPatch, tokens_per_forward: int
):
    expected = score_targets(model, mixed_pairs())
    monkeypatch.setattr(scoring, "_TOKENS_PER_FORWARD", tokens_per_forward)
    assert_same(score_targets(model, mixed_pairs()), expected)


def test_a_tokenizer_with_a_padding_token_gives_the_same_scores():
    padded = tiny_llama()
    expected = score_targets(padded, mixed_pairs())
    padded.tokenizer.pad_token = padded.tokenizer.bos_token
    assert_same(score_targets(padded, mixed_pairs()), expected)


def test_the_nll_is_the_mean_over_target_tokens(llama: LanguageModel):
    whole, first, second = score_targets(
        llama, [("the king is", "gold river"), ("the king is", "gold"), ("the king is gold", "river")]
    )
    assert whole.nll == pytest.approx((first.nll + second.nll) / 2, abs=1e-5)


def test_one_token_targets_share_out_all_probability(llama: LanguageModel):
    logs = plain_logs(llama, llama.tokenizer("the king is")["input_ids"])[-1]
    best = llama.tokenizer.decode([int(logs.argmax())]).strip()
    scores = score_targets(llama, [("the king is", word) for word in {*WORDS, best}])
    assert sum(torch.tensor(-score.nll).exp() for score in scores) <= 1
    assert sum(score.argmax for score in scores) == 1


def test_argmax_asks_every_token_of_the_target(llama: LanguageModel):
    prompts = [f"the {words(4, seed)}" for seed in range(12)]
    said = {prompt: found for prompt in prompts if (found := greedy(llama, prompt, 3))}
    assert len(said) > 2, "the tiny model should speak words"
    for prompt, (first, second, third) in said.items():
        other = next(word for word in WORDS if word not in (first, second, third))
        targets = [
            first,
            f"{first} {second}",
            f"{first} {second} {third}",
            f"{first} {second} {other}",
            f"{first} {other} {third}",
            f"{other} {second} {third}",
            other,
        ]
        found = [score.argmax for score in score_targets(llama, [(prompt, target) for target in targets])]
        assert found[:4] == [True, True, True, False]
        assert not any(found[4:])


def test_a_target_follows_after_one_space_however_it_is_written(llama: LanguageModel):
    plain, spaced = score_targets(llama, [("the king is", "gold"), ("the king is", " gold")])
    assert plain == spaced


def test_long_prompts_and_targets_are_scored_alike(model: LanguageModel):
    pairs = [(words(150, 1), words(40, 2)), ("a", "sea")]
    assert_same(score_targets(model, pairs), [plain_score(model, *pair) for pair in pairs])


# How they are asked for


def test_no_pairs_have_no_scores(llama: LanguageModel, calls: Calls):
    assert score_targets(llama, []) == []
    assert len(calls) == 0


def test_results_come_in_the_order_asked(llama: LanguageModel):
    pairs = mixed_pairs()
    expected = dict(zip(pairs, score_targets(llama, pairs), strict=True))
    random.Random(0).shuffle(pairs)
    assert_same(score_targets(llama, pairs), [expected[pair] for pair in pairs])


def test_a_pair_may_be_asked_twice_and_costs_one_row(llama: LanguageModel, calls: Calls):
    pair = ("the king is", "gold river")
    first, other, second = score_targets(llama, [pair, ("the queen is", "old sea"), pair])
    assert first == second
    assert first != other
    assert sum(n_rows for n_rows, _ in calls.rows) == 2


def test_one_token_targets_of_a_prompt_share_one_row(llama: LanguageModel, calls: Calls):
    pairs = [("the king is", "gold"), ("the king is", "red"), ("the queen is", "gold"), ("the queen is", "red")]
    found = score_targets(llama, pairs)
    assert sum(n_rows for n_rows, _ in calls.rows) == 2
    assert_same(found, [plain_score(llama, *pair) for pair in pairs])


def test_targets_that_differ_only_in_their_last_token_share_one_row(llama: LanguageModel, calls: Calls):
    pairs = [("the king is", "gold river"), ("the king is", "gold sea")]
    found = score_targets(llama, pairs)
    assert calls.rows == [(1, 7)]  # <s>, t, h, e and three words, the last of which is both targets' first
    assert_same(found, [plain_score(llama, *pair) for pair in pairs])


def test_prompts_that_become_the_same_input_have_a_row_each(llama: LanguageModel, calls: Calls):
    pairs = [("the king is", "gold river"), ("the king is gold", "year")]
    found = score_targets(llama, pairs)
    assert calls.rows == [(2, 7)]  # an editor may answer by where the prompt ends
    assert_same(found, [plain_score(llama, *pair) for pair in pairs])


def test_rows_are_run_together_within_the_budget(llama: LanguageModel, calls: Calls, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(scoring, "_TOKENS_PER_FORWARD", 64)
    score_targets(llama, [(f"the {words(5, seed)}", "gold") for seed in range(20)])
    assert len(calls) < 20
    assert all(n_rows * width <= 64 for n_rows, width in calls.rows)


def test_scoring_leaves_the_model_as_it_was(llama: LanguageModel):
    before = llama.fingerprint()
    score_targets(llama, mixed_pairs())
    assert llama.fingerprint() == before
    assert not llama.model.training


def test_progress_is_told_the_number_of_pairs_and_each_of_them(llama: LanguageModel):
    progress = RecordedProgress()
    score_targets(llama, mixed_pairs(), progress=progress, label="measuring")
    (task,) = progress.tasks
    assert (task.description, task.total) == ("measuring", len(mixed_pairs()))
    assert sum(task.steps) == task.total
    assert task.finished
