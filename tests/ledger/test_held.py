"""Workspaces of editors that hold facts beside the weights: codebook, side memories, facts kept as text."""

from __future__ import annotations

import os
import random
import signal
import sqlite3
import time
from collections.abc import Mapping
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from betaedit import Editor, Fact
from betaedit.editors.method import HoldsFacts
from betaedit.errors import ConfigError, IdentityError, LedgerError, MethodError, NumericalError
from betaedit.evaluation import score_targets
from betaedit.ledger.health import check, drift_between
from betaedit.ledger.identity import STATISTICS
from betaedit.ledger.place import LEDGER
from betaedit.ledger.query import status
from betaedit.ledger.replica import Replica
from betaedit.ledger.workspace import Workspace
from betaedit.models import LanguageModel
from support.edits import FACTS, unchanged, weights
from support.methods import small_editor
from support.tiny import tiny_llama

SMALL: Mapping[str, Mapping[str, object]] = {
    "grace": {},
    "wise": {"shard_size": 2, "merge_every": 4},
    "scr": {},
}
KILLS = int(os.environ.get("BETAEDIT_KILLS", "20")) // 5
TOLD = FACTS[:3]


@pytest.fixture(params=SMALL)
def method(request: pytest.FixtureRequest) -> str:
    found: str = request.param
    return found


def editor_of(method: str, model: LanguageModel | None = None) -> Editor:
    return small_editor(method, model or tiny_llama(), **SMALL[method])


def made(folder: Path, method: str) -> Workspace:
    return Workspace.create(folder, editor_of(method))


def reopened(folder: Path, *, write: bool = False) -> Workspace:
    return Workspace.open(folder, write=write, model=tiny_llama())


def tensors(editor: Editor) -> list[Mapping[str, Tensor]]:
    assert isinstance(editor.editing, HoldsFacts)
    return [batch.tensors for batch in editor.editing.held()]


def answers(model: LanguageModel) -> list[float]:
    pairs = [(fact.text, target) for fact in FACTS for target in (fact.target_new, "none")]
    return [score.nll for score in score_targets(model, pairs)]


def assert_same(first: Editor, second: Editor) -> None:
    """Both hold the same facts with the same tensors and give the same answers, bit for bit."""
    assert [result.fact for result in first.results] == [result.fact for result in second.results]
    for one, other in zip(tensors(first), tensors(second), strict=True):
        assert one.keys() == other.keys()
        assert all(torch.equal(one[name], other[name]) for name in one)
    assert answers(first.language_model) == answers(second.language_model)


