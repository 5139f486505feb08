"""A workspace on tiny models: what it remembers, takes back and refuses."""

from __future__ import annotations

import pkgutil
import shutil
from dataclasses import replace
from itertools import count
from pathlib import Path

import pytest
import torch
from torch import Tensor

from betaedit import Editor, EvaluationCase, Fact
from betaedit.errors import (
    ConfigError,
    FactError,
    IdentityError,
    LedgerError,
    MethodError,
    ModelError,
    NotHeldError,
    NumericalError,
    WeightsChangedError,
)
from betaedit.ledger.health import check, reapply
from betaedit.ledger.identity import STATISTICS
from betaedit.ledger.query import compare, find, find_one, history, live_cases, select, status
from betaedit.ledger.workspace import Workspace
from betaedit.models import LanguageModel
from betaedit.statistics import Moments
from support.edits import FACTS, MANY, editor_for, moments_for, relative, unchanged, weights
from support.tiny import tiny_gpt2, tiny_llama

NEVER = 10**9
RULES = [("memit-h", NEVER), ("alphaedit", NEVER), ("betaedit", NEVER), ("betaedit", 2), ("memit", NEVER)]
OTHER = Fact(FACTS[1].prompt, FACTS[1].subject, "Oslo")


def quick(model: LanguageModel, method: str = "betaedit", **changes: object) -> Editor:
    return editor_for(model, method, **{"value_steps": 2, "refresh_every": NEVER, **changes})


def made(folder: Path, method: str = "betaedit", **changes: object) -> Workspace:
    return Workspace.create(folder / "w", quick(tiny_llama(), method, **changes))


def reopened(folder: Path, *, write: bool = False) -> Workspace:
    return Workspace.open(folder / "w", write=write, model=tiny_llama())


def state(workspace: Workspace) -> dict[int, Tensor]:
    return {layer: matrix.change().clone() for layer, matrix in workspace.matrices.items()}


def same(first: dict[int, Tensor], second: dict[int, Tensor]) -> bool:
    return all(torch.equal(first[layer], second[layer]) for layer in first)


def live(workspace: Workspace) -> list[Fact]:
    return [version.fact for version in workspace.store.live()]


@pytest.mark.parametrize(("method", "refresh_every"), RULES)
@pytest.mark.parametrize("batch_size", [1, 2])
def test_a_reopened_workspace_has_the_same_weights_bit_for_bit(
    tmp_path: Path, method: str, refresh_every: int, batch_size: int
):
    with made(tmp_path, method, refresh_every=refresh_every) as workspace:
        workspace.edit(FACTS, batch_size=batch_size)
        workspace.edit(OTHER)
        workspace.forget("Ana")
        left = state(workspace)
    for write in (False, True):
        with reopened(tmp_path, write=write) as again:
            assert same(state(again), left)
            assert live(again) == [FACTS[0], FACTS[3], FACTS[4], OTHER]


def test_a_fact_that_a_restore_brought_back_is_live_whatever_was_written_since(tmp_path: Path):
    about = [Fact("{} was born in", "Ana", "Lima"), Fact("{} works as an", "Ana", "artist")]
    with made(tmp_path, shared_subjects="together") as workspace:
        workspace.edit(about[0])
        before = workspace.store.head
        workspace.edit(about[1])  # writes the first one again
        workspace.restore(before)
        assert [fact.state for fact in workspace.store.facts()] == ["live", "undone"]
        assert workspace.store.states() == {"live": 1, "replaced": 0, "forgotten": 0, "undone": 1}
        assert [fact.number for fact in workspace.store.facts(last=1)] == [2]


@pytest.mark.parametrize(("method", "refresh_every"), RULES)
def test_a_reopened_workspace_goes_on_as_if_it_had_never_been_closed(tmp_path: Path, method: str, refresh_every: int):
    with made(tmp_path, method, refresh_every=refresh_every) as workspace:
        workspace.edit(FACTS[:3])
    with reopened(tmp_path, write=True) as again:
        again.edit(FACTS[3:])
        after = {layer: matrix.change().clone() for layer, matrix in again.matrices.items()}
    straight = quick(tiny_llama(), method, refresh_every=refresh_every)
    straight.edit(FACTS)
    for layer, change in after.items():
        assert relative(change, straight.editing.engine.matrices[layer].change()) < 1e-4


