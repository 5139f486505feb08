"""Keys of EasyEdit's files for GRACE and WISE."""

from __future__ import annotations

from betaedit.editors.easyedit import (
    LIMIT,
    UNREAD,
    Becomes,
    EasyEditTable,
    Projections,
    Spreads,
    Switches,
    Unused,
    limit,
    only,
)

_ONE_WAY = "nothing else is done here"


GRACE = (
    EasyEditTable(
        alg_name="GRACE",
        methods=("grace",),
        keys={
            "inner_params": Projections("layer"),
            "edit_lr": Becomes("learning_rate"),
            "n_iter": Becomes("steps"),
            "eps": Becomes("radius"),
            "dist_fn": only("euc", otherwise=_ONE_WAY),
            "val_init": only("cold", otherwise="values begin at random here"),
            "val_train": only("sgd", otherwise=_ONE_WAY),
            "val_reg": UNREAD,
            "reg": UNREAD,
            "replacement": Switches(
                (("replace_last", {"replacement": "last"}), ("replace_prompt", {"replacement": "prompt"})),
                otherwise="the answer's tokens are never replaced here",
                notes={"replace_prompt": "EasyEdit leaves out the last token of the prompt, here it is replaced, too"},
            ),
            "eps_expand": only("coverage", otherwise="keys never move here"),
            "num_pert": Unused("for `val_train: adv` alone"),
            "dropout": UNREAD,
        },
        fixed={"only_wrong": False},
    ),
)
WISE = (
    EasyEditTable(
        alg_name="WISE",
        methods=("wise",),
        keys={
            "inner_params": Projections("layer"),
            "edit_lr": Becomes("learning_rate"),
            "n_iter": Becomes("steps"),
            "norm_constraint": Becomes("norm_limit", limit, how=LIMIT),
            "act_margin": Spreads(("outside_limit", "inside_limit", "margin")),
            "act_ratio": Becomes("routing_ratio"),
            "mask_ratio": Becomes("mask_share"),
            "save_freq": Becomes("shard_size"),
            "merge_freq": Becomes("merge_every"),
            "merge_alg": only("ties", otherwise=_ONE_WAY),
            "densities": Becomes("merge_density"),
            "weights": only(1, otherwise="all memories of a merge count alike here"),
            "objective_optimization": only("only_label", otherwise="the answer alone is trained here"),
            "retrieve": only(True, otherwise="WISE-Merge is not here, WISE-Retrieve is"),
            "replay": only(False, otherwise="earlier facts are not trained again here"),
            "use_chat_template": Unused("prompts are taken as they stand"),
            "save_path": Unused("`--save`, or a workspace"),
            "load_path": Unused("a workspace keeps what was written"),
        },
        fixed={"weight_decay": 1e-5},
    ),
)
