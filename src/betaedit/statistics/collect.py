"""Second moments of the keys at all edited layers, in one pass that stops after the last of them."""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from betaedit.errors import OutputError, StatisticsError
from betaedit.files import atomic_write, clear_unfinished, file_errors
from betaedit.models.anatomy import projection_shape
from betaedit.models.gradients import usual_gradients
from betaedit.models.load import LanguageModel
from betaedit.models.lookup import pad_rows, pad_token_id
from betaedit.models.replay import ForwardEnded, hooks
from betaedit.paths import cache_folder
from betaedit.progress import Progress, SilentProgress
from betaedit.statistics.corpus import Corpus, Rows
from betaedit.statistics.lock import one_at_a_time
from betaedit.statistics.moments import FORMAT, Moments
from betaedit.statistics.origin import TEXT, identifying_fields

logger = logging.getLogger(__name__)

_TOKENS_PER_FORWARD = 2048
_SLOW_WRITE = 1.0
_WRITES_PER_TIME = 20  # a slow checkpoint may take a twentieth of the time
_BANDS = 4  # of five eighths of the products that a whole k k^T takes


@usual_gradients
def collect_moments(
    model: LanguageModel,
    layers: Sequence[int],
    corpus: Corpus,
    *,
    n_tokens: int,
    skip_first_token: bool = False,
    progress: Progress | None = None,
) -> Moments:
    """``C0`` of ``layers``: the mean of ``k k^T`` over ``n_tokens`` tokens of ``corpus`` (methods.md A.6).

    Products are float32 per forward pass, sums float64. The result is cached under a hash of the weights below the last
    layer, the corpus, the token count and the layers, not of the names of model and files; a run that was interrupted
    continues at its last checkpoint. If several processes need the same statistics, one collects and the others
    wait. The origin has a hash of the tokens that were read: text that a model samples differs between machines,
    and between numbers of threads.

    Args:
        model: The unedited model.
        layers: The layers whose MLP projection will be edited.
        corpus: Source of the tokens.
        n_tokens: Number of tokens; the last block is cut to it.
        skip_first_token: Leave each row's first token out; in many models it has a huge norm and dominates ``C0``.
        progress: Shows the progress.

    Raises:
        StatisticsError: The corpus has fewer tokens than the layers are wide, or the model's keys are not finite.
        OutputError: The cache cannot be written.
    """
    layers = sorted(layers)
    widths = {layer: projection_shape(model.anatomy.projection(layer))[1] for layer in layers}
    if n_tokens < max(widths.values()):
        raise StatisticsError(
            f"{n_tokens} tokens cannot describe {max(widths.values())} directions.",
            hint=f"Collect at least {10 * max(widths.values())} (statistics_tokens, --tokens).",
        )
    origin = {
        "model": model.name,
        "weights": model.fingerprint(layers[-1]),
        "corpus": corpus.label,
        "corpus_hash": corpus.fingerprint(model),
        "skip_first_token": str(skip_first_token),
    }
    decides = [FORMAT, identifying_fields(origin), n_tokens, layers]
    key = hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()[:24]
    file = cache_folder("moments") / f"{key}.safetensors"
    if not file.exists():
        with one_at_a_time(file.with_suffix(".lock")):
            if not file.exists():  # the process that held the lock may have made it
                partial = file.with_suffix(".partial")
                for path in (file, partial):
                    clear_unfinished(path)  # safe: the lock is held
                sums = Sums(partial, widths)
                _gather(model, sums, corpus, n_tokens, skip_first_token, progress or SilentProgress())
                moments = _means(sums, {**origin, TEXT: f"sha256:{sums.text}"})
                moments.save(file)
                sums.discard()
                return moments
    logger.info("statistics from the cache: %s", file)
    return Moments.load(file)


def _means(sums: Sums, origin: dict[str, str]) -> Moments:
    """The second moments.

    Raises:
        StatisticsError: There were fewer tokens than directions, or keys are not finite.
    """
    width = max(len(total) for total in sums.total.values())
    if sums.n_tokens < width:
        raise StatisticsError(
            f"the corpus has only {sums.n_tokens} tokens; {width} directions need more.",
            hint="Give more text, or use text sampled from the model (the default).",
        )
    moments = Moments({layer: sums.mean(layer) for layer in sorted(sums.total)}, sums.n_tokens, origin)
    for layer, matrix in moments.matrices.items():
        if not bool(torch.isfinite(matrix).all()):
            raise StatisticsError(
                f"the keys of layer {layer} are not finite: this model's computation overflows.",
                hint="Load it with another --dtype (bfloat16, float32), or check its weights.",
            )
    return moments


