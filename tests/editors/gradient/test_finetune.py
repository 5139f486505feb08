"""Fine-tuning against Adam by hand in float64 (methods.md E.2, E.3), and what its constraint is for."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from betaedit import Editor, Fact
from betaedit.editors.gradient.config import FineTuneConfig
from betaedit.editors.methods import find_method
from betaedit.errors import ConfigError, NumericalError
from betaedit.evaluation import perplexity
from betaedit.models import LanguageModel
from support.edits import FACTS, unchanged, weights
from support.families import language_model
from support.methods import small_editor

LAYER, RATE = 2, 0.01
PROSE = (
    "A short text about the city and the river.",
    "And another one, a little longer than that: people lived there.",
    "The mother tongue of Ana is French, and the bridge is in the city of Paris.",
)


@dataclass
class Plain:
    """Fine-tuning written down step by step, one fact at a time through the whole model."""

    model: LanguageModel
    facts: Sequence[Fact]
    teacher_forced: bool = False
    limit: float | None = None
    decay: float = 0.0
    stop: float = 0.0

    @property
    def weight(self) -> Tensor:
        return self.model.anatomy.projection(LAYER).weight

    def loss(self) -> Tensor:
        """Mean over facts of the mean over their tokens."""
        found = []
        for fact in self.facts:
            prompt = self.model.tokenizer(fact.text)["input_ids"]
            target = self.model.tokenizer(f" {fact.target_new}", add_special_tokens=False)["input_ids"]
            logs = self.model.model(torch.tensor([prompt + target])).logits[0].log_softmax(-1)
            last = len(prompt) - 1
            places = [last + number if self.teacher_forced else last for number in range(len(target))]
            found.append(-torch.stack([logs[at, token] for at, token in zip(places, target, strict=True)]).mean())
        return torch.stack(found).mean()

    def train(self, steps: int) -> int:
        """Adam with its published constants; returns how many steps were taken before the loss was low."""
        first = second = torch.zeros_like(self.weight)
        before = self.weight.detach().clone()
        self.weight.requires_grad_()
        for step in range(1, steps + 1):
            loss = self.loss()
            if loss.item() < self.stop:
                return step - 1
            (gradient,) = torch.autograd.grad(loss, self.weight)
            with torch.no_grad():
                gradient = gradient + self.decay * self.weight
                first = 0.9 * first + 0.1 * gradient
                second = 0.999 * second + 0.001 * gradient**2
                mean, spread = first / (1 - 0.9**step), second / (1 - 0.999**step)
                moved = self.weight - RATE * mean / (spread.sqrt() + 1e-8)
                if self.limit is not None:
                    moved = moved.clamp(before - self.limit, before + self.limit)
                self.weight.copy_(moved)
        return steps


def double(name: str) -> LanguageModel:
    model = language_model(name)
    model.model.double()
    return model


def trained(method: str, plain: Callable[[LanguageModel], Plain], name: str, **settings: object) -> None:
    """Whether a batch of three facts moves the matrix as ``plain`` does."""
    model, again = double(name), double(name)
    editor = small_editor(method, model, layer=LAYER, learning_rate=RATE, **settings)
    editor.edit(FACTS[:3], batch_size=3)
    by_hand = plain(again)
    before = by_hand.weight.detach().clone()
    steps = by_hand.train(editor.config.steps)
    found, expected = model.anatomy.projection(LAYER).weight, by_hand.weight
    assert (found - expected).norm() < 1e-9 * (expected - before).norm()
    assert [result.figures["steps"] for result in editor.results] == [steps] * 3


@pytest.mark.parametrize("name", ["llama", "gpt2"])
@pytest.mark.parametrize("limit", [None, 0.012])
def test_ft_is_adam_on_the_tokens_scored_at_the_prompts_end(name: str, limit: float | None) -> None:
    trained("ft", lambda model: Plain(model, FACTS[:3], limit=limit), name, norm_limit=limit)


def test_ft_m_scores_each_token_behind_those_before_it() -> None:
    trained("ft-m", lambda model: Plain(model, FACTS[:3], teacher_forced=True), "llama")


def test_ft_w_decays_by_the_power_law_of_the_number_of_facts() -> None:
    decay = 3**-0.87028798 * math.exp(0.15589562)
    trained("ft-w", lambda model: Plain(model, FACTS[:3], decay=decay), "llama")


def test_ft_takes_no_step_once_the_loss_is_below_the_stop() -> None:
    trained("ft", lambda model: Plain(model, FACTS[:3], stop=3.5), "llama", stop_loss=3.5, steps=40)


def test_a_fact_that_is_known_already_changes_nothing() -> None:
    model = language_model("llama")
    before, editor = weights(model), small_editor("ft", model, stop_loss=100.0)
    (result,) = editor.edit(FACTS[0])
    assert result.figures["steps"] == 0
    assert unchanged(before, weights(model))


def test_the_limit_holds_in_every_edit_and_not_over_all_of_them() -> None:
    model, limit = language_model("llama"), 0.005
    editor = small_editor("ft", model, norm_limit=limit)
    before = model.anatomy.projection(LAYER).weight.clone()
    editor.edit(FACTS[0])
    once = (model.anatomy.projection(LAYER).weight - before).abs().max()
    editor.edit(FACTS[1:])
    after = (model.anatomy.projection(LAYER).weight - before).abs().max()
    assert once <= limit * 1.0001
    assert after > 2 * limit


def test_unconstrained_fine_tuning_moves_the_weight_far_more_than_constrained() -> None:
    lengths = {}
    for limit in (None, 1e-3):
        editor = small_editor("ft", language_model("llama"), norm_limit=limit, steps=25)
        editor.edit(FACTS)
        lengths[limit] = float(editor.matrices()[LAYER].change().norm())
    assert lengths[None] > 10 * lengths[1e-3]


def model_that_knows(texts: Sequence[str]) -> LanguageModel:
    """A tiny model trained on ``texts`` until it says them."""
    model = language_model("llama")
    optimizer = torch.optim.Adam(model.model.requires_grad_().parameters(), lr=0.01)
    for _ in range(40):
        optimizer.zero_grad()
        for text in texts:
            ids = torch.tensor([model.tokenizer(text)["input_ids"]])
            model.model(ids, labels=ids).loss.backward()
        optimizer.step()
    model.model.requires_grad_(False)
    return model


def test_unconstrained_fine_tuning_harms_other_text_far_more_than_constrained() -> None:
    rises = {}
    for limit in (None, 0.02):
        model = model_that_knows(PROSE)
        before = perplexity(model, PROSE)
        small_editor("ft", model, norm_limit=limit, steps=25).edit(FACTS)
        rises[limit] = perplexity(model, PROSE) / before - 1
    assert rises[None] > 0.1
    assert rises[0.02] < 0.01


def test_ft_m_refuses_the_other_loss() -> None:
    with pytest.raises(ConfigError, match="ft-m is fine-tuning with loss=target"):
        Editor(language_model("llama"), method="ft-m", config=FineTuneConfig())
    assert find_method("ft-m").configure({}).loss == "target"


def test_a_training_that_explodes_is_undone() -> None:
    model = language_model("llama")
    before, editor = weights(model), small_editor("ft", model, learning_rate=1e37)
    with pytest.raises(NumericalError, match="did not stay finite"):
        editor.edit(FACTS[0])
    assert unchanged(before, weights(model))
