"""Causal tracing: the layers whose MLPs recall a subject (ROME: Meng et al., 2022).

Noise is added to the subject's embeddings, so that the model loses its answer. Then the MLP output of one layer at the
lookup token is restored; the gain in the answer's probability is that layer's indirect effect.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from betaedit.experiments.trials import Trace
from betaedit.facts.fact import SLOT, Fact
from betaedit.models.load import LanguageModel
from betaedit.models.lookup import EncodedPrompts, Prompt, encode_prompts, subject_tokens
from betaedit.models.replay import hooks
from betaedit.progress import Progress, SilentProgress

_NOISE = 3.0


@dataclass(frozen=True)
class _Traced:
    """Prompts, each repeated once per draw of noise.

    Args:
        prompts: ``n * samples`` rows.
        noise: ``(n * samples, length, hidden_size)`` added to the embeddings.
        answers: ``(n * samples,)`` the next token of the model without noise.
        outputs: ``(n * samples, hidden_size)`` of every layer's MLP at the lookup token, without noise.
    """

    prompts: EncodedPrompts
    noise: Tensor
    answers: Tensor
    outputs: dict[int, Tensor]


def trace_layers(
    model: LanguageModel,
    facts: Sequence[Fact],
    *,
    samples: int = 3,
    seed: int = 0,
    progress: Progress | None = None,
) -> Trace:
    """The mean indirect effect of every layer on the model's own answers to the facts' prompts.

    Args:
        model: The unedited model.
        facts: Only their prompts and subjects are used: the answer is the most probable next token.
        samples: Draws of noise per prompt.
        seed: Seed of the noise.
        progress: Shows the progress.

    Raises:
        LookupTokenError: A subject covers no token.
    """
    traced, intact = _blur(model, facts, samples, torch.Generator().manual_seed(seed))
    blurred = float(_answer_probabilities(model, traced).mean())
    effects = []
    layers = range(model.anatomy.n_layers)
    with (progress or SilentProgress()).task("tracing", len(layers), "layers") as task:
        for layer in layers:
            effects.append(float(_answer_probabilities(model, traced, layer).mean()) - blurred)
            task.advance()
    return Trace(effects=effects, intact=intact, blurred=blurred, prompts=len(facts), samples=samples)


@torch.inference_mode()
def _blur(
    model: LanguageModel, facts: Sequence[Fact], samples: int, generator: torch.Generator
) -> tuple[_Traced, float]:
    """The prompts with their noise, and the mean probability of the answers without it."""
    prompts = [Prompt.fill(SLOT, fact.prompt, fact.subject) for fact in facts]
    encoded = encode_prompts(model.tokenizer, prompts, device=model.device)
    embedded: list[Tensor] = []
    outputs: dict[int, Tensor] = {}

    def look(_: nn.Module, __: Any, output: Tensor) -> None:
        embedded.append(output)

    def keep(layer: int) -> Callable[..., None]:
        def hook(_: nn.Module, __: Any, output: Tensor) -> None:
            rows = output.view(*encoded.input_ids.shape, -1)  # some families lay all positions in one row (OPT)
            outputs[layer] = rows[torch.arange(len(prompts)), encoded.lookup.to(output.device)]

        return hook

    projections = [model.anatomy.projection(layer) for layer in range(model.anatomy.n_layers)]
    handles = [model.model.get_input_embeddings().register_forward_hook(look)]
    handles += [projection.register_forward_hook(keep(layer)) for layer, projection in enumerate(projections)]
    with hooks(handles):
        probabilities = _next_token(model, encoded)
    highest, answers = probabilities.max(dim=1)
    inside = torch.zeros(encoded.input_ids.shape, dtype=torch.bool)
    for row, prompt in enumerate(prompts):
        inside[row, subject_tokens(model.tokenizer, prompt)[0]] = True
    clean = embedded[0].float().cpu()
    drawn = torch.randn(samples, *clean.shape, generator=generator).transpose(0, 1).flatten(0, 1)
    noise = _NOISE * clean[inside].std() * drawn * inside.repeat_interleave(samples, dim=0)[..., None]
    traced = _Traced(
        EncodedPrompts(*(part.repeat_interleave(samples, dim=0) for part in vars(encoded).values())),
        noise.to(embedded[0]),
        answers.repeat_interleave(samples),
        {layer: output.repeat_interleave(samples, dim=0) for layer, output in outputs.items()},
    )
    return traced, float(highest.mean())


@torch.inference_mode()
def _answer_probabilities(model: LanguageModel, traced: _Traced, restored: int | None = None) -> Tensor:
    """``(n * samples,)`` probability of the answers with noise and one layer's MLP output restored."""
    rows = torch.arange(len(traced.answers))

    def blur(_: nn.Module, __: Any, output: Tensor) -> Tensor:
        return output + traced.noise

    def restore(_: nn.Module, __: Any, output: Tensor) -> Tensor:
        assert restored is not None
        output = output.clone()
        at_positions = output.view(*traced.prompts.input_ids.shape, -1)
        at_positions[rows, traced.prompts.lookup.to(output.device)] = traced.outputs[restored].to(output)
        return output

    handles = [model.model.get_input_embeddings().register_forward_hook(blur)]
    if restored is not None:
        handles.append(model.anatomy.projection(restored).register_forward_hook(restore))
    with hooks(handles):
        return _next_token(model, traced.prompts)[rows, traced.answers]


def _next_token(model: LanguageModel, prompts: EncodedPrompts) -> Tensor:
    """``(n, vocabulary)`` probabilities of the token after each prompt."""
    hidden = model.anatomy.body(
        input_ids=prompts.input_ids, attention_mask=prompts.attention_mask, use_cache=False
    ).last_hidden_state
    last = hidden[torch.arange(len(hidden)), prompts.lengths.to(hidden.device) - 1]
    return model.anatomy.head_logits(last).float().softmax(dim=-1)
