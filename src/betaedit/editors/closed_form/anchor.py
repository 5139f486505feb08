"""The mean length of values on the unedited model, to which norm-anchor scaling scales every later value."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from betaedit.editors.closed_form.config import EditConfig
from betaedit.editors.closed_form.encode import encode_batch
from betaedit.editors.closed_form.keys import bare_outputs
from betaedit.editors.closed_form.values import optimize_values
from betaedit.facts.fact import SLOT, Fact
from betaedit.models.load import LanguageModel

_TOGETHER = 64
_DROPPED = 0.05


def measure_norm_anchor(model: LanguageModel, facts: Sequence[Fact], config: EditConfig) -> float:
    """Mean length of ``v0 + delta`` over ``facts``, without the longest 5% (NAS, methods.md B.10).

    ``v0`` is the output of the last edited matrix at the bare prompt's lookup token, ``delta`` the change of a value
    searched in the bare prompt alone. Measure it on the unedited model, over facts that will not be written: the
    official code takes 1,000. Cost: a value search per fact.
    """
    plain = config.replace(value_norm_anchor=None)
    lengths: list[float] = []
    for at in range(0, len(facts), _TOGETHER):
        encoded = encode_batch(model, facts[at : at + _TOGETHER], (SLOT,), plain)
        values = optimize_values(model, encoded, plain)
        outputs = bare_outputs(model, encoded, range(len(encoded)), plain)
        changes = torch.stack([value.target - value.initial for value in values])
        lengths += (outputs.to(changes) + changes).norm(dim=1).tolist()
    kept = sorted(lengths)[: len(lengths) - int(_DROPPED * len(lengths))]
    return sum(kept) / len(kept)
