"""``betaedit bench`` does the same work twice and compares the results."""

from __future__ import annotations

import json

from typer.testing import CliRunner

from betaedit.cli.main import app
from betaedit.errors import ConfigError, ModelError

runner = CliRunner()


def test_the_update_of_a_small_layer_agrees_with_the_dense_one() -> None:
    found = runner.invoke(app, ["bench", "solve", "--widths", "96", "--json"])
    rows = json.loads(found.stdout)["rows"]
    assert [row["name"] for row in rows] == ["solve d=96 float64", "solve d=96 float32"]
    for row in rows:
        assert row["relative_error"] < 1e-4
        assert row["details"]["float64_error"] < (1e-10 if "float64" in row["name"] else 1e-6)
        assert row["ratio"] == row["reference_seconds"] / row["ours_seconds"]
        assert row["floor_seconds"] > 0


def test_growth_is_measured_beside_the_hundredth_edit() -> None:
    found = runner.invoke(app, ["bench", "growth", "--widths", "64", "--json"])
    *rows, fold = json.loads(found.stdout)["rows"]
    assert [row["details"]["keys"] for row in rows] == [1, 100, 1000, 10_000]
    assert (fold["name"], fold["details"]["keys_per_fold"]) == ("share of a fold in an update", 128)
    assert rows[0]["ratio"] is None
    assert rows[3]["reference_seconds"] == rows[1]["ours_seconds"]


def test_what_is_measured_is_told_before_and_after_and_stdout_is_one_object() -> None:
    found = runner.invoke(app, ["bench", "solve", "growth", "--widths", "64,96", "--json"])
    told = found.stderr.splitlines()
    assert [line for line in told if line.endswith("...")] == [
        "solve, width 64 ...", "solve, width 96 ...", "growth, 10,000 updates ...",
    ]  # fmt: skip
    assert sum("rows in" in line for line in told) == 3
    assert len(json.loads(found.stdout)["rows"]) == 9


def test_a_device_that_is_not_there_is_refused() -> None:
    found = runner.invoke(app, ["bench", "solve", "--widths", "96", "--device", "nowhere"])
    assert isinstance(found.exception, ModelError)
    assert "nowhere" in str(found.exception)


def test_an_unknown_benchmark_is_refused_with_the_known_ones() -> None:
    found = runner.invoke(app, ["bench", "nothing"])
    assert isinstance(found.exception, ConfigError)
    assert "solve" in found.exception.hint