@pytest.mark.parametrize(("method", "refresh_every"), RULES)
def test_forgetting_after_reopening_leaves_what_the_other_facts_alone_make(
    tmp_path: Path, method: str, refresh_every: int
):
    with made(tmp_path, method, refresh_every=refresh_every) as workspace:
        workspace.edit(FACTS)
    with reopened(tmp_path, write=True) as again:
        assert [fact.number for fact in again.forget("Ana")] == [3]
        assert max(again.replay_errors().values()) < 1e-6
        assert again.verify(replay=False) == []


@pytest.mark.parametrize(
    ("asked", "step"),
    [
        ("language_model", "betaedit.ledger.workspace.rebuild"),
        ("editor", "betaedit.ledger.workspace.rebuild"),
        ("editor", "betaedit.editors.closed_form.editor.Engine"),
        ("editor", "betaedit.ledger.workspace.Workspace._keys"),
    ],
)
def test_a_workspace_whose_opening_was_cut_off_is_opened_from_the_beginning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asked: str, step: str
):
    with made(tmp_path) as workspace:
        workspace.edit(FACTS[:3])
    shutil.copytree(tmp_path / "w", tmp_path / "undisturbed" / "w")
    with reopened(tmp_path / "undisturbed", write=True) as straight, reopened(tmp_path, write=True) as disturbed:
        straight.edit(FACTS[3])
        with monkeypatch.context() as patched:
            cut_off(patched, step)
            with pytest.raises(KeyboardInterrupt):
                getattr(disturbed, asked)
        disturbed.edit(FACTS[3])
        assert same(state(disturbed), state(straight))
        assert disturbed.verify(replay=True) == []


def cut_off(patched: pytest.MonkeyPatch, name: str, after: int = 0) -> None:
    """Let a function be interrupted when it was called ``after`` times."""
    function, calls = pkgutil.resolve_name(name), count()

    def interrupted(*args: object, **options: object) -> object:
        if next(calls) >= after:
            raise KeyboardInterrupt
        return function(*args, **options)

    patched.setattr(name, interrupted)


def test_what_is_forgotten_replaced_and_undone_stays_in_the_log(tmp_path: Path):
    with made(tmp_path) as workspace:
        workspace.edit(FACTS[:3])
        workspace.forget("#1")
        workspace.replace("The long bridge", "Oslo")
        before = workspace.store.head
        workspace.edit(FACTS[3])
        workspace.restore(before)
        facts = workspace.store.facts()
    assert [(fact.number, fact.state) for fact in facts] == [
        (1, "forgotten"), (2, "replaced"), (3, "live"), (4, "live"), (5, "undone"),
    ]  # fmt: skip
    assert facts[3].fact == replace(FACTS[1], target_new="Oslo")


@pytest.mark.parametrize("conflicts", ["replace", "naive"])
def test_what_interrupts_a_replacement_leaves_the_old_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, conflicts: str
):
    with made(tmp_path, conflicts=conflicts) as workspace:
        workspace.edit(FACTS[:3])
        before, head = state(workspace), workspace.store.head
        with monkeypatch.context() as patched:
            cut_off(patched, "betaedit.editors.closed_form.engine.optimize_values")
            with pytest.raises(KeyboardInterrupt):
                workspace.replace("#2", "Oslo")
        with pytest.raises(FactError):
            workspace.replace("#2", " ")
        assert (workspace.store.head, live(workspace)) == (head, FACTS[:3])
        assert same(state(workspace), before)
        workspace.replace("#2", "Oslo")
        assert [fact.state for fact in workspace.store.facts()] == ["live", "replaced", "live", "live"]
        assert workspace.store.head == head + 1, "one event, whole or not at all"
        assert workspace.verify(replay=True) == []


