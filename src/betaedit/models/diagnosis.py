"""Finds out from a model's folder why it cannot be loaded, and gives a hint for each cause.

Hints suggest to delete only what this package made itself: a folder may hold the only copy of a model.
"""

from __future__ import annotations

import importlib.util
import json
import sys
import zipfile
from pathlib import Path

import transformers
from safetensors import SafetensorError, safe_open
from transformers import CONFIG_MAPPING, PreTrainedConfig

from betaedit.errors import ModelError, ModelNotFoundError
from betaedit.models.bundled import BUNDLES, DEFAULT_MODEL

_VOCABULARIES = ("tokenizer.json", "*.model", "*.tiktoken", "*.spm", "*vocab*", "tekken.json")
_TOKENIZER_SETTINGS = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
_WEIGHTS = ("*.safetensors", "*.bin")
_TOKENIZER_LIBRARIES = {"sentencepiece": "sentencepiece", "tiktoken": "tiktoken", "protobuf": "google.protobuf"}
_LARGE_FILE_POINTER = b"version https://git-lfs"


def why_no_configuration(name: str, place: str, error: Exception) -> ModelError:
    """The error for a configuration that could not be read.

    Args:
        name: What the user called the model.
        place: The folder or hub id that this means.
        error: What transformers said.
    """
    if _wants_own_code(error):
        return _own_code(name)
    try:
        settings, _ = PreTrainedConfig.get_config_dict(place)
    except Exception:  # anything: what reads it does so to find out more than ``error`` says
        settings = None
    kind = (settings or {}).get("model_type")
    if kind is not None and kind not in CONFIG_MAPPING:
        saved = (settings or {}).get("transformers_version")
        by = f" ({name!r} was saved with {saved})" if saved else ""
        return ModelError(
            f"the model type {kind!r} is not known to transformers {transformers.__version__}{by}.",
            hint=f"Update transformers: {sys.executable} -m pip install --upgrade transformers.",
        )
    if Path(place).is_dir():
        said = f"the configuration of {name!r} cannot be read: {first_line(error)}"
        return ModelError(said, hint=_damaged(name, place, "config.json is incomplete or damaged"))
    return ModelNotFoundError(
        f"no model {name!r}: {first_line(error)}",
        hint=f"There is no such folder here. Use {DEFAULT_MODEL!r}, a local folder, or a Hugging Face id that this "
        "machine can reach.",
    )


def why_no_tokenizer(name: str, place: str, error: Exception) -> ModelError:
    """The error for a tokenizer that could not be read; arguments as for the configuration."""
    if _wants_own_code(error):
        return _own_code(name)
    if lacks_tokenizer(place):
        return no_tokenizer(name, place)
    said = f"the tokenizer of {name!r} cannot be read: {first_line(error)}"
    if absent := [
        library
        for library, module in _TOKENIZER_LIBRARIES.items()
        if library in str(error).lower() and not _is_installed(module)
    ]:
        return ModelError(
            said, hint=f"Install the missing packages: {sys.executable} -m pip install {' '.join(absent)}."
        )
    files = _found(place, (*_VOCABULARIES, *_TOKENIZER_SETTINGS))
    if broken := [file.name for file in files if file.suffix == ".json" and not _is_json(file)]:
        return ModelError(said, hint=_damaged(name, place, f"{broken[0]} is incomplete or damaged"))
    return ModelError(said, hint=_damaged(name, place, "Update transformers and tokenizers, or a file is damaged"))


def lacks_tokenizer(place: str) -> bool:
    """Whether ``place`` is a folder without a vocabulary; for some families transformers makes an empty vocabulary."""
    return Path(place).is_dir() and not _found(place, _VOCABULARIES)


def no_tokenizer(name: str, place: str) -> ModelError:
    """The error for a folder without a tokenizer."""
    if _is_converted(name, place):
        return ModelError(f"{place} has no tokenizer.", hint=_damaged(name, place, ""))
    return ModelError(
        f"the folder {place} has no tokenizer.",
        hint="Save it there too: tokenizer.save_pretrained(folder), with the tokenizer that the model was made with.",
    )


