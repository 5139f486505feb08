"""Keys of ordinary text, which no stored key may match."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress

import torch
from torch import Tensor, nn

from betaedit.errors import StatisticsError
from betaedit.models.gate import unit
from betaedit.models.load import LanguageModel
from betaedit.models.lookup import pad_rows, pad_token_id
from betaedit.models.replay import ForwardEnded, hooks
from betaedit.statistics.collect import batches
from betaedit.statistics.corpus import Corpus

_KEYS_PER_PRODUCT = 4096


class OrdinaryKeys:
    """Keys of one layer at the tokens of ordinary text.

    Args:
        model: The unedited model.
        layer: Which layer's.
        corpus: The text.
        n_tokens: How many tokens of it; fewer where it ends.

    Raises:
        StatisticsError: The corpus is empty, or its text cannot be read.
    """

    @torch.no_grad()
    def __init__(self, model: LanguageModel, layer: int, corpus: Corpus, n_tokens: int) -> None:
        found: list[Tensor] = []
        missing = n_tokens
        for keys in _keys(model, layer, corpus):
            found.append(unit(keys[:missing]).bfloat16())  # half the room; thresholds need no more digits
            missing -= len(found[-1])
            if missing <= 0:
                break
        if not found:
            raise StatisticsError(f"{corpus.label} has no text.", hint="Give another gate_corpus, or gate=0.8.")
        self._keys = torch.cat(found)

    def __len__(self) -> int:
        """How many tokens there are."""
        return len(self._keys)

    @property
    def nbytes(self) -> int:
        """Bytes of the keys."""
        return self._keys.nbytes

    @torch.no_grad()
    def largest_cosines(self, keys: Tensor) -> Tensor:
        """``(c,)`` of each of ``keys`` ``(c, d_in)``, of length one, the largest cosine with any of these."""
        parts = [(keys @ part.float().T).amax(dim=1) for part in torch.split(self._keys, _KEYS_PER_PRODUCT)]
        return torch.stack(parts).amax(dim=0)


def _keys(model: LanguageModel, layer: int, corpus: Corpus) -> Iterator[Tensor]:
    """``(n, d_in)`` keys of one pass after another."""
    found: list[Tensor] = []

    def stop(_: nn.Module, args: tuple[Tensor, ...]) -> None:
        found.append(args[0].flatten(0, -2))
        raise ForwardEnded

    for block in corpus.blocks(model, 0):
        for rows in batches(block):
            ids, mask = (part.to(model.device) for part in pad_rows(rows, pad_token_id(model.tokenizer)))
            with hooks([model.anatomy.projection(layer).register_forward_pre_hook(stop)]), suppress(ForwardEnded):
                model.anatomy.body(input_ids=ids, attention_mask=mask, use_cache=False)
            keys = found.pop()
            yield keys[mask.flatten().bool().to(keys.device)]
