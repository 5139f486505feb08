"""Further figures in groups, with one name and one unit each, for terminal and page."""

from __future__ import annotations

import pytest

from betaedit.experiments.record import Mean
from betaedit.experiments.tables import figure_tables, is_listed, show, unit_of
from support.runs import BARE, checkpoint, mean

PLAIN = {**BARE, "seconds_editing": 0.0}


def points(measures: dict[str, Mean | float], before: dict[str, Mean | float] | None = None):
    return [
        checkpoint(0, **{**PLAIN, "measures": before or {}}),
        checkpoint(10, **{**BARE, "measures": measures, "seconds_editing": 25.0}),
    ]


def test_every_group_is_a_table_with_a_row_per_run_and_count() -> None:
    answers = {"reliability": mean(0.8), "locality_agree": mean(0.4), "relation_specificity": mean(0.5)}
    costs = {"seconds per 50 tokens": 2.0, "relative latency": Mean(mean=1.02, count=10, low=0.9, high=1.1)}
    tables = figure_tables({"ft": points({**answers, **costs}), "scr": points({"seconds per 50 tokens": 3.0})})
    assert [table.key for table in tables] == ["questions", "costs"]
    free, cost = tables
    assert free.names == tuple(answers)
    assert [row[:2] for row in free.rows] == [("ft", 10)]  # scr has none of these figures
    assert free.shown(0) == ["80.0%", "40.0%", "50.0%"]
    assert cost.names == ("seconds per edit", *costs)
    assert [cost.shown(row) for row in range(2)] == [["2.5", "2", "1.020"], ["2.5", "3", "-"]]


def test_sub_keys_stand_behind_what_they_make_up_in_whatever_order_they_were_measured() -> None:
    names = (
        "forgetfulness",
        "own_group",
        "reasoning",
        "subject_aliasing",
        "reliability",
        "locality_gold",
        "portability",
    )
    (table, _) = figure_tables({"ft": points(dict.fromkeys(names, mean(0.5)))})
    assert table.names == (
        "reliability", "portability", "reasoning", "subject_aliasing", "locality_gold", "forgetfulness", "own_group"
    )  # fmt: skip


def test_one_row_stands_for_the_unedited_model_where_runs_agree_on_it() -> None:
    same = {"ft": points({"fluency": 6.0}, {"fluency": 6.2}), "scr": points({"fluency": 6.1}, {"fluency": 6.2})}
    (table,) = (each for each in figure_tables(same) if each.key == "fluency")
    assert [row[:2] for row in table.rows] == [("unedited", 0), ("ft", 10), ("scr", 10)]
    other = {**same, "scr": points({"fluency": 6.1}, {"fluency": 6.3})}
    (table,) = (each for each in figure_tables(other) if each.key == "fluency")
    assert [row[:2] for row in table.rows] == [("ft", 0), ("ft", 10), ("scr", 0), ("scr", 10)]


def test_abilities_are_a_group_of_the_same_kind() -> None:
    (table,) = (each for each in figure_tables({"ft": [checkpoint(5)]}) if each.key == "abilities")
    assert (table.names[0], table.names[4]) == ("accuracy, sst2", "macro-F1, sst2")
    assert (table.shown(0)[0], table.shown(0)[4]) == ("86.0%", "0.86")


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("reliability", mean(0.5), "50.0%"),
        ("chat reasoning", mean(0.25), "25.0%"),
        ("retrieved at 10, prompts", mean(1.0), "100.0%"),
        ("match ratio, neighbors", None, "-"),
        ("seconds per 50 tokens, retrieval", 0.00123, "0.00123"),
        ("seconds per edit", 0.0000969, "0.097 ms"),
        ("relative memory", 1.0625, "1.062"),
        ("memory to answer", 0.0, "0 B"),
        ("memory to answer, codebook", 3.0 * 1024, "3.0 KiB"),
        ("memory to edit", 5.5 * 2**20, "5.5 MiB"),
        ("memory to edit", 3.25 * 2**30, "3.2 GiB"),
        ("peak memory, GiB", 3.14159, "3.142"),
        ("fluency", 6.2345, "6.234"),
    ],
)
def test_a_figure_is_shown_in_its_own_unit(name: str, value: Mean | float | None, text: str) -> None:
    assert show(name, value) == text


def test_parts_of_the_memory_are_in_no_table() -> None:
    assert not is_listed("memory to answer, encoder")
    assert is_listed("memory to answer")
    assert unit_of("memory to answer, encoder") == "bytes"


def test_a_note_says_only_what_the_table_has() -> None:
    """As of an older run, which has no token-level locality."""
    old, new = {"token accuracy, prompts": mean(0.5)}, {"match ratio, neighbors": mean(0.5)}
    notes = [figure_tables({"ft": points(own)})[0].note for own in (old, {**old, **new})]
    assert [note.count("token accuracy:") for note in notes] == [1, 1]
    assert [note.count("match ratio") for note in notes] == [0, 1]
