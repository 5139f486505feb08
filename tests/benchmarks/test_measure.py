"""Every benchmark compares two ways to the same result."""

from __future__ import annotations

import pytest
import torch

from betaedit.benchmarks import measure
from betaedit.facts import Fact
from support.edits import editor_for
from support.families import language_model

FACTS = [Fact("The mother tongue of {} is", "Danielle Darrieux", "English"), Fact("{} plays", "Toko", "chess")]


@pytest.fixture
def editor():
    return editor_for(language_model("llama"), value_steps=4)


def test_values_by_whole_passes_and_by_the_engine_are_the_same(editor) -> None:
    alone, together, preset, _ = measure.value(editor, FACTS)
    for row in (alone, together):
        assert row.relative_error < 1e-4
        assert row.details["evaluations"] == row.details["reference_evaluations"]
    assert preset.relative_error is None
    for row in (alone, preset):
        assert row.floor_seconds == max(row.details["arithmetic_seconds"], row.details["bandwidth_seconds"]) > 0


def test_edits_by_the_published_loop_and_by_the_engine_are_the_same(editor) -> None:
    rows = measure.edit(editor, FACTS)
    assert [row.name for row in rows] == [
        "edit, published settings",
        "edit, preset",
        "edit, preset, batches of 10",
        "edit, preset, look-ahead 10",
    ]
    assert rows[0].relative_error < 1e-3


def test_statistics_in_one_pass_are_those_of_a_pass_for_each_layer(editor) -> None:
    whole, stopped = measure.statistics(editor, n_tokens=512)
    for row in (whole, stopped):
        assert row.relative_error < 1e-5
        assert row.details["tokens"] == 512
        assert row.details["share_of_bare_speed"] == row.floor_seconds / row.ours_seconds


def test_the_synthetic_null_space_has_the_share_of_real_ones() -> None:
    moment = measure.synthetic_moment(200, 0.02)
    kept = float((torch.linalg.eigvalsh(moment.double()) < 0.02).double().mean())
    assert kept == pytest.approx(0.82)
