"""EasyEdit files in the form of the real ones, for a model of four layers, and what they mean here."""

from __future__ import annotations

from typing import Any

_MODEL = 'alg_name: "{alg}"\nmodel_name: "./hugging_cache/some-7b"\ndevice: 0\nmodel_parallel: false\n'
_MODULES = """
rewrite_module_tmp: "model.layers.{}.mlp.down_proj"
layer_module_tmp: "model.layers.{}"
mlp_module_tmp: "model.layers.{}.mlp"
attn_module_tmp: "model.layers.{}.self_attn"
ln_f_module: "model.norm"
lm_head_module: "lm_head"
"""
_STATISTICS = 'mom2_dataset: "wikipedia"\nmom2_n_samples: 1000\nmom2_dtype: "float32"\nstats_dir: "./data/stats"\n'
_SEARCH = """
fact_token: "subject_first"
v_num_grad_steps: 7
v_lr: 3e-1
v_loss_layer: 3
v_weight_decay: 1e-2
clamp_norm_factor: 2
kl_factor: 0.125
"""
_CLOSED = f"{_MODULES}{_STATISTICS}{_SEARCH}"
_MANY = f"{_CLOSED}layers: [1, 2]\nlayer_selection: all\nmom2_adjustment: true\nmom2_update_weight: 9000\n"
_ONE = (
    f"{_CLOSED}layers: [2]\nmom2_adjustment: false\ncontext_template_length_params: [[5, 10], [10, 10]]\nfp16: false\n"
)
_ADAPTER = """
layers: []
num_steps: 3
batch_size: 1
max_length: 30
lr: 2e-3
weight_decay: 0.5
kl_factor: 0
rank: 4
lora_alpha: 16
lora_dropout: 0.2
norm_constraint: false
target_modules: ["q_proj"]
"""
_TRAINED = """
archive: null
model_class: LlamaForCausalLM
tokenizer_class: AutoTokenizer
tokenizer_name: ./hugging_cache/some-7b
inner_params:
- model.layers.3.mlp.down_proj.weight
- model.layers.2.mlp.down_proj.weight
rank: 24
dropout: 0.0
train_base: False
no_grad_layers: null
silent: False
log_interval: 100
eval_log_interval: 100
final_eval: True
early_stop_patience: 3000
early_stop_key: "loss/total_edit_val"
eval_only: False
debug: False
save: False
val_batch_size: 5
val_steps: 500
results_dir: ./results
"""
_VALUES: dict[str, Any] = {
    "lookup": "subject_first",
    "value_steps": 7,
    "value_learning_rate": 0.3,
    "value_decay": 0.01,
    "value_clamp": 2,
    "kl_weight": 0.125,
}
_IN_MANY = {**_VALUES, "layers": [1, 2], "value_loss_layer": 3}
_IN_ONE = {**_VALUES, "layers": [2], "leakage_weight": 0.0, "frobenius_ridge": 1.0}

