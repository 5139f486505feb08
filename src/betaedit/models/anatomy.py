"""The parts of a causal language model that editing needs, found in its module tree.

Decides which matrices are the MLP output projections, which module ends the network and how hidden states become
logits. The tree answers for the supported families (GPT-2, GPT-J, GPT-NeoX, Llama, Mistral, Qwen, Gemma, Phi, OLMo);
the names in ``OUTPUT_NAMES`` only break ties. Orientation comes from the module's type, never from a shape.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from betaedit.errors import AnatomyError, UnsupportedMatrixError
from betaedit.models.output_names import OUTPUT_NAMES

_NORMS_AFTER_MLP = ("post_feedforward_layernorm", "post_mlp_layernorm")
_EXPERT_NAMES = ("experts", "expert")
_MATRIX = 2


@dataclass(frozen=True)
class Anatomy:
    """Where the editable parts of one loaded model are.

    Modules are looked up on each access, because some calls replace them: ``resize_token_embeddings``, for example,
    replaces the head.

    Args:
        model: The causal language model.
        layers_path: The place of its decoder blocks in the module tree, such as ``model.layers``.
        norm_path: The place of the norm after the last block.
        hidden_size: Width of the residual stream (``d_out`` of the edited matrices).
    """

    model: PreTrainedModel
    layers_path: str
    norm_path: str
    hidden_size: int

    @property
    def layers(self) -> nn.ModuleList:
        """The decoder blocks, in order."""
        return cast(nn.ModuleList, self.model.get_submodule(self.layers_path))

    @property
    def norm(self) -> nn.Module:
        """The norm after the last block."""
        return self.model.get_submodule(self.norm_path)

    @property
    def head(self) -> nn.Module:
        """The map from normed hidden states to logits."""
        return cast(nn.Module, self.model.get_output_embeddings())  # type: ignore[no-untyped-call]

    @property
    def body(self) -> Callable[..., Any]:
        """The model without its head: token ids to normed hidden states."""
        return cast(Callable[..., Any], self.model.base_model)

    @property
    def n_layers(self) -> int:
        """How many decoder blocks there are."""
        return len(self.layers)

    @property
    def head_is_tied(self) -> bool:
        """Whether the head shares its matrix with the input embedding."""
        return getattr(self.head, "weight", None) is getattr(self.model.get_input_embeddings(), "weight", ())

    @cached_property
    def family(self) -> str:
        """The model type that its configuration names, such as ``llama``."""
        return str(self.model.config.model_type)

    def projection_path(self, layer: int) -> str:
        """The path of block ``layer``'s MLP output projection in the module tree.

        Raises:
            AnatomyError: There is no such block, or its projection is ambiguous.
            UnsupportedMatrixError: The projection is quantized or one of several experts.
        """
        if not 0 <= layer < self.n_layers:
            raise AnatomyError(
                f"there is no layer {layer}: the model has layers 0 to {self.n_layers - 1}.",
                hint="Choose other layers with --set layers=[...].",
            )
        return f"{self.layers_path}.{layer}.{_find_projection(self.layers[layer], self.hidden_size, layer)}"

    def projection(self, layer: int) -> nn.Module:
        """Block ``layer``'s MLP output projection; errors as ``projection_path``."""
        return self.model.get_submodule(self.projection_path(layer))

    def norm_after_mlp(self, layer: int) -> nn.Module | None:
        """The norm of block ``layer``'s MLP output before the residual stream, if any."""
        parts = dict(self.layers[layer].named_children())
        return next((parts[name] for name in _NORMS_AFTER_MLP if name in parts), None)

    def logits(self, hidden: Tensor) -> Tensor:
        """Logits ``(..., vocabulary)`` of block outputs ``(..., hidden_size)``: norm, head and the family's scaling."""
        return self.head_logits(self.norm(hidden))

    def head_logits(self, normed: Tensor) -> Tensor:
        """Logits of hidden states that the final norm has already passed."""
        config = self.model.config.get_text_config()
        logits: Tensor = self.head(normed)
        if scaling := getattr(config, "logits_scaling", None):
            logits = logits / scaling
        if scale := getattr(config, "logit_scale", None):
            logits = logits * scale
        if cap := getattr(config, "final_logit_softcapping", None):
            logits = torch.tanh(logits / cap) * cap
        return logits


