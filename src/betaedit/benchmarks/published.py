"""The published locate-then-edit procedure as the authors' code runs it: the reference for the engine's timings.

Whole forward passes for values, keys and outputs, and a dense float32 solve per layer (docs/methods.md A.4-7, B.7).
Everything that torch offers is used; none of the engine's short cuts is. Right padding, batch size 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, nn

from betaedit.editors.closed_form.config import EditConfig
from betaedit.facts.fact import SLOT, Fact
from betaedit.models.anatomy import is_transposed
from betaedit.models.load import LanguageModel
from betaedit.models.lookup import EncodedPrompts, Prompt, encode_prompts, encode_target
from betaedit.models.replay import ForwardEnded, hooks, layer_output


class PublishedEditor:
    """BetaEdit's sequential loop with a fixed projector.

    Args:
        model: The model that is changed.
        contexts: Context templates, the bare one first.
        config: Hyper-parameters.
        moments: ``C0`` by layer.
    """

    def __init__(
        self, model: LanguageModel, contexts: tuple[str, ...], config: EditConfig, moments: dict[int, Tensor]
    ) -> None:
        self.model, self.contexts, self.config = model, contexts, config
        devices = {layer: model.anatomy.projection(layer).get_parameter("weight").device for layer in config.layers}
        self.solvers = {
            layer: DenseSolver(moments[layer].to(device, torch.float32), config) for layer, device in devices.items()
        }

    def edit(self, fact: Fact) -> None:
        """Write one fact."""
        value = self.value(fact)[0]
        layers = self.config.layers
        for step, layer in enumerate(layers):
            key = self._key(fact, layer)
            residual = (value - self._output(fact)) / (len(layers) - step)
            update = self.solvers[layer].update(key[:, None], residual[:, None])
            projection = self.model.anatomy.projection(layer)
            with torch.no_grad():
                projection.get_parameter("weight").add_(update.T if is_transposed(projection) else update)

    def value(self, fact: Fact) -> tuple[Tensor, int]:
        """The target hidden state by Adam, every step a whole pass over all contexts; and how many steps there were."""
        config, model = self.config, self.model
        target = encode_target(model.tokenizer, fact.text, fact.target_new, fact.joint)
        batch = self._encode(fact, target)
        rows, length = torch.arange(len(batch.lookup)), torch.tensor(0.0)
        delta: Tensor | None = None
        initial = kl_before = None
        n = len(self.contexts)

        def add(_: nn.Module, __: Any, output: Any) -> Any:
            nonlocal initial
            hidden = layer_output(output)
            if initial is None:
                initial = hidden[0, batch.lookup[0]].detach().clone()
            hidden = hidden.clone()
            hidden[rows, batch.lookup] += torch.zeros_like(initial) if delta is None else delta
            return (hidden, *output[1:]) if isinstance(output, tuple) else hidden

        delta = torch.zeros(model.anatomy.hidden_size, device=model.device, requires_grad=True)
        adam = torch.optim.Adam([delta], lr=config.value_learning_rate)
        at = (batch.lengths[:n] - len(target))[:, None] + torch.arange(len(target), device=batch.lengths.device)
        with hooks([model.anatomy.layers[config.layers[-1]].register_forward_hook(add)]):
            for step in range(config.value_steps):
                logits = model.model(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits
                logs = logits.float().log_softmax(dim=-1)
                picked = logs[rows[:n, None], at, torch.tensor(target, device=logs.device)]
                kl_logs = logs[-1, batch.lookup[-1]]
                kl_before = kl_logs.detach() if kl_before is None else kl_before
                length = initial.norm() if initial is not None else length
                divergence = (kl_logs.exp() * (kl_logs - kl_before)).sum()
                decay = torch.linalg.vector_norm(delta) / length**2
                loss = -picked.mean() + config.kl_weight * divergence + config.value_decay * decay
                if loss.item() < config.value_stop_loss or step == config.value_steps - 1:
                    break
                adam.zero_grad()
                loss.backward()
                adam.step()
                with torch.no_grad():
                    delta.mul_((config.value_clamp * length / delta.norm()).clamp(max=1.0))
        assert initial is not None
        return initial + delta.detach(), step + 1

    def _encode(self, fact: Fact, target: Sequence[int]) -> EncodedPrompts:
        prompts = [Prompt.fill(template, fact.prompt, fact.subject) for template in self.contexts]
        prompts.append(Prompt.fill(SLOT, self.config.kl_template, fact.subject))
        tails = [*([list(target[:-1])] * len(self.contexts)), []]
        device = self.model.device
        return encode_prompts(
            self.model.tokenizer, prompts, continuations=tails, strategy=self.config.lookup, device=device
        )

    def _key(self, fact: Fact, layer: int) -> Tensor:
        """One pass over all contexts, stopped at the layer's projection, as the official tracer does."""
        prompts = [Prompt.fill(template, fact.prompt, fact.subject) for template in self.contexts]
        batch = encode_prompts(self.model.tokenizer, prompts, strategy=self.config.lookup, device=self.model.device)
        inputs = _caught(
            self.model, batch.input_ids, batch.attention_mask, self.model.anatomy.projection(layer), of_input=True
        )
        keys = inputs[torch.arange(len(prompts)), batch.lookup].float()
        return keys[0] if len(prompts) == 1 else (keys[0] + keys[1:].mean(dim=0)) / 2

    def _output(self, fact: Fact) -> Tensor:
        prompt = Prompt.fill(SLOT, fact.prompt, fact.subject)
        batch = encode_prompts(self.model.tokenizer, [prompt], strategy=self.config.lookup, device=self.model.device)
        last = self.model.anatomy.layers[self.config.layers[-1]]
        return _caught(self.model, batch.input_ids, batch.attention_mask, last, of_input=False)[
            0, batch.lookup[0]
        ].float()


