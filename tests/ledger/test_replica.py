from __future__ import annotations

import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from torch import Tensor

from betaedit.editors.matrix import EditedMatrix
from betaedit.errors import WeightsChangedError
from betaedit.ledger.replica import Replica
from betaedit.ledger.workspace import Workspace
from betaedit.memory.update import Update
from support.edits import FACTS, MANY, editor_for, unchanged
from support.tiny import tiny_llama


def weights(replica: Replica) -> dict[str, Tensor]:
    with replica.model() as model:
        return {name: weight.clone() for name, weight in model.model.state_dict().items()}


def test_a_served_model_takes_edits_forgettings_and_restores_of_another_process_in_place(tmp_path: Path):
    with Workspace.create(tmp_path / "w", editor_for(tiny_llama(), value_steps=2)) as workspace:
        workspace.edit(FACTS[0])
        replica = Replica(tmp_path / "w", model=tiny_llama())
        with replica.model() as model:
            served = model.model
        for work in (
            lambda: workspace.edit(FACTS[1:4]),
            lambda: workspace.forget("#2"),
            lambda: workspace.restore(2),
            lambda: workspace.edit(FACTS[4]),
            lambda: workspace.edit(MANY[:30], batch_size=7),
            workspace.collect,
            lambda: workspace.edit(FACTS[1]),
        ):
            work()
            assert replica.sync() == workspace.store.head
            now = workspace.language_model.model.state_dict()
            assert all(torch.equal(weight, now[name]) for name, weight in weights(replica).items())
        with replica.model() as model:
            assert model.model is served
        replica.close()


def test_a_thread_keeps_the_served_model_up_to_date_but_never_within_an_answer(tmp_path: Path):
    with Workspace.create(tmp_path / "w", editor_for(tiny_llama(), value_steps=2)) as workspace:
        replica = Replica(tmp_path / "w", model=tiny_llama())
        with replica.following(every=0.01):
            with replica.model() as model:
                before = model.model.state_dict()["model.layers.1.mlp.down_proj.weight"].clone()
                workspace.edit(FACTS[0])
                time.sleep(0.2)
                assert torch.equal(model.model.state_dict()["model.layers.1.mlp.down_proj.weight"], before)
            until = time.monotonic() + 20
            while replica.event < workspace.store.head and time.monotonic() < until:
                time.sleep(0.01)
        assert replica.event == workspace.store.head
        assert not torch.equal(weights(replica)["model.layers.1.mlp.down_proj.weight"], before)
        replica.close()


def test_a_sync_that_was_cut_off_adds_nothing_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    with Workspace.create(tmp_path / "w", editor_for(tiny_llama(), value_steps=2)) as workspace:
        workspace.edit(FACTS[0])
        replica = Replica(tmp_path / "w", model=tiny_llama())
        workspace.edit(FACTS[1:3])
        failures = iter([RuntimeError("out of memory")])
        add = EditedMatrix.add

        def full(matrix: EditedMatrix, update: Update) -> None:
            add(matrix, update)
            for failure in failures:
                raise failure

        monkeypatch.setattr(EditedMatrix, "add", full)
        with replica.following(every=0.01):  # whose thread survives that
            until = time.monotonic() + 20
            while replica.event < workspace.store.head and time.monotonic() < until:
                time.sleep(0.01)
        assert replica.event == workspace.store.head
        assert unchanged(weights(replica), workspace.language_model.model.state_dict())
        replica.close()


@pytest.fixture
def busy_threads():
    """Threads that take turns all the time, so that what they must not do at once would happen."""
    usual = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(usual)


@pytest.mark.usefixtures("busy_threads")
def test_threads_that_sync_at_once_apply_each_update_once(tmp_path: Path):
    n_threads, done = 4, threading.Event()
    with Workspace.create(tmp_path / "w", editor_for(tiny_llama(), value_steps=2)) as workspace:
        replica = Replica(tmp_path / "w", model=tiny_llama())
        together = threading.Barrier(n_threads)

        def follow() -> int:
            together.wait()
            while not done.is_set():
                replica.sync()
            return replica.sync()

        with ThreadPoolExecutor(n_threads) as pool:
            followers = [pool.submit(follow) for _ in range(n_threads)]
            try:
                for fact in MANY[:12]:
                    workspace.edit(fact)
            finally:
                done.set()
        assert [follower.result() for follower in followers] == [workspace.store.head] * n_threads
        assert unchanged(weights(replica), workspace.language_model.model.state_dict())
        replica.close()


def test_a_served_model_that_somebody_else_changed_is_refused_and_not_written_over(tmp_path: Path):
    with Workspace.create(tmp_path / "w", editor_for(tiny_llama(), value_steps=2)) as workspace:
        workspace.edit(FACTS[0])
        model = tiny_llama()
        replica = Replica(tmp_path / "w", model=model)
        weight = model.anatomy.projection(1).weight
        with torch.no_grad():
            weight.add_(0.01)
        trained = weight.clone()
        workspace.edit(FACTS[1])
        with pytest.raises(WeightsChangedError):
            replica.sync()
        with pytest.raises(WeightsChangedError), replica.model():
            pass
        assert torch.equal(weight, trained)
        replica.close()
