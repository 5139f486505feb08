"""The official locate-then-edit procedure, written plainly from docs/methods.md A.2 to A.7 and B.7.

Whole forward passes for everything, hooks at the layers by path, dense float64 solves. Nothing of the package is used:
transformers, torch and the formulas only. The lookup index comes from counting the tokens of prefix and subject (the
official way), not from character offsets.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True)
class Settings:
    layers: tuple[int, ...]
    contexts: tuple[str, ...]
    block: str  # such as "model.layers.{}"
    projection: str  # such as "model.layers.{}.mlp.down_proj"
    transposed: bool
    steps: int
    learning_rate: float
    clamp: float
    decay: float
    kl_weight: float
    lambda1: float
    lambda2: float
    threshold: float
    at_last_token: bool = False  # of the whole prompt, in place of the subject's last


class ValueLoss:
    """The loss of A.5 as a function of ``delta``: every context and the KL prompt, one whole forward pass each time."""

    def __init__(self, model, tokenizer, fact, settings: Settings) -> None:
        self.model, self.settings = model, settings
        self.target_ids = tokenizer(" " + fact.target_new, add_special_tokens=False)["input_ids"]
        tail = tokenizer.decode(self.target_ids[:-1])
        texts = [c.replace("{}", fact.prompt).replace("{}", fact.subject) + tail for c in settings.contexts]
        texts.append(f"{fact.subject} is a")
        self.lookups = [_lookup(tokenizer, c, fact, settings) for c in settings.contexts]
        self.lookups.append(len(tokenizer(texts[-1] if settings.at_last_token else fact.subject)["input_ids"]) - 1)
        self.batch = _pad(tokenizer, texts)
        with torch.no_grad():
            logs, self.initial = self._pass(torch.zeros(model.config.hidden_size))
        self.kl_before = logs[-1, self.lookups[-1]]

    def __call__(self, delta: Tensor) -> tuple[Tensor, Tensor]:
        """The loss, and the probability ``(contexts, tokens)`` of every target token in every context."""
        logs, _ = self._pass(delta)
        lengths = self.batch["attention_mask"].sum(1).tolist()
        n = len(self.target_ids)
        rows = [
            torch.stack([logs[row, lengths[row] - n + j, token] for j, token in enumerate(self.target_ids)])
            for row in range(len(self.settings.contexts))
        ]
        picked = torch.stack(rows)
        kl_logs = logs[-1, self.lookups[-1]]
        kl = (kl_logs.exp() * (kl_logs - self.kl_before)).sum()
        decay = self.settings.decay * torch.linalg.vector_norm(delta) / self.initial.norm() ** 2
        return self.settings.kl_weight * kl + decay - picked.mean(), picked.detach().exp()

    def most_probable(self, delta: Tensor) -> Tensor:
        """``(contexts, tokens)`` whether each target token is the most probable one."""
        logs, _ = self._pass(delta)
        ends, n = self.batch["attention_mask"].sum(1).tolist(), len(self.target_ids)
        best = [logs[row, ends[row] - n : ends[row]].argmax(-1) for row in range(len(self.settings.contexts))]
        return torch.stack(best) == torch.tensor(self.target_ids)

    def mlp_output(self) -> Tensor:
        """Output of the last edited matrix at the bare prompt's lookup token."""
        caught = []
        module = self.model.get_submodule(self.settings.projection.format(self.settings.layers[-1]))
        handle = module.register_forward_hook(lambda _, __, output: caught.append(output.detach()))
        self.model(**self.batch)
        handle.remove()
        return caught[0][0, self.lookups[0]]

    def _pass(self, delta: Tensor) -> tuple[Tensor, Tensor]:
        """Log-probabilities of the batch under ``delta``, and the bare prompt's hidden state before it."""
        seen = []

        def add(_, __, output):
            hidden = output[0] if isinstance(output, tuple) else output
            seen.append(hidden[0, self.lookups[0]].detach().clone())
            hidden = hidden.clone()
            for row, position in enumerate(self.lookups):
                hidden[row, position] = hidden[row, position] + delta
            return (hidden, *output[1:]) if isinstance(output, tuple) else hidden

        block = self.settings.block.format(self.settings.layers[-1])
        handle = self.model.get_submodule(block).register_forward_hook(add)
        logs = self.model(**self.batch).logits.log_softmax(-1)
        handle.remove()
        return logs, seen[0]


def optimize_value(model, tokenizer, fact, settings: Settings) -> Tensor:
    """``z`` of A.5: full passes, Adam."""
    loss_at = ValueLoss(model, tokenizer, fact, settings)
    delta = torch.zeros(model.config.hidden_size, requires_grad=True)
    adam = torch.optim.Adam([delta], lr=settings.learning_rate)
    radius = settings.clamp * loss_at.initial.norm()
    for step in range(settings.steps):
        loss, _ = loss_at(delta)
        if loss < 0.05 or step == settings.steps - 1:
            break
        adam.zero_grad()
        loss.backward()
        adam.step()
        if delta.norm() > radius:
            with torch.no_grad():
                delta.copy_(delta * radius / delta.norm())
    return (loss_at.initial + delta).detach()


