"""Drift of an edited model: knowledge leakage, perplexity and agreement with the unedited model."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import asdict, dataclass
from functools import partial
from importlib import resources
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from betaedit.errors import ConfigError
from betaedit.evaluation.interval import Estimate, estimate
from betaedit.models.load import LanguageModel
from betaedit.models.lookup import pad_rows, pad_token_id, tokenize
from betaedit.models.replay import ForwardEnded, hooks
from betaedit.progress import Progress, SilentProgress

_MAX_LENGTH = 512
_TOKENS_PER_FORWARD = 1024
_LOGS_AT_ONCE = 2**23
"""Limit of log-probabilities at once (tokens times vocabulary), so that they fit the processor's cache."""

_KEPT_BYTES = 2**28


@dataclass(frozen=True, slots=True)
class Drift:
    """How far a model is from the unedited one on ordinary text (metrics.md G.6).

    Args:
        perplexity: Perplexity of the model.
        unedited_perplexity: That of the unedited model on the same tokens.
        agreement: Share of the tokens at which both have the same most probable token.
        kl: ``KL(unedited || edited)`` of the next token, mean per token, in nats.
    """

    perplexity: float
    unedited_perplexity: float
    agreement: Estimate
    kl: float

    def to_dict(self) -> dict[str, Any]:
        """The figures as plain data."""
        return asdict(self)


def held_out_prose() -> list[str]:
    """The package's own passages of plain English, which are used for no edit and no statistics."""
    text = resources.files("betaedit.evaluation").joinpath("data/prose.txt").read_text(encoding="utf-8")
    return [passage for passage in text.split("\n\n") if passage.strip()]


def leakage(change: Tensor, moment: Tensor) -> float:
    """``sqrt(tr(D C0 D^T))``: root mean square change of a layer's output over ordinary tokens.

    Args:
        change: ``D = W_t - W_0`` (d_out, d_in).
        moment: ``C0`` (d_in, d_in), mean per token.

    The papers write ``||D K0||_F``, which is this times the root of the number of tokens (metrics.md G.5).
    """
    product = change.double() @ moment.double()
    return math.sqrt(max(float((product * change.double()).sum()), 0.0))


class UneditedStates:
    """States of the unedited model at the tokens of some texts, cached between measurements.

    For one model, one function and the same texts. Beyond ``_KEPT_BYTES`` states are computed again.
    """

    def __init__(self) -> None:
        self._held: dict[int, Tensor] = {}

    def of(self, batch: int, run: Callable[[], Tensor]) -> Tensor:
        """The states of a batch by its number; ``run`` computes them."""
        if batch in self._held:
            return self._held[batch]
        states = run()
        if sum(held.nbytes for held in self._held.values()) + states.nbytes <= _KEPT_BYTES:
            self._held[batch] = states
        return states


class Edited(Protocol):
    """A matrix with its change, both (d_out, d_in)."""

    def change(self) -> Tensor:
        """``D = W_t - W_0``."""

    def original(self) -> Tensor:
        """``W_0``."""


@dataclass(frozen=True, slots=True)
class Leakage:
    """How far a layer's output moved (metrics.md G.5).

    Args:
        change: Root mean square of ``D k`` over tokens.
        relative: The same as a share of that of ``W_0 k``.
    """

    change: float
    relative: float


