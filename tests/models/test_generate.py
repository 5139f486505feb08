from __future__ import annotations

import math
import random

import numpy as np
import pytest
import torch
from torch import Tensor

from betaedit.models import LanguageModel
from betaedit.models.generate import complete, continue_rows, draw_top_k, end_tokens, most_likely, sample
from support.chat import with_chat
from support.families import FAMILIES, FAMILY_NAMES, language_model
from support.tiny_tokenizers import TOKENIZERS, VOCABULARY, shared_tokenizer

every_family = pytest.mark.parametrize("name", FAMILY_NAMES)
PROMPT = "The mother tongue of Danielle Darrieux is"


@pytest.fixture(scope="module")
def llama() -> LanguageModel:
    return language_model("llama")


def start(n: int = 3, width: int = 5) -> Tensor:
    return torch.randint(3, VOCABULARY, (n, width), generator=torch.Generator().manual_seed(6))


def sampled(model: LanguageModel, n_tokens: int = 7, *, seed: int = 0, top_k: int = 5) -> Tensor:
    return sample(model, start(), n_tokens, top_k=top_k, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def greedy(model: LanguageModel, ids: Tensor, n_tokens: int) -> Tensor:
    """Greedy continuation by full forward passes over the whole text, without any cache."""
    for _ in range(n_tokens):
        ids = torch.cat([ids, model.model(input_ids=ids).logits[:, -1:].argmax(-1)], dim=1)
    return ids


def test_the_generators_seed_decides_the_text(llama: LanguageModel):
    assert torch.equal(sampled(llama, seed=1), sampled(llama, seed=1))
    assert not torch.equal(sampled(llama, seed=1), sampled(llama, seed=2))


@pytest.mark.parametrize("row", [0, 1, 2])
def test_a_row_that_turns_over_changes_no_other_row(llama: LanguageModel, row: int):
    other = start()
    other[row] = other[row].flip(0)
    found, turned = (
        sample(llama, ids, 9, top_k=5, generator=torch.Generator().manual_seed(0)) for ids in (start(), other)
    )
    rest = [at for at in range(3) if at != row]
    assert torch.equal(found[rest], turned[rest])
    assert not torch.equal(found[row, 5:], turned[row, 5:])


def test_one_generator_goes_on_where_it_stopped(llama: LanguageModel):
    generator = torch.Generator().manual_seed(1)
    first, second = (sample(llama, start(), 7, top_k=5, generator=generator) for _ in range(2))
    assert not torch.equal(first, second)


def test_rows_keep_their_start_and_grow_by_the_number_asked_for(llama: LanguageModel):
    ids = sampled(llama, 7)
    assert ids.shape == (3, 12)
    assert torch.equal(ids[:, :5], start())
    assert 0 <= int(ids.min()) <= int(ids.max()) < VOCABULARY


def test_nothing_is_added_when_no_tokens_are_asked_for(llama: LanguageModel):
    assert torch.equal(sampled(llama, 0), start())


def test_no_other_random_stream_is_read_or_moved(llama: LanguageModel):
    torch.manual_seed(1)
    first = sampled(llama)
    torch.manual_seed(2)
    states = torch.random.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()  # noqa: NPY002 - watched
    second = sampled(llama)
    assert torch.equal(first, second)
    assert torch.equal(torch.random.get_rng_state(), states[0])
    assert np.array_equal(np.random.get_state()[1], states[1])  # noqa: NPY002 - watched, not used
    assert random.getstate() == states[2]


def test_only_the_likeliest_tokens_are_drawn(llama: LanguageModel):
    ids = sampled(llama, 7, top_k=3)
    with torch.no_grad():
        logits = llama.model(input_ids=ids).logits
    for at in range(5, 12):
        likeliest = logits[:, at - 1].topk(3).indices
        assert bool((likeliest == ids[:, at, None]).any(dim=1).all())


def test_more_choices_than_words_are_all_words(llama: LanguageModel):
    assert sampled(llama, 2, top_k=10 * VOCABULARY).shape == (3, 7)


@every_family
def test_with_one_choice_the_text_is_the_models_own_greedy_one(name: str):
    """Longer than the sliding window, with the family's own scaling of logits, and through the attention cache."""
    model = language_model(name)
    assert torch.equal(sampled(model, 7, top_k=1), greedy(model, start(), 7))


@pytest.mark.parametrize("name", ["gpt2", "mistral", "gemma2"])
def test_a_completion_is_the_models_own_greedy_text(name: str):
    model = language_model(name)
    model.model.generation_config.eos_token_id = None
    ids = shared_tokenizer()(PROMPT, return_tensors="pt")["input_ids"]
    expected = greedy(model, ids, 6)[0, ids.shape[1] :]
    assert complete(model, PROMPT, 6) == shared_tokenizer().decode(expected, skip_special_tokens=True)


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_a_completion_goes_on_from_the_prompt_and_not_from_a_closing_token(kind: str):
    model = language_model("llama", tokenizer=kind)
    model.model.generation_config.eos_token_id = None
    opening = [1] if "+bos" in kind else []
    ids = torch.tensor([opening + model.tokenizer(PROMPT, add_special_tokens=False)["input_ids"]])
    expected = greedy(model, ids, 6)[0, ids.shape[1] :]
    assert complete(model, PROMPT, 6) == model.tokenizer.decode(expected, skip_special_tokens=True)


def test_a_completion_ends_at_the_end_of_text_token():
    model = language_model("llama", seed=1)
    model.model.generation_config.eos_token_id = None
    ids = shared_tokenizer()(PROMPT, return_tensors="pt")["input_ids"]
    whole = greedy(model, ids, 8)[0, ids.shape[1] :].tolist()
    end = next(at for at in range(1, 7) if whole[at] not in whole[:at])
    model.model.generation_config.eos_token_id = whole[end]
    assert complete(model, PROMPT, 8) == shared_tokenizer().decode(whole[: end + 1])


def test_a_completion_is_the_same_every_time(llama: LanguageModel):
    assert complete(llama, PROMPT) == complete(llama, PROMPT)


@pytest.mark.parametrize("setting", ["token_type_ids", "left padding"])
def test_a_completion_does_not_depend_on_what_else_the_tokenizer_returns(setting: str):
    model, plain = language_model("llama"), language_model("llama")
    if setting == "token_type_ids":
        model.tokenizer.model_input_names = ["input_ids", "token_type_ids", "attention_mask"]
    else:
        model.tokenizer.padding_side = "left"
    assert complete(model, PROMPT, 4) == complete(plain, PROMPT, 4)


# Rows of different length

ROWS = [[5, 9, 40], [7], [3, 3, 8, 100, 61, 12, 30, 9], [200, 11]]


def alone(model: LanguageModel, row: list[int], n_tokens: int) -> list[int]:
    return greedy(model, torch.tensor([row]), n_tokens)[0, len(row) :].tolist()


@pytest.mark.parametrize(("name", "attention"), [(each.name, how) for each in FAMILIES for how in each.attention])
def test_rows_of_different_length_say_together_what_each_says_alone(name: str, attention: str):
    model = language_model(name)
    model.model.set_attn_implementation(attention)
    assert continue_rows(model, ROWS, [7] * 4, most_likely) == [alone(model, row, 7) for row in ROWS]


def test_every_row_has_its_own_number_of_tokens(llama: LanguageModel):
    expected = [alone(llama, row, n) for row, n in zip(ROWS, (2, 0, 5, 1), strict=True)]
    assert continue_rows(llama, ROWS, [2, 0, 5, 1], most_likely) == expected


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_a_row_ends_with_the_models_positions_and_the_others_go_on(name: str):
    model = language_model(name)
    long = [[4] * 62, [5, 6, 7]]
    assert continue_rows(model, long, [6, 6], most_likely) == [alone(model, long[0], 2), alone(model, long[1], 6)]


def test_a_row_ends_where_it_is_said_to_be_finished(llama: LanguageModel):
    whole = continue_rows(llama, ROWS, [6] * 4, most_likely)
    ends = {row[2] for row in whole}
    first = [next(at for at, token in enumerate(row) if token in ends) for row in whole]
    found = continue_rows(llama, ROWS, [6] * 4, most_likely, is_finished=lambda new: new[-1] in ends)
    assert found == [row[: at + 1] for row, at in zip(whole, first, strict=True)]


def test_rows_with_their_own_generators_say_together_what_each_says_alone(llama: LanguageModel):
    def drawn(rows: list[list[int]], seeds: list[int]) -> list[list[int]]:
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        return continue_rows(llama, rows, [9] * len(rows), draw_top_k(5, generators))

    together = drawn(ROWS, [1, 2, 3, 4])
    assert together == [drawn([row], [seed])[0] for row, seed in zip(ROWS, (1, 2, 3, 4), strict=True)]
    assert together != drawn(ROWS, [1, 2, 3, 5])


# A model that has collapsed


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_row_whose_probabilities_are_no_numbers_takes_the_greedy_token_and_the_others_are_drawn_as_before(
    value: float,
):
    logits = torch.randn(3, 40, generator=torch.Generator().manual_seed(0))
    broken = logits.clone()
    broken[1] = value

    def draw(logits: Tensor) -> list[int]:
        return draw_top_k(5, [torch.Generator().manual_seed(row) for row in range(3)])(logits).tolist()

    assert draw(broken) == [draw(logits)[0], most_likely(broken).tolist()[1], draw(logits)[2]]


def test_where_one_logit_is_no_number_its_token_is_taken():
    for value in (math.nan, math.inf):
        logits = torch.zeros(1, 40)
        logits[0, 7] = value
        assert draw_top_k(5, [torch.Generator()])(logits).tolist() == [7]


def test_text_of_a_model_whose_head_is_no_number_is_one_token_again_and_again():
    model = language_model("llama")
    with torch.no_grad():
        model.anatomy.head.weight.fill_(math.nan)
    assert sampled(model, 4)[:, 5:].unique().numel() == 1
    assert torch.equal(sampled(model, 4, seed=1), sampled(model, 4, seed=2))


def test_end_tokens_are_those_of_the_model_and_of_its_tokenizer():
    model = language_model("llama")
    model.model.generation_config.eos_token_id = [7, 9]
    assert end_tokens(model) == {7, 9, model.tokenizer.eos_token_id}
    model.model.generation_config.eos_token_id = None
    model.tokenizer.eos_token = None
    assert end_tokens(model) == frozenset()


@pytest.mark.parametrize(
    ("template", "further"),
    [
        (None, set()),
        ("{{ messages[-1].content }}<|endoftext|>", set()),
        ("{% for message in messages %}{{ message.content }}<s>{% endfor %}", {"<s>"}),
        ("{% for message in messages %}{{ message.content }}<turn>\n{% endfor %}", {"<turn>"}),
        ("{% for message in messages %}{{ message.content }}\n{% endfor %}", set()),
    ],
)
def test_a_turn_in_a_chat_ends_with_the_templates_token_too(template: str | None, further: set[str]) -> None:
    model = language_model("llama")
    model.tokenizer.add_special_tokens({"additional_special_tokens": ["<turn>"]})
    before = end_tokens(model)
    found = end_tokens(with_chat(model, template) if template else model)
    assert found == before | {model.tokenizer.convert_tokens_to_ids(token) for token in further}