def optimize_value_by_projected_bb(
    model, tokenizer, fact, settings: Settings, first_step: float, longest_step: float
) -> tuple[Tensor, float]:
    """``z`` and its loss: full passes, projected gradient from the lowest point met, Barzilai-Borwein lengths."""
    loss_at = ValueLoss(model, tokenizer, fact, settings)
    length = loss_at.initial.norm()
    best, slope, lowest = None, None, float("inf")
    point = torch.zeros(model.config.hidden_size)
    for _ in range(settings.steps):
        point.requires_grad_()
        loss, _ = loss_at(point)
        (gradient,) = torch.autograd.grad(loss, point)
        loss, point = loss.detach(), point.detach()
        if best is None:
            reach = first_step * length
        elif loss < lowest:
            s, y = point - best, gradient - slope
            spectral = s @ s / (s @ y) * gradient.norm() if s @ y > 0 else float("inf")
            reach = min(longest_step * length, spectral)
        else:
            reach = (point - best).norm() / 2
        if loss < lowest:
            best, slope, lowest = point, gradient, float(loss)
        point = best - reach * slope / slope.norm()
        point = point * min(1.0, float(settings.clamp * length / point.norm()))
    return loss_at.initial + best, lowest


def edit(
    model,
    tokenizer,
    facts,
    moments: dict[int, Tensor],
    settings: Settings,
    tau: int = 10**9,
    look_ahead: int = 1,
    per_layer: bool = False,
) -> None:
    """BetaEdit by its official code: batch size 1, in place, projector refreshed every ``tau`` edits.

    ``look_ahead`` is no part of the official code: so many values are sought under the weights as they are, before the
    first of them is written. ``per_layer`` is BLUE (B.10): a value for each layer in turn, its residual undivided.
    """
    passes = [replace(settings, layers=(layer,)) for layer in settings.layers] if per_layer else [settings]
    projectors = {layer: _projector(moments[layer].double(), settings.threshold) for layer in settings.layers}
    history = {layer: torch.zeros_like(moments[layer], dtype=torch.float64) for layer in settings.layers}
    last_refresh = 0
    for count, fact in enumerate(facts):
        if count - last_refresh >= tau:
            last_refresh = count
            for layer in settings.layers:
                blend = history[layer] / count + settings.lambda1 * moments[layer].double()
                projectors[layer] = _projector(blend / (settings.lambda1 + 1), settings.threshold)
        if count % look_ahead == 0:
            ahead = facts[count : count + look_ahead]
            values = [optimize_value(model, tokenizer, each, passes[0]) for each in ahead]
        for own, i, layer in [(each, i, layer) for each in passes for i, layer in enumerate(each.layers)]:
            if i == 0:
                z = values[count % look_ahead] if own is passes[0] else optimize_value(model, tokenizer, fact, own)
            key = compute_key(model, tokenizer, fact, own, layer).double()
            current = read_output(model, tokenizer, fact, own)
            residual = ((z - current) / (len(own.layers) - i)).double()
            protected = history[layer] + settings.lambda1 * moments[layer].double()
            P, K, R = projectors[layer], key[:, None], residual[:, None]
            system = P @ (K @ K.T + protected) + settings.lambda2 * torch.eye(len(key), dtype=torch.float64)
            update = torch.linalg.solve(system, P @ K @ R.T).T
            weight = model.get_submodule(settings.projection.format(layer)).weight
            with torch.no_grad():
                weight += (update.T if settings.transposed else update).to(weight.dtype)
            history[layer] += K @ K.T


@torch.no_grad()
def compute_key(model, tokenizer, fact, settings: Settings, layer: int) -> Tensor:
    """A.4: input of the projection at the lookup token; bare prompt and mean of the others, one half each."""
    inputs = []
    module = model.get_submodule(settings.projection.format(layer))
    for context in settings.contexts:
        caught = []
        handle = module.register_forward_pre_hook(lambda _, args, caught=caught: caught.append(args[0]))
        text = context.replace("{}", fact.prompt).replace("{}", fact.subject)
        model(**tokenizer(text, return_tensors="pt"))
        handle.remove()
        inputs.append(caught[0][0, _lookup(tokenizer, context, fact, settings)])
    return inputs[0] if len(inputs) == 1 else 0.5 * inputs[0] + 0.5 * torch.stack(inputs[1:]).mean(0)


@torch.no_grad()
def read_output(model, tokenizer, fact, settings: Settings) -> Tensor:
    caught = []

    def catch(_, __, output):
        caught.append(output[0] if isinstance(output, tuple) else output)

    handle = model.get_submodule(settings.block.format(settings.layers[-1])).register_forward_hook(catch)
    model(**tokenizer(fact.text, return_tensors="pt"))
    handle.remove()
    return caught[0][0, _lookup(tokenizer, "{}", fact, settings)]


def _lookup(tokenizer, context: str, fact, settings: Settings) -> int:
    if settings.at_last_token:
        return len(tokenizer(context.replace("{}", fact.prompt).replace("{}", fact.subject))["input_ids"]) - 1
    prefix = context.replace("{}", fact.prompt).split("{}")[0]
    return len(tokenizer(prefix + fact.subject)["input_ids"]) - 1


def _pad(tokenizer, texts: list[str]) -> dict[str, Tensor]:
    rows = [tokenizer(text)["input_ids"] for text in texts]
    width = max(map(len, rows))
    ids = torch.tensor([row + [0] * (width - len(row)) for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows])
    return {"input_ids": ids, "attention_mask": mask}


def _projector(matrix: Tensor, threshold: float) -> Tensor:
    U, S, _ = torch.linalg.svd(matrix)
    small = U[:, threshold > S]
    return small @ small.T
