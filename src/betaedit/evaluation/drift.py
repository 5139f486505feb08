"""What editing did to the rest of the model: knowledge leakage and perplexity."""

from __future__ import annotations

import math
from collections.abc import Sequence
from importlib import resources

import torch
from torch import Tensor

from betaedit.errors import ConfigError
from betaedit.models.load import LanguageModel
from betaedit.models.lookup import pad_rows, pad_token_id, tokenize
from betaedit.progress import Progress, SilentProgress

_MAX_LENGTH = 512


def held_out_prose() -> list[str]:
    """The package's own passages of plain English, which no edit and no statistics ever see."""
    text = resources.files("betaedit.evaluation").joinpath("data/prose.txt").read_text(encoding="utf-8")
    return [passage for passage in text.split("\n\n") if passage.strip()]


def leakage(change: Tensor, moment: Tensor) -> float:
    """``sqrt(tr(D C0 D^T))``: root mean square change of a layer's output over ordinary tokens.

    Args:
        change: ``D = W_t - W_0`` (d_out, d_in).
        moment: ``C0`` (d_in, d_in), mean per token.

    The papers write ``||D K0||_F``, which is this times the root of the number of tokens (methods.md G.5).
    """
    product = change.double() @ moment.double()
    return math.sqrt(max(float((product * change.double()).sum()), 0.0))


@torch.inference_mode()
def perplexity(model: LanguageModel, texts: Sequence[str], *, progress: Progress | None = None) -> float:
    """``exp`` of the mean negative log-likelihood per token over all texts, token-weighted (methods.md G.6).

    A text's first token is not predicted; texts are cut at ``_MAX_LENGTH`` tokens.

    Raises:
        ConfigError: No text has two tokens.
    """
    width = min(_MAX_LENGTH, model.max_length)
    rows = [tokenize(model.tokenizer, text)[:width] for text in texts]
    rows = [row for row in rows if len(row) > 1]
    if not rows:
        raise ConfigError("there is no text to measure the perplexity on.", mend="Give a text of two tokens or more.")
    total, count = 0.0, 0
    with (progress or SilentProgress()).task("perplexity", len(rows), "texts") as task:
        for at in range(0, len(rows), 4):
            batch = rows[at : at + 4]
            ids, mask = (part.to(model.device) for part in pad_rows(batch, pad_token_id(model.tokenizer)))
            hidden = model.anatomy.body(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state
            counted = mask[:, 1:].bool()
            logs = model.anatomy.head_logits(hidden[:, :-1][counted]).float().log_softmax(dim=-1)
            total -= logs.gather(1, ids[:, 1:][counted][:, None]).double().sum().item()
            count += int(counted.sum())
            task.advance(len(batch))
    return math.exp(total / count)
