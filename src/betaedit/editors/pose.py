"""A batch of facts posed to the model: their prompts in all contexts, run once through the layers below the edits.

What enters the first edited layer never changes, whatever is written; so one recording serves the values of the facts,
their keys, and the residuals.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from betaedit.editors.config import SLOT, EditConfig
from betaedit.editors.readable import check_length
from betaedit.facts.fact import Fact
from betaedit.models.lean import run_lean_layers
from betaedit.models.load import LanguageModel
from betaedit.models.lookup import Prompt, encode_prompts, encode_target
from betaedit.models.pack import extend
from betaedit.models.partial import Recording, record

_SHORT = 64
"""The prompts of a fact run in one row up to this length; beyond, masks of so many squared would take too much room."""


@dataclass(frozen=True)
class Pose:
    """The recorded prompts of some facts.

    Args:
        recording: Of all prompts: per fact one in each context, followed by all target tokens but the last, then the KL
            prompt, which ends at its lookup token: nothing is read behind it. Holds what enters the first edited layer
            and the one after the last.
        target_ids: The target's tokens, per fact.
        n_contexts: Contexts per fact, the bare one first.
        groups: Number of each fact's group, counted from zero: the facts of a group share the change of their values.
    """

    recording: Recording
    target_ids: tuple[tuple[int, ...], ...]
    n_contexts: int
    groups: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.target_ids)

    def prompts(self, facts: Sequence[int]) -> Tensor:
        """``(b, contexts + 1)`` index of the prompts of some facts, the KL prompt last."""
        per_fact = self.n_contexts + 1
        first = torch.tensor(list(facts), device=self.lookup.device) * per_fact
        return first[:, None] + torch.arange(per_fact, device=first.device)

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
    tokenizer = model.tokenizer
    target_ids = tuple(tuple(encode_target(tokenizer, fact.text, fact.target_new, fact.joint)) for fact in facts)
    prompts: list[Prompt] = []
    continuations: list[tuple[int, ...]] = []
    for fact, ids in zip(facts, target_ids, strict=True):
        prompts += [Prompt.fill(template, fact.prompt, fact.subject) for template in contexts]
        prompts.append(Prompt.fill(SLOT, config.kl_template, fact.subject))
        continuations += [*[ids[:-1]] * len(contexts), ()]
    encoded = encode_prompts(
        tokenizer, prompts, continuations=continuations, strategy=config.lookup, device=model.device
    )
    for fact, lengths in zip(facts, encoded.lengths.view(len(facts), -1).tolist(), strict=True):
        check_length(model, fact, max(lengths))  # exact, where contexts were not sampled yet when facts were checked
    number = torch.arange(1, len(prompts) + 1, device=model.device)
    encoded = encoded.cut_after_lookup(number % (len(contexts) + 1) == 0)
    keep = config.layers[0], config.layers[-1] + 1
    recording = record(model.anatomy, encoded, run=1, keep=(0, 1))
    posed = Pose(recording, target_ids, len(contexts), _groups(facts, config))
    rows = posed.prompts(range(len(facts)))
    if int(encoded.lengths.max()) > _SHORT:
        rows = rows.view(-1, 1)
    return replace(posed, recording=extend(model.anatomy, recording, rows, keep, run_lean_layers))


def _groups(facts: Sequence[Fact], config: EditConfig) -> tuple[int, ...]:
    if config.shared_subjects == "apart":
        return tuple(range(len(facts)))
    numbers: dict[str, int] = {}
    return tuple(numbers.setdefault(fact.subject, len(numbers)) for fact in facts)