@pytest.mark.parametrize("conflicts", ["replace", "naive"])
def test_what_interrupts_writing_again_what_slipped_leaves_every_fact_held(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, conflicts: str
):
    with made(tmp_path, conflicts=conflicts) as workspace:
        workspace.edit(FACTS[:3])
        held = workspace.store.facts()
        with monkeypatch.context() as patched:
            cut_off(patched, "betaedit.editors.closed_form.engine.optimize_values", after=1)
            with pytest.raises(KeyboardInterrupt):
                reapply(workspace, held)
        for _ in range(2):
            found = workspace.store.facts()
            assert [(fact.number, fact.fact, fact.state) for fact in found] == [
                (fact.number, fact.fact, "live") for fact in held
            ]
            assert workspace.verify(replay=True) == []
            reapply(workspace, held)


def test_restoring_gives_the_weights_of_then_bit_for_bit(tmp_path: Path):
    with made(tmp_path) as workspace:
        points = {workspace.store.head: (state(workspace), live(workspace))}
        for work in (
            lambda: workspace.edit(FACTS[:2]),
            lambda: workspace.edit(OTHER),
            lambda: workspace.forget(last=1),
            lambda: workspace.edit(FACTS[2:]),
        ):
            work()
            points[workspace.store.head] = (state(workspace), live(workspace))
        for event, (weight, facts) in list(points.items())[::-1]:
            workspace.restore(event)
            assert same(state(workspace), weight)
            assert live(workspace) == facts
            points[workspace.store.head] = (weight, facts)
    with reopened(tmp_path) as again:
        assert same(state(again), points[1][0])
        assert unchanged(weights(tiny_llama()), weights(again.language_model))


def test_restoring_what_leads_back_bit_for_bit_does_not_load_the_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    with made(tmp_path) as workspace:
        workspace.edit(FACTS[:2])
        then, event = state(workspace), workspace.store.head
        workspace.edit(FACTS[2:])
    loaded: list[str] = []

    def load(name: str, **_: object) -> LanguageModel:
        loaded.append(name)
        return tiny_llama()

    monkeypatch.setattr("betaedit.ledger.identity.load_language_model", load)
    with Workspace.open(tmp_path / "w", write=True) as again:
        again.restore(event)
        assert loaded == []
        assert live(again) == FACTS[:2]
        assert same(state(again), then)
        assert loaded == [again.store.identity.model]


def test_after_gc_the_weights_are_the_same_and_earlier_points_are_written_again(tmp_path: Path):
    with made(tmp_path) as workspace:
        workspace.edit(FACTS[:3])
        then, event = state(workspace), workspace.store.head
        workspace.edit([*FACTS[3:], *MANY[:30]], batch_size=7)
        workspace.forget("Ana")
        now = state(workspace)
        assert workspace.collect() > 0
        assert workspace.store.path_to(event) is None
        assert same(state(workspace), now)
    with reopened(tmp_path, write=True) as again:
        assert same(state(again), now)
        assert again.verify(replay=True) == []
        again.restore(event)
        assert live(again) == FACTS[:3]
        for layer, weight in state(again).items():
            assert relative(weight, then[layer]) < 1e-6
    with reopened(tmp_path) as last:
        assert last.verify() == []


def test_gc_keeps_a_history_that_is_smaller_than_the_matrices(tmp_path: Path):
    with made(tmp_path) as workspace:
        workspace.edit(FACTS)
        then, event = state(workspace), workspace.store.head
        workspace.forget("Ana")
        assert workspace.collect() >= 0
        workspace.restore(event)
        assert same(state(workspace), then)
        assert workspace.verify(replay=True) == []


def test_the_model_can_be_looked_at_as_it_was_after_any_event(tmp_path: Path):
    with made(tmp_path) as workspace:
        points = {1: state(workspace)}
        for fact in FACTS[:3]:
            workspace.edit(fact)
            points[workspace.store.head] = state(workspace)
        workspace.edit(MANY[:30], batch_size=7)
        now = state(workspace)
        for event, weight in points.items():
            with workspace.at(event):
                assert same(state(workspace), weight)
            assert same(state(workspace), now)
        workspace.collect()
        with pytest.raises(LedgerError, match="gc dropped the factors of event 2"), workspace.at(2):
            pass
        with pytest.raises(LedgerError, match="no event 99"), workspace.at(99):
            pass
        assert same(state(workspace), now)