def leakage_on(
    model: LanguageModel,
    texts: Sequence[str],
    matrices: Mapping[int, Edited],
    unedited: Callable[[], AbstractContextManager[object]],
    *,
    keys: UneditedStates | None = None,
    progress: Progress | None = None,
) -> dict[int, Leakage]:
    """Leakage of the edited layers at the unedited model's keys ``k`` of the tokens of ``perplexity``.

    Cost: a pass through the unedited model up to the last edited layer the first time, and two products of
    (n_tokens, d_in) with (d_in, d_out) per layer.

    Args:
        model: The edited model.
        texts: Text not used by the edits or their statistics.
        matrices: The edited matrices by layer.
        unedited: See ``compare``.
        keys: Cache of the unedited model's keys on these texts.
        progress: Shows the progress.

    Raises:
        ConfigError: No text has two tokens.
    """
    keys = keys or UneditedStates()
    layers = sorted(matrices)
    moved, whole = dict.fromkeys(layers, 0.0), dict.fromkeys(layers, 0.0)
    n_tokens = 0

    def run_unedited(batch: _Batch) -> Tensor:
        with unedited():
            return _keys(model, batch, layers)

    for number, batch in _batches(model, texts, "leakage", progress or SilentProgress()):
        found = keys.of(number, partial(run_unedited, batch))
        n_tokens += len(found)
        widths = [matrices[layer].change().shape[1] for layer in layers]
        for layer, part in zip(layers, torch.split(found, widths, dim=1), strict=True):
            matrix = matrices[layer]
            for sums, factor in ((moved, matrix.change()), (whole, matrix.original())):
                sums[layer] += float((part.to(factor) @ factor.T).double().square().sum())
    return {
        layer: Leakage(math.sqrt(moved[layer] / n_tokens), math.sqrt(moved[layer] / whole[layer])) for layer in layers
    }


def perplexity(
    model: LanguageModel,
    texts: Sequence[str],
    *,
    states: UneditedStates | None = None,
    progress: Progress | None = None,
) -> float:
    """``exp`` of the mean negative log-likelihood per token over all texts, token-weighted (metrics.md G.6).

    A text's first token is not predicted; texts are cut at ``_MAX_LENGTH`` tokens. Infinite beyond
    float64.

    Args:
        model: The model.
        texts: Text.
        states: If the model is unedited, the cache of its states for ``compare``.
        progress: Shows the progress.

    Raises:
        ConfigError: No text has two tokens.
    """
    states = states or UneditedStates()
    losses = [
        _losses(_next_token_logs(model, part), follows)
        for number, batch in _batches(model, texts, "perplexity", progress or SilentProgress())
        for part, follows in _parts(model, states.of(number, partial(_states, model, batch)), batch.follows)
    ]
    return _exp_mean(torch.cat(losses))


def compare(
    model: LanguageModel,
    texts: Sequence[str],
    unedited: Callable[[], AbstractContextManager[object]],
    *,
    states: UneditedStates | None = None,
    progress: Progress | None = None,
) -> Drift:
    """Drift of ``model`` from its unedited state, on the tokens of ``perplexity``.

    Args:
        model: The edited model.
        texts: Held-out text.
        unedited: Makes a context in which the model's layers have their original weights; entered at most once per
            batch.
        states: Cache of the unedited model's states on these texts.
        progress: Shows the progress.

    Raises:
        ConfigError: No text has two tokens.
    """
    states = states or UneditedStates()
    edited_losses, original_losses, same, divergence = [], [], [], 0.0

    def run_unedited(batch: _Batch) -> Tensor:
        with unedited():
            return _states(model, batch)

    for number, batch in _batches(model, texts, "drift", progress or SilentProgress()):
        both = _states(model, batch), states.of(number, partial(run_unedited, batch))
        for *parts, follows in _parts(model, *both, batch.follows):
            edited, original = (_next_token_logs(model, part) for part in parts)
            edited_losses.append(_losses(edited, follows))
            original_losses.append(_losses(original, follows))
            same += (edited.argmax(dim=-1) == original.argmax(dim=-1)).tolist()
            divergence += (original.exp() * (original - edited)).sum(dim=-1).double().sum().item()
    agreement = estimate(same)
    assert agreement is not None  # _batches has refused texts without a token to predict
    return Drift(
        perplexity=_exp_mean(torch.cat(edited_losses)),
        unedited_perplexity=_exp_mean(torch.cat(original_losses)),
        agreement=agreement,
        kl=max(divergence / len(same), 0.0),  # rounding may make it slightly negative
    )


