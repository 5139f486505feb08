"""Checks that refuse a model that cannot be edited, before any work is done."""

from __future__ import annotations

from functools import partial
from itertools import chain
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from betaedit.errors import ModelError
from betaedit.models.anatomy import Anatomy
from betaedit.models.lookup import EncodedPrompts
from betaedit.models.packing import Pack
from betaedit.models.prefix_cache import compute_prefix
from betaedit.models.replay import Recording, record, run_layers

MERGE = "Merge it into the model (PeftModel.merge_and_unload), or give the base model."

# Told by name: importing FullyShardedDataParallel or torch._dynamo to ask takes a second.
_WRAPPERS = {
    "DataParallel": "model.module",
    "DistributedDataParallel": "model.module",
    "FullyShardedDataParallel": "the model from before it was sharded",
    "OptimizedModule": "the model from before torch.compile (model._orig_mod)",
}

_TOLERANCE = 0.02
_ROUNDINGS = 4.0


def refuse_unsuitable(model: Any) -> None:
    """Refuse a model that does not compute with its own weights, or whose weights cannot be changed.

    Raises:
        ModelError: It has a PEFT adapter, is wrapped (parallel, compiled), is not a transformers model, answers in
            tuples, or has weights that are not in memory (the meta device, offloading) or were made in
            ``torch.inference_mode``.
    """
    kind = type(model).__name__
    if _carries_adapter(model):
        raise ModelError("the model has a PEFT adapter.", hint=MERGE)
    if (inner := _WRAPPERS.get(kind)) is not None:
        raise ModelError(f"the model is wrapped in {kind}.", hint=f"Pass the inner model: {inner}.")
    if not isinstance(model, PreTrainedModel):
        raise ModelError(f"{kind} is not a transformers model.", hint="Load one with AutoModelForCausalLM.")
    if not model.config.return_dict:  # generation by transformers fails on such a model, too
        raise ModelError(
            "the model answers in tuples: return_dict is false in its configuration.",
            hint='Set model.config.return_dict = True, or "return_dict": true in config.json.',
        )
    for name, tensor in chain(model.named_parameters(), model.named_buffers()):
        if tensor.is_meta:
            raise ModelError(
                f"the weights of the model are not in memory: {name} is on the meta device or offloaded.",
                hint="Load all of it onto devices: without device_map, or with one that does not offload.",
            )
        if tensor.is_inference():
            raise ModelError(
                f"the model was created in torch.inference_mode ({name} was), so values cannot be searched with it.",
                hint="Load the model outside of torch.inference_mode.",
            )


def _carries_adapter(model: Any) -> bool:
    """Whether it has adapter modules of peft, also those added by transformers."""
    modules = model.modules() if isinstance(model, nn.Module) else ()
    return bool(getattr(model, "_hf_peft_config_loaded", False)) or any(
        type(module).__module__.partition(".")[0] == "peft" for module in modules
    )


@torch.no_grad()
def check_replay(anatomy: Anatomy) -> None:
    """Refuse a model whose layers on a subset of the positions, or whose logits, differ from its full forward pass.

    This happens with ALiBi, masks built inside the layers, and modules between the last layer and the head unknown
    to ``Anatomy``.

    Raises:
        ModelError: The model differs, or its logits are not finite.
    """
    device = anatomy.model.get_input_embeddings().get_parameter("weight").device
    ids = torch.arange(16, device=device).view(2, 8) % anatomy.model.config.get_text_config().vocab_size
    mask = torch.ones_like(ids)
    mask[1, 6:] = 0
    prompts = EncodedPrompts(ids, mask, torch.tensor([5, 1], device=device))
    try:
        recording = record(anatomy, prompts, run=anatomy.n_layers, keep=tuple(range(anatomy.n_layers + 1)))
        _check_logits(anatomy, recording)
        _check_layers(anatomy, recording)
    except ModelError:
        raise
    except Exception as error:  # layers of some families fail when called alone
        raise _refused(anatomy) from error


def _check_layers(anatomy: Anatomy, recording: Recording) -> None:
    """Check each layer from its input in the full pass, so that rounding does not accumulate over layers."""
    prompts = recording.prompts
    both = torch.arange(2, device=prompts.lookup.device)[None]
    prefix = Pack.of(both, torch.zeros_like(prompts.lookup), prompts.lookup)
    suffix = Pack.of(both, prompts.lookup, prompts.lengths)
    run = partial(run_layers, anatomy)
    for layer in range(anatomy.n_layers):
        entering, leaving = (suffix.gather(recording.inputs[at]) for at in (layer, layer + 1))
        one = range(layer, layer + 1)
        calls = suffix.calls(recording, one, compute_prefix(recording, prefix, one, run), prefix)
        found = run(calls, entering, layer, layer)
        added = (leaving - entering.to(leaving.device)).float().norm(dim=2)
        rounded = _ROUNDINGS * torch.finfo(leaving.dtype).eps * leaving.float().norm(dim=2)
        wrong = (found.to(leaving.device) - leaving).float().norm(dim=2) > _TOLERANCE * added + rounded
        if bool(wrong.any()) or not bool(torch.isfinite(found).all()):
            raise _refused(anatomy)


def _check_logits(anatomy: Anatomy, recording: Recording) -> None:
    prompts, last = recording.prompts, recording.inputs[anatomy.n_layers]
    real = prompts.attention_mask.bool()
    logits = anatomy.model(input_ids=prompts.input_ids, attention_mask=prompts.attention_mask).logits
    theirs = logits[real.to(logits.device)].float()
    if not bool(torch.isfinite(theirs).all()):
        raise ModelError(
            f"the logits of {type(anatomy.model).__name__} are not finite in {last.dtype}.",
            hint="Load it with another --dtype (bfloat16, float32), or check its weights.",
        )
    ours = anatomy.logits(last)[real.to(logits.device)].to(theirs)
    if bool(((ours - theirs).norm(dim=1) > _TOLERANCE * theirs.norm(dim=1)).any()):
        raise ModelError(
            f"the logits of {type(anatomy.model).__name__} are not those of its norm and head.",
            hint="This family is not supported; report its name with `betaedit env`.",
        )


def _refused(anatomy: Anatomy) -> ModelError:
    return ModelError(
        f"the layers of {type(anatomy.model).__name__} cannot be run on a subset of the positions.",
        hint="Models with ALiBi or their own masks (BLOOM, MPT, GPT-Neo) are not supported.",
    )
