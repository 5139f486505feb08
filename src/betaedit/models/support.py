"""Live models that no edit can be written to as they are, refused before any work is done on them."""

from __future__ import annotations

from itertools import chain
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from betaedit.errors import ModelError

MERGE = "Merge it into the model (PeftModel.merge_and_unload), or give the base model."

# Told by name: importing FullyShardedDataParallel or torch._dynamo to ask takes a second.
_WRAPPERS = {
    "DataParallel": "model.module",
    "DistributedDataParallel": "model.module",
    "FullyShardedDataParallel": "the model from before it was sharded",
    "OptimizedModule": "the model from before torch.compile (model._orig_mod)",
}


def refuse_unsuitable(model: Any) -> None:
    """Refuse a model whose weights are not those it computes with, or that an edit cannot change.

    Raises:
        ModelError: It carries a PEFT adapter, is wrapped (parallel, compiled), is no transformers model, answers in
            tuples, or has weights that are not in memory (the meta device, offloading) or were made in
            ``torch.inference_mode``.
    """
    kind = type(model).__name__
    if _carries_adapter(model):
        raise ModelError("the model carries a PEFT adapter.", hint=MERGE)
    if (inner := _WRAPPERS.get(kind)) is not None:
        raise ModelError(f"the model is wrapped in {kind}.", hint=f"Give what it wraps: {inner}.")
    if not isinstance(model, PreTrainedModel):
        raise ModelError(f"{kind} is no model of transformers.", hint="Load one with AutoModelForCausalLM.")
    if not model.config.return_dict:  # generation by transformers fails on such a model, too
        raise ModelError(
            "the model answers in tuples: return_dict is false in its configuration.",
            hint='Set model.config.return_dict = True, or "return_dict": true in config.json.',
        )
    for name, tensor in chain(model.named_parameters(), model.named_buffers()):
        if tensor.is_meta:
            raise ModelError(
                f"the weights of the model are not in memory: {name} is on the meta device or offloaded.",
                hint="Load all of it onto devices: without device_map, or with one that offloads nothing.",
            )
        if tensor.is_inference():
            raise ModelError(
                f"the model was made within torch.inference_mode ({name} was), so nothing can be sought with it.",
                hint="Load the model outside of torch.inference_mode.",
            )


def _carries_adapter(model: Any) -> bool:
    """Whether peft has put anything into it, or transformers has on its behalf."""
    modules = model.modules() if isinstance(model, nn.Module) else ()
    return bool(getattr(model, "_hf_peft_config_loaded", False)) or any(
        type(module).__module__.partition(".")[0] == "peft" for module in modules
    )
