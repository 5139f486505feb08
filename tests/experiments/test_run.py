"""A measured run: what it leaves, that it can be interrupted anywhere, and that it refuses what it cannot do."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch

from betaedit.editors import Editor
from betaedit.errors import CollapseError, ConfigError, RunFolderError, StatisticsError
from betaedit.evaluation.abilities import PAPERS_TASKS
from betaedit.experiments import resume
from betaedit.experiments import run as run_module
from betaedit.experiments.evaluate import Evaluator, layer_states
from betaedit.experiments.figures import Measures, extra_figures
from betaedit.experiments.folder import RunFolder
from betaedit.experiments.record import EditFigure
from betaedit.experiments.run import run_edits
from betaedit.experiments.target import load_target
from betaedit.facts import EvaluationCase, Fact, Probe, Question
from betaedit.progress import SilentProgress
from betaedit.statistics import Moments
from support.chain import chain_model
from support.edits import FACTS, editor_for, weights
from support.families import language_model
from support.tiny import RecordedProgress

TEXTS = ("A short held-out text.", "And another one, a little longer than that.")
MEASURES = Measures(held_out=TEXTS)
CASES = [
    EvaluationCase(
        Fact(fact.prompt, fact.subject, fact.target_new, fact.target_true, f"f{index}"),
        (f"So {fact.text}",),
        (Probe("Zoe was born in", "Oslo"), Probe("Nobody knows this")),
        questions=(Question("Who is Ana?", ("an artist",), "reasoning"),),
    )
    for index, fact in enumerate(FACTS)
]


def a_run(folder: Path | None = None, cases=CASES, **changes):
    editor = editor_for(language_model("llama"))
    options = {"evaluate_at": [2], "measures": MEASURES, "folder": folder, **changes}
    return editor, run_edits(editor, cases, **options)


def figures(folder: Path) -> list[dict]:
    """All checkpoints without the times they took."""
    return [
        {name: value for name, value in checkpoint.model_dump().items() if not name.startswith("seconds")}
        for checkpoint in RunFolder(folder).checkpoints()
    ]


def test_a_run_measures_the_unedited_model_each_chosen_count_and_the_end() -> None:
    _, report = a_run()
    assert [checkpoint.edits for checkpoint in report.checkpoints] == [0, 2, 5]
    assert [checkpoint.efficacy.probability.count for checkpoint in report.checkpoints] == [5, 2, 5]


def test_edits_are_shown_from_one_count_to_the_next() -> None:
    editor = editor_for(language_model("llama"))
    editor.progress = RecordedProgress()
    run_edits(editor, CASES, evaluate_at=[2], measures=MEASURES)
    shown = [(task.total, task.done, task.steps) for task in editor.progress.tasks if task.description == "editing"]
    assert shown == [(0, 0, []), (2, 0, [1, 1]), (5, 2, [1, 1, 1])]


def test_the_unedited_model_agrees_with_itself_and_nothing_has_moved() -> None:
    _, report = a_run()
    assert report.before.agreement == 1
    assert report.before.kl == 0
    assert all(state.leakage == state.weight_change == 0 for state in report.before.layers.values())
    assert report.after.kl > 0


def test_what_is_on_disk_is_what_is_reported(tmp_path: Path) -> None:
    _, report = a_run(tmp_path / "run")
    kept = RunFolder(tmp_path / "run")
    assert kept.checkpoints() == list(report.checkpoints)
    assert [edit["id"] for edit in kept.edits()] == [case.fact.id for case in CASES]
    assert [edit["number"] for edit in kept.edits()] == [1, 2, 3, 4, 5]
    assert {outcome.kind for outcome in kept.outcomes(5)} == {"rewrite", "paraphrase", "neighbor"}
    assert len(list(kept.outcomes(2))) == 2 * 4


class Killed(BaseException):
    """Stands for the end of the process."""


@pytest.mark.parametrize("at", [0, 2, 5])
def test_a_run_killed_while_measuring_goes_on_and_ends_with_the_same_figures(tmp_path: Path, monkeypatch, at) -> None:
    editor, _ = a_run(tmp_path / "whole")
    checkpoint = Evaluator.checkpoint

    def killed(self, edits, *args):
        if edits == at:
            raise Killed
        return checkpoint(self, edits, *args)

    with monkeypatch.context() as patch:
        patch.setattr(Evaluator, "checkpoint", killed)
        with pytest.raises(Killed):
            a_run(tmp_path / "broken")
    resumed, report = a_run(tmp_path / "broken")
    assert figures(tmp_path / "broken") == figures(tmp_path / "whole")
    assert len(report.results) == 5
    before, after = weights(editor.language_model), weights(resumed.language_model)
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize("edits", [1, 3])
def test_a_run_killed_while_editing_loses_the_edit_in_flight_only(tmp_path: Path, monkeypatch, edits) -> None:
    editor, _ = a_run(tmp_path / "whole")
    save = run_module.save_batch

    def killed(folder, first, batch):
        save(folder, first, batch)
        if first == edits:
            raise Killed  # kept, but not yet listed in edits.jsonl

    with monkeypatch.context() as patch:
        patch.setattr(run_module, "save_batch", killed)
        with pytest.raises(Killed):
            a_run(tmp_path / "broken")
    resumed, _ = a_run(tmp_path / "broken")
    assert [edit["number"] for edit in RunFolder(tmp_path / "broken").edits()] == [1, 2, 3, 4, 5]
    assert figures(tmp_path / "broken") == figures(tmp_path / "whole")
    before, after = weights(editor.language_model), weights(resumed.language_model)
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_more_counts_can_be_measured_afterwards(tmp_path: Path) -> None:
    a_run(tmp_path / "run")
    _, report = a_run(tmp_path / "run", evaluate_at=[1, 2, 4])
    assert [checkpoint.edits for checkpoint in report.checkpoints] == [0, 1, 2, 4, 5]
    assert RunFolder(tmp_path / "run").setup.evaluate_at == [0, 1, 2, 4, 5]


def test_more_facts_follow_those_of_a_kept_run_as_if_they_had_been_there_from_the_start(tmp_path: Path) -> None:
    editor, _ = a_run(tmp_path / "whole", evaluate_at=[3])
    a_run(tmp_path / "grown", CASES[:3], evaluate_at=[])
    kept = (tmp_path / "grown" / "state" / "00000003.safetensors").stat().st_mtime_ns
    grown, report = a_run(tmp_path / "grown", evaluate_at=[3], source="a longer file")
    assert (tmp_path / "grown" / "state" / "00000003.safetensors").stat().st_mtime_ns == kept
    assert figures(tmp_path / "grown") == figures(tmp_path / "whole")
    assert report.before.efficacy.probability.count == 5
    data = RunFolder(tmp_path / "grown").setup.data
    assert (data["records"], data["source"]) == (5, "a longer file")
    before, after = weights(editor.language_model), weights(grown.language_model)
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize(
    ("owner", "name"), [(RunFolder, "remove_checkpoint"), (resume, "write_json"), (Evaluator, "checkpoint")]
)
def test_a_run_killed_while_it_takes_on_more_facts_goes_on_and_ends_with_the_same_figures(
    tmp_path: Path, monkeypatch, owner, name
) -> None:
    a_run(tmp_path / "whole", evaluate_at=[3])
    a_run(tmp_path / "grown", CASES[:3], evaluate_at=[])
    step = getattr(owner, name)

    def killed(*args):
        step(*args)
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(owner, name, killed)
        with pytest.raises(Killed):
            a_run(tmp_path / "grown", evaluate_at=[3])
    assert RunFolder(tmp_path / "grown").measured() == [3]
    a_run(tmp_path / "grown", evaluate_at=[3])
    assert figures(tmp_path / "grown") == figures(tmp_path / "whole")


def test_other_facts_than_those_of_a_kept_run_are_refused_and_it_stays(tmp_path: Path) -> None:
    a_run(tmp_path / "run", CASES[:3], batch_size=2)
    before = figures(tmp_path / "run")
    for cases in (CASES[:2], CASES[1:], [CASES[0], CASES[2], CASES[1], CASES[3]]):
        with pytest.raises(RunFolderError, match=f"other facts than these {len(cases)}: 3 of"):
            a_run(tmp_path / "run", cases, batch_size=2)
    with pytest.raises(RunFolderError, match="3 facts, which do not end with a whole batch of 2"):
        a_run(tmp_path / "run", batch_size=2)
    assert figures(tmp_path / "run") == before


@pytest.mark.parametrize(
    "changes",
    [
        {"measures": Measures(held_out=TEXTS[:1])},
        {"measures": Measures(held_out=TEXTS, extras=("tokens",))},
        {
            "measures": MEASURES,
            "cases": [dataclasses.replace(case, paraphrases=("Another wording",)) for case in CASES],
        },
    ],
)
def test_figures_measured_otherwise_do_not_stand_in_one_run(tmp_path: Path, changes) -> None:
    a_run(tmp_path / "run", CASES[:3], evaluate_at=[])
    kept = figures(tmp_path / "run")
    for n in (3, 5):
        with pytest.raises(RunFolderError, match="other measurements"):
            a_run(tmp_path / "run", changes.get("cases", CASES)[:n], evaluate_at=[], measures=changes["measures"])
    assert figures(tmp_path / "run") == kept


def test_a_run_that_does_not_say_how_it_was_measured_goes_on(tmp_path: Path) -> None:
    a_run(tmp_path / "run", CASES[:3], evaluate_at=[])
    file = tmp_path / "run" / "run.json"
    setup = json.loads(file.read_text())
    measured = setup.pop("measured")
    file.write_text(json.dumps(setup))
    a_run(tmp_path / "run", CASES[:3], evaluate_at=[])
    assert RunFolder(tmp_path / "run").setup.measured == measured


def test_a_run_that_was_begun_under_an_earlier_name_of_its_search_goes_on(tmp_path: Path) -> None:
    def edited(cases: list[EvaluationCase]) -> int:
        editor = editor_for(language_model("llama"), value_optimizer="projected_bb")
        run_edits(editor, cases, evaluate_at=[], measures=MEASURES, folder=tmp_path / "run")
        return len(editor.results)

    edited(CASES[:2])
    file = tmp_path / "run" / "run.json"
    setup = json.loads(file.read_text())
    setup["config"]["value_optimizer"] = "spectral"
    file.write_text(json.dumps(setup))
    assert edited(CASES[:3]) == 3


def test_a_folder_with_another_run_is_left_alone(tmp_path: Path) -> None:
    a_run(tmp_path / "run")
    with pytest.raises(RunFolderError, match="a different batch_size"):
        a_run(tmp_path / "run", batch_size=2)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").write_text("years of work")
    with pytest.raises(RunFolderError, match="not empty"):
        a_run(tmp_path / "other")


@pytest.mark.parametrize(("count", "batch_size"), [(6, 1), (-1, 1), (3, 2)])
def test_a_count_that_no_batch_ends_at_is_refused_before_anything_runs(count, batch_size) -> None:
    editor = editor_for(language_model("llama"))
    with pytest.raises(ConfigError, match=f"after {count} edits"):
        run_edits(editor, CASES, evaluate_at=[count], batch_size=batch_size, measures=MEASURES)
    assert editor.results == []


def test_a_model_that_holds_edits_is_no_beginning() -> None:
    editor, _ = a_run()
    with pytest.raises(ConfigError, match="already holds edits"):
        run_edits(editor, CASES, measures=MEASURES)


def test_batches_of_a_run_are_those_of_an_editor() -> None:
    editor, _ = a_run(batch_size=2)
    plain = editor_for(language_model("llama"))
    plain.edit(CASES[:2], batch_size=2)
    plain.edit(CASES[2:], batch_size=2)
    before, after = weights(plain.language_model), weights(editor.language_model)
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.fixture
def broken_by_edits(monkeypatch) -> None:
    """Up to two edits leave the model as it was; later ones multiply its perplexity by a thousand."""
    checkpoint = Evaluator.checkpoint

    def worse(self, edits, *args):
        found, outcomes = checkpoint(self, edits, *args)
        sound = {"perplexity": 10.0, "agreement": 1.0, "specificity": EditFigure(probability=None, argmax=None)}
        return found.model_copy(update={**sound, "perplexity": 10.0 if edits <= 2 else 10_000.0}), outcomes

    monkeypatch.setattr(Evaluator, "checkpoint", worse)


@pytest.mark.usefixtures("broken_by_edits")
def test_a_collapse_is_told_with_the_place_where_it_began(caplog, tmp_path: Path) -> None:
    _, report = a_run(evaluate_at=[2, 4])
    assert "began after 2 edits and was seen at 4" in caplog.text
    assert [checkpoint.edits for checkpoint in report.checkpoints] == [0, 2, 4, 5]
    caplog.clear()
    a_run(evaluate_at=[2, 4], on_collapse="ignore")
    assert caplog.text == ""
    with pytest.raises(CollapseError, match="began after 2 edits"):
        a_run(tmp_path / "run", evaluate_at=[2, 4], on_collapse="stop")
    assert RunFolder(tmp_path / "run").measured() == [0, 2, 4]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_run_folder_can_be_measured_as_a_model(tmp_path: Path, dtype) -> None:
    source = tmp_path / "model"
    model = language_model("llama")
    model.model.save_pretrained(source)
    model.tokenizer.save_pretrained(source)
    editor = editor_for(load_target(str(source), dtype=dtype))
    run_edits(editor, CASES, measures=MEASURES, folder=tmp_path / "run")
    before, after = (
        weights(editor.language_model),
        weights(load_target(str(tmp_path / "run"), statistics=editor.editing.statistics)),
    )
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize("method", ["betaedit", "rect-aligned"])
def test_a_run_that_replaced_or_processed_is_the_same_as_a_model(tmp_path: Path, method: str) -> None:
    source = tmp_path / "model"
    model = language_model("llama")
    model.model.save_pretrained(source)
    model.tokenizer.save_pretrained(source)
    second = EvaluationCase(Fact(FACTS[0].prompt, FACTS[0].subject, "a third tongue", id="again"))
    editor = editor_for(load_target(str(source)), method, conflicts="replace")
    run_edits(editor, [*CASES, second], measures=MEASURES, folder=tmp_path / "run")
    assert len(editor.results) == (5 if method == "betaedit" else 6)
    loaded = load_target(str(tmp_path / "run"), statistics=editor.editing.statistics)
    before, after = weights(editor.language_model), weights(loaded)
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_a_run_is_no_model_under_other_statistics(tmp_path: Path) -> None:
    source = tmp_path / "model"
    model = language_model("llama")
    model.model.save_pretrained(source)
    model.tokenizer.save_pretrained(source)
    editor = editor_for(load_target(str(source)), statistics_tokens=200)
    run_edits(editor, CASES, measures=MEASURES, folder=tmp_path / "run")
    with pytest.raises(StatisticsError, match="other statistics"):
        load_target(str(tmp_path / "run"))


def test_a_run_killed_within_a_look_ahead_seeks_those_values_together_again(tmp_path: Path, monkeypatch) -> None:
    options = {"evaluate_at": [4]}

    def ahead(folder: Path):
        editor = editor_for(language_model("llama"), value_look_ahead=2)
        run_edits(editor, CASES, measures=MEASURES, folder=folder, **options)
        return weights(editor.language_model)

    whole = ahead(tmp_path / "whole")
    save = run_module.save_batch

    def killed(folder, first, batch):
        save(folder, first, batch)
        if first == 3:
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(run_module, "save_batch", killed)
        with pytest.raises(Killed):
            ahead(tmp_path / "broken")
    resumed = ahead(tmp_path / "broken")
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    assert figures(tmp_path / "broken") == figures(tmp_path / "whole")


def test_extras_are_measured_when_asked_for() -> None:
    measures = Measures(held_out=TEXTS, extras=("questions", "tokens"))
    _, report = a_run(measures=measures)
    assert {"reliability", "generalization", "reasoning", "portability", "token accuracy, prompts"} <= set(
        report.after.measures
    )
    assert report.after.measures["reliability"].count == 5


def test_a_report_is_plain_data() -> None:
    _, report = a_run()
    plain = json.loads(json.dumps(report.to_dict()))
    assert plain["efficacy"]["probability"]["count"] == 5
    assert plain["verdict"]["edits"] == 5
    assert len(plain["checkpoints"]) == 3


# What figures depend on beside the command


def with_statistics(folder: Path, moments: Moments):
    """The run at ``folder`` called again by an editor with other statistics."""
    plain = editor_for(language_model("llama"))
    editor = Editor(plain.language_model, config=plain.config, statistics=moments)
    return run_edits(editor, CASES, evaluate_at=[2], measures=MEASURES, folder=folder)


@pytest.fixture(scope="module")
def collected() -> Moments:
    moments = editor_for(language_model("llama")).editing.statistics
    return Moments(moments.matrices, moments.n_tokens, {**moments.origin, "text_sha256": "sha256:" + "a" * 64})


def scaled(moments: Moments, factor: float, **origin: str) -> Moments:
    matrices = {layer: matrix * factor for layer, matrix in moments.matrices.items()}
    return Moments(matrices, moments.n_tokens, {**moments.origin, **origin})


@pytest.mark.parametrize(
    "origin", [{"text_sha256": "sha256:" + "b" * 64}, {"weights": "sha256:00"}, {"text_sha256": "not recorded"}]
)
def test_a_kept_run_does_not_go_on_with_statistics_of_another_text(tmp_path: Path, collected: Moments, origin) -> None:
    with_statistics(tmp_path / "run", collected)
    before = figures(tmp_path / "run")
    with pytest.raises(StatisticsError, match="other statistics") as caught:
        with_statistics(tmp_path / "run", scaled(collected, 1.01, **origin))
    assert "--statistics FILE" in caught.value.hint
    assert "text aaaaaaaaaaaa" in caught.value.message
    assert figures(tmp_path / "run") == before
    with_statistics(tmp_path / "run", collected)


def test_a_kept_run_goes_on_with_the_same_text_that_another_number_of_threads_rounds_otherwise(
    tmp_path: Path, collected: Moments
) -> None:
    with_statistics(tmp_path / "run", collected)
    report = with_statistics(tmp_path / "run", scaled(collected, 1 + 1e-7))
    assert len(report.results) == len(CASES)


@pytest.mark.parametrize("changes", [{"threads": 64}, {"device": "cuda", "processor": "another"}, None])
def test_the_machine_of_a_run_is_told_and_nothing_is_refused_for_it(tmp_path: Path, changes) -> None:
    a_run(tmp_path / "run", CASES[:2])
    file = tmp_path / "run" / "run.json"
    setup = json.loads(file.read_text())
    assert setup["machine"]["threads"] == torch.get_num_threads()
    assert setup["machine"]["device"] == "cpu"
    if changes is None:  # an older version
        del setup["machine"]
    else:
        setup["machine"] |= changes
    file.write_text(json.dumps(setup))
    a_run(tmp_path / "run", CASES[:2])


def test_a_report_tells_text_statistics_and_machine() -> None:
    report = a_run(cases=CASES[:2])[1].to_dict()["setup"]
    assert {"fingerprint", "text_sha256"} <= set(report["statistics"])
    assert report["measured"] == {**MEASURES.describe(CASES[:2])}
    assert report["measured"]["held_out_texts"] == 2
    assert {"threads", "processor", "device"} <= set(report["machine"])
    assert report["dtype"] == "float32"


@pytest.mark.parametrize("changed", ["sst2", "rte", "mmlu"])
def test_ability_items_that_are_asked_are_told_by_a_hash(tmp_path: Path, changed: str) -> None:
    record = {"sentence": "a", "sentence1": "a", "sentence2": "b", "question": "q", "choices": ["a", "b", "c", "d"]}
    answers = {name: "entailment" if name == "nli" else 0 for name in PAPERS_TASKS}

    def described(**other: str) -> dict[str, object]:
        for name, label in answers.items():
            lines = [{**record, "label": label, "answer": label, **other} if name == changed else
                     {**record, "label": label, "answer": label} for _ in range(12)]  # fmt: skip
            text = "".join(f"{json.dumps(line)}\n" for line in lines)
            (tmp_path / f"cap_{name}.jsonl").write_text(text)
        return Measures(held_out=TEXTS, extras=("abilities",), abilities_folder=tmp_path, n_tests=2).describe(CASES)

    first = described()
    assert described() == first == described(comment="not asked")
    other = described(sentence="z", sentence1="z", question="z")
    assert other["tasks_sha256"] != first["tasks_sha256"]
    assert {**other, "tasks_sha256": first["tasks_sha256"]} == first


def test_a_run_that_says_less_of_how_it_was_measured_goes_on(tmp_path: Path) -> None:
    a_run(tmp_path / "run", CASES[:2])
    file = tmp_path / "run" / "run.json"
    setup = json.loads(file.read_text())
    measured = dict(setup["measured"])
    del setup["measured"]["held_out_texts"]
    file.write_text(json.dumps(setup))
    a_run(tmp_path / "run", CASES[:2])
    assert RunFolder(tmp_path / "run").setup.measured == measured


def test_leakage_is_told_on_the_held_out_texts_and_on_the_statistics_own() -> None:
    editor, report = a_run(cases=CASES[:2])
    told = report.to_dict()
    states = layer_states(editor, list(TEXTS))
    for name in ("leakage", "statistics_text_leakage"):
        shares = [getattr(state, f"relative_{name}") for state in states.values()]
        assert told[name]["relative"] == pytest.approx(sum(shares) / len(shares))
    assert told["leakage"]["relative"] != pytest.approx(told["statistics_text_leakage"]["relative"], rel=1e-3)


# Token accuracy, by hand


def test_token_accuracy_is_over_a_record_s_prompts_then_over_the_records_that_have_any() -> None:
    """The model says each word of ``king is gold river`` after the one before it."""
    fact = Fact("{} king", "the", "is gold")
    cases = [
        EvaluationCase(fact, ("old king",), (Probe("a king", "is gold"), Probe("a king", "is sea"), Probe("a king"))),
        EvaluationCase(fact, (), (Probe("a king", "was old"),)),
        EvaluationCase(fact, ("the sea", "a king"), ()),
    ]
    found = extra_figures(chain_model(" king is gold river"), cases, Measures(extras=("tokens",)), SilentProgress())
    prompts, paraphrases, neighbors = (
        found[f"token accuracy, {kind}"] for kind in ("prompts", "paraphrases", "neighbors")
    )
    assert (prompts.mean, prompts.count) == (1.0, 3)
    # 1 of the first record, (1/2 + 1) / 2 of the third, where ``is`` does not follow ``sea``.
    assert (paraphrases.mean, paraphrases.count) == (0.875, 2)
    # (1 + 1/2) / 2 of the first record, 0 of the second; the third has no neighbor.
    assert (neighbors.mean, neighbors.count) == (0.375, 2)


def test_facts_without_neighbors_have_no_token_accuracy_of_neighbors() -> None:
    cases = [EvaluationCase(Fact("{} king", "the", "is gold"), (), (Probe("king"),))]
    found = extra_figures(chain_model(" king is gold"), cases, Measures(extras=("tokens",)), SilentProgress())
    assert set(found) == {"token accuracy, prompts"}
