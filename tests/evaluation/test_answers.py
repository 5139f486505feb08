from __future__ import annotations

import pytest
import torch

from betaedit.evaluation import PLAIN, REASONING, AnswerStyle, greedy_answers
from betaedit.facts import read_cases
from betaedit.models import LanguageModel
from support.chain import chain_model
from support.data import data_file
from support.tiny import FAMILIES, RecordedProgress, count_calls, plain_logs

# Cutting an answer out of text


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (" Paris", "Paris"),
        (" Paris. It is", "Paris"),
        ("\n\n Paris \nQuestion: and", "Paris"),
        (" Paris</s>more", "Paris"),
        (" Paris<|endoftext|>more", "Paris"),
        (" St. Petersburg", "St"),  # the published stop string cuts abbreviations as well
        (". Paris", ""),
        ("", ""),
    ],
)
def test_a_plain_answer_is_the_first_line_before_a_stop_text(text: str, answer: str):
    assert PLAIN.read(text) == answer


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("I think. So</think>\n\nIt is Paris.\nReally.", "It is Paris.\nReally."),
        ("one</think>two</think> three", "three"),
        ("It is Paris. Yes.", "It is Paris. Yes."),
        ("thinking</think>Paris</s>more", "Paris"),
    ],
)
def test_a_reasoned_answer_is_all_that_follows_the_last_thought(text: str, answer: str):
    assert REASONING.read(text) == answer


@pytest.mark.parametrize(
    ("text", "complete"),
    [(" Paris", False), (" Paris.", True), ("\n", False), ("\nParis", False), ("\nParis\n", True), ("a</s>", True)],
)
def test_an_answer_is_complete_when_nothing_can_change_it(text: str, complete: bool):
    assert PLAIN.is_complete(text) is complete
    if complete:
        assert PLAIN.read(text) == PLAIN.read(text + " and\n more.")


def test_line_breaks_and_dots_do_not_end_a_thought():
    assert not REASONING.is_complete("So.\n\nThen")
    assert REASONING.is_complete("So</s>")


def test_the_published_settings_are_the_defaults():
    assert (PLAIN.max_tokens, PLAIN.stops) == (50, (".", "</s>", "<|endoftext|>"))
    assert REASONING.max_tokens == 1024


# Asking a model


def test_answers_are_new_text_up_to_the_first_stop():
    model = chain_model(" king is gold river.", " queen was old\nsea", " ship by land")
    assert greedy_answers(model, ["the king", "the queen", "the ship"]) == ["is gold river", "was old", "by land"]


def test_a_model_that_never_stops_is_cut_at_the_limit():
    model = chain_model(" red red")
    assert greedy_answers(model, ["a red"]) == [" ".join(["red"] * 50)]
    assert greedy_answers(model, ["a red"], style=AnswerStyle(max_tokens=3)) == ["red red red"]


def test_no_more_tokens_are_generated_than_the_answer_needs():
    model = chain_model(" king is gold.", " queen was old\nsea")
    for prompt, n_new in (("the king", 3), ("the queen", 3)):
        with count_calls(model.model.base_model) as calls:
            greedy_answers(model, [prompt])
        assert len(calls) == n_new


def test_a_reasoning_model_thinks_past_dots_and_lines():
    model = chain_model(" king. Z\n</think> gold")
    assert greedy_answers(model, ["the king"], style=REASONING) == ["gold"]
    assert greedy_answers(model, ["the king"]) == [""]


def plain_answer(model: LanguageModel, prompt: str, n_tokens: int) -> str:
    """Greedy by whole passes to the end, cut afterwards."""
    ids = model.tokenizer(prompt)["input_ids"]
    new: list[int] = []
    for _ in range(n_tokens):
        new.append(int(plain_logs(model, [*ids, *new])[-1].argmax()))
    text = model.tokenizer.decode(new)
    for stop in (".", "</s>", "<|endoftext|>"):
        text = text.split(stop)[0]
    return text.strip().split("\n")[0].strip()


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize(("side", "batch_size"), [("left", 1), ("right", 1), ("left", 3), ("right", 32)])
def test_batch_and_padding_change_no_answer(name: str, side: str, batch_size: int):
    model = FAMILIES[name](seed=2)
    model.tokenizer.padding_side = side
    prompts = ["the king is", "a", "in the old town by the sea the queen of snow", "the red horse", "a"]
    style = AnswerStyle(max_tokens=8)
    expected = [plain_answer(model, prompt, 8) for prompt in prompts]
    assert len(set(expected)) > 2
    assert greedy_answers(model, prompts, style=style, batch_size=batch_size) == expected


def test_a_prompt_asked_twice_is_answered_once():
    model = chain_model(" king is gold.")
    progress = RecordedProgress()
    with count_calls(model.model.base_model) as calls:
        assert greedy_answers(model, ["the king"] * 3, progress=progress) == ["is gold"] * 3
    assert calls.rows[0][0] == 1
    assert progress.tasks[0].finished


def test_no_prompts_have_no_answers():
    assert greedy_answers(chain_model(), []) == []


# The default model


def test_real_answers_equal_the_models_own_greedy_text_one_at_a_time(smollm2: LanguageModel):
    cases = read_cases(data_file("knowedit_zsre_test.jsonl.gz"), limit=10, skip_invalid=True).cases
    prompts = [case.fact.text for case in cases]
    tokenizer = smollm2.tokenizer
    expected = []
    for prompt in prompts:
        ids = torch.tensor([tokenizer(prompt)["input_ids"]])
        out = smollm2.model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=20,
            do_sample=False,
            pad_token_id=tokenizer.eos_token_id,
        )
        text = tokenizer.decode(out[0, ids.shape[1] :])
        text = text.split(tokenizer.eos_token)[0].split(".")[0].split("<|endoftext|>")[0]
        expected.append(text.strip().split("\n")[0].strip())
    assert greedy_answers(smollm2, prompts, style=AnswerStyle(max_tokens=20), batch_size=4) == expected
