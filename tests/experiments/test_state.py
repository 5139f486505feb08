"""The facts of a run folder: what a kept batch says of them, and when two runs are on the same ones."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from betaedit.editors.closed_form.engine import EditResult, WrittenBatch
from betaedit.experiments.record import describe_cases
from betaedit.experiments.state import load_batches, save_batch
from betaedit.facts import EvaluationCase, Fact

FIGURES = {
    "target_probability": 0.9,
    "value_length": 1.0,
    "n_evaluations": 3,
    "update_norms": {"1": 0.5},
    "seconds": 0.1,
}


def digest(fact: Fact) -> str:
    return str(describe_cases([EvaluationCase(fact)], None)["facts_sha256"])


@pytest.mark.parametrize("joint", [None, "", " ", ": "])
def test_the_end_of_a_prompt_and_its_joint_are_kept(joint: str | None, tmp_path: Path):
    fact = Fact("Where is {}?\n", "Rome", "Spain", "Italy", "f1", joint)
    save_batch(tmp_path, 1, WrittenBatch((EditResult.from_stored(fact, FIGURES),)))
    (batch,) = load_batches(tmp_path, 1)
    assert batch.results[0].fact == fact


@pytest.mark.parametrize("prompt", ["{} is in", "{}在", "{} is “"])
def test_a_fact_of_an_earlier_version_was_written_after_a_space(prompt: str, tmp_path: Path):
    kept = json.dumps([FIGURES | {"fact": [prompt, "Rome", "Spain", None, "f1"]}])
    metadata = {"results": kept, "again": "[]"}
    save_file({"1.keys": torch.ones(1), "1.left": torch.ones(1), "1.right": torch.ones(1)},
              tmp_path / "00000001.safetensors", metadata=metadata)  # fmt: skip
    (batch,) = load_batches(tmp_path, 1)
    assert batch.results[0].fact == Fact(prompt, "Rome", "Spain", None, "f1", " ")


def test_runs_are_on_the_same_facts_where_the_same_text_is_written_the_same_way():
    spaced, joined = Fact("{} is in", "Rome", "Spain", id="f1"), Fact("{}在", "罗马", "西班牙", id="f1")
    assert digest(spaced) == digest(replace(spaced, joint=" "))
    assert digest(spaced) != digest(replace(spaced, joint=""))
    assert digest(joined) == digest(replace(joined, joint=""))
    assert digest(joined) != digest(replace(joined, joint=" "))
    assert digest(spaced) != digest(replace(spaced, prompt="{} is in "))