def test_purged_facts_cannot_be_restored_and_nothing_changes(tmp_path: Path):
    with made(tmp_path) as workspace:
        workspace.edit(FACTS[:2])
        event = workspace.store.head
        workspace.forget("#1")
        workspace.collect(purge=True)
        now = state(workspace)
        with pytest.raises(LedgerError, match="purged"):
            workspace.restore(event)
        assert same(state(workspace), now)
        assert workspace.verify(replay=True) == []


def test_long_histories_open_from_a_snapshot_and_give_the_same_weights(tmp_path: Path):
    with made(tmp_path, method="memit-h", conflicts="naive") as workspace:
        workspace.edit(MANY, batch_size=7)
        start, following = workspace.store.path_to(workspace.store.head)  # type: ignore[misc]
        assert start is not None
        assert len(following) < 8
        left = state(workspace)
    with reopened(tmp_path) as again:
        assert same(state(again), left)
        assert again.verify() == []


def test_facts_of_one_subject_stay_one_fact_each_when_they_are_written_again(tmp_path: Path):
    about = [
        Fact("{} was born in", "Ana", "Lima"),
        Fact("{} works as an", "Ana", "artist"),
        Fact("{} speaks", "Ana", "it"),
    ]
    with made(tmp_path, shared_subjects="together") as workspace:
        workspace.edit(about)
        assert [fact.number for fact in workspace.store.live()] == [1, 2, 3]
        assert len(workspace.store.versions(1)) == 3
        workspace.forget("#2")
        assert live(workspace) == [about[0], about[2]]
        assert [fact.state for fact in workspace.store.facts()] == ["live", "forgotten", "live"]
        left = state(workspace)
    with reopened(tmp_path, write=True) as again:
        assert same(state(again), left)
        assert again.verify(replay=True) == []


def test_a_models_half_precision_weights_come_back_with_their_masters(tmp_path: Path):
    def model() -> LanguageModel:
        found = tiny_llama()
        found.model.to(torch.bfloat16)
        return found

    with Workspace.create(tmp_path / "w", quick(model())) as workspace:
        workspace.edit(FACTS)
        left, held = state(workspace), weights(workspace.language_model)
    with Workspace.open(tmp_path / "w", write=True, model=model()) as again:
        assert same(state(again), left)
        assert unchanged(held, weights(again.language_model))


@pytest.mark.parametrize("looked_at_before", [False, True])
def test_the_model_of_a_workspace_has_one_editor(tmp_path: Path, looked_at_before: bool):
    with made(tmp_path) as workspace:
        workspace.edit(FACTS[0])
    with reopened(tmp_path, write=True) as workspace:
        model = workspace.editor.language_model if looked_at_before else workspace.language_model
        with pytest.raises(ModelError, match="holds the edits of another editor or workspace"):
            quick(model)
        workspace.edit(FACTS[1])
        kept = state(workspace)
    assert same(kept, state(reopened(tmp_path)))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_what_is_written_after_the_model_was_given_another_type_is_in_it_and_in_the_ledger(
    tmp_path: Path, dtype: torch.dtype
):
    with made(tmp_path) as workspace:
        workspace.edit(FACTS[0])
        workspace.language_model.model.to(dtype)
        workspace.edit(FACTS[1])
        for layer, matrix in workspace.matrices.items():
            weight = workspace.language_model.anatomy.projection(layer).weight
            assert torch.equal(weight, (matrix.original() + matrix.change()).to(dtype))
        kept = state(workspace)
    assert same(kept, state(reopened(tmp_path)))


@pytest.mark.parametrize("work", ["edit", "forget", "replace", "restore", "save"])
def test_a_workspace_does_not_write_over_what_somebody_else_changed(tmp_path: Path, work: str):
    with made(tmp_path) as workspace:
        workspace.edit(FACTS[0])
        model, head = workspace.language_model, workspace.store.head
        with torch.no_grad():
            model.anatomy.projection(2).weight.mul_(1.01)
        before = weights(model)
        with pytest.raises(WeightsChangedError):
            {
                "edit": lambda: workspace.edit(FACTS[1]),
                "forget": lambda: workspace.forget("#1"),
                "replace": lambda: workspace.replace("#1", "Dutch"),
                "restore": lambda: workspace.restore(1),
                "save": lambda: workspace.language_model.model.save_pretrained(tmp_path / "saved"),
            }[work]()
        assert unchanged(before, weights(model))
        assert not (tmp_path / "saved").exists()
        assert workspace.store.head == head


