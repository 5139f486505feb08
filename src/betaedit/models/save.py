"""Saves a model as a Hugging Face folder that loads as the same model."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from betaedit.errors import ModelError
from betaedit.models.load import LanguageModel

_WEIGHTS, _INDEX, _ADAPTER = "model.safetensors", "model.safetensors.index.json", "adapter_config.json"


def check_can_be_saved(model: LanguageModel, folder: Path) -> None:
    """Refuse a model that would not be the same after saving and loading.

    Args:
        model: The model.
        folder: Where it is to go; there may be files in it.

    Raises:
        ModelError: Something is attached to the model, it frames its prompts, or an adapter in ``folder`` would be
            loaded with it.
    """
    if model.frame is not None:
        raise ModelError(
            f"{model.name} puts facts that are kept as text before its prompts, and a folder of weights has no place "
            "for them.",
            hint="Keep its run with --out, or save what a method without them wrote.",
        )
    if (folder / _ADAPTER).exists():
        raise ModelError(
            f"{folder} holds {_ADAPTER}: transformers would load that adapter with the saved model.",
            hint="Name another folder.",
        )
    with torch.device("meta"):
        plain = type(model.model)(copy.deepcopy(model.model.config))
    if differing := sorted(model.model.state_dict().keys() ^ plain.state_dict().keys()):
        raise ModelError(
            f"{model.name} cannot be saved: it has modules, such as an adapter, that are not in its configuration "
            f"({len(differing)} weights differ, {differing[0]} among them).",
            hint="Merge or remove the adapter, then save again; the edits are still in the model.",
        )


def save_language_model(model: LanguageModel, folder: Path, edited: Iterable[str]) -> None:
    """Write model and tokenizer as a Hugging Face folder, and check that the edited weights are in its files.

    Args:
        model: The model.
        folder: An empty one.
        edited: Paths of the modules whose weights are edited.

    Raises:
        ModelError: transformers refuses to save it, or an edited weight in the files differs from memory.
        OSError: A file cannot be written.
        SafetensorError: A file cannot be written.
    """
    try:
        model.model.save_pretrained(folder)
    except (RuntimeError, ValueError) as error:
        raise ModelError(f"{model.name} cannot be saved: {error}") from error
    try:
        model.tokenizer.save_pretrained(folder)
    except Exception as error:
        if type(error) is Exception:  # the tokenizers library reports system errors this way
            raise OSError(str(error)) from error
        raise
    for module in edited:
        path = f"{module}.weight"
        weight = model.model.get_parameter(path).detach().cpu()
        tail = path.removeprefix(model.anatomy.layers_path)  # some checkpoints have other names above the layers
        if not any(_is_same(weight, found) for found in _saved(folder, path, tail)):
            raise ModelError(
                f"{model.name} cannot be saved: the weight {path} in the files differs from memory.",
                hint="Save again; if that fails, export the edits as factors (`betaedit export --to factors`).",
            )


def _saved(folder: Path, path: str, tail: str) -> Iterator[Tensor]:
    """The tensors of the files that a weight may have become: that of its name, or those of the same end of it."""
    with ExitStack() as opened:
        files = [opened.enter_context(safe_open(file, framework="pt")) for file in _weight_files(folder)]
        held = {name: file for file in files for name in file.keys()}  # noqa: SIM118 - no mapping
        for name in [path] if path in held else [name for name in held if name.endswith(tail)]:
            yield held[name].get_tensor(name)


def _weight_files(folder: Path) -> list[Path]:
    """The files that transformers will read the weights from."""
    if (folder / _WEIGHTS).is_file():
        return [folder / _WEIGHTS]
    if not (folder / _INDEX).is_file():
        return []
    index = json.loads((folder / _INDEX).read_text(encoding="utf-8"))
    return [folder / name for name in sorted(set(index["weight_map"].values()))]


def _is_same(weight: Tensor, found: Tensor) -> bool:
    """Whether they are the same, bit for bit."""
    if (weight.dtype, weight.shape) != (found.dtype, found.shape):
        return False
    return torch.equal(weight.contiguous().view(torch.uint8), found.contiguous().view(torch.uint8))
