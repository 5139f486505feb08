"""Keys of EasyEdit's files for FT, LoRA (which is AdaLoRA in most of them) and UltraEdit."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from betaedit.editors.easyedit import (
    FOUND,
    LIMIT,
    TOKENS,
    UNREAD,
    Becomes,
    EasyEditTable,
    Key,
    LayerTemplate,
    Projections,
    Switches,
    UnusableError,
    Unused,
    limit,
    only,
)


def _one_layer(layers: Any) -> Any:
    """The layer of a list of one."""
    if not isinstance(layers, list) or len(layers) != 1:
        raise UnusableError(f"is {layers}: one layer is trained here")
    return layers[0]


FINE_TUNING = (
    EasyEditTable(
        alg_name="FT",
        methods=("ft", "ft-m"),
        keys={
            "layers": Becomes("layer", _one_layer, how="a list of one"),
            "num_steps": Becomes("steps"),
            "lr": Becomes("learning_rate"),
            "weight_decay": Becomes("weight_decay"),
            "kl_factor": UNREAD,
            "norm_constraint": Becomes("norm_limit", limit, how=LIMIT),
            "objective_optimization": Switches(
                (("prompt_last", {"loss": "prompt_last"}), ("target_new", {"loss": "target"}))
            ),
            "batch_size": Unused("a step follows all facts of `--batch-size`"),
            "rewrite_module_tmp": Projections(),
            "layer_module_tmp": LayerTemplate(),
            "mlp_module_tmp": FOUND,
            "attn_module_tmp": FOUND,
            "ln_f_module": FOUND,
            "lm_head_module": FOUND,
        },
        fixed={"stop_loss": 0.01},
    ),
)
_ADAPTER: Mapping[str, Key] = {
    "layers": only([], otherwise="all layers are adapted here"),
    "num_steps": Becomes("steps"),
    "lr": Becomes("learning_rate"),
    "weight_decay": Becomes("weight_decay"),
    "kl_factor": UNREAD,
    "norm_constraint": UNREAD,
    "lora_alpha": Becomes("alpha"),
    "lora_dropout": Becomes("dropout"),
    "target_modules": Becomes("target_modules"),
    "batch_size": Unused("a step follows all facts of `--batch-size`"),
}
LOW_RANK = (
    EasyEditTable(
        alg_name="LoRA",
        methods=("lora",),
        keys={**_ADAPTER, "rank": Becomes("rank")},
        when={"lora_type": "lora"},
    ),
    EasyEditTable(
        alg_name="LoRA",
        methods=("adalora",),
        keys={**_ADAPTER, "rank": Unused("it does not reach peft in EasyEdit either, whose `rank` for AdaLoRA is 12")},
        fixed={"rank": 12},
        when={"lora_type": "adalora"},
    ),
)
ULTRAEDIT = (
    EasyEditTable(
        alg_name="ULTRAEDIT",
        methods=("ultraedit",),
        keys={
            "inner_params": Projections("changed_layers", several=True),
            "lr": Becomes("learning_rate"),
            "batch_size_once": Becomes("gradient_batch"),
            "editor_batch_size": Unused("tokens are not divided into parts"),
            "token": TOKENS,
            "dropout": only(0, otherwise="nothing is left out at random here"),
            "no_grad_layers": only(None, otherwise="gradients reach every layer here"),
            "silent": Unused("`--json` prints figures alone"),
        },
    ),
)