def test_the_transposed_matrices_of_gpt2_come_back_too(tmp_path: Path):
    with Workspace.create(tmp_path / "w", quick(tiny_gpt2())) as workspace:
        workspace.edit(FACTS, batch_size=2)
        workspace.forget("#2")
        left = state(workspace)
    with Workspace.open(tmp_path / "w", model=tiny_gpt2()) as again:
        assert same(state(again), left)


def test_facts_written_again_show_that_a_double_precision_matrix_was_changed(tmp_path: Path):
    model = tiny_llama()
    model.model.double()
    with Workspace.create(tmp_path / "w", quick(model)) as workspace:
        workspace.edit(FACTS)
        assert max(workspace.replay_errors().values()) < 1e-13
        changed = workspace.matrices[2]
        changed.add_dense(1e-10 * changed.current())
        errors = workspace.replay_errors()
        assert errors[1] < 1e-13
        assert errors[2] == pytest.approx(1e-10, rel=1e-3)
        assert max(workspace.replay_errors().values()) < 1e-13, "the weights are as the ledger says again"


def test_bfloat16_storage_takes_less_and_still_gives_the_same_weights(tmp_path: Path):
    with Workspace.create(tmp_path / "w", quick(tiny_llama()), storage="bfloat16") as workspace:
        workspace.edit(FACTS)
        workspace.forget("#1")
        left = state(workspace)
        key, wanted = workspace.store.asked(2, 1)
        assert (len(key), len(wanted)) == (2 * 48, 2 * 32)
    with reopened(tmp_path, write=True) as again:
        assert same(state(again), left)
        change = {layer: matrix.change().norm() / matrix.current().norm() for layer, matrix in again.matrices.items()}
        for layer, error in again.replay_errors().items():
            assert error < 2e-2 * change[layer]
        again.forget("#2")
        assert again.verify(replay=True) == []


def test_a_file_goes_on_after_the_facts_that_are_written_already(tmp_path: Path):
    cases = [EvaluationCase(fact) for fact in [*FACTS, OTHER]]
    with made(tmp_path) as workspace:
        workspace.edit(cases[:2])
        workspace.edit(OTHER)
        workspace.forget("Danielle Darrieux")
        assert [case.fact for case in workspace.new(cases)] == [FACTS[0], *FACTS[2:]]


def test_a_file_brings_back_an_answer_whose_replacement_a_restore_or_forgetting_took_away(tmp_path: Path):
    cases = [EvaluationCase(fact) for fact in FACTS[:2]]
    with made(tmp_path) as workspace:
        workspace.edit(FACTS[0])
        before = workspace.store.head
        workspace.edit(FACTS[1])
        workspace.replace("#2", "something else")
        assert workspace.new(cases) == []
        workspace.restore(before)
        assert workspace.new(cases) == cases[1:]
        workspace.edit(workspace.new(cases))
        workspace.replace(f"#{workspace.store.facts()[-1].number}", "something else")
        workspace.forget(f"#{workspace.store.facts()[-1].number}")
        assert workspace.new(cases) == cases[1:]


def test_the_live_facts_of_another_workspace_are_written_after_those_already_here(tmp_path: Path):
    with made(tmp_path) as workspace:
        workspace.edit(FACTS[:4])
        workspace.forget("Ana")
    with Workspace.create(tmp_path / "other", quick(tiny_llama(seed=1), "memit-h")) as other:
        other.edit([FACTS[4], FACTS[1]])
        fresh = other.new(live_cases(tmp_path / "w"))
        assert [case.fact for case in fresh] == [FACTS[0], FACTS[3]]
        other.edit(fresh)
        assert live(other) == [FACTS[4], FACTS[1], FACTS[0], FACTS[3]]
        assert other.new(live_cases(str(tmp_path / "w"))) == []