def _gather(
    model: LanguageModel, sums: Sums, corpus: Corpus, n_tokens: int, skip_first_token: bool, progress: Progress
) -> None:
    """Add blocks of the corpus, from the first one not yet counted, until the token budget is reached."""
    with progress.task("second moments", n_tokens, "tokens", done=sums.n_tokens) as task:
        for block in corpus.blocks(model, sums.n_blocks):
            before = sums.n_tokens
            sums.note(block)
            add_rows(model, sums, block, n_tokens, skip_first_token)
            task.advance(sums.n_tokens - before)
            if sums.n_tokens >= n_tokens:
                return
            sums.checkpoint()


class Sums:
    """Running sums of ``k k^T``, saved between blocks; symmetric, so only bands from the diagonal on are computed."""

    def __init__(self, file: Path, widths: dict[int, int]) -> None:
        self._file = file
        self.n_blocks = 0
        self.n_tokens = 0
        self.text = ""
        self._written_at = self._write_seconds = 0.0
        self.total = {layer: torch.zeros(width, width, dtype=torch.float64) for layer, width in widths.items()}
        if file.exists():
            try:
                saved = load_file(file)
                self.text = bytes(saved.pop("text").tolist()).hex()
            except (OSError, SafetensorError, KeyError):
                logger.warning("the checkpoint %s is damaged, or of an older version; starting again", file)
                return
            self.n_blocks, self.n_tokens = (int(value) for value in saved.pop("counts"))
            self.total = {int(layer): tensor for layer, tensor in saved.items()}

    def note(self, block: Rows) -> None:
        """Add a block of token ids to ``text``, the hexadecimal hash of all blocks."""
        self.text = hashlib.sha256(f"{self.text}{json.dumps(block)}".encode()).hexdigest()

    def add(self, layer: int, keys: Tensor) -> None:
        """Count the keys ``(n, d_in)`` of one forward pass."""
        total = self.total[layer]
        for band in torch.arange(len(total)).chunk(_BANDS):
            first, end = int(band[0]), int(band[-1]) + 1
            total[first:end, first:] += (keys[:, first:end].T @ keys[:, first:]).to(total)

    def mean(self, layer: int) -> Tensor:
        """``C0`` so far, float32."""
        upper = (self.total[layer] / max(self.n_tokens, 1)).float().triu_()
        return upper + upper.triu(1).T

    def checkpoint(self) -> None:
        """Save the sums so far; less often if writing is slow (gigabytes for wide models)."""
        started = time.monotonic()
        if self._write_seconds > _SLOW_WRITE and started < self._written_at + _WRITES_PER_TIME * self._write_seconds:
            return
        tensors = {str(layer): tensor for layer, tensor in self.total.items()}
        text = torch.tensor(list(bytes.fromhex(self.text)), dtype=torch.uint8)
        with file_errors(self._file, OutputError), atomic_write(self._file) as scratch:
            save_file({**tensors, "counts": torch.tensor([self.n_blocks, self.n_tokens]), "text": text}, scratch)
        self._written_at = time.monotonic()
        self._write_seconds = self._written_at - started

    def discard(self) -> None:
        """Delete the checkpoint."""
        self._file.unlink(missing_ok=True)


@torch.no_grad()
def add_rows(model: LanguageModel, sums: Sums, block: Rows, budget: int, skip_first: bool = False) -> None:
    """Count the keys of a block of token rows, up to ``budget`` tokens in all, in passes that end at the last layer."""
    for rows in batches(block):
        ids, mask = pad_rows(rows, pad_token_id(model.tokenizer))
        counted = mask.bool()
        if skip_first:
            counted[:, 0] = False
        chosen = counted.flatten().nonzero().squeeze(1)[: budget - sums.n_tokens]
        with _key_hooks(model, sums, chosen), suppress(ForwardEnded):
            model.anatomy.body(input_ids=ids.to(model.device), attention_mask=mask.to(model.device), use_cache=False)
        sums.n_tokens += len(chosen)
        if sums.n_tokens >= budget:
            return
    sums.n_blocks += 1


def batches(block: Rows) -> Iterator[Rows]:
    """Rows of similar length together, a bounded number of padded tokens each."""
    batch: Rows = []
    for row in sorted((row for row in block if row), key=len, reverse=True):
        if batch and len(batch[0]) * (len(batch) + 1) > _TOKENS_PER_FORWARD:
            yield batch
            batch = []
        batch.append(row)
    if batch:
        yield batch


@contextmanager
def _key_hooks(model: LanguageModel, sums: Sums, chosen: Tensor) -> Iterator[None]:
    last = max(sums.total)

    def hook(layer: int) -> Any:
        def collect(_: nn.Module, args: tuple[Tensor, ...]) -> None:
            keys = args[0].flatten(0, -2)
            sums.add(layer, keys[chosen.to(keys.device)].float())
            if layer == last:
                raise ForwardEnded

        return collect

    with hooks([model.anatomy.projection(layer).register_forward_pre_hook(hook(layer)) for layer in sums.total]):
        yield
