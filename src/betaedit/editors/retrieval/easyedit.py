"""Keys of EasyEdit's files for IKE."""

from __future__ import annotations

from typing import Any

from betaedit.editors.easyedit import Becomes, EasyEditTable, Switches

_BUNDLED = "all-MiniLM-L6-v2"


def _encoder(name: Any) -> Any:
    """The encoder of that name; the bundled one wherever EasyEdit keeps it."""
    return "minilm" if isinstance(name, str) and name.rpartition("/")[2] == _BUNDLED else name


def _demonstrations(k: Any, wanted: Any) -> Any:
    """How many demonstrations; none where EasyEdit uses none."""
    return k if wanted else 0


EASYEDIT = (
    EasyEditTable(
        alg_name="IKE",
        methods=("ike",),
        keys={
            "sentence_model_name": Becomes("encoder", _encoder, how=f"`minilm` for a place of {_BUNDLED}"),
            "k": Becomes(
                "n_demonstrations", _demonstrations, using=("use_icl_examples",), how="0 without `use_icl_examples`"
            ),
            "use_icl_examples": Switches(((True, {}), (False, {"n_demonstrations": 0}))),
        },
        fixed={"retriever": "dense", "encoder": "minilm", "n_demonstrations": 16},
    ),
)
