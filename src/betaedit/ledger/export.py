"""Edited models and raw factors as files; adapters are in ``export_adapter``."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

from betaedit.editors.editor import Editor
from betaedit.errors import OutputError
from betaedit.files import atomic_write, file_errors
from betaedit.ledger.export_card import BeforeAndAfter, Provenance, write_card
from betaedit.ledger.export_rank import decompose
from betaedit.models.load import LanguageModel

_LOAD = """\
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained({folder!r})  # this folder
tokenizer = AutoTokenizer.from_pretrained({folder!r})"""


def provenance_of(editor: Editor, figures: Mapping[str, BeforeAndAfter]) -> Provenance:
    """The provenance of an editor's model, for the card of an export."""
    facts = [result.fact for result in editor.results]
    return Provenance(editor.language_model.name, editor.method.name, facts, figures)


def changes_of(editor: Editor) -> dict[int, Tensor]:
    """``W_t - W_0`` (d_out, d_in) of every edited layer.

    Raises:
        MethodError: The method changes no matrices.
    """
    matrices = editor.matrices("be exported as a change of weights")
    return {layer: matrix.change() for layer, matrix in matrices.items()}


def save_model(editor: Editor, folder: str | Path, figures: Mapping[str, BeforeAndAfter]) -> Path:
    """The edited model as a Hugging Face folder: weights, tokenizer, ``betaedit.json``, facts and a card.

    Args:
        editor: Holds the edited model.
        folder: The folder to write.
        figures: For the card.

    Raises:
        ModelError: Reloading would give another model (see ``Editor.save_pretrained``).
        OutputError: The folder cannot be written.
    """
    path = Path(folder)
    usage = _LOAD.format(folder=str(path.resolve()))
    with editor.saved_into(path) as scratch:
        write_card(scratch, provenance_of(editor, figures), library="transformers", usage=usage)
    return path


def save_factors(model: LanguageModel, changes: Mapping[int, Tensor], file: str | Path) -> dict[int, int]:
    """Every change as two factors in a safetensors file: ``W_t - W_0`` is ``left @ right.T``. Returns their ranks.

    Tensors are named ``LAYER.left`` (d_out, r) and ``LAYER.right`` (d_in, r); the metadata name the model and, as JSON,
    the module that each layer's change belongs to. Each layer has its own sufficient rank.

    Args:
        model: The edited model.
        changes: ``W_t - W_0`` (d_out, d_in) by layer.
        file: The file to write.

    Raises:
        OutputError: The file cannot be written.
    """
    tensors: dict[str, Tensor] = {}
    ranks: dict[int, int] = {}
    for layer, change in changes.items():
        parts = decompose(change)
        ranks[layer] = parts.sufficient_rank(model.anatomy.projection(layer))
        factors = parts.cut(ranks[layer])
        tensors[f"{layer}.left"] = factors.left.float().contiguous()
        tensors[f"{layer}.right"] = factors.right.float().contiguous()
    modules = {str(layer): model.anatomy.projection_path(layer) for layer in changes}
    path = Path(file)
    with file_errors(path, OutputError), atomic_write(path) as scratch:
        save_file(tensors, scratch, metadata={"model": model.name, "modules": json.dumps(modules)})
    return ranks
