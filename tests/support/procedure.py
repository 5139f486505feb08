"""The official locate-then-edit procedure, written plainly from docs/methods.md A.2 to A.7 and B.7.

Whole forward passes for everything, hooks at the layers by path, dense float64 solves. Nothing of the package is used:
transformers, torch and the formulas only. The lookup index comes from counting the tokens of prefix and subject (the
official way), not from character offsets.
"""

from __future__ import annotations

from dataclasses import dataclass

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


def optimize_value(model, tokenizer, fact, settings: Settings) -> Tensor:
    """``z`` of A.5: six prompts and the KL prompt, full passes, Adam."""
    target_ids = tokenizer(" " + fact.target_new, add_special_tokens=False)["input_ids"]
    tail = tokenizer.decode(target_ids[:-1])
    texts = [c.replace("{}", fact.prompt).replace("{}", fact.subject) + tail for c in settings.contexts]
    texts.append(f"{fact.subject} is a")
    lookups = [_lookup(tokenizer, c, fact) for c in settings.contexts]
    lookups.append(len(tokenizer(fact.subject)["input_ids"]) - 1)
    batch = _pad(tokenizer, texts)
    lengths = batch["attention_mask"].sum(1)
    last = settings.layers[-1]
    delta = torch.zeros(model.config.hidden_size, requires_grad=True)
    adam = torch.optim.Adam([delta], lr=settings.learning_rate)
    seen = {}

    def add(_, __, output):
        hidden = output[0] if isinstance(output, tuple) else output
        seen.setdefault("h0", hidden[0, lookups[0]].detach().clone())
        hidden = hidden.clone()
        for row, position in enumerate(lookups):
            hidden[row, position] = hidden[row, position] + delta
        return (hidden, *output[1:]) if isinstance(output, tuple) else hidden

    handle = model.get_submodule(settings.block.format(last)).register_forward_hook(add)
    for step in range(settings.steps):
        logs = model(**batch).logits.log_softmax(-1)
        nll = 0.0
        for row in range(len(settings.contexts)):
            first = int(lengths[row]) - len(target_ids)
            picked = torch.stack([logs[row, first + j, token] for j, token in enumerate(target_ids)])
            nll = nll - picked.mean() / len(settings.contexts)
        kl_logs = logs[-1, lookups[-1]]
        seen.setdefault("kl", kl_logs.detach().clone())
        kl = (kl_logs.exp() * (kl_logs - seen["kl"])).sum()
        length = seen["h0"].norm()
        loss = nll + settings.kl_weight * kl + settings.decay * torch.linalg.vector_norm(delta) / length**2
        if loss < 0.05 or step == settings.steps - 1:
            break
        adam.zero_grad()
        loss.backward()
        adam.step()
        if delta.norm() > settings.clamp * length:
            with torch.no_grad():
                delta.copy_(delta * settings.clamp * length / delta.norm())
    handle.remove()
    return (seen["h0"] + delta).detach()


def edit(model, tokenizer, facts, moments: dict[int, Tensor], settings: Settings, tau: int = 10**9) -> None:
    """BetaEdit by its official code: batch size 1, in place, projector refreshed every ``tau`` edits."""
    projectors = {layer: _projector(moments[layer].double(), settings.threshold) for layer in settings.layers}
    history = {layer: torch.zeros_like(moments[layer], dtype=torch.float64) for layer in settings.layers}
    last_refresh = 0
    for count, fact in enumerate(facts):
        if count - last_refresh >= tau:
            last_refresh = count
            for layer in settings.layers:
                blend = history[layer] / count + settings.lambda1 * moments[layer].double()
                projectors[layer] = _projector(blend / (settings.lambda1 + 1), settings.threshold)
        z = optimize_value(model, tokenizer, fact, settings)
        for i, layer in enumerate(settings.layers):
            key = compute_key(model, tokenizer, fact, settings, layer).double()
            current = _output(model, tokenizer, fact, settings)
            residual = ((z - current) / (len(settings.layers) - i)).double()
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
        inputs.append(caught[0][0, _lookup(tokenizer, context, fact)])
    return inputs[0] if len(inputs) == 1 else 0.5 * inputs[0] + 0.5 * torch.stack(inputs[1:]).mean(0)


@torch.no_grad()
def _output(model, tokenizer, fact, settings: Settings) -> Tensor:
    caught = []

    def catch(_, __, output):
        caught.append(output[0] if isinstance(output, tuple) else output)

    handle = model.get_submodule(settings.block.format(settings.layers[-1])).register_forward_hook(catch)
    model(**tokenizer(fact.text, return_tensors="pt"))
    handle.remove()
    return caught[0][0, _lookup(tokenizer, "{}", fact)]


def _lookup(tokenizer, context: str, fact) -> int:
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
