"""The change of the edited matrices as a LoRA adapter for peft and inference servers.

The format is three small files with fixed keys, written here directly: peft is needed only to load an adapter. An
editor whose edits are an adapter writes that one (``save_own_adapter``).
"""

from __future__ import annotations

import json
import logging
import shlex
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from betaedit.editors.matrix import EditedMatrix
from betaedit.editors.method import HasAdapter
from betaedit.errors import OutputError
from betaedit.evaluation.metrics import Figure, measure_edits
from betaedit.facts.fact import EvaluationCase
from betaedit.files import atomic_folder, file_errors
from betaedit.ledger.export_card import Provenance, write_card
from betaedit.ledger.export_rank import Decomposition, decompose
from betaedit.memory.update import Update
from betaedit.models.anatomy import is_transposed
from betaedit.models.load import LanguageModel
from betaedit.progress import Progress

logger = logging.getLogger(__name__)

_CONFIG_FILE = "adapter_config.json"
SERVER_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""Values that vLLM accepts for ``--max-lora-rank``; it refuses adapters of a higher rank."""

_LOAD = """\
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained({base!r}, dtype={dtype!r})  # the unedited model
model = PeftModel.from_pretrained(model, {folder!r})  # this folder
tokenizer = AutoTokenizer.from_pretrained({base!r})"""


@dataclass(frozen=True)
class LayerTruncation:
    """The truncation of one layer's change.

    Args:
        sufficient_rank: The smallest rank that loses only rounding.
        relative_error: Norm of the truncated part, relative to the change.
        kept_energy: Share of the squared norm that is kept.
    """

    sufficient_rank: int
    relative_error: float
    kept_energy: float


@dataclass(frozen=True)
class AdapterReport:
    """The properties of an adapter.

    Args:
        base: The unedited model, by the name that transformers and servers load.
        rank: Rank of all layers; lower ranks are padded.
        sufficient_rank: The smallest rank that loses only rounding.
        server_rank: The smallest ``--max-lora-rank`` that serves it; ``None`` above the largest.
        layers: The truncation of each layer; empty for the method's own adapter.
        edited: Efficacy of the edited model itself.
        exported: Efficacy with the truncated change.
        peft_type: What peft calls its kind; servers take ``LORA``.
    """

    base: str
    rank: int
    sufficient_rank: int
    server_rank: int | None
    layers: dict[int, LayerTruncation]
    edited: Figure
    exported: Figure
    peft_type: str = "LORA"

    def to_dict(self) -> dict[str, Any]:
        """The report as plain data."""
        return asdict(self)

    def serving_command(self, folder: Path) -> str | None:
        """The command by which vLLM serves the adapter in ``folder``; ``None`` if its rank is too large."""
        return None if self.server_rank is None else _serving_command(self.base, folder, self.server_rank)


def save_adapter(
    model: LanguageModel,
    changes: Mapping[int, Tensor],
    folder: str | Path,
    provenance: Provenance,
    *,
    rank: int | None = None,
    for_servers: bool = False,
    progress: Progress | None = None,
) -> AdapterReport:
    """Write the changes as a LoRA adapter for the unedited model.

    Efficacy is measured on the facts of ``provenance`` with the truncated change; the weights are then restored.

    Args:
        model: The edited model.
        changes: ``W_t - W_0`` (d_out, d_in) by layer.
        folder: The folder to write.
        provenance: For the card.
        rank: Default: the smallest that loses only rounding.
        for_servers: Round the rank up to one of ``SERVER_RANKS``.
        progress: Shows the progress.

    Raises:
        OutputError: The folder cannot be written.
    """
    parts = {layer: decompose(change) for layer, change in changes.items()}
    enough = {layer: found.sufficient_rank(model.anatomy.projection(layer)) for layer, found in parts.items()}
    chosen = rank or max(enough.values())
    if for_servers:
        chosen = server_rank(chosen) or chosen
    if chosen > SERVER_RANKS[-1]:
        logger.warning("rank %d is above %d, the limit of servers: export the model.", chosen, SERVER_RANKS[-1])
    updates = {layer: found.cut(chosen) for layer, found in parts.items()}
    path, limit = Path(folder), server_rank(chosen)
    with file_errors(path, OutputError), atomic_folder(path) as scratch:
        _write_adapter(model, updates, chosen, scratch)
        _write_card(model, path, scratch, provenance, limit)
    cases = [EvaluationCase(fact) for fact in provenance.facts]
    edited = measure_edits(model, cases, progress=progress).efficacy
    with truncated(model, changes, updates):
        exported = measure_edits(model, cases, progress=progress).efficacy
    layers = {layer: _truncation(found, enough[layer], chosen) for layer, found in parts.items()}
    return AdapterReport(model.address, chosen, max(enough.values()), limit, layers, edited, exported)


def save_own_adapter(
    model: LanguageModel,
    editing: HasAdapter,
    folder: str | Path,
    provenance: Provenance,
    *,
    progress: Progress | None = None,
) -> AdapterReport:
    """Write the adapter that the editor trained, as it is, for the unedited model.

    Args:
        model: The edited model.
        editing: Its editor.
        folder: Where it goes.
        provenance: For the card.
        progress: Where to draw.

    Raises:
        OutputError: The folder cannot be written.
    """
    path = Path(folder)
    with file_errors(path, OutputError), atomic_folder(path) as scratch:
        rank = editing.save_adapter(scratch)
        kind = json.loads((scratch / _CONFIG_FILE).read_text(encoding="utf-8"))["peft_type"]
        limit = server_rank(rank) if kind == "LORA" else None
        _write_card(model, path, scratch, provenance, limit)
    cases = [EvaluationCase(fact) for fact in provenance.facts]
    efficacy = measure_edits(model, cases, progress=progress).efficacy
    return AdapterReport(model.address, rank, rank, limit, {}, efficacy, efficacy, kind)


def server_rank(rank: int) -> int | None:
    """The smallest of ``SERVER_RANKS`` not below ``rank``; ``None`` if there is none."""
    return next((limit for limit in SERVER_RANKS if limit >= rank), None)


def _write_card(model: LanguageModel, folder: Path, scratch: Path, provenance: Provenance, limit: int | None) -> None:
    """The card of an adapter that is to lie in ``folder``; ``limit`` is the rank that servers are set to."""
    place, dtype = folder.resolve(), str(model.model.dtype).removeprefix("torch.")
    serving = None if limit is None else _serving_command(model.address, place, limit)
    usage = _LOAD.format(base=model.address, dtype=dtype, folder=str(place))
    write_card(scratch, provenance, library="peft", usage=usage, serving=serving)


def _serving_command(base: str, folder: Path, limit: int) -> str:
    """The vLLM command; requests use the adapter's name as their model."""
    module = shlex.quote(f"{folder.resolve().name.replace('=', '-')}={folder.resolve()}")
    return f"vllm serve {shlex.quote(base)} --enable-lora --lora-modules {module} --max-lora-rank {limit}"