@dataclass(frozen=True)
class _Batch:
    """Right-padded token ids ``(n, width)`` and their mask."""

    ids: Tensor
    mask: Tensor

    @property
    def predicted(self) -> Tensor:
        """``(n, width - 1)``: which positions predict a token of their text."""
        return self.mask[:, 1:].bool()

    @property
    def follows(self) -> Tensor:
        """``(n_tokens,)`` the token that follows each of those."""
        return self.ids[:, 1:][self.predicted]


def _batches(
    model: LanguageModel, texts: Sequence[str], label: str, progress: Progress
) -> Iterator[tuple[int, _Batch]]:
    """The texts as numbered batches of bounded size, long ones first; each text is reported once its batch is done."""
    width = min(_MAX_LENGTH, model.max_length)
    rows = [tokenize(model.tokenizer, text)[:width] for text in texts]
    rows = sorted((row for row in rows if len(row) > 1), key=len, reverse=True)
    if not rows:
        raise ConfigError("there is no text to measure the drift on.", hint="Give a text of two tokens or more.")
    number = 0
    with progress.task(label, len(rows), "texts") as task:
        while rows:
            count = max(_TOKENS_PER_FORWARD // len(rows[0]), 1)
            taken, rows = rows[:count], rows[count:]
            ids, mask = (part.to(model.device) for part in pad_rows(taken, pad_token_id(model.tokenizer)))
            yield number, _Batch(ids, mask)
            number += 1
            task.advance(len(taken))


@torch.inference_mode()
def _states(model: LanguageModel, batch: _Batch) -> Tensor:
    """``(n_tokens, d)`` inputs of the head at every position that predicts a token of its text."""
    hidden = model.anatomy.body(input_ids=batch.ids, attention_mask=batch.mask, use_cache=False).last_hidden_state
    states: Tensor = hidden[:, :-1][batch.predicted.to(hidden.device)]
    return states


@torch.inference_mode()
def _keys(model: LanguageModel, batch: _Batch, layers: Sequence[int]) -> Tensor:
    """``(n_tokens, sum of d_in)`` inputs of the MLP projections of ``layers``, concatenated, at each predicted token.

    A text's first token is left out: in many models its keys are far longer than all others, so the
    figure would depend on the length of the texts.
    """
    counted = batch.mask.bool()
    counted[:, 0] = False
    chosen = counted.flatten()
    found: dict[int, Tensor] = {}

    def hook(layer: int) -> Any:
        def keep(_: nn.Module, args: tuple[Tensor, ...]) -> None:
            found[layer] = args[0].flatten(0, -2)[chosen.to(args[0].device)].to(model.device)
            if layer == layers[-1]:
                raise ForwardEnded

        return keep

    handles = [model.anatomy.projection(layer).register_forward_pre_hook(hook(layer)) for layer in layers]
    with hooks(handles), suppress(ForwardEnded):
        model.anatomy.body(input_ids=batch.ids, attention_mask=batch.mask, use_cache=False)
    return torch.cat([found[layer] for layer in layers], dim=1)


@torch.inference_mode()
def _next_token_logs(model: LanguageModel, states: Tensor) -> Tensor:
    """``(n_tokens, vocabulary)`` log-probabilities of ``states`` ``(n_tokens, d)``."""
    return model.anatomy.head_logits(states).float().log_softmax(dim=-1)


def _parts(model: LanguageModel, *columns: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """``columns`` of ``n_tokens`` rows each, cut into parts with a limited number of log-probabilities."""
    rows = max(_LOGS_AT_ONCE // int(model.model.config.get_text_config().vocab_size), 1)
    return zip(*(torch.split(column, rows) for column in columns), strict=True)


def _losses(logs: Tensor, follows: Tensor) -> Tensor:
    """``(n_tokens,)`` negative log-likelihoods of the tokens ``follows``, in float64 on the CPU."""
    return -logs.gather(1, follows.to(logs.device)[:, None])[:, 0].double().cpu()


def _exp_mean(losses: Tensor) -> float:
    return losses.mean().exp().item()
