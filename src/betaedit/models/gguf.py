"""Models in GGUF files, as ordinary Hugging Face folders in the cache.

transformers reads GGUF but refuses to save what it read, so the weights are copied once into an ordinary model of the
same configuration. Quantized weights become what they stand for: an edited model is not quantized again.
"""

from __future__ import annotations

import hashlib
import logging
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from betaedit.errors import ModelError, OutputError
from betaedit.files import atomic_folder, file_errors
from betaedit.paths import cache_folder

logger = logging.getLogger(__name__)

_MAGIC = b"GGUF"
_BLOCK = 2**20


def gguf_folder(parts: Sequence[Path], name: str, *, damaged: str) -> Path:
    """The model of a GGUF file as a Hugging Face folder, converted on first use (half a minute to a few minutes).

    Args:
        parts: The file, or the pieces that make it up, in order.
        name: What the folder's name begins with; the rest of it follows from the content.
        damaged: What to do about a file that cannot be read.

    Raises:
        ModelError: It is no GGUF file, or cannot be converted.
        OutputError: The cache cannot be written.
    """
    with parts[0].open("rb") as file:
        if file.read(len(_MAGIC)) != _MAGIC:
            raise ModelError(f"{parts[0]} is not a GGUF file.", hint=damaged)
    folder = cache_folder("models") / f"{name}-{_digest(parts)[:12]}"
    if not (folder / "config.json").exists():
        logger.info("converting %s into %s (once)", parts[0].name, folder)
        _convert(parts, folder, damaged)
    return folder


def _digest(parts: Sequence[Path]) -> str:
    digest = hashlib.sha256()
    for part in parts:
        with part.open("rb") as file:
            while block := file.read(_BLOCK):
                digest.update(block)
    return digest.hexdigest()


def _convert(parts: Sequence[Path], folder: Path, damaged: str) -> None:
    """Convert in one step, so that a crash leaves no half model."""
    try:
        with (
            file_errors(folder, OutputError),
            atomic_folder(folder) as scratch,
            tempfile.TemporaryDirectory(dir=scratch) as joining,
        ):
            _rewrite(_joined(parts, Path(joining)), scratch)
    except Exception as error:
        if (folder / "config.json").exists():  # another process was faster
            return
        if isinstance(error, OutputError) and getattr(error.__cause__, "errno", 0) is not None:
            raise  # errors without a number are those of transformers, about what it reads
        raise ModelError(f"{parts[0]} cannot be converted: {error}", hint=damaged) from error


def _joined(parts: Sequence[Path], folder: Path) -> Path:
    """The one file, or the pieces put together in ``folder``."""
    if len(parts) == 1:
        return parts[0]
    whole = folder / "joined.gguf"
    with whole.open("wb") as target:
        for part in parts:
            with part.open("rb") as file:
                shutil.copyfileobj(file, target, _BLOCK)
    return whole


def _rewrite(source: Path, folder: Path) -> None:
    """Read a GGUF file and save its model and tokenizer."""
    place: dict[str, Any] = {
        "pretrained_model_name_or_path": str(source.parent),
        "gguf_file": source.name,
        "trust_remote_code": False,
    }
    tokenizer = AutoTokenizer.from_pretrained(**place)
    quantized = AutoModelForCausalLM.from_pretrained(**place, dtype=torch.float32)
    settings = quantized.config.to_dict()
    settings.pop("quantization_config", None)
    config = AutoConfig.for_model(settings.pop("model_type"), **settings)
    plain: Any = AutoModelForCausalLM.from_config(config, dtype=torch.float32)  # type: ignore[no-untyped-call]
    plain.load_state_dict(quantized.state_dict())
    plain.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
