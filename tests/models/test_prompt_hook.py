"""A module changed by a row's prompt is changed alike in every way the model is run."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from betaedit import Editor
from betaedit.errors import ModelError
from betaedit.evaluation.free_text import ask
from betaedit.evaluation.scoring import Continuation, score_continuations
from betaedit.models import LanguageModel
from betaedit.models.generate import complete, continue_rows, most_likely
from betaedit.models.prompt_hook import PromptHook, last_of, prompt_lengths
from betaedit.models.replay import record
from betaedit.models.runners.trust import is_plain_layer
from support.edits import SETTINGS, weights
from support.families import FAMILY_NAMES, language_model
from support.recordings import random_prompts

LAYER = 2
ROWS = [[5, 9, 17, 30, 8, 11], [40, 7, 21], [12, 33, 6, 19]]
PROMPTS = [4, 2, 4]


class Push:
    """Moves the output at the last token of a prompt, and behind it by what the prompt's keys are."""

    def begin(self, entering: Tensor, leaving: Tensor, prompt: Tensor) -> tuple[Tensor, Tensor | None]:
        keys = entering.masked_fill(~prompt[..., None], 0)
        known = keys.sum(dim=(1, 2))
        behind = torch.where(prompt, last_of(prompt).float() * 3, known[:, None])
        return leaving + behind[..., None] * ramp(leaving), known

    def go_on(self, entering: Tensor, leaving: Tensor, known: Tensor | None) -> Tensor:
        assert known is not None
        return leaving + known[:, None, None] * ramp(leaving)


def ramp(leaving: Tensor) -> Tensor:
    """A direction that no norm takes out."""
    return torch.linspace(-1, 1, leaving.shape[-1])


def pushed(model: LanguageModel) -> PromptHook:
    hook = PromptHook(model.anatomy, model.anatomy.projection_path(LAYER), Push())
    hook.attach()
    return hook


@torch.no_grad()
def logits(model: LanguageModel, row: list[int], n_prompt: int) -> Tensor:
    """One row by itself, without padding or cache."""
    with prompt_lengths([n_prompt]):
        found: Tensor = model.model(input_ids=torch.tensor([row]), use_cache=False).logits[0]
    return found


def greedy(model: LanguageModel, row: list[int], n_prompt: int, n_tokens: int) -> list[int]:
    """Token by token, each by a pass over all."""
    row = list(row)
    for _ in range(n_tokens):
        row.append(int(logits(model, row, n_prompt)[-1].argmax()))
    return row[-n_tokens:]


@pytest.fixture(params=FAMILY_NAMES)
def model(request: pytest.FixtureRequest) -> LanguageModel:
    return language_model(request.param)


def test_padded_rows_with_answers_are_scored_as_each_by_itself(model: LanguageModel) -> None:
    asked = [Continuation(tuple(row[:n]), (*row[n:], 3)) for row, n in zip(ROWS, PROMPTS, strict=True)]
    before = score_continuations(model, asked)
    pushed(model)
    found = score_continuations(model, asked)
    for row, n, score, old in zip(ROWS, PROMPTS, found, before, strict=True):
        logs = logits(model, row, n)[n - 1 :].log_softmax(dim=-1)
        wanted = torch.tensor([*row[n:], 3])
        assert score.nll == pytest.approx(-float(logs.gather(1, wanted[:, None]).mean()), abs=2e-4)
        assert score.nll != pytest.approx(old.nll, abs=1e-3)


def test_generation_with_a_cache_and_left_padding_says_what_whole_passes_say(model: LanguageModel) -> None:
    pushed(model)
    prompts = [row[:n] for row, n in zip(ROWS, PROMPTS, strict=True)]
    assert continue_rows(model, prompts, [5] * 3, most_likely) == [greedy(model, row, len(row), 5) for row in prompts]
    assert continue_rows(model, ROWS, [5] * 3, most_likely, n_prompt=PROMPTS) == [
        greedy(model, row, n, 5) for row, n in zip(ROWS, PROMPTS, strict=True)
    ]


