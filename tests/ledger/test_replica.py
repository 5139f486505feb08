from __future__ import annotations

import time
from pathlib import Path

import torch
from torch import Tensor

from betaedit.ledger.replica import Replica
from betaedit.ledger.workspace import Workspace
from support.edits import FACTS, MANY, editor_for
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
