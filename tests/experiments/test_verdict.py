"""The judgement follows from the limits, and the sentence from the figures."""

from __future__ import annotations

import math

import pytest

from betaedit.experiments.verdict import LIMITS, judge, percent
from support.runs import checkpoint, figure, mean

BASE = checkpoint(0, perplexity=20.0, agreement=1.0, specificity=figure(0.67, 0.2))


def edited(edits: int = 1000, **changes: object) -> object:
    sound: dict[str, object] = {
        "efficacy": figure(1.0, 0.99),
        "generality": figure(0.98, 0.97),
        "specificity": figure(0.63, 0.18),
        "perplexity": 20.3,
        "agreement": 0.987,
    }
    return checkpoint(edits, **{**sound, **changes})


def test_the_latest_figures_make_one_sentence() -> None:
    assert judge([BASE, edited()]).summary == (
        "1,000 facts written; 99% said, 97% of paraphrases, neighbors 67% → 63%; "
        "perplexity +1.5%; 98.7% of next tokens unchanged"
    )


def test_a_model_within_all_limits_is_safe() -> None:
    found = judge([BASE, edited()])
    assert (found.level, found.collapse, found.edits) == ("safe", None, 1000)


@pytest.mark.parametrize(
    ("changes", "level"),
    [
        ({"perplexity": 21.9}, "safe"),
        ({"perplexity": 22.1}, "watch"),
        ({"perplexity": 40.1}, "collapsed"),
        ({"perplexity": math.nan}, "collapsed"),
        ({"perplexity": math.inf}, "collapsed"),
        ({"agreement": 0.89}, "watch"),
        ({"agreement": 0.49}, "collapsed"),
        ({"specificity": figure(0.56, 0.0)}, "watch"),
        ({"specificity": figure(0.33, 0.2)}, "collapsed"),
        ({"efficacy": figure(1.0, 0.79)}, "watch"),
        ({"efficacy": figure(0.0, 0.0)}, "watch"),
    ],
)
def test_one_figure_beyond_its_limit_decides(changes: dict[str, object], level: str) -> None:
    assert judge([BASE, edited(**changes)]).level == level


def test_abilities_are_judged_by_the_mean_over_the_tasks_of_both() -> None:
    base = checkpoint(0, perplexity=20.0, abilities={t: {"accuracy": mean(0.8), "macro_f1": 0.8} for t in "ab"})
    half = {"a": {"accuracy": mean(0.7), "macro_f1": 0.7}, "b": {"accuracy": mean(0.78), "macro_f1": 0.7}}
    found = judge([base, edited(abilities={**half, "c": {"accuracy": mean(0.0), "macro_f1": 0.0}})])
    assert found.level == "watch"
    assert found.damage["accuracy lost over the ability tasks"] == pytest.approx((0.1 + 0.02) / 2)


def test_a_collapse_is_dated_by_the_first_checkpoint_that_shows_it() -> None:
    found = judge([BASE, edited(100), edited(200, agreement=0.4), edited(300, agreement=0.1)])
    assert (found.level, found.sound, found.collapse) == ("collapsed", 100, 200)
    assert "began after 100 edits and was seen at 200" in found.judgement


def test_a_model_that_had_collapsed_is_not_called_safe_again() -> None:
    found = judge([BASE, edited(100, agreement=0.4), edited(200)])
    assert (found.level, found.collapse) == ("watch", 100)


def test_without_the_unedited_model_only_absolute_figures_are_judged() -> None:
    found = judge([edited()])
    assert set(found.damage) == {"next tokens changed", "written facts not said"}
    assert "neighbors 63%; perplexity 20.3" in found.summary


def test_the_summary_says_how_many_neighbors_are_kept_where_that_was_measured() -> None:
    assert "% of neighbors kept;" in judge([BASE, edited(neighbors_kept=mean(0.93))]).summary
    assert "93% of neighbors kept; perplexity" in judge([edited(neighbors_kept=mean(0.93))]).summary
    assert "kept" not in judge([BASE, edited()]).summary


def test_a_run_without_edits_is_not_judged() -> None:
    assert judge([]).level == judge([BASE]).level == "unedited"


def test_the_probability_form_stands_in_where_argmax_was_not_measured() -> None:
    found = judge([BASE, edited(efficacy=figure(0.9, None), generality=figure(None, None))])
    assert "; 90% said, neighbors" in found.summary


def test_figures_that_are_not_finite_are_null_in_plain_data() -> None:
    assert judge([BASE, edited(perplexity=math.inf)]).to_dict()["damage"]["perplexity up"] is None


def test_almost_all_is_not_rounded_to_all() -> None:
    assert [percent(share) for share in (1.0, 0.999, 0.99, 0.001, 0.0)] == ["100%", "99.9%", "99%", "0.1%", "0%"]


def test_every_limit_grows_from_watch_to_collapsed() -> None:
    assert all(0 < limit.watch < limit.collapsed for limit in LIMITS)
