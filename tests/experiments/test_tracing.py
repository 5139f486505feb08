"""Tracing puts back one layer's MLP output at the lookup token of a blurred subject, and nothing else."""

from __future__ import annotations

import pytest
import torch

from betaedit import Fact
from betaedit.experiments.tracing import trace_layers
from betaedit.models import LanguageModel
from support.edits import FACTS
from support.families import N_LAYERS, language_model

FACT = Fact("The mother tongue of {} is", "Danielle Darrieux", "English")


def by_hand(model: LanguageModel, seed: int) -> tuple[float, float, list[float]]:
    """Intact, blurred, and every layer's effect for ``FACT`` and one draw of noise, with whole forward passes."""
    text = FACT.prompt.format(FACT.subject)
    found = model.tokenizer(text, return_offsets_mapping=True)
    ids = torch.tensor([found["input_ids"]])
    begin = text.index(FACT.subject)
    subject = [i for i, (a, b) in enumerate(found["offset_mapping"]) if a < begin + len(FACT.subject) and b > begin]
    embeddings = model.model.get_input_embeddings()(ids).detach()
    noise = torch.zeros_like(embeddings)
    draw = torch.randn(1, *embeddings.shape, generator=torch.Generator().manual_seed(seed))[0]
    noise[0, subject] = 3 * embeddings[0, subject].std() * draw[0, subject]
    clean: dict[int, torch.Tensor] = {}

    def run(inputs: torch.Tensor, restored: int | None = None, keep: bool = False) -> torch.Tensor:
        def hook(layer: int):
            def put(_, __, output):
                if keep:
                    clean[layer] = output[0, subject[-1]].clone()
                if layer == restored:
                    output[0, subject[-1]] = clean[layer]
                return output

            return put

        handles = [model.anatomy.projection(i).register_forward_hook(hook(i)) for i in range(N_LAYERS)]
        with torch.no_grad():
            logits = model.model(inputs_embeds=inputs).logits
        for handle in handles:
            handle.remove()
        return logits[0, -1].softmax(dim=-1)

    intact = run(embeddings, keep=True)
    answer = int(intact.argmax())
    blurred = float(run(embeddings + noise)[answer])
    effects = [float(run(embeddings + noise, restored=i)[answer]) - blurred for i in range(N_LAYERS)]
    return float(intact[answer]), blurred, effects


@pytest.mark.parametrize("name", ["gpt2", "llama", "phi"])
def test_a_trace_of_one_prompt_is_that_of_whole_passes(name: str) -> None:
    model = language_model(name)
    intact, blurred, effects = by_hand(model, seed=3)
    found = trace_layers(model, [FACT], samples=1, seed=3)
    assert (found.intact, found.blurred) == pytest.approx((intact, blurred), abs=1e-6)
    assert found.effects == pytest.approx(effects, abs=1e-6)
    assert max(map(abs, effects)) > 1e-5


def test_a_layer_that_adds_nothing_wins_nothing_back() -> None:
    model = language_model("llama")
    for layer in (0, 2, 3):
        model.anatomy.projection(layer).weight.data.zero_()
    effects = trace_layers(model, FACTS).effects
    assert [effects[layer] for layer in (0, 2, 3)] == [0.0, 0.0, 0.0]
    assert effects[1] != 0.0


@pytest.mark.parametrize("name", ["gemma3", "gpt-neox"])
def test_every_layer_of_every_family_has_an_effect_and_the_seed_decides_it(name: str) -> None:
    model = language_model(name)
    found = trace_layers(model, FACTS, seed=1)
    assert len(found.effects) == N_LAYERS
    assert (found.prompts, found.samples) == (len(FACTS), 3)
    assert found == trace_layers(model, FACTS, seed=1)
    assert found.effects != trace_layers(model, FACTS, seed=2).effects
