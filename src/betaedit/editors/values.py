"""The value of a fact: the hidden state at its lookup token that makes the model say the new target.

Only what the value can change is computed: layers above the last edited one, positions from the lookup token on,
logits at target positions. Everything else is recorded once (models/partial.py); the result is the same.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from betaedit.editors.config import SLOT, EditConfig
from betaedit.facts.fact import Fact
from betaedit.models.load import LanguageModel
from betaedit.models.lookup import EncodedPrompts, Prompt, encode_prompts, encode_target
from betaedit.models.partial import Suffix, cut_to_suffix, record, run_layers


@dataclass(frozen=True)
class Value:
    """What the optimization found.

    Args:
        target: (d_out,) hidden state ``z = h0 + delta`` wanted after the last edited layer.
        initial: (d_out,) the state ``h0`` at the bare prompt before.
        loss: Loss at ``target``.
        target_probability: Mean probability per target token over all contexts, at ``target``.
        n_evaluations: Evaluations of the loss.
    """

    target: Tensor
    initial: Tensor
    loss: float
    target_probability: float
    n_evaluations: int

    @property
    def relative_length(self) -> float:
        """Length of the change in norms of the initial state; at the clamp the search ran into its bound."""
        return float((self.target - self.initial).norm() / self.initial.norm())


@dataclass(frozen=True)
class _Problem:
    """One fact's loss as a function of the change at its lookup token.

    Args:
        model: The model, its weights fixed.
        suffix: The prompts in all contexts, then the KL prompt, cut to what the change can reach.
        first: First layer above the edited ones.
        last: Layer whose output is read as logits.
        target_ids: (t,) the target's tokens.
        target_at: (n, t) suffix positions that predict them, one row per context.
    """

    model: LanguageModel
    suffix: Suffix
    first: int
    last: int
    target_ids: Tensor
    target_at: Tensor

    def log_probabilities(self, delta: Tensor) -> tuple[Tensor, Tensor]:
        """Log-probabilities of the target tokens ``(n, t)``, and of all tokens at the KL prompt ``(vocabulary,)``."""
        start = self.suffix.start
        changed = torch.cat([start[:, :1] + delta.to(start.dtype), start[:, 1:]], dim=1)
        hidden = run_layers(self.model.anatomy, self.suffix.calls, changed, self.first, self.last)
        n, t = self.target_at.shape
        rows = torch.arange(n, device=hidden.device)[:, None]
        read = torch.cat([hidden[rows, self.target_at.to(hidden.device)].flatten(0, 1), hidden[n:, 0]])
        logs = self.model.anatomy.logits(read).float().log_softmax(dim=-1)
        targets = self.target_ids.to(logs.device).expand(n, t).reshape(-1, 1)
        return logs[:-1].gather(1, targets).view(n, t), logs[-1]


def optimize_value(model: LanguageModel, fact: Fact, contexts: tuple[str, ...], config: EditConfig) -> Value:
    """The value that makes ``fact`` true, by Adam on the change ``delta`` (methods.md A.5, MEMIT form).

    Loss: mean negative log-likelihood of the target over contexts, plus ``kl_weight * KL(edited || initial)`` at the
    subject of the KL prompt, plus ``value_decay * |delta| / |h0|^2``; steps keep ``|delta| <= value_clamp * |h0|``.
    The evaluation that ends the search takes no step: at most ``value_steps - 1`` steps.
    """
    problem = _pose(model, fact, contexts, config)
    initial = problem.suffix.start[0, 0].detach().float()
    delta = torch.zeros_like(initial, requires_grad=True)
    adam = torch.optim.Adam([delta], lr=config.value_learning_rate)
    length = initial.norm()
    before: Tensor | None = None
    for step in range(config.value_steps):
        target_logs, kl_logs = problem.log_probabilities(delta)
        before = kl_logs.detach() if before is None else before
        divergence = (kl_logs.exp() * (kl_logs - before)).sum()
        loss = (
            -target_logs.mean()
            + config.kl_weight * divergence
            + config.value_decay * torch.linalg.vector_norm(delta) / length**2
        )
        if loss.item() < config.value_stop_loss or step == config.value_steps - 1:
            break
        adam.zero_grad()
        loss.backward()
        adam.step()
        with torch.no_grad():
            delta.mul_((config.value_clamp * length / delta.norm()).clamp(max=1.0))
    probability = target_logs.detach().mean(dim=1).exp().mean()
    return Value(initial + delta.detach(), initial, loss.item(), probability.item(), step + 1)


def _pose(model: LanguageModel, fact: Fact, contexts: tuple[str, ...], config: EditConfig) -> _Problem:
    target_ids = encode_target(model.tokenizer, fact.text, fact.target_new)
    batch = _encode(model, fact, contexts, target_ids, config)
    last_edited = config.layers[-1]
    n_layers = model.anatomy.n_layers
    last = n_layers - 1 if config.value_loss_layer is None else max(config.value_loss_layer, last_edited)
    recording = record(model.anatomy, batch, keep=(last_edited + 1,), until=last + 1, cache=True)
    n = len(contexts)
    first_target = (batch.lengths - batch.lookup)[:n] - len(target_ids)
    at = first_target[:, None] + torch.arange(len(target_ids), device=first_target.device)
    return _Problem(
        model=model,
        suffix=cut_to_suffix(recording, last_edited + 1, last),
        first=last_edited + 1,
        last=last,
        target_ids=torch.tensor(target_ids),
        target_at=at,
    )


def _encode(
    model: LanguageModel, fact: Fact, contexts: tuple[str, ...], target_ids: list[int], config: EditConfig
) -> EncodedPrompts:
    """The prompt in every context, followed by all target tokens but the last, and the KL prompt."""
    prompts = [Prompt.fill(template, fact.prompt, fact.subject) for template in contexts]
    kl = Prompt.fill(SLOT, config.kl_template, fact.subject)
    return encode_prompts(
        model.tokenizer,
        [*prompts, kl],
        continuations=[*([target_ids[:-1]] * len(prompts)), []],
        strategy=config.lookup,
        device=model.device,
    )