class TestFacts:
    """What is written is kept, and taken back."""

    def test_facts_are_there_in_another_process_and_no_weight_changed(self, tmp_path: Path, method: str) -> None:
        with made(tmp_path / "w", method) as workspace:
            workspace.edit(TOLD)
            said = answers(workspace.language_model)
            with reopened(tmp_path / "w") as again:
                assert_same(again.editor, workspace.editor)
                assert answers(again.language_model) == said
                assert [each.status for each in again.editor.results] == [
                    each.status for each in workspace.editor.results
                ]
                with again.unedited():
                    assert answers(again.language_model) == answers(tiny_llama())
                assert unchanged(weights(tiny_llama()), weights(again.language_model))

    def test_more_facts_after_reopening_are_written_as_without_a_pause(self, tmp_path: Path, method: str) -> None:
        with made(tmp_path / "w", method) as workspace:
            workspace.edit(TOLD[:1])
        with reopened(tmp_path / "w", write=True) as workspace:
            workspace.edit(TOLD[1:])
            never_closed = editor_of(method)
            never_closed.edit(TOLD)
            assert_same(workspace.editor, never_closed)

    @pytest.mark.parametrize("gone", range(3))
    def test_forgetting_gives_the_workspace_that_was_never_told(self, tmp_path: Path, method: str, gone: int) -> None:
        with made(tmp_path / "w", method) as workspace:
            workspace.edit(TOLD)
            workspace.forget(f"#{gone + 1}")
            never = editor_of(method)
            never.edit([fact for at, fact in enumerate(TOLD) if at != gone])
            assert_same(workspace.editor, never)
            assert status(workspace.store)["forgotten"] == 1
            assert status(workspace.store)["live"] == 2
            with reopened(tmp_path / "w") as again:
                assert_same(again.editor, never)
                assert again.verify(replay=False) == []

    def test_facts_of_one_batch_are_kept_as_well(self, tmp_path: Path, method: str) -> None:
        with made(tmp_path / "w", method) as workspace:
            workspace.edit(TOLD, batch_size=3)
            assert workspace.store.head == 2
            workspace.forget("#2")
            with reopened(tmp_path / "w") as again:
                assert_same(again.editor, workspace.editor)

    def test_replacing_leaves_the_new_answer_alone(self, tmp_path: Path, method: str) -> None:
        with made(tmp_path / "w", method) as workspace:
            workspace.edit(TOLD)
            old, _ = workspace.replace("#1", "Oslo")
            assert workspace.store.head == 5, "one event"
            never = editor_of(method)
            never.edit([*TOLD[1:], replace(old.fact, target_new="Oslo")])
            assert_same(workspace.editor, never)
            assert status(workspace.store)["replaced"] == 1

    def test_telling_an_answer_anew_is_kept(self, tmp_path: Path, method: str) -> None:
        with made(tmp_path / "w", method) as workspace:
            workspace.edit(TOLD)
            workspace.edit(replace(TOLD[0], target_new="Oslo"))
            with reopened(tmp_path / "w") as again:
                assert_same(again.editor, workspace.editor)

    def test_restoring_gives_an_earlier_state_and_can_be_undone(self, tmp_path: Path, method: str) -> None:
        with made(tmp_path / "w", method) as workspace:
            workspace.edit(TOLD)
            workspace.forget("#1")
            workspace.restore(4)
            all_three, without = editor_of(method), editor_of(method)
            all_three.edit(TOLD)
            without.edit(TOLD[1:])
            assert_same(workspace.editor, all_three)
            with workspace.at(5):
                assert_same(workspace.editor, without)
            assert_same(workspace.editor, all_three)
            workspace.restore(5)
            assert_same(workspace.editor, without)
            workspace.restore(1)
            assert not workspace.editor.results

    def test_verify_writes_all_facts_again_and_finds_them_the_same(self, tmp_path: Path, method: str) -> None:
        with made(tmp_path / "w", method) as workspace:
            workspace.edit(TOLD)
            workspace.forget("#1")
            assert workspace.verify(replay=True) == []
            assert max(workspace.replay_errors().values()) == 0

    def test_gc_keeps_what_is_live_and_purging_the_rest_is_final(self, tmp_path: Path, method: str) -> None:
        with made(tmp_path / "w", method) as workspace:
            workspace.edit(TOLD)
            workspace.forget("#3")
            workspace.collect(purge=True)
            assert workspace.verify() == []
            with pytest.raises(LedgerError, match="purged"):
                workspace.restore(4)
            with pytest.raises(LedgerError, match="purged"), workspace.at(4):
                pass
            with reopened(tmp_path / "w") as again:
                assert_same(again.editor, workspace.editor)

    def test_its_health_and_its_drift_are_measured(self, tmp_path: Path, method: str) -> None:
        with made(tmp_path / "w", method) as workspace:
            workspace.edit(TOLD)
            text = ["It rains in the city of the king and we like to stay at home."]
            health = check(workspace, texts=text)
            assert health.holding is not None
            drift_between(workspace, 1, 4, texts=text)

    def test_a_replica_follows_facts_and_restores(self, tmp_path: Path, method: str) -> None:
        with made(tmp_path / "w", method) as workspace:
            workspace.edit(TOLD[:1])
            replica = Replica(tmp_path / "w", model=tiny_llama())
            for act in (lambda: workspace.edit(TOLD[1:]), lambda: workspace.forget("#1"), lambda: workspace.restore(2)):
                act()
                assert replica.sync() == workspace.store.head == replica.event
                with replica.model() as model:
                    assert answers(model) == answers(workspace.language_model)
            replica.close()


