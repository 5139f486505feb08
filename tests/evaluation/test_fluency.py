from __future__ import annotations

import math
import sys

import pytest
import torch

from betaedit.errors import ConfigError, MissingExtraError
from betaedit.evaluation import Fluency, TextSimilarity, measure_fluency, n_gram_entropy, sample_texts
from betaedit.models import LanguageModel
from support.chain import chain_model
from support.tiny import FAMILIES, RecordedProgress, plain_logs, tiny_llama

PROMPTS = ["the king is", "a", "in the old town by the sea the queen of snow", "the red horse"]

# Entropy


def test_entropy_of_a_text_worked_out_by_hand():
    """``a b a b a``: bigrams ab ab ba ba have 1 bit; trigrams aba aba bab have log2(3) - 2/3 bits."""
    expected = (2 / 3 * 1 + 4 / 3 * (math.log2(3) - 2 / 3)) / 2
    assert n_gram_entropy("a b a b a") == pytest.approx(expected, rel=1e-12)


def test_words_that_never_come_again_have_the_most_entropy():
    assert n_gram_entropy("one two three four five") == pytest.approx((2 / 3 * 2 + 4 / 3 * math.log2(3)) / 2)


@pytest.mark.parametrize("text", ["red " * 50, "", "red", "red red"])
def test_a_repeated_word_has_no_entropy(text: str):
    assert n_gram_entropy(text) == 0


def test_signs_are_words_and_hyphens_and_apostrophes_part_none():
    assert n_gram_entropy("don't mother-in-law x") == n_gram_entropy("a b c")
    assert n_gram_entropy("Stop, now!") == n_gram_entropy("a b c d")


def test_fluency_is_the_mean_over_texts_and_printed_times_a_hundred():
    found = measure_fluency(["a b a b a", "red red red"])
    assert found == Fluency(n_gram_entropy("a b a b a") / 2, 2)
    assert found.printed == pytest.approx(100 * found.bits)


def test_without_texts_there_is_no_fluency():
    with pytest.raises(ConfigError, match="no text"):
        measure_fluency([])


# Sampled text


@pytest.fixture(scope="module", params=FAMILIES)
def model(request: pytest.FixtureRequest) -> LanguageModel:
    return FAMILIES[request.param]()


def test_a_text_is_the_prompt_and_its_continuation_up_to_the_length_asked_for():
    model = chain_model(" king is red red")
    assert sample_texts(model, ["a king", "the old king"], n_tokens=8, top_k=1) == [
        "a king is red red red red red",
        "the old king is red red",  # t, h and e are tokens of their own
    ]


def test_a_text_has_a_hundred_tokens_with_its_prompt_and_goes_on_after_an_end():
    model = chain_model(" king is red red")
    (text,) = sample_texts(model, ["a king"], top_k=1)
    assert text == "a king is" + " red" * 97
    ended = chain_model(" king is")  # then the end token, and after it the end token
    assert sample_texts(ended, ["a king"], top_k=1) == ["a king is"]


def test_a_prompt_longer_than_the_text_stands_alone():
    assert sample_texts(tiny_llama(), ["the king is old"], n_tokens=2) == ["the king is old"]


@pytest.mark.parametrize(("side", "batch_size"), [("left", 1), ("right", 2), ("left", 3), ("right", 32)])
def test_a_batch_gives_what_one_at_a_time_gives(model: LanguageModel, side: str, batch_size: int):
    model.tokenizer.padding_side = side
    expected = [sample_texts(model, [prompt], n_tokens=30)[0] for prompt in PROMPTS]
    assert sample_texts(model, PROMPTS, n_tokens=30, batch_size=batch_size) == expected
    assert sample_texts(model, PROMPTS[::-1], n_tokens=30, batch_size=batch_size) == expected[::-1]


def test_a_prompt_that_comes_twice_has_two_samples_and_a_seed_has_its_own(model: LanguageModel):
    first, second = sample_texts(model, ["the king is"] * 2, n_tokens=30)
    assert first != second
    assert sample_texts(model, ["the king is"] * 2, n_tokens=30) == [first, second]
    assert sample_texts(model, ["the king is"], n_tokens=30, seed=1) != [first]


def test_only_the_likeliest_tokens_are_sampled(model: LanguageModel):
    for text in sample_texts(model, PROMPTS, n_tokens=25, top_k=2):
        ids = model.tokenizer(text)["input_ids"]
        prompt = next(prompt for prompt in PROMPTS if text.startswith(prompt))
        start = len(model.tokenizer(prompt)["input_ids"])
        if len(ids) != 25:
            continue  # bytes that decode to no character are not the tokens that were sampled
        logs = plain_logs(model, ids)
        assert all(ids[at] in logs[at - 1].topk(2).indices for at in range(start, 25))


def test_line_breaks_and_composed_letters_are_cleaned_as_published():
    model = chain_model(" king is")
    assert sample_texts(model, ["é\n\nQ king"], n_tokens=7, top_k=1) == ["e\u0301 Q king is"]


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_model_whose_head_is_no_number_has_a_fluency_too(value: float):
    model = tiny_llama()
    with torch.no_grad():
        model.anatomy.head.weight.fill_(value)
    texts = sample_texts(model, PROMPTS, n_tokens=30)
    assert texts == sample_texts(model, PROMPTS, n_tokens=30, seed=1)
    assert measure_fluency(texts).bits < 2


def test_progress_hears_of_every_prompt(model: LanguageModel):
    progress = RecordedProgress()
    sample_texts(model, PROMPTS, n_tokens=12, batch_size=3, progress=progress)
    assert [(task.total, sum(task.steps)) for task in progress.tasks] == [(4, 4)]


# Consistency

CORPUS = ["snow gold gold", "snow river"]


def test_consistency_is_the_cosine_of_tf_idf_vectors():
    """With n documents and df of them holding a word, idf = 1 + ln((1 + n) / (1 + df)): snow 1, gold and river more."""
    rare = 1 + math.log(3 / 2)
    first, second = (1.0, 2 * rare, 0.0), (1.0, 0.0, rare)
    expected = sum(a * b for a, b in zip(first, second, strict=True)) / math.hypot(*first) / math.hypot(*second)
    found = TextSimilarity(CORPUS).consistency(["Snow gold", "gold unknown"], ["snow", "river"])
    assert found == pytest.approx(expected, rel=1e-12)


def test_texts_that_are_alike_have_consistency_one_and_strangers_zero():
    similarity = TextSimilarity(CORPUS)
    assert similarity.consistency(["gold snow"], ["snow", "gold"]) == pytest.approx(1)
    assert similarity.consistency(["gold"], ["river"]) == 0
    assert similarity.consistency(["unknown"], ["river"]) == 0
    assert similarity.consistency([], []) == 0


def test_a_corpus_without_words_is_refused():
    with pytest.raises(ConfigError, match="no words"):
        TextSimilarity(["", "?"])


def test_without_scikit_learn_the_extra_is_named(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "sklearn.feature_extraction.text", None)
    with pytest.raises(MissingExtraError, match=r"betaedit\[evaluation\]"):
        TextSimilarity(CORPUS)
