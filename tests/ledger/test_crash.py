"""A process that edits in a loop is killed at any instant: what it said was done is there, nothing is half there."""

from __future__ import annotations

import os
import random
import signal
import time
from pathlib import Path

import pytest
import torch

from betaedit import Fact
from betaedit.ledger.workspace import Workspace
from support.edits import FACTS, editor_for
from support.tiny import tiny_llama

KILLS = int(os.environ.get("BETAEDIT_KILLS", "20"))
QUICK = {"value_steps": 2, "refresh_every": 7}

pytestmark = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded")


def work(folder: Path, seed: int, said: int) -> None:
    """Edit, replace, forget and restore at random for ever; say every event that was committed."""
    chance = random.Random(seed)
    with Workspace.open(folder, write=True, model=tiny_llama()) as workspace:
        os.write(said, f"{workspace.store.head}\n".encode())
        while True:
            live = workspace.store.live()
            act = chance.random()
            if act < 0.6 or not live:
                told = Fact(
                    FACTS[chance.randrange(5)].prompt, f"Ana {chance.randrange(40)}", chance.choice(["Rome", "Oslo"])
                )
                workspace.edit(told)
            elif act < 0.8:
                workspace.forget(f"#{chance.choice(live).number}")
            elif act < 0.95:
                workspace.restore(chance.randint(1, workspace.store.head))
            else:
                workspace.collect()
            os.write(said, f"{workspace.store.head}\n".encode())


def killed_after(folder: Path, seed: int, words: int, seconds: float) -> int:
    """The last event that a working process told of before it was killed, so many seconds after its nth word."""
    heard, said = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            work(folder, seed, said)
        finally:
            os._exit(1)
    os.close(said)
    with os.fdopen(heard) as told:
        lines = [told.readline() for _ in range(words)]
        time.sleep(seconds)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        lines += told.read().splitlines(keepends=True)
    assert lines[0], "the process did not begin"
    return int([line for line in lines if line.endswith("\n")][-1])


def test_what_a_killed_process_said_was_done_is_done_and_the_weights_are_those_of_a_clean_replay(tmp_path: Path):
    torch.set_num_threads(1)
    folder, chance = tmp_path / "w", random.Random(0)
    Workspace.create(folder, editor_for(tiny_llama(), **QUICK)).close()
    heads = []
    for kill in range(KILLS):
        told = killed_after(folder, kill, chance.randint(1, 4), chance.random() * 0.1)
        with Workspace.open(folder, write=True, model=tiny_llama()) as workspace:
            assert told <= workspace.store.head <= told + 1
            assert workspace.verify() == []
            heads.append(workspace.store.head)
    assert heads[-1] > KILLS // 2, "there was work to be killed"
    with Workspace.open(folder, write=True, model=tiny_llama()) as workspace:
        assert workspace.verify(replay=True) == []