def find_anatomy(model: PreTrainedModel) -> Anatomy:
    """The anatomy of ``model``, from its module tree.

    Raises:
        AnatomyError: No decoder blocks, final norm or output head are found.
    """
    lists = [(path, m) for path, m in model.named_modules() if isinstance(m, nn.ModuleList) and _are_blocks(m)]
    if not lists:
        raise AnatomyError(
            f"no decoder layers are found in {type(model).__name__}.", hint="Only decoder-only causal models work."
        )
    path, _ = max(lists, key=lambda item: len(item[1]))
    if model.get_output_embeddings() is None:  # type: ignore[no-untyped-call]
        raise AnatomyError(f"{type(model).__name__} has no output head.", hint="Load a causal language model.")
    return Anatomy(
        model=model,
        layers_path=path,
        norm_path=_find_norm(model, path.rpartition(".")[0]),
        hidden_size=int(model.config.get_text_config().hidden_size),
    )


def is_transposed(projection: nn.Module) -> bool:
    """Whether the module stores its weight as ``(d_in, d_out)``, as GPT-2's ``Conv1D`` does."""
    return isinstance(projection, Conv1D)


def projection_shape(projection: nn.Module) -> tuple[int, int]:
    """``(d_out, d_in)`` of an MLP output projection, transposed or not."""
    rows, columns = projection.get_parameter("weight").shape
    return (columns, rows) if is_transposed(projection) else (rows, columns)


def _are_blocks(modules: nn.ModuleList) -> bool:
    return (
        len(modules) > 0
        and len({type(m) for m in modules}) == 1
        and any("attn" in n or "attention" in n for n, _ in modules[0].named_children())
    )


def _find_norm(model: nn.Module, path: str) -> str:
    parent = model.get_submodule(path)
    norms = [name for name, m in parent.named_children() if "norm" in type(m).__name__.lower()]
    if not norms:
        raise AnatomyError(
            f"no final norm is found in {type(parent).__name__}.", hint="Report the model's name with `betaedit env`."
        )
    return f"{path}.{norms[-1]}" if path else norms[-1]


def _find_projection(block: nn.Module, hidden_size: int, layer: int) -> str:
    matrices = {
        path: module
        for path, module in block.named_modules()
        if getattr(module, "weight", None) is not None and module.weight.dim() == _MATRIX and not _in_attention(path)
    }
    if any(part in _EXPERT_NAMES for path, _ in block.named_modules() for part in path.split(".")):
        raise UnsupportedMatrixError(
            f"layer {layer} is a mixture of experts: a fact there cannot be written into a single matrix.",
            hint="Choose layers with a dense MLP, or another model.",
        )
    if any(not _is_plain(module) for module in matrices.values()):
        raise UnsupportedMatrixError(
            f"the MLP of layer {layer} is quantized and cannot take an exact update.",
            hint="Load the model without quantization (dtype float32, bfloat16 or float16).",
        )
    outputs = [path for path, m in matrices.items() if projection_shape(m)[0] == hidden_size]
    named = [path for path in outputs if path.rpartition(".")[2] in OUTPUT_NAMES]
    found = named if len(outputs) > 1 else outputs
    if len(found) != 1:
        raise AnatomyError(
            f"the MLP output projection of layer {layer} is not clear: candidates {outputs}.",
            hint="Add the family's name for it to betaedit/models/anatomy.py.",
        )
    return str(found[0])


def _in_attention(path: str) -> bool:
    return any("attn" in part or "attention" in part for part in path.split("."))


def _is_plain(module: nn.Module) -> bool:
    """Whether it is an ordinary matrix; subclasses of Linear outside the model's own code are quantized or sharded."""
    own = isinstance(module, nn.Linear) and type(module).__module__.startswith("transformers.models.")
    return (own or type(module) in (nn.Linear, Conv1D)) and module.get_parameter("weight").is_floating_point()
