"""What a model says to a question, and the answers it finds most probable."""

from __future__ import annotations

import pytest
import torch

from betaedit.errors import ModelError
from betaedit.evaluation import Answer, Likely, ask
from betaedit.evaluation.free_text import first_phrase
from support.chain import chain_model
from support.tiny import LAYERS, POSITIONS, plain_logs, tiny_gpt2, tiny_llama

PROMPTS = ["the king", "the old queen of the island", "a"]


@pytest.mark.parametrize(
    ("text", "ended", "phrase"),
    [
        (" Tokyo. It is large", False, " Tokyo"),
        (" Madrid, the capital", False, " Madrid"),
        (" New York City is la", False, " New York City is"),
        (" 3422222222", False, " 3422222222"),
        ("3.5 million people", True, "3.5 million people"),
        ("\n\nParis\nis", False, "\n\nParis"),
        ("東京。日本", False, "東京"),
        (" yes.", True, " yes"),
        ("", True, ""),
        ("...", True, "..."),
    ],
)
def test_an_answer_ends_with_its_phrase_and_no_word_is_cut(text: str, ended: bool, phrase: str) -> None:
    assert first_phrase(text, ended=ended) == phrase


@pytest.mark.parametrize("make", [tiny_llama, tiny_gpt2])
def test_first_answers_are_those_with_the_most_probable_first_tokens(make) -> None:
    model = make()
    for prompt, answer in zip(PROMPTS, ask(model, PROMPTS, top=4), strict=True):
        probabilities, tokens = plain_logs(model, model.tokenizer(prompt)["input_ids"])[-1].exp().topk(4)
        assert [each.probability for each in answer.likely] == pytest.approx(probabilities.tolist(), rel=1e-4)
        for each, token in zip(answer.likely, tokens, strict=True):
            assert each.text.startswith(model.tokenizer.decode([token]).rstrip(".,;:!?…\n"))


def test_the_first_answer_begins_the_greedy_one() -> None:
    for answer in ask(tiny_llama(), PROMPTS, top=1):
        assert answer.text.startswith(answer.likely[0].text)


def test_a_question_is_answered_alike_alone_and_among_others() -> None:
    model = tiny_llama()
    together = ask(model, PROMPTS)
    for prompt, answer in zip(PROMPTS, together, strict=True):
        (alone,) = ask(model, [prompt])
        assert alone.text == answer.text
        assert [each.text for each in alone.likely] == [each.text for each in answer.likely]


def test_an_answer_ends_at_the_end_token_which_is_not_shown() -> None:
    (answer,) = ask(chain_model(" king is snow"), ["the king"], top=1)
    assert answer == Answer(" is snow", (Likely(" is snow", answer.likely[0].probability),))
    (ended,) = ask(chain_model(" king is snow"), ["the red"], top=1)
    assert ended.text == ended.likely[0].text == ""


def test_no_answer_has_more_tokens_than_asked_for() -> None:
    model = chain_model(" one two three four five six seven")
    assert ask(model, [" one"], n_tokens=1)[0].text.split() == ["two"]


def test_more_answers_than_tokens_are_all_tokens() -> None:
    model = tiny_llama()
    (answer,) = ask(model, ["the king"], top=10**6, n_tokens=1)
    assert len(answer.likely) == len(model.tokenizer)
    assert sum(each.probability for each in answer.likely) == pytest.approx(1.0, abs=1e-4)


def test_a_model_that_computes_no_numbers_has_no_probable_answers() -> None:
    model = tiny_llama()
    with torch.no_grad():
        model.anatomy.projection(LAYERS - 1).weight.fill_(float("nan"))
    assert ask(model, ["the king"])[0].likely == ()


@pytest.mark.parametrize("words", [POSITIONS, POSITIONS + 1, 2 * POSITIONS])
def test_a_question_that_leaves_no_room_for_an_answer_is_refused(words: int) -> None:
    with pytest.raises(ModelError, match=str(POSITIONS)):
        ask(tiny_gpt2(), [" king" * words])


def test_a_question_without_tokens_is_refused() -> None:
    with pytest.raises(ModelError, match="no tokens"):
        ask(tiny_gpt2(), [""])


@pytest.mark.parametrize(
    ("base", "edited", "differs"),
    [
        (" Tokyo. It is large.", " Tokyo. It is old.", False),
        ("Tokyo", " Tokyo\nand more", False),
        ("Tokyo.", "Tokyo", False),
        ("東京。大きい", "東京。古い", False),
        ("The capital of Japan is Tokyo.", "The capital of Japan is Madrid.", True),
        (" Japan, an island", " Japan, a country", True),
        (" 342.", " 3422222", True),
        ("", " Madrid", True),
    ],
)
def test_answers_differ_when_their_first_sentences_do(base: str, edited: str, differs: bool) -> None:
    assert Answer(edited, ()).differs(Answer(base, ())) is differs
