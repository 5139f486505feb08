"""Ledgers of format 1, whose versions took white space off prompts and put a space before every answer."""

from __future__ import annotations

import sqlite3
from dataclasses import replace
from pathlib import Path

import pytest

from betaedit import EvaluationCase, Fact
from betaedit.ledger.place import LEDGER
from betaedit.ledger.query import live_cases
from betaedit.ledger.workspace import Workspace
from support.edits import editor_for
from support.tiny import tiny_llama

TYPED = [
    Fact("The mother tongue of {} is", "Ana", "Dutch"),
    Fact("{} lives in ", "Zoë", "Cairo"),
    Fact("Who is {}?\n", "Bob", "artist"),
    Fact("{}的首都是", "日本", "Rome"),
]
"""As a file has them, which both versions were given."""


def as_earlier(fact: Fact) -> Fact:
    return replace(fact, prompt=fact.prompt.strip(), joint=" ")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A workspace that such a version left behind."""
    with Workspace.create(tmp_path / "w", editor_for(tiny_llama(), value_steps=2)) as workspace:
        workspace.edit([as_earlier(fact) for fact in TYPED])
    with sqlite3.connect(tmp_path / "w" / LEDGER) as file:
        file.execute("ALTER TABLE writings DROP COLUMN joint")
        file.execute("ALTER TABLE writings DROP COLUMN wordings")
        file.execute("PRAGMA user_version = 1")
    return tmp_path / "w"


@pytest.mark.parametrize("write", [False, True])
def test_an_earlier_ledger_opens_whole_with_its_facts_as_they_were_written(folder: Path, write: bool):
    with Workspace.open(folder, write=write, model=tiny_llama()) as workspace:
        assert workspace.verify() == []
        assert [held.fact for held in workspace.store.live()] == [as_earlier(fact) for fact in TYPED]
    assert [replace(case.fact, id=None) for case in live_cases(folder)] == [as_earlier(fact) for fact in TYPED]


def test_facts_of_an_earlier_ledger_are_known_again(folder: Path):
    other = Fact("{} lives in ", "Zoë", "Rome")
    with Workspace.open(folder) as workspace:
        assert workspace.new(map(EvaluationCase, [*TYPED, other])) == [EvaluationCase(other)]


def test_an_earlier_ledger_goes_on(folder: Path):
    new = Fact("{} is ", "Ana", "tall", joint="")
    with Workspace.open(folder, write=True, model=tiny_llama()) as workspace:
        workspace.edit(new)
        workspace.forget("Bob")
        assert workspace.verify(replay=True) == []
    with Workspace.open(folder, model=tiny_llama()) as workspace:
        assert workspace.store.live()[-1].fact == new
        assert workspace.verify() == []


def test_a_prompt_that_ends_in_a_space_is_another_one_in_a_ledger_of_today(tmp_path: Path):
    plain = Fact("{} lives in", "Zoë", "Cairo")
    facts = [plain, replace(plain, prompt="{} lives in "), replace(plain, joint="")]
    with Workspace.create(tmp_path / "w", editor_for(tiny_llama(), value_steps=2)) as workspace:
        workspace.edit(plain)
        assert [case.fact for case in workspace.new(map(EvaluationCase, facts))] == facts[1:]


def test_a_workspace_made_under_the_earlier_name_of_its_search_goes_on(tmp_path: Path):
    editor = editor_for(tiny_llama(), value_steps=2, value_optimizer="projected_bb")
    with Workspace.create(tmp_path / "w", editor) as workspace:
        assert workspace.store.identity.config["value_optimizer"] == "projected_bb"
    with sqlite3.connect(tmp_path / "w" / LEDGER) as file:
        file.execute("UPDATE identity SET value = replace(value, 'projected_bb', 'spectral')")
    with Workspace.open(tmp_path / "w", write=True, model=tiny_llama()) as workspace:
        assert workspace.store.identity.config["value_optimizer"] == "spectral"
        workspace.edit(TYPED[0])
        assert [held.fact for held in workspace.store.live()] == TYPED[:1]