def test_facts_of_several_files_that_share_an_id_are_imported_and_written_again(tmp_path: Path):
    alike = [replace(fact, id="own-1") for fact in FACTS[:2]]
    with made(tmp_path) as workspace:
        for fact in alike:
            workspace.edit(fact)
        reapply(workspace, workspace.store.live())
        assert live(workspace) == alike
    with Workspace.create(tmp_path / "other", quick(tiny_llama())) as other:
        other.edit(other.new(live_cases(tmp_path / "w")))
        assert [fact.id for fact in live(other)] == ["own-1", "own-1-2"]
        assert other.new(live_cases(tmp_path / "w")) == []


# --- refusals ------------------------------------------------------------------------------------------------------


def test_another_model_statistics_or_recipe_is_refused_with_both_identities(tmp_path: Path):
    with made(tmp_path) as workspace:
        workspace.edit(FACTS[0])
    with Workspace.open(tmp_path / "w", model=tiny_llama(seed=1)) as other, pytest.raises(IdentityError) as refused:
        _ = other.language_model
    assert refused.value.message.count("sha256:") == 2
    moments = moments_for(tiny_llama())
    Moments({layer: 2 * moment for layer, moment in moments.matrices.items()}, 1000).save(tmp_path / "w" / STATISTICS)
    with reopened(tmp_path, write=True) as other, pytest.raises(IdentityError, match="another statistics"):
        _ = other.editor


@pytest.mark.parametrize("looked_at_before", [False, True])
def test_a_workspace_that_cannot_be_edited_is_still_read_as_it_is(tmp_path: Path, looked_at_before: bool):
    with made(tmp_path) as workspace:
        workspace.edit(FACTS[0])
        left = state(workspace)
    moments = moments_for(tiny_llama())
    Moments({layer: 2 * moment for layer, moment in moments.matrices.items()}, 1000).save(tmp_path / "w" / STATISTICS)
    with reopened(tmp_path, write=True) as other:
        if looked_at_before:
            assert same(state(other), left)
        with pytest.raises(IdentityError):
            _ = other.editor
        assert list(state(other)) == list(left)
        assert same(state(other), left)


def test_a_folder_that_holds_something_is_refused(tmp_path: Path):
    (tmp_path / "w").mkdir()
    (tmp_path / "w" / "notes.txt").write_text("mine")
    with pytest.raises(LedgerError, match="not empty"):
        made(tmp_path)
    with pytest.raises(LedgerError, match="there is no workspace"):
        Workspace.open(tmp_path / "w")


def test_a_folder_that_cannot_be_made_or_filled_says_what_to_do(tmp_path: Path):
    (tmp_path / "w").write_text("a file, and no folder")
    with pytest.raises(LedgerError, match="cannot be written") as refused:
        made(tmp_path / "w")
    assert "permissions of the folder" in refused.value.hint
    (tmp_path / "new" / "w" / STATISTICS).mkdir(parents=True)
    with pytest.raises(LedgerError, match=f"{STATISTICS} cannot be written"):
        made(tmp_path / "new")


def test_a_workspace_opens_where_its_model_lies_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    with made(tmp_path) as workspace:
        workspace.edit(FACTS[0])
        left = state(workspace)

    def load(name: str, **_: object) -> LanguageModel:
        return tiny_llama(seed=0 if name == "here" else 1)

    monkeypatch.setattr("betaedit.ledger.identity.load_language_model", load)
    with Workspace.open(tmp_path / "w", model="here") as moved:
        assert same(state(moved), left)
    with Workspace.open(tmp_path / "w", model="another model") as other, pytest.raises(IdentityError):
        _ = other.language_model


def test_a_creation_that_was_cut_off_can_be_repeated(tmp_path: Path):
    (tmp_path / "w").mkdir()
    (tmp_path / "w" / STATISTICS).write_bytes(b"half")
    with Workspace.create(tmp_path / "other", quick(tiny_llama())) as other:
        other.edit(FACTS[1])
        for file in (tmp_path / "other").glob("ledger.sqlite*"):
            shutil.copy(file, tmp_path / "w" / file.name.replace("sqlite", "sqlite.new"))
    assert {file.suffix for file in (tmp_path / "w").iterdir()} == {".safetensors", ".new", ".new-wal", ".new-shm"}
    with made(tmp_path) as workspace:
        workspace.edit(FACTS[0])
    with reopened(tmp_path) as again:
        assert live(again) == FACTS[:1]


