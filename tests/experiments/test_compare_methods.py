"""Methods, and settings of one method, compared on the same facts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from betaedit.errors import ConfigError, MethodError
from betaedit.experiments.compare import compare_methods
from betaedit.experiments.evaluate import Evaluator
from betaedit.experiments.figures import Measures
from betaedit.experiments.folder import RunFolder
from betaedit.experiments.run import RunReport
from betaedit.experiments.variants import Variant
from betaedit.facts import EvaluationCase
from support.edits import CONTEXTS, FACTS, unchanged, weights
from support.families import language_model

MEASURES = Measures(held_out=("A short held-out text.",))
CASES = [EvaluationCase(fact) for fact in FACTS[:3]]
TABLE_3 = [
    Variant("alphaedit-naive", {"lookup": "last"}),
    Variant("alphaedit", {"lookup": "last"}),
    "alphaedit-naive",
    "alphaedit",
]


def compared(tmp_path: Path, methods: list[Any], **options: Any) -> dict[str, RunReport]:
    corpus = tmp_path / "corpus.txt"
    corpus.write_text("\n\n".join("Ordinary words follow one another in the long text. " * 3 for _ in range(6)))
    overrides = {"layers": (1, 2), "context_templates": CONTEXTS, "value_steps": 3, "nullspace_threshold": 0.3,
                 "statistics_corpus": str(corpus), "statistics_tokens": 200}  # fmt: skip
    model = options.pop("model", None) or language_model("llama")
    options = {"measures": MEASURES, **options}
    return compare_methods(model, methods, CASES, tmp_path / "runs", overrides=overrides, **options)


def test_the_token_a_fact_is_keyed_at_is_compared_with_history_and_without(tmp_path: Path) -> None:
    """The four columns of BetaEdit's table 3: one run each, from the same model, in folders of their own."""
    model, seen = language_model("llama"), []
    before = weights(model)
    found = compared(tmp_path, TABLE_3, model=model, on_method=seen.append)
    names = ["alphaedit-naive-lookup-last", "alphaedit-lookup-last", "alphaedit-naive", "alphaedit"]
    assert list(found) == seen == names
    setups = [RunFolder(tmp_path / "runs" / name).setup for name in names]
    assert [setup.method for setup in setups] == ["alphaedit-naive", "alphaedit"] * 2
    assert [setup.config["lookup"] for setup in setups] == ["last", "last", "subject_last", "subject_last"]
    assert unchanged(before, weights(model))
    changes = [report.after.layers[1].weight_change for report in found.values()]
    assert len(set(changes)) == 4


def test_a_setting_of_a_variant_counts_over_that_of_all(tmp_path: Path) -> None:
    found = compared(tmp_path, ["memit", Variant("memit", {"value_steps": 2})])
    steps = {name: report.setup["config"]["value_steps"] for name, report in found.items()}
    assert steps == {"memit": 3, "memit-value_steps-2": 2}
    assert {result.figures["evaluations"] for result in found["memit-value_steps-2"].results} == {2}


@pytest.mark.parametrize(
    ("variant", "name"),
    [
        (Variant("memit"), "memit"),
        (Variant("memit-sequential"), "memit-h"),
        (Variant("betaedit", {"ridge": 0.5, "lookup": "last"}), "betaedit-ridge-0.5-lookup-last"),
        (Variant("betaedit", {"layers": [4, 5]}), "betaedit-layers-4-5"),
        (Variant("betaedit", {"kl_template": "../{} is a"}), "betaedit-kl_template-..-is-a"),
    ],
)
def test_the_name_of_a_variant_is_one_sane_folder(variant: Variant, name: str) -> None:
    assert variant.name == name


def test_what_cannot_be_compared_is_refused_before_anything_runs(tmp_path: Path) -> None:
    for wrong, error, text in (
        (["memit", "memt"], MethodError, "no method 'memt'"),
        (["memit", "memit-naive"], ConfigError, "both memit"),
        (["memit", Variant("memit", {"rigde": 1})], ConfigError, "no hyper-parameter 'rigde'"),
    ):
        with pytest.raises(error, match=text):
            compared(tmp_path, wrong)
    assert not (tmp_path / "runs").exists()


def test_the_unedited_model_is_measured_once_and_counts_for_every_method(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured: list[int] = []
    checkpoint = Evaluator.checkpoint

    def counted(self: Evaluator, edits: int, *args: Any) -> Any:
        measured.append(edits)
        return checkpoint(self, edits, *args)

    monkeypatch.setattr(Evaluator, "checkpoint", counted)
    methods = ["memit", Variant("memit", {"layers": (2,)})]
    found = compared(tmp_path, methods)
    assert measured == [0, 3, 3]
    one, two = (report.before for report in found.values())
    assert (one.perplexity, one.efficacy) == (two.perplexity, two.efficacy)
    assert [list(each.layers) for each in (one, two)] == [[1, 2], [2]]
    folders = [RunFolder(tmp_path / "runs" / name) for name in found]
    assert list(folders[0].outcomes(0)) == list(folders[1].outcomes(0)) != []
    assert folders[1].checkpoint(0) == two
    again = compared(tmp_path, methods)
    assert measured == [0, 3, 3]
    assert [report.checkpoints for report in again.values()] == [report.checkpoints for report in found.values()]


def test_values_sought_on_the_unedited_model_are_those_of_every_method(tmp_path: Path, searches: list[int]) -> None:
    settings = {"value_look_ahead": len(CASES)}
    compared(tmp_path, [Variant(method, settings) for method in ("memit", "alphaedit", "betaedit")])
    assert searches == [len(CASES)]
    kept = [list(folder.edits()) for folder in map(RunFolder, sorted((tmp_path / "runs").iterdir()))]
    assert len({tuple(edit["value_length"] for edit in edits) for edits in kept}) == 1
    assert len({str([edit["update_norms"] for edit in edits]) for edits in kept}) == 3


def test_a_method_compared_in_a_later_call_takes_the_unedited_model_from_the_runs_that_are_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = compared(tmp_path, ["memit"])["memit"]
    (tmp_path / "runs" / "broken").mkdir()
    (tmp_path / "runs" / "broken" / "run.json").write_text("{")
    checkpoint = Evaluator.checkpoint

    def edited_only(self: Evaluator, edits: int, *args: Any) -> Any:
        assert edits > 0
        return checkpoint(self, edits, *args)

    monkeypatch.setattr(Evaluator, "checkpoint", edited_only)
    later = compared(tmp_path, ["memit-h"])["memit-h"]
    assert later.before == first.before.model_copy(update={"seconds_evaluating": 0.0})


def test_the_unedited_model_is_measured_again_on_other_texts(tmp_path: Path) -> None:
    first = compared(tmp_path, ["memit"])["memit"]
    later = compared(tmp_path, ["memit-h"], measures=Measures(held_out=("Quite another text.",)))["memit-h"]
    assert later.before.perplexity != first.before.perplexity