FILES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "ROME": ("rome", _ONE, _IN_ONE),
    "R-ROME": (
        "r-rome",
        f"{_ONE}enable_prompt_keys: false\nenable_random_prefix_keys: true\noriginal_implementation: false\n",
        _IN_ONE,
    ),
    "MEMIT": ("memit", _MANY, {**_IN_MANY, "leakage_weight": 9000}),
    "PMET": (
        "pmet",
        f'{_MANY}rewrite_module_tmps: ["model.layers.{{}}.mlp.down_proj"]\nnll_loss_factor: 1\n',
        {**_IN_MANY, "leakage_weight": 9000},
    ),
    "EMMET": (
        "emmet",
        f"{_MANY}update_norm_lambda: 2\nemmet_lambda: 0.3\n",
        {**_IN_MANY, "leakage_weight": 9000, "frobenius_ridge": 2, "equality_slack": 0.3},
    ),
    "AlphaEdit": (
        "alphaedit",
        f"{_MANY}P_loc: ./null_space_project.pt\nnullspace_threshold: 4e-2\nL2: 5\n",
        {**_IN_MANY, "nullspace_threshold": 0.04, "ridge": 5},
    ),
    "SimIE": (
        "simie",
        "base_method: MEMIT\nlamHyper: 30.0\ninit_model: true\nsolver: LU\nfast: false\n",
        {"simie_ridge": 30},
    ),
    "FT": (
        "ft",
        f"{_MODULES}layers: [2]\nnum_steps: 4\nbatch_size: 1\nmax_length: 40\nlr: 5e-3\nweight_decay: 0.25\n"
        "kl_factor: 0\nnorm_constraint: 2e-3\nobjective_optimization: target_new\n",
        {"layer": 2, "steps": 4, "learning_rate": 5e-3, "weight_decay": 0.25, "norm_limit": 2e-3, "loss": "target"},
    ),
    "LoRA": (
        "lora",
        f"lora_type: lora\n{_ADAPTER}",
        {
            "steps": 3,
            "learning_rate": 2e-3,
            "weight_decay": 0.5,
            "rank": 4,
            "alpha": 16,
            "dropout": 0.2,
            "target_modules": ["q_proj"],
        },
    ),
    "LoRA, adalora": (
        "adalora",
        f"lora_type: adalora\n{_ADAPTER}",
        {"steps": 3, "learning_rate": 2e-3, "rank": 12, "target_modules": ["q_proj"]},
    ),
    "ULTRAEDIT": (
        "ultraedit",
        "inner_params:\n- model.layers.1.mlp.down_proj\n- model.layers.2.mlp.down_proj\nlr: 2e-6\nbatch_size: 100\n"
        "batch_size_once: 5\neditor_batch_size: 1024\ntoken: mask\ndropout: 0.0\nno_grad_layers: null\nsilent: False\n",
        {"changed_layers": (1, 2), "learning_rate": 2e-6, "gradient_batch": 5},
    ),
    "GRACE": (
        "grace",
        "inner_params: ['model.layers[2].mlp.down_proj.weight']\nedit_lr: 0.5\nn_iter: 4\neps: 5.0\ndist_fn: euc\n"
        "val_init: cold\nval_train: sgd\nval_reg: None\nreg: early_stop\nreplacement: replace_prompt\n"
        "eps_expand: coverage\nnum_pert: 8\ndropout: 0.0\n",
        {"layer": 2, "learning_rate": 0.5, "steps": 4, "radius": 5.0, "replacement": "prompt"},
    ),
    "WISE": (
        "wise",
        "inner_params: ['model.layers[2].mlp.down_proj.weight']\nmask_ratio: 0.3\nedit_lr: 0.9\nn_iter: 4\n"
        "norm_constraint: 2.0\nact_margin: [4.0, 19.0, 9.0]\nact_ratio: 0.7\nsave_freq: 20\nmerge_freq: 40\n"
        "merge_alg: ties\nobjective_optimization: only_label\ndensities: 0.6\nweights: 1.0\nretrieve: True\n"
        "replay: False\nuse_chat_template: True\nsave_path: wise.pt\nload_path: wise.pt\n",
        {
            "layer": 2,
            "mask_share": 0.3,
            "learning_rate": 0.9,
            "steps": 4,
            "norm_limit": 2.0,
            "outside_limit": 4.0,
            "inside_limit": 19.0,
            "margin": 9.0,
            "routing_ratio": 0.7,
            "shard_size": 20,
            "merge_every": 40,
            "merge_density": 0.6,
        },
    ),
    "IKE": (
        "ike",
        "sentence_model_name: ./hugging_cache/all-MiniLM-L6-v2\nk: 8\nuse_icl_examples: true\nresults_dir: ./results\n",
        {"retriever": "dense", "encoder": "minilm", "n_demonstrations": 8},
    ),
    "MEND": ("mend", f"{_TRAINED}max_output_length: 600\n", {}),
    "MALMEN": ("malmen", _TRAINED, {}),
}
"""By name: the method, the text of a file without its first lines, and the settings that its values become."""

TRAININGS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "MEND": (
        "mend",
        f"{_TRAINED}lr: 1e-6\nedit_lr: 2e-4\nlr_lr: 3e-4\nlr_scale: 1.0\nseed: 42\ncedit: 0.1\ncloc: 0.5\ncbase: 1.0\n"
        "one_sided: False\nn_hidden: 1\nhidden_dim: null\ninit: xavier\nnorm: False\ncombine: True\nx_only: False\n"
        "delta_only: False\nact: relu\nmlp_class: IDMLP\nshared: True\nbatch_size: 1\nmodel_save_pt: 5000\n"
        "max_iters: 100000\nval_interval: 1000\nverbose: True\naccumulate_bs: 10\nopt: Adam\ngrad_clip: 90.\n",
        {
            "layers": (2, 3),
            "rank": 24,
            "learning_rate": 1e-6,
            "edit_rate": 2e-4,
            "edit_rate_learning_rate": 3e-4,
            "seed": 42,
            "edit_weight": 0.1,
            "unrelated_weight": 0.5,
            "blocks": 2,
            "identity_init": False,
            "normalize": False,
            "batch": 10,
            "steps": 10_000,
            "validate_every": 100,
            "patience": 3,
            "clip": 90.0,
        },
    ),
    "MALMEN": (
        "malmen",
        f"{_TRAINED}n_blocks: 3\nlr: 1e-6\nmeta_lr: 2e-5\nloc_coef: 2\nmax_grad_norm: 4\ntoken: mask\nn_edits: 8\n"
        "batch_size: 2\neditor_batch_size: 1024\nmax_iters: 400\nval_interval: 100\n",
        {
            "layers": (2, 3),
            "rank": 24,
            "blocks": 3,
            "edit_rate": 1e-6,
            "learning_rate": 2e-5,
            "unrelated_weight": 2,
            "clip": 4,
            "batch": 8,
            "steps": 100,
            "validate_every": 25,
            "patience": 30,
        },
    ),
}
"""The same for files of trainings."""


def text_of(name: str, files: dict[str, tuple[str, str, dict[str, Any]]]) -> str:
    """The whole file of that name."""
    return _MODEL.replace("{alg}", name.partition(",")[0]) + files[name][1]