@contextmanager
def truncated(model: LanguageModel, changes: Mapping[int, Tensor], updates: Mapping[int, Update]) -> Iterator[None]:
    """A context in which the edited ``model`` has ``updates`` instead of ``changes``."""
    matrices = {layer: EditedMatrix(model.anatomy.projection(layer)) for layer in changes}
    kept = {layer: matrix.snapshot() for layer, matrix in matrices.items()}
    try:
        for layer, matrix in matrices.items():
            matrix.add_dense((updates[layer].dense() - changes[layer].double()).float())
        yield
    finally:
        for layer, matrix in matrices.items():
            matrix.restore(kept[layer])


def _truncation(parts: Decomposition, enough: int, rank: int) -> LayerTruncation:
    error = parts.relative_error(rank)
    return LayerTruncation(sufficient_rank=enough, relative_error=error, kept_energy=1 - error**2)


def _write_adapter(model: LanguageModel, updates: Mapping[int, Update], rank: int, folder: Path) -> None:
    anatomy = model.anatomy
    paths = {layer: anatomy.projection_path(layer) for layer in updates}
    tensors = {}
    for layer, update in updates.items():
        name = f"base_model.model.{paths[layer]}"
        tensors[f"{name}.lora_A.weight"] = _filled(update.right, rank).T.contiguous()
        tensors[f"{name}.lora_B.weight"] = _filled(update.left, rank)
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": model.address,
        "inference_mode": True,
        "r": rank,
        "lora_alpha": rank,  # the adapter's scale is lora_alpha / r
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": any(is_transposed(anatomy.projection(layer)) for layer in updates),
        "target_modules": list(paths.values()),
        "use_rslora": False,
        "use_dora": False,
    }
    (folder / _CONFIG_FILE).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def _filled(factor: Tensor, rank: int) -> Tensor:
    """A factor padded with zero columns to ``rank``, float32: servers read one rank for all layers."""
    return torch.nn.functional.pad(factor, (0, rank - factor.shape[1])).float().contiguous()
