"""A batch of facts posed to the model: their prompts in all wordings, run once through the layers below the edits.

What enters the first edited layer never changes, whatever is written; so one recording serves the values of the facts,
their keys, and the residuals.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from betaedit.editors.config import SLOT, EditConfig
from betaedit.editors.readable import check_length
from betaedit.editors.wordings import Wording, wordings
from betaedit.facts.fact import Fact
from betaedit.models.lean import run_lean_layers
from betaedit.models.load import LanguageModel
from betaedit.models.lookup import Prompt, encode_prompts
from betaedit.models.pack import extend
from betaedit.models.partial import Recording, record

_SHORT = 64
"""The prompts of a fact run in one row up to this length; beyond, masks of so many squared would take too much room."""


@dataclass(frozen=True)
class Pose:
    """The recorded prompts of some facts.

    Args:
        recording: Of all prompts: per fact one in each wording, followed by all target tokens but the last, then the KL
            prompt, which ends at its lookup token: nothing is read behind it. Holds what enters the first edited layer
            and the one after the last.
        wordings: Per fact.
        groups: Number of each fact's group, counted from zero: the facts of a group share the change of their values.
    """

    recording: Recording
    wordings: tuple[tuple[Wording, ...], ...]
    groups: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.wordings)

    @cached_property
    def _firsts(self) -> list[int]:
        """The first prompt of each fact."""
        firsts = [0]
        for own in self.wordings[:-1]:
            firsts.append(firsts[-1] + len(own) + 1)
        return firsts

    def prompts(self, facts: Sequence[int]) -> Tensor:
        """``(b, wordings + 1)`` index of the prompts of some facts, -1 where one has fewer, the KL prompt last."""
        most = max(len(self.wordings[fact]) for fact in facts)
        rows = []
        for fact in facts:
            first, n = self._firsts[fact], len(self.wordings[fact])
            rows.append([*range(first, first + n), *[-1] * (most - n), first + n])
        return torch.tensor(rows, device=self.lookup.device)

    def n_keys(self, fact: int) -> int:
        """How many keys a fact has."""
        return self.wordings[fact][-1].key + 1

    def leading(self, facts: Sequence[int]) -> Tensor:
        """``(b, keys)`` index of the first prompt of each key of some facts, -1 where one has fewer."""
        most = max(self.n_keys(fact) for fact in facts)
        rows = []
        for fact in facts:
            keys = [wording.key for wording in self.wordings[fact]]
            own = [self._firsts[fact] + keys.index(key) for key in range(self.n_keys(fact))]
            rows.append(own + [-1] * (most - len(own)))
        return torch.tensor(rows, device=self.lookup.device)

    def leading_states(self, facts: Sequence[int], layer: int) -> Tensor:
        """``(d_out, c)`` states entering ``layer`` at the first prompt of each key, when they were recorded."""
        leading = self.leading(facts)
        prompts = leading[leading >= 0]
        entering = self.recording.inputs[layer]
        return entering[prompts.to(entering.device), self.lookup[prompts].to(entering.device)].float().T

    def key_weights(self, fact: int) -> Tensor:
        """``(keys, wordings)`` share of each of a fact's prompts in each of its keys."""
        own = self.wordings[fact]
        weights = torch.zeros(self.n_keys(fact), len(own))
        for at, wording in enumerate(own):
            weights[wording.key, at] = wording.weight
        return weights

    @property
    def lookup(self) -> Tensor:
        """``(n,)`` lookup token of every prompt."""
        return self.recording.prompts.lookup

    @property
    def lengths(self) -> Tensor:
        """``(n,)`` tokens of every prompt."""
        return self.recording.prompts.lengths


def pose(model: LanguageModel, facts: Sequence[Fact], contexts: tuple[str, ...], config: EditConfig) -> Pose:
    """Encode and record ``facts`` in ``contexts``: one pass through the layers up to the last edited one.

    Raises:
        LookupTokenError: A subject covers no token.
        FactError: A prompt is longer than the model's positions.
    """
    asked = tuple(wordings(model, fact, contexts, config) for fact in facts)
    prompts: list[Prompt] = []
    continuations: list[tuple[int, ...]] = []
    for fact, own in zip(facts, asked, strict=True):
        prompts += [wording.prompt for wording in own]
        prompts.append(Prompt.fill(SLOT, config.kl_template, fact.subject))
        continuations += [*(wording.target_ids[:-1] for wording in own), ()]
    encoded = encode_prompts(
        model.tokenizer, prompts, continuations=continuations, strategy=config.lookup, device=model.device
    )
    posed = Pose(Recording({}, {}, encoded), asked, _groups(facts, config))
    rows = posed.prompts(range(len(facts)))
    for fact, prompts_of in zip(facts, rows, strict=True):  # exact, where contexts were not sampled yet at the check
        check_length(model, fact, int(encoded.lengths[prompts_of[prompts_of >= 0]].max()))
    is_kl = torch.zeros(len(prompts), dtype=torch.bool, device=model.device)
    is_kl[rows[:, -1]] = True
    encoded = encoded.cut_after_lookup(is_kl)
    keep = config.layers[0], config.layers[-1] + 1
    recording = record(model.anatomy, encoded, run=1, keep=(0, 1))
    if int(encoded.lengths.max()) > _SHORT:
        rows = torch.arange(len(prompts), device=model.device).view(-1, 1)
    return replace(posed, recording=extend(model.anatomy, recording, rows, keep, run_lean_layers))


def _groups(facts: Sequence[Fact], config: EditConfig) -> tuple[int, ...]:
    if config.shared_subjects == "apart":
        return tuple(range(len(facts)))
    numbers: dict[str, int] = {}
    return tuple(numbers.setdefault(fact.subject, len(numbers)) for fact in facts)