def why_no_weights(name: str, place: str, error: Exception) -> ModelError:
    """The error for weights that could not be read; arguments as for the configuration."""
    if _wants_own_code(error):
        return _own_code(name)
    if Path(place).is_dir() and (wrong := _wrong_weights(Path(place), error)):
        return ModelError(f"the weights of {name!r} cannot be read: {wrong}.", hint=_damaged(name, place, ""))
    return ModelError(
        f"the weights of {name!r} cannot be read: {first_line(error)}",
        hint=_damaged(name, place, "If a file is incomplete or damaged"),
    )


def missing_weights(name: str, place: str, missing: list[str]) -> ModelError:
    """The error for weights of which some are in no file: transformers fills them with random numbers."""
    return ModelError(
        f"{name!r} lacks {len(missing)} of its weights, {missing[0]} among them.",
        hint=_damaged(name, place, "The files of its weights are incomplete"),
    )


def first_line(error: BaseException) -> str:
    """The message of the error, in one line."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def _wants_own_code(error: Exception) -> bool:
    return "trust_remote_code" in str(error)


def _own_code(name: str) -> ModelError:
    return ModelError(
        f"{name!r} needs its own code (auto_map), which is not run; only families known to transformers are supported.",
        hint="Update transformers if a newer version knows the family, or choose another model.",
    )


def _wrong_weights(folder: Path, error: Exception) -> str | None:
    """The problem of the weight files, if it can be found without loading them."""
    for index in _found(folder, ("*.index.json",)):
        if not _is_json(index):
            return f"{index.name} is incomplete or damaged"
        shards = set(json.loads(index.read_bytes()).get("weight_map", {}).values())
        if absent := sorted(shard for shard in shards if not (folder / shard).is_file()):
            return f"{absent[0]} is missing ({len(absent)} of {len(shards)} files)"
    files = _found(folder, _WEIGHTS)
    if not files:
        return "the folder has no file of them (such as model.safetensors)"
    if found := next(filter(None, map(_wrong_file, files)), None):
        return found
    if "ignore_mismatched_sizes" in str(error):
        return "they have other shapes than config.json says, so one of these files is of another model or damaged"
    return None


def _wrong_file(file: Path) -> str | None:
    with file.open("rb") as opened:
        if opened.read(len(_LARGE_FILE_POINTER)) == _LARGE_FILE_POINTER:
            return f"{file.name} is only a Git LFS pointer (git lfs pull downloads the file)"
    return None if _is_whole(file) else f"{file.name} is incomplete or damaged"


def _is_whole(file: Path) -> bool:
    """Whether a weight file looks complete, by its header and its length or end."""
    if file.suffix != ".safetensors":
        return zipfile.is_zipfile(file)
    try:
        with safe_open(file, framework="pt"):
            return True
    except (OSError, SafetensorError):
        return False


def _is_json(file: Path) -> bool:
    try:
        return isinstance(json.loads(file.read_bytes()), dict | list)
    except ValueError:
        return False


def _is_installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # not even the package around it
        return False


def _found(place: str | Path, patterns: tuple[str, ...]) -> list[Path]:
    return sorted({file for pattern in patterns for file in Path(place).glob(pattern)})


def _is_converted(name: str, place: str) -> bool:
    """Whether ``place`` is a folder that this package converted into its cache, from a wheel or a GGUF file."""
    return name in BUNDLES or Path(name).expanduser().is_file()


def _damaged(name: str, place: str, cause: str) -> str:
    """The hint for an incomplete file; ``cause`` begins the sentence."""
    start = f"{cause}: " if cause else ""
    if _is_converted(name, place):
        return f"{start}Remove only this folder of the cache, {place}; the next run converts {name!r} into it again."
    if Path(place).is_dir():
        get = "get that file again from where the model came from, and keep the rest of the folder."
        return f"{start}{get}" if start else get.capitalize()
    return "Connect this machine to the network and load it again, or give a local folder."