def test_generation_by_transformers_goes_through_the_hook(model: LanguageModel) -> None:
    pushed(model)
    (row,) = model.encode(["The long bridge is"])
    assert complete(model, "The long bridge is", 5) == model.tokenizer.decode(
        greedy(model, row, len(row), 5), skip_special_tokens=True
    )


def test_two_prompts_that_become_the_same_row_are_scored_apart() -> None:
    model = language_model("llama")
    pushed(model)
    one, other = Continuation((5, 9, 17), (30, 8)), Continuation((5, 9, 17, 30), (8,))
    both = [score.nll for score in score_continuations(model, [one, other])]
    apart = [score_continuations(model, [each])[0].nll for each in (one, other)]
    assert both == pytest.approx(apart, abs=1e-4)


def test_the_likely_answers_are_followed_from_behind_the_prompt() -> None:
    model = language_model("llama")
    pushed(model)
    (answer,) = ask(model, ["The long bridge is"], n_tokens=4, top=1)
    (row,) = model.encode(["The long bridge is"])
    said = model.tokenizer.decode(greedy(model, row, len(row), 8), skip_special_tokens=True)
    assert said.startswith(answer.likely[0].text)


def test_a_detached_hook_leaves_the_model_as_it_was_bit_for_bit() -> None:
    model = language_model("llama")
    before = logits(model, ROWS[0], 4)
    hook = pushed(model)
    assert not torch.equal(logits(model, ROWS[0], 4), before)
    hook.detach()
    assert torch.equal(logits(model, ROWS[0], 4), before)


def test_a_pass_that_ends_early_leaves_nothing_behind() -> None:
    model = language_model("llama")
    pushed(model)
    prompts = random_prompts((6, 4), (2, 1))
    record(model.anatomy, prompts, run=LAYER, keep=(LAYER,))
    hidden, projection = torch.randn(2, 6, 48), model.anatomy.projection(LAYER)
    assert torch.equal(projection(hidden), torch.nn.functional.linear(hidden, projection.weight))


def test_a_cache_begun_without_the_hook_is_gone_on_with_as_it_is() -> None:
    model = language_model("llama")
    row = torch.tensor([ROWS[0]])
    with torch.no_grad():
        cache = model.model(input_ids=row[:, :4], use_cache=True).past_key_values
        hook = pushed(model)
        found = model.model(input_ids=row[:, 4:], past_key_values=cache).logits
    hook.detach()
    assert torch.allclose(found[0], logits(model, ROWS[0], 4)[4:], atol=1e-5)


def test_a_mask_that_does_not_tell_tokens_is_refused() -> None:
    model = language_model("llama")
    pushed(model)
    with pytest.raises(ModelError, match="one number per token"):
        model.model(input_ids=torch.tensor([ROWS[0]]), attention_mask=torch.ones(1, 1, 6, 6, dtype=torch.bool))


def test_a_hooked_layer_runs_by_its_modules_and_others_do_not() -> None:
    model = language_model("llama")
    hidden = torch.zeros(1, 1, 32)
    assert is_plain_layer(model.anatomy.layers[LAYER], hidden)
    pushed(model)
    assert not is_plain_layer(model.anatomy.layers[LAYER], hidden)
    assert is_plain_layer(model.anatomy.layers[LAYER + 1], hidden)


def test_a_second_editor_is_refused_while_one_answers() -> None:
    model = language_model("llama")
    before = weights(model)
    hook = pushed(model)
    with pytest.raises(ModelError, match="another editor"):
        pushed(model)
    with pytest.raises(ModelError, match="another editor"):
        Editor.from_pretrained(model.model, tokenizer=model.tokenizer, method="memit", **SETTINGS)
    hook.detach()
    assert before.keys() == weights(model).keys()
    Editor.from_pretrained(model.model, tokenizer=model.tokenizer, method="memit", **SETTINGS)
