"""Keys of EasyEdit's files for ROME, R-ROME, MEMIT, PMET, EMMET, AlphaEdit and SimIE."""

from __future__ import annotations

from collections.abc import Mapping

from betaedit.editors.closed_form.config import EditConfig
from betaedit.editors.easyedit import (
    FOUND,
    UNREAD,
    Becomes,
    EasyEditTable,
    Key,
    LayerTemplate,
    Projections,
    Switches,
    Unused,
    only,
)

_STATISTICS = Unused("C0 is collected as `statistics_corpus`, `statistics_tokens` or `--statistics` say")
_AT_THE_MLP = "EasyEdit measures it on the MLP's output, here it is on the layer's"
_AT_BOTH = "EasyEdit measures it on the outputs of MLP and attention, here it is on the layer's"

_SEARCH: Mapping[str, Key] = {
    "layers": Becomes("layers"),
    "fact_token": Becomes("lookup"),
    "v_num_grad_steps": Becomes("value_steps"),
    "v_lr": Becomes("value_learning_rate"),
    "v_loss_layer": Becomes("value_loss_layer"),
    "v_weight_decay": Becomes("value_decay"),
    "clamp_norm_factor": Becomes("value_clamp"),
    "kl_factor": Becomes("kl_weight"),
    "rewrite_module_tmp": Projections(),
    "layer_module_tmp": LayerTemplate(),
    "mlp_module_tmp": FOUND,
    "attn_module_tmp": FOUND,
    "ln_f_module": FOUND,
    "lm_head_module": FOUND,
    "mom2_dataset": _STATISTICS,
    "mom2_n_samples": _STATISTICS,
    "mom2_dtype": _STATISTICS,
    "stats_dir": _STATISTICS,
}
_ROME: Mapping[str, Key] = {
    **_SEARCH,
    "v_loss_layer": Unused("ROME's loss is read at the end of the model in EasyEdit, too"),
    "v_weight_decay": Becomes("value_decay", note=_AT_THE_MLP),
    "clamp_norm_factor": Becomes("value_clamp", note=_AT_THE_MLP),
    # The update along C0^-1 k is that along k where the identity takes the place of C0.
    "mom2_adjustment": Switches(
        (
            (True, {"leakage_weight": 1.0, "frobenius_ridge": 0.0}),
            (False, {"leakage_weight": 0.0, "frobenius_ridge": 1.0}),
        )
    ),
    "context_template_length_params": Unused("contexts are sampled as `context_openings` and `context_length` say"),
}
_MANY_LAYERS: Mapping[str, Key] = {**_SEARCH, "layer_selection": UNREAD, "mom2_adjustment": UNREAD}
_MEMIT: Mapping[str, Key] = {**_MANY_LAYERS, "mom2_update_weight": Becomes("leakage_weight")}

_PUBLISHED = (
    *("value_optimizer", "value_stop_loss", "value_stop_probability", "value_stop_most_probable", "value_margin"),
    *("value_steps_per_token", "value_norm_anchor", "value_look_ahead", "retries", "keep_missed"),
    *("kl_template", "paraphrases", "form", "answer_end", "shared_subjects"),
    *("context_openings", "context_length"),
)
_FIXED = {**{name: EditConfig.model_fields[name].default for name in _PUBLISHED}, "conflicts": "naive"}
"""What a preset may set otherwise, as EasyEdit's code has it."""

EASYEDIT: tuple[EasyEditTable, ...] = (
    EasyEditTable(alg_name="ROME", methods=("rome",), keys=_ROME, fixed=_FIXED),
    EasyEditTable(
        alg_name="R-ROME",
        methods=("r-rome",),
        keys={
            **_ROME,
            "original_implementation": only(False, otherwise="give a ROME file for it"),
            "enable_prompt_keys": only(False, otherwise="the mean key over contexts is used throughout here"),
            "enable_random_prefix_keys": only(True, otherwise="the mean key over contexts is used throughout here"),
        },
        fixed=_FIXED,
    ),
    EasyEditTable(alg_name="MEMIT", methods=("memit",), keys=_MEMIT, fixed=_FIXED),
    EasyEditTable(
        alg_name="PMET",
        methods=("pmet",),
        keys={
            **_MEMIT,
            "v_weight_decay": Becomes("value_decay", note=_AT_BOTH),
            "clamp_norm_factor": Becomes("value_clamp", note=_AT_BOTH),
            "attn_module_tmp": Unused("no attention value is searched here"),
            "rewrite_module_tmps": Projections(),
            "nll_loss_factor": only(1, otherwise="the likelihood has the weight 1 here"),
        },
        fixed=_FIXED,
    ),
    EasyEditTable(
        alg_name="EMMET",
        methods=("emmet",),
        keys={
            **_MEMIT,
            "update_norm_lambda": Becomes("frobenius_ridge"),
            "emmet_lambda": Becomes(
                "equality_slack", note="EasyEdit adds it for single facts, too; here for more than one"
            ),
        },
        fixed=_FIXED,
    ),
    EasyEditTable(
        alg_name="AlphaEdit",
        methods=("alphaedit",),
        keys={
            **_MANY_LAYERS,
            "mom2_update_weight": UNREAD,
            "nullspace_threshold": Becomes("nullspace_threshold"),
            "L2": Becomes("ridge"),
            "P_loc": Unused("the projector is computed from C0"),
        },
        fixed=_FIXED,
    ),
    EasyEditTable(
        alg_name="SimIE",
        methods=("simie",),
        keys={
            "base_method": only("MEMIT", otherwise="simie is on memit here"),
            "lamHyper": Becomes("simie_ridge"),
            "init_model": UNREAD,
            "solver": Unused("the system is solved in one way"),
            "fast": Unused("what it saves in time is not needed here"),
        },
    ),
)