def test_a_creation_that_failed_can_be_repeated_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def full(*_: object) -> None:
        raise LedgerError("the disk is full.", hint="Free some disk space.")

    with monkeypatch.context() as patched:
        patched.setattr("betaedit.ledger.store.Store.append", full)
        with pytest.raises(LedgerError, match="full") as failed:
            made(tmp_path)
    with made(tmp_path) as workspace:
        workspace.edit(FACTS[0])
    assert failed.traceback, "what failed is still held, as by a debugger, and holds no lock"


def test_methods_that_cannot_take_back_and_edited_models_are_refused(tmp_path: Path):
    with pytest.raises(MethodError, match="cannot be used in a workspace"):
        made(tmp_path, "rect")
    editor = quick(tiny_llama())
    editor.edit(FACTS[0])
    with pytest.raises(ConfigError, match="already holds edits"):
        Workspace.create(tmp_path / "w", editor)


def test_reading_is_possible_while_somebody_writes_and_a_second_writer_is_refused(tmp_path: Path):
    with made(tmp_path) as workspace:
        workspace.edit(FACTS[0])
        with pytest.raises(LedgerError, match="another program is writing"):
            reopened(tmp_path, write=True)
        with reopened(tmp_path) as reader:
            assert live(reader) == FACTS[:1]
            assert same(state(reader), state(workspace))
            workspace.edit(FACTS[1])
            assert live(reader) == FACTS[:2]
            with pytest.raises(LedgerError, match="open only for reading"):
                reader.edit(FACTS[2])
    with reopened(tmp_path, write=True) as next_one:
        next_one.edit(FACTS[2])


def test_what_others_commit_meanwhile_is_neither_missed_in_the_weights_nor_taken_for_damage(tmp_path: Path):
    with made(tmp_path) as workspace, reopened(tmp_path) as reader:
        workspace.edit(FACTS[:2])
        held = state(reader)
        workspace.edit(FACTS[2:4])
        workspace.forget("#1")
        assert check(reader, texts=["The king."]).holding.count == 2, "those that its weights hold"
        assert reader.verify() == []
        assert same(state(reader), held)


def test_a_view_hides_what_others_commit_until_it_ends(tmp_path: Path):
    with made(tmp_path) as workspace, reopened(tmp_path) as reader:
        workspace.edit(FACTS[0])
        with reader.store.view():
            seen = reader.store.head
            workspace.edit(FACTS[1])
            assert (reader.store.head, live(reader)) == (seen, FACTS[:1])
            with reader.store.view():
                assert reader.store.head == seen
            assert reader.store.head == seen, "a view within a view does not end it"
        assert (reader.store.head, live(reader)) == (seen + 1, FACTS[:2])


def test_an_edit_that_fails_leaves_model_and_ledger_as_they_were(tmp_path: Path):
    with made(tmp_path) as workspace:
        workspace.edit(FACTS[:2])
        before, head = state(workspace), workspace.store.head
        workspace.editor.editing.engine.config = workspace.editor.config.replace(update_norm_limit=1e-12)
        with pytest.raises(NumericalError):
            workspace.edit(OTHER)
        assert same(state(workspace), before)
        assert workspace.store.head == head
        assert live(workspace) == FACTS[:2]


def test_an_event_that_cannot_be_committed_is_taken_out_of_the_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    with made(tmp_path) as workspace:
        workspace.edit(FACTS[:2])
        before = state(workspace)

        def full(_: object) -> int:
            raise LedgerError("the disk is full.", hint="Free some disk space.")

        with monkeypatch.context() as patched:
            patched.setattr(workspace.store, "append", full)
            with pytest.raises(LedgerError, match="full"):
                workspace.forget("#1")
        assert same(state(workspace), before)
        workspace.edit(FACTS[2])
        left = state(workspace)
    with reopened(tmp_path) as again:
        assert same(state(again), left)
        assert live(again) == FACTS[:3]


