"""Prompts with their targets as one padded batch, and what the model's logits say of the targets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from betaedit.editors.gradient.config import Loss
from betaedit.facts.fact import Fact
from betaedit.models.load import LanguageModel
from betaedit.models.lookup import pad_rows, pad_token_id


@dataclass(frozen=True)
class TargetBatch:
    """Prompts with their targets, right-padded.

    Args:
        ids: ``(n, length)`` token ids of prompts and all target tokens but the last.
        mask: ``(n, length)``, 1 on real tokens.
        rows: ``(t,)`` for each target token, its row.
        places: ``(t,)`` the position at which it is scored.
        targets: ``(t,)`` its id.
    """

    ids: Tensor
    mask: Tensor
    rows: Tensor
    places: Tensor
    targets: Tensor

    @property
    def inputs(self) -> dict[str, Tensor | bool]:
        """What the model is called with."""
        return {"input_ids": self.ids, "attention_mask": self.mask, "use_cache": False}

    def losses(self, logits: Tensor) -> Tensor:
        """``(t,)`` negative log-likelihood of every target token; at least in float32."""
        scored = logits[self.rows, self.places]
        logs = scored.to(torch.promote_types(scored.dtype, torch.float32)).log_softmax(dim=-1)
        return -logs.gather(1, self.targets[:, None])[:, 0]

    def mean_over_facts(self, logits: Tensor) -> Tensor:
        """Mean over facts of the mean over their target tokens."""
        losses = self.losses(logits)
        counts = torch.bincount(self.rows, minlength=len(self.ids))
        return (losses / counts[self.rows]).sum() / len(self.ids)

    def mean_over_tokens(self, logits: Tensor) -> Tensor:
        """Mean over all target tokens."""
        return self.losses(logits).mean()


def encode_targets(model: LanguageModel, facts: Sequence[Fact], loss: Loss = "target") -> TargetBatch:
    """The prompts and targets of ``facts``, on the model's device.

    Args:
        model: The model.
        facts: At least one.
        loss: Where target tokens are scored: see ``FineTuneConfig.loss``.
    """
    pairs = model.encode_pairs([(fact.text, fact.target_new, fact.joint) for fact in facts])
    ids, mask = pad_rows([[*prompt, *target[:-1]] for prompt, target in pairs], pad_token_id(model.tokenizer))
    rows, places, targets = [], [], []
    for row, (prompt, target) in enumerate(pairs):
        for offset, token in enumerate(target):
            rows.append(row)
            places.append(len(prompt) - 1 + (offset if loss == "target" else 0))
            targets.append(token)
    device = model.device
    numbers = (torch.tensor(each, device=device) for each in (rows, places, targets))
    return TargetBatch(ids.to(device), mask.to(device), *numbers)