class TestRefusals:
    """Nothing is lost, and nothing is half there."""

    @pytest.mark.parametrize("method", ["ft", "lora", "ultraedit", "rome", "grace+scr", "memit-h+scr"])
    def test_a_method_that_does_not_forget_exactly_is_refused_by_name(self, tmp_path: Path, method: str) -> None:
        try:
            editor = small_editor(method, tiny_llama())
        except MethodError as error:
            assert method.rpartition("+")[0] in error.message  # noqa: PT017 - it cannot be built at all
            return
        with pytest.raises(MethodError, match=f"{method.replace('+', '[+]')} cannot be used in a workspace") as raised:
            Workspace.create(tmp_path / "w", editor)
        assert "grace" in raised.value.hint
        assert not (tmp_path / "w").exists()

    def test_there_is_no_other_type_to_store_it_in(self, tmp_path: Path, method: str) -> None:
        with pytest.raises(ConfigError, match="exactly"):
            Workspace.create(tmp_path / "w", editor_of(method), storage="bfloat16")
        assert not (tmp_path / "w").exists()

    def test_no_statistics_are_needed(self, tmp_path: Path, method: str) -> None:
        made(tmp_path / "w", method).close()
        assert not (tmp_path / "w" / STATISTICS).exists()

    def test_another_model_is_refused(self, tmp_path: Path, method: str) -> None:
        made(tmp_path / "w", method).close()
        other = tiny_llama()
        with torch.no_grad():
            next(other.model.parameters()).add_(1)
        with Workspace.open(tmp_path / "w", model=other) as workspace, pytest.raises(IdentityError):
            _ = workspace.language_model

    def test_an_event_that_cannot_be_stored_is_undone(
        self, tmp_path: Path, method: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with made(tmp_path / "w", method) as workspace:
            workspace.edit(TOLD[:2])

            def full(_: object) -> int:
                raise LedgerError("the disk is full.", hint="Free some.")

            with monkeypatch.context() as patch:
                patch.setattr(workspace.store, "append", full)
                for act in (lambda: workspace.edit(TOLD[2]), lambda: workspace.forget("#1")):
                    with pytest.raises(LedgerError, match="full"):
                        act()
            kept = editor_of(method)
            kept.edit(TOLD[:2])
            assert_same(workspace.editor, kept)
            workspace.edit(TOLD[2])
            kept.edit(TOLD[2])
            assert_same(workspace.editor, kept)

    def test_a_disk_that_is_full_is_said(self, tmp_path: Path, method: str) -> None:
        with made(tmp_path / "w", method) as workspace:
            workspace.edit(TOLD[:1])
            workspace.store._open.execute(f"PRAGMA max_page_count = {workspace.store._scalar('PRAGMA page_count')}")
            many = [replace(TOLD[1], subject=f"Ana {at}", id=None) for at in range(200)]
            with pytest.raises(LedgerError, match="full") as raised:
                workspace.edit(many, batch_size=20)
            assert "Free some disk space" in raised.value.hint
            assert len(workspace.editor.results) == len(workspace.store.live())
            assert workspace.verify() == []

    def test_a_replacement_that_fails_keeps_the_old_answer(
        self, tmp_path: Path, method: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with made(tmp_path / "w", method) as workspace:
            workspace.edit(TOLD)

            def fails(*_: object, **__: object) -> None:
                raise NumericalError("not finite.", hint="Lower it.")

            with monkeypatch.context() as patch:
                patch.setattr(workspace.editor, "write", fails)
                with pytest.raises(NumericalError):
                    workspace.replace("#1", "Oslo")
            kept = editor_of(method)
            kept.edit(TOLD)
            assert_same(workspace.editor, kept)

    def test_changed_tensors_are_found(self, tmp_path: Path) -> None:
        with made(tmp_path / "w", "grace") as workspace:
            workspace.edit(TOLD)
        with closing(sqlite3.connect(tmp_path / "w" / LEDGER)) as opened, opened:
            (data,) = opened.execute("SELECT wanted FROM asked WHERE writing = 2").fetchone()
            opened.execute("UPDATE asked SET wanted = ? WHERE writing = 2", (data[:-1] + bytes([data[-1] ^ 1]),))
        with reopened(tmp_path / "w") as workspace:
            assert workspace.verify() == ["the arrays of fact version 2 were changed after their commit"]


def work(folder: Path, seed: int, said: int) -> None:
    """Edit, forget and restore at random for ever; say every event that was committed."""
    chance = random.Random(seed)
    with reopened(folder, write=True) as workspace:
        os.write(said, f"{workspace.store.head}\n".encode())
        while True:
            live, act = workspace.store.live(), chance.random()
            if act < 0.6 or not live:
                workspace.edit(Fact(FACTS[chance.randrange(3)].prompt, f"Ana {chance.randrange(9)}", "Rome"))
            elif act < 0.85:
                workspace.forget(f"#{chance.choice(live).number}")
            else:
                workspace.restore(chance.randint(1, workspace.store.head))
            os.write(said, f"{workspace.store.head}\n".encode())


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded")
@pytest.mark.parametrize("method", ["grace", "wise", "scr"])
def test_what_a_killed_process_said_was_done_is_there(tmp_path: Path, method: str) -> None:
    torch.set_num_threads(1)
    folder, chance = tmp_path / "w", random.Random(0)
    made(folder, method).close()
    for kill in range(KILLS):
        heard, said = os.pipe()
        child = os.fork()
        if child == 0:
            try:
                work(folder, kill, said)
            finally:
                os._exit(1)
        os.close(said)
        with os.fdopen(heard) as told:
            lines = [told.readline() for _ in range(chance.randint(2, 4))]
            time.sleep(chance.random() * 0.1)
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            lines += told.read().splitlines(keepends=True)
        assert lines[0], "the process did not begin"
        last = int([line for line in lines if line.endswith("\n")][-1])
        with reopened(folder, write=True) as workspace:
            assert last <= workspace.store.head <= last + 1
            assert workspace.verify() == []
            anew = editor_of(method)
            anew.edit([version.fact for version in workspace.store.live()])
            assert_same(workspace.editor, anew)