@pytest.mark.parametrize("name", ["", " ", "#2", "2", "own-1"])
def test_a_name_that_may_mean_what_nobody_meant_is_refused(tmp_path: Path, name: str):
    with made(tmp_path) as workspace:
        workspace.edit(Fact("In 2002 {} was in", "Ana", "Rome", id="2"))
        workspace.edit(FACTS[0])
        workspace.edit(replace(FACTS[1], id="own-1"))
        workspace.edit(replace(FACTS[3], id="own-1"))
        workspace.forget("#2")
        head = workspace.store.head
        for work in (workspace.forget, lambda name: workspace.replace(name, "Oslo")):
            with pytest.raises(LedgerError, match=r"name is empty|#2 is forgotten|matches 2 facts: #3 \(The .*, #4 \("):
                work(name)
        assert workspace.store.head == head


def test_unknown_facts_and_events_are_refused(tmp_path: Path):
    with made(tmp_path) as workspace:
        workspace.edit(FACTS)
        with pytest.raises(LedgerError, match="holds no fact 'Danielle Darieux'") as refused:
            workspace.forget("Danielle Darieux")
        assert "Danielle Darrieux" in (refused.value.hint or "")
        with pytest.raises(LedgerError, match="no event 99"):
            workspace.restore(99)
        with pytest.raises(LedgerError, match="matches 2 facts"):
            workspace.replace("The mother tongue", "Dutch")
        with pytest.raises(LedgerError, match="nothing to forget"):
            workspace.forget()


# --- questions -----------------------------------------------------------------------------------------------------


def test_facts_are_found_by_number_id_subject_and_text(tmp_path: Path):
    named = [replace(fact, id=f"f-{at}") for at, fact in enumerate(FACTS)]
    with made(tmp_path) as workspace:
        workspace.edit(named)
        store = workspace.store
        for name, numbers in (("#2", [2]), ("2", [2]), ("f-2", [3]), ("zoë", [5]), ("mother tongue", [1, 4])):
            assert [fact.number for fact in find(store, name)] == numbers
        assert [fact.number for fact in select(store.facts(), subject="ana")] == [3]
        assert select(store.facts(), state="forgotten") == []
        today = store.facts()[0].at[:10]
        assert len(select(store.facts(), since=today, until=today)) == 5
        now = store.facts()[0].at[:16].replace("T", " ")
        assert len(select(store.facts(), since=now)) == 5
        assert len(select(store.facts(), until="9999-12-31 23:59")) == 5
        assert select(store.facts(), since="9999-01-01") == select(store.facts(), until="2001-01-01") == []
        with pytest.raises(ConfigError, match="'yesterday' is not a date"):
            select(store.facts(), since="yesterday")
        assert find_one(store, "f-2").number == 3
        with pytest.raises(LedgerError, match=r"matches 2 facts: #1 \(The .*, #4 \("):
            find_one(store, "mother tongue")
        workspace.forget("f-2")
        assert [fact.state for fact in history(store, "#3")] == ["forgotten"]
        assert [fact.number for fact in history(store, "zoë")] == [5]
        with pytest.raises(LedgerError, match="holds no fact '99'"):
            history(store, "99")
        found = compare(store, 1, store.head)
        assert [fact.number for fact in found.gained] == [1, 2, 4, 5]
        assert [fact.number for fact in compare(store, 4, store.head).lost] == [3]
        told = status(store)
        assert (told["live"], told["forgotten"], told["events"]) == (4, 1, 7)
        assert told["bytes"] > 0


@pytest.mark.parametrize("conflicts", ["replace", "naive"])
def test_a_new_answer_that_the_model_misses_leaves_the_old_one_in_its_place(tmp_path: Path, conflicts: str) -> None:
    model = tiny_llama()
    fact = Fact("The home of {} is", "Bob", "Rome")
    with Workspace.create(tmp_path / "w", editor_for(model, value_steps=2, conflicts=conflicts)) as workspace:
        workspace.edit(fact)
        before, head = weights(model), workspace.store.head
        engine = workspace.editor.editing.engine
        engine.config = engine.config.replace(keep_missed=False)
        with pytest.raises(NotHeldError, match="the old answer was kept"):
            workspace.replace("Bob", "the wrong moon")
        assert [held.fact for held in workspace.store.live()] == [fact]
        assert workspace.store.head == head
        assert unchanged(before, weights(workspace.language_model))
