"""Keys of EasyEdit's files for MEND and MALMEN: almost all are about the training."""

from __future__ import annotations

from collections.abc import Mapping

from betaedit.editors.easyedit import TOKENS, UNREAD, Becomes, EasyEditTable, Key, Projections, Switches, Unused, only

_LOG = Unused("each validation is shown")
_VALIDATION = Unused("facts for validation are the last of the file: `validation_facts`")
_CHECKPOINTS = Unused("each validation is kept in `--out`")
_DIVIDED = "in optimizer steps: divided by `accumulate_bs`"
_OF_FACTS = "in optimizer steps: times `batch_size` / `n_edits`"
_NO_BASE = "the model's own weights are not trained here"


def _updates(iterations: float, accumulated: float) -> int:
    """Optimizer steps in so many iterations."""
    return max(1, round(iterations / accumulated))


def _updates_of(iterations: float, batch: float, edits: float) -> int:
    """Optimizer steps in so many iterations of ``batch`` facts, where ``edits`` facts make a step."""
    return max(1, round(iterations * batch / edits))


def _blocks(hidden: int) -> int:
    """Layers of a network with so many hidden ones."""
    return hidden + 1


def _validations(iterations: float, between: float) -> int:
    """Validations in so many iterations."""
    return max(1, round(iterations / between))


_TRAINING: Mapping[str, Key] = {
    "inner_params": Projections("layers", several=True),
    "rank": Becomes("rank"),
    "early_stop_patience": Becomes(
        "patience", _validations, using=("val_interval",), how="in validations: divided by `val_interval`"
    ),
    "early_stop_key": Unused("the loss on the validation facts ends a training"),
    "dropout": only(0, otherwise="nothing is left out at random here"),
    "train_base": only(False, otherwise=_NO_BASE),
    "no_grad_layers": only(None, otherwise="gradients reach every layer here"),
    "log_interval": _LOG,
    "eval_log_interval": _LOG,
    "final_eval": _LOG,
    "silent": _LOG,
    "val_batch_size": _VALIDATION,
    "val_steps": _VALIDATION,
    "save": _CHECKPOINTS,
    "debug": _CHECKPOINTS,
    "eval_only": Unused("`train-editor` trains, `edit` edits"),
}
_KEYS: Mapping[str, Key] = {
    "archive": Unused(
        "EasyEdit's trained editors cannot be read: `betaedit train-editor` trains one, `editor` names it"
    ),
}
EASYEDIT = (
    EasyEditTable(
        alg_name="MEND",
        methods=("mend",),
        keys={**_KEYS, "max_output_length": Unused("no answer is generated in an edit")},
        training={
            **_TRAINING,
            "lr": Becomes("learning_rate"),
            "edit_lr": Becomes("edit_rate"),
            "lr_lr": Becomes("edit_rate_learning_rate"),
            "lr_scale": UNREAD,
            "seed": Becomes("seed", int),
            "cedit": Becomes(
                "edit_weight", note="EasyEdit's loss is on the edit itself, here it is on another wording of the fact"
            ),
            "cloc": Becomes("unrelated_weight"),
            "cbase": Unused(_NO_BASE),
            "one_sided": only(False),
            "x_only": only(False),
            "delta_only": only(False),
            "combine": only(True),
            "shared": only(True),
            "mlp_class": only("IDMLP"),
            "act": only("relu"),
            "hidden_dim": UNREAD,
            "n_hidden": Becomes("blocks", _blocks, how="and one more"),
            "init": Switches((("id", {"identity_init": True}), ("xavier", {"identity_init": False}))),
            "norm": Becomes("normalize"),
            "batch_size": only(1, otherwise="each fact is edited by itself in a training"),
            "accumulate_bs": Becomes("batch"),
            "max_iters": Becomes("steps", _updates, using=("accumulate_bs",), how=_DIVIDED),
            "val_interval": Becomes("validate_every", _updates, using=("accumulate_bs",), how=_DIVIDED),
            "opt": only("Adam"),
            "verbose": _LOG,
            "model_save_pt": _CHECKPOINTS,
            "grad_clip": Becomes("clip"),
        },
    ),
    EasyEditTable(
        alg_name="MALMEN",
        methods=("malmen",),
        keys=_KEYS,
        training={
            **_TRAINING,
            "n_blocks": Becomes("blocks"),
            "lr": Becomes("edit_rate"),
            "meta_lr": Becomes("learning_rate"),
            "loc_coef": Becomes("unrelated_weight"),
            "max_grad_norm": Becomes("clip"),
            "token": TOKENS,
            "n_edits": Becomes("batch"),
            "batch_size": Unused("facts run together as memory allows; `n_edits` says how many make a step"),
            "editor_batch_size": Unused("tokens are not divided into parts"),
            "max_iters": Becomes("steps", _updates_of, using=("batch_size", "n_edits"), how=_OF_FACTS),
            "val_interval": Becomes("validate_every", _updates_of, using=("batch_size", "n_edits"), how=_OF_FACTS),
        },
    ),
)