@torch.no_grad()
def published_moments(
    model: LanguageModel, layers: Sequence[int], blocks: Sequence[tuple[Tensor, Tensor]], *, whole: bool
) -> dict[int, Tensor]:
    """``C0`` of every layer, each by passes of its own over the same tokens (methods.md A.6), float32.

    Args:
        model: The model.
        layers: The layers to be edited.
        blocks: ``(input_ids, attention_mask)`` of the batches.
        whole: Whole forward passes, logits and all; else each ends at the layer, as the official tracer's do.
    """
    moments: dict[int, Tensor] = {}
    for layer in layers:
        projection = model.anatomy.projection(layer)
        total, count = torch.zeros(()), 0
        for ids, mask in blocks:
            keys = _caught(model, ids, mask, projection, of_input=True, whole=whole)[mask.bool()].float()
            total = total + keys.T @ keys
            count += len(keys)
        moments[layer] = total / count
    return moments


class DenseSolver:
    """The dense rule of one layer (methods.md B.7, official code): a ``d x d`` product and solve per edit.

    Args:
        moment: ``C0`` (d_in, d_in), in the type to compute in.
        config: Strengths and threshold.
        kept: (d_in, m) orthonormal basis of the null space, found from ``moment`` where it is not given.
    """

    def __init__(self, moment: Tensor, config: EditConfig, kept: Tensor | None = None) -> None:
        kept = null_directions(moment, config.nullspace_threshold) if kept is None else kept
        self.projector = (kept @ kept.T).to(moment)
        self.history = torch.zeros_like(moment)
        self.protected = config.leakage_weight * moment
        self.ridge = config.ridge * torch.eye(len(moment), dtype=moment.dtype, device=moment.device)

    def update(self, keys: Tensor, residuals: Tensor) -> Tensor:
        """The dense update ``(d_out, d_in)`` of ``keys`` ``(d_in, b)``, which are remembered."""
        system = self.projector @ (keys @ keys.T + self.protected + self.history) + self.ridge
        update: Tensor = torch.linalg.solve(system, self.projector @ keys @ residuals.T).T
        self.history += keys @ keys.T
        return update


def null_directions(moment: Tensor, threshold: float) -> Tensor:
    """``(d_in, m)`` eigenvectors of ``moment`` with eigenvalues below ``threshold``, float64."""
    values, vectors = torch.linalg.eigh(moment.double())
    kept: Tensor = vectors[:, values < threshold]
    return kept


def forward_to(model: LanguageModel, ids: Tensor, mask: Tensor, layer: int) -> Tensor:
    """A forward pass that ends with ``layer``, and its output."""
    return _caught(model, ids, mask, model.anatomy.layers[layer], of_input=False)


@torch.no_grad()
def _caught(
    model: LanguageModel, ids: Tensor, mask: Tensor, module: nn.Module, *, of_input: bool, whole: bool = False
) -> Tensor:
    """What enters or leaves ``module`` in a pass that ends there, or goes to its own end."""
    caught: list[Tensor] = []

    def catch(_: nn.Module, args: Any, output: Any = None) -> None:
        caught.append(args[0] if of_input else layer_output(output))
        if not whole:
            raise ForwardEnded

    handle = module.register_forward_pre_hook(catch) if of_input else module.register_forward_hook(catch)
    with hooks([handle]), suppress(ForwardEnded):
        model.model(input_ids=ids, attention_mask=mask)
    return caught[0]
