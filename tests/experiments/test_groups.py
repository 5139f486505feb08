"""Facts written in groups: what a group is, how figures are pooled, and that a run can be interrupted anywhere."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from betaedit.editors.closed_form import engine
from betaedit.errors import ConfigError, RunFolderError
from betaedit.evaluation.interval import estimate
from betaedit.experiments import evaluate
from betaedit.experiments import run as run_module
from betaedit.experiments.compare import compare_methods
from betaedit.experiments.evaluate import Evaluator
from betaedit.experiments.figures import Measures
from betaedit.experiments.folder import Checkpoints, RunFolder
from betaedit.experiments.groups import group_ends, group_start, pool
from betaedit.experiments.record import Ability, Mean
from betaedit.experiments.run import RunReport, run_edits
from betaedit.experiments.side_by_side import compare_runs
from betaedit.experiments.target import facts_of, load_target
from betaedit.facts import EvaluationCase, Fact, Probe, Question
from betaedit.reports.charts import name_folders
from support.edits import CONTEXTS, FACTS, editor_for, unchanged, weights
from support.families import language_model
from support.methods import small_editor
from support.runs import checkpoint as made_up
from support.runs import mean

TEXTS = ("A short held-out text.", "And another one, a little longer than that.")
MEASURES = Measures(held_out=TEXTS)
CASES = [
    EvaluationCase(
        Fact(fact.prompt, fact.subject, fact.target_new, fact.target_true, f"f{index}"),
        (f"So {fact.text}",) if index != 1 else (),
        (Probe("Zoe was born in", "Oslo"), Probe(f"Nobody knows {index}")),
        questions=(Question("Who is Ana?", ("an artist",), "reasoning"),),
    )
    for index, fact in enumerate(FACTS)
]


def grouped(folder: Path | None, size: int, method: str = "betaedit", cases=CASES, **changes) -> RunReport:
    editor = small_editor(method, language_model("llama"))
    options = {"measures": MEASURES, "folder": folder, "reset_every": size, **changes}
    return run_edits(editor, cases, **options)


def figures(folder: Path) -> list[dict]:
    """All checkpoints, also of groups, without the times they took."""
    kept = RunFolder(folder)
    return [
        {name: value for name, value in checkpoint.model_dump().items() if not name.startswith("seconds")}
        for place in (kept, kept.groups)
        for checkpoint in place.checkpoints()
    ]


@pytest.mark.parametrize(
    "method", ["betaedit", "rect", "ft", "lora", "ultraedit", "grace", "wise", "scr", "mend", "memit-h+scr"]
)
def test_each_group_is_measured_as_if_it_were_a_run_of_its_own(tmp_path: Path, method: str) -> None:
    cases, size = CASES[:3], 2
    grouped(tmp_path / "groups", size, method, cases)
    alone = []
    for start in range(0, len(cases), size):
        grouped(folder := tmp_path / f"from-{start}", None, method, part := cases[start : start + size])
        alone += RunFolder(folder).outcomes(len(part))
    assert list(RunFolder(tmp_path / "groups").outcomes(len(cases))) == alone


def test_figures_of_facts_are_means_over_all_records_with_their_interval(tmp_path: Path) -> None:
    report = grouped(tmp_path / "run", 2, measures=dataclasses.replace(MEASURES, extras=("tokens", "questions")))
    outcomes = list(RunFolder(tmp_path / "run").outcomes(5))
    rewrites = [float(one.wanted_nll < one.other_nll) for one in outcomes if one.kind == "rewrite"]
    found = report.after.efficacy.probability
    assert found.model_dump() == pytest.approx(estimate(rewrites).to_dict())
    assert report.after.generality.argmax.count == 4  # one record has no paraphrase
    assert report.after.neighbors_kept.count == 5
    assert {name: value.count for name, value in report.after.measures.items()} == {
        "token accuracy, prompts": 5,
        "token accuracy, paraphrases": 4,
        "token accuracy, neighbors": 5,
        "match ratio, neighbors": 5,
        "exact match, neighbors": 5,
        "reliability": 5,
        "generalization": 4,
        "reasoning": 5,
        "portability": 5,
    }


def test_figures_of_the_model_are_means_over_the_first_groups_and_the_record_says_how_many(
    tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.setattr(evaluate, "WHOLE_MODEL", 2)
    report = grouped(tmp_path / "run", 1)
    groups = RunFolder(tmp_path / "run").groups.checkpoints()
    assert [group.perplexity is not None for group in groups] == [True, True, False, False, False]
    assert report.after.groups.model_dump() == {"size": 1, "count": 5, "drift": 2}
    for name in ("perplexity", "agreement", "kl"):
        assert getattr(report.after, name) == pytest.approx(sum(getattr(group, name) for group in groups[:2]) / 2)
    changes = [group.layers[1].relative_weight_change for group in groups[:2]]
    assert report.after.layers[1].relative_weight_change == pytest.approx(sum(changes) / 2)
    assert report.after.seconds_editing == pytest.approx(sum(result.seconds for result in report.results))


def test_abilities_and_latency_are_figures_of_the_model() -> None:
    of_facts = dataclasses.replace(MEASURES, extras=("abilities", "tokens", "latency", "questions")).of_facts
    assert (of_facts.drift, of_facts.extras) == (False, ("tokens", "questions"))


def test_an_ability_task_keeps_the_count_of_its_items() -> None:
    groups = [made_up(edits, abilities={"mmlu": Ability(accuracy=mean(share, 50), macro_f1=share)})
              for edits, share in ((2, 0.2), (4, 0.4))]  # fmt: skip
    found = pool(groups, 2).abilities["mmlu"]
    assert (found.accuracy.mean, found.accuracy.count, found.macro_f1) == (pytest.approx(0.3), 50, pytest.approx(0.3))


def test_means_are_pooled_by_their_records_and_numbers_by_their_groups() -> None:
    groups = [made_up(edits, measures=measures) for edits, measures in (
        (2, {"a": mean(1.0, 3), "b": 1.0}), (4, {"a": mean(0.0, 1), "b": 3.0}), (6, {}),
    )]  # fmt: skip
    assert pool(groups, 2).measures == {"a": Mean(**estimate([1, 1, 1, 0]).to_dict()), "b": 2.0}


def test_prompts_that_lost_most_are_those_of_all_groups() -> None:
    pooled = pool([made_up(2, damage=0.01), made_up(4, damage=0.5)], 2)
    losses = [prompt.margin_after - prompt.margin_before for prompt in pooled.worst]
    assert losses == sorted(losses)
    assert len(losses) == 12


def test_a_model_is_unedited_before_each_group_and_holds_the_last_one_in_the_end() -> None:
    model = language_model("llama")
    before, editor = weights(model), editor_for(model)
    report = run_edits(editor, CASES, measures=MEASURES, reset_every=2)
    assert [result.fact.id for result in editor.results] == ["f4"]
    assert len(report.results) == len(report.holdings) == 5
    editor.reset()
    assert unchanged(before, weights(model))


def test_a_fact_of_another_group_corrects_nothing(tmp_path: Path) -> None:
    fact = CASES[0].fact
    later = EvaluationCase(Fact(fact.prompt, fact.subject, "Welsh", fact.target_true, "later"))
    assert grouped(None, 1, cases=[CASES[0], later]).after.corrected == 0
    assert grouped(None, 2, cases=[CASES[0], later]).after.corrected == 1
    assert None not in grouped(None, 1, cases=[CASES[0], later]).holdings


def test_counts_between_groups_are_measured_over_the_groups_so_far(tmp_path: Path) -> None:
    report = grouped(tmp_path / "run", 2, evaluate_at=[4])
    assert [checkpoint.edits for checkpoint in report.checkpoints] == [0, 4, 5]
    assert [checkpoint.efficacy.probability.count for checkpoint in report.checkpoints] == [5, 4, 5]
    assert len(list(RunFolder(tmp_path / "run").outcomes(4))) == 4 * 4 - 1


# Continuing


class Killed(BaseException):
    """Stands for the end of the process."""


@pytest.mark.parametrize(
    ("owner", "name", "at"),
    [
        (run_module, "save_batch", 3),
        (Evaluator, "checkpoint", 3),
        (Checkpoints, "write_checkpoint", 4),
        (run_module, "measure_held", 2),
    ],
)
def test_a_killed_run_goes_on_with_its_group_and_ends_with_the_same_figures(
    tmp_path: Path, monkeypatch, owner, name, at
) -> None:
    whole = grouped(tmp_path / "whole", 2)
    step, calls = getattr(owner, name), []

    def killed(*args):
        found = step(*args)
        calls.append(args)
        if len(calls) == at:
            raise Killed
        return found

    with monkeypatch.context() as patch:
        patch.setattr(owner, name, killed)
        with pytest.raises(Killed):
            grouped(tmp_path / "broken", 2)
    state = tmp_path / "broken" / "state"
    kept = {file.name: file.stat().st_mtime_ns for file in state.glob("*")}
    report = grouped(tmp_path / "broken", 2)
    assert {name: (state / name).stat().st_mtime_ns for name in kept} == kept
    assert figures(tmp_path / "broken") == figures(tmp_path / "whole")
    assert report.holdings == whole.holdings
    assert [edit["number"] for edit in RunFolder(tmp_path / "broken").edits()] == [1, 2, 3, 4, 5]
    outcomes = [list(RunFolder(tmp_path / folder).outcomes(5)) for folder in ("broken", "whole")]
    assert outcomes[0] == outcomes[1]


def test_values_searched_together_in_a_killed_group_are_searched_together_again(tmp_path: Path, monkeypatch) -> None:
    def ahead(folder: Path) -> None:
        editor = editor_for(language_model("llama"), value_look_ahead=2)
        run_edits(editor, CASES, measures=MEASURES, folder=folder, reset_every=3)

    ahead(tmp_path / "whole")
    save = run_module.save_batch

    def killed(folder, first, batch):
        save(folder, first, batch)
        if first == 4:  # the first of a window in the second group
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(run_module, "save_batch", killed)
        with pytest.raises(Killed):
            ahead(tmp_path / "broken")
    ahead(tmp_path / "broken")
    assert figures(tmp_path / "broken") == figures(tmp_path / "whole")


def test_more_groups_can_follow_whole_ones(tmp_path: Path) -> None:
    grouped(tmp_path / "whole", 2, evaluate_at=[4])
    grouped(tmp_path / "grown", 2, cases=CASES[:4])
    grouped(tmp_path / "grown", 2, evaluate_at=[4])
    assert figures(tmp_path / "grown") == figures(tmp_path / "whole")
    grouped(tmp_path / "short", 2, cases=CASES[:3])
    with pytest.raises(RunFolderError, match="do not end with a whole group of 2"):
        grouped(tmp_path / "short", 2)


def test_a_run_does_not_go_on_in_groups_of_another_size(tmp_path: Path) -> None:
    grouped(tmp_path / "run", 2)
    for size in (1, None):
        with pytest.raises(RunFolderError, match="a different reset_every"):
            grouped(tmp_path / "run", size)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"size": 2, "batch_size": 3}, "after every 2 facts in batches of 3"),
        ({"size": 0}, "after every 0 facts"),
        ({"size": 2, "evaluate_at": [3]}, "cannot measure after 3 edits"),
    ],
)
def test_groups_that_cannot_be_are_refused_before_anything_runs(tmp_path: Path, changes, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        grouped(tmp_path / "run", **changes)
    assert not (tmp_path / "run").exists()


# What reads such runs


def test_no_model_holds_the_facts_of_all_groups(tmp_path: Path) -> None:
    grouped(tmp_path / "run", 2)
    for read in (load_target, facts_of):
        with pytest.raises(RunFolderError, match="no model holds all facts"):
            read(str(tmp_path / "run"))


def test_runs_of_different_groups_are_told_apart_by_name(tmp_path: Path) -> None:
    folders = []
    for place, size in (("1", 1), ("2", 2), ("all", None)):
        grouped(tmp_path / place / "betaedit", size)
        folders.append(RunFolder(tmp_path / place / "betaedit"))
    names = ["betaedit (groups of 1)", "betaedit (groups of 2)", "betaedit (one sequence)"]
    assert list(name_folders(folders)) == names
    assert list(name_folders(folders[:1])) == ["betaedit"]
    compared = compare_runs(name_folders(folders))
    assert {(each.first, each.second, each.test.count) for each in compared if each.figure == "facts held"} == {
        (names[0], names[1], 5), (names[0], names[2], 5), (names[1], names[2], 5),
    }  # fmt: skip


def test_each_value_is_searched_once_for_all_methods_if_each_fact_is_written_alone(tmp_path: Path, monkeypatch) -> None:
    search, searched = engine.optimize_values, []
    monkeypatch.setattr(engine, "optimize_values", lambda *args: searched.append(1) or search(*args))
    (tmp_path / "corpus.txt").write_text("Ordinary words follow one another in the long text. " * 20)
    overrides = {"layers": (1, 2), "context_templates": CONTEXTS, "value_steps": 2, "retries": 0, "keep_missed": True,
                 "statistics_corpus": str(tmp_path / "corpus.txt"), "statistics_tokens": 200}  # fmt: skip
    found = compare_methods(
        language_model("llama"), ["memit", "alphaedit"], CASES[:3], tmp_path / "runs",
        overrides=overrides, measures=MEASURES, reset_every=1,
    )  # fmt: skip
    assert len(searched) == 3
    assert [report.after.groups.count for report in found.values()] == [3, 3]


@pytest.mark.parametrize(("total", "size", "ends"), [(5, 2, [2, 4, 5]), (4, 2, [2, 4]), (3, 5, [3]), (3, 1, [1, 2, 3])])
def test_the_last_group_may_be_smaller(total: int, size: int, ends: list[int]) -> None:
    assert group_ends(total, size) == ends
    assert [group_start(end, size) for end in ends] == [0, *ends[:-1]]
    assert group_start(0, size) == group_start(total, None) == 0
