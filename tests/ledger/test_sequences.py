"""Any sequence of edits, replacements, forgettings, restorings and reopenings leaves what the live facts alone make."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from betaedit import Fact
from betaedit.ledger.workspace import Workspace
from support.edits import FACTS, editor_for
from support.tiny import tiny_llama

SUBJECTS = ["Ana", "Zoë", "The long bridge"]
PROMPTS = [FACTS[0].prompt, FACTS[1].prompt]
TARGETS = ["Rome", "Oslo", "a small town"]
NEVER = 10**9
METHODS = [("memit-h", NEVER), ("betaedit", NEVER), ("betaedit", 2), ("memit", NEVER)]

subjects, prompts, targets = st.sampled_from(SUBJECTS), st.sampled_from(PROMPTS), st.sampled_from(TARGETS)


class Sequences(RuleBasedStateMachine):
    """A workspace beside a dictionary of what it should hold."""

    @initialize(method=st.sampled_from(METHODS))
    def begin(self, method: tuple[str, int]) -> None:
        self.folder = Path(tempfile.mkdtemp())
        name, refresh_every = method
        self.model = tiny_llama()
        editor = editor_for(self.model, name, value_steps=2, refresh_every=refresh_every)
        self.workspace = Workspace.create(self.folder / "w", editor)
        self.held: dict[tuple[str, str], str] = {}
        self.points = {1: {}}

    @rule(told=st.lists(st.tuples(prompts, subjects, targets), min_size=1, max_size=3), batch_size=st.integers(1, 2))
    def edit(self, told: list[tuple[str, str, str]], batch_size: int) -> None:
        self.workspace.edit([Fact(*parts) for parts in told], batch_size=batch_size)
        self.held |= {(prompt, subject): target for prompt, subject, target in told}

    @precondition(lambda self: self.held)
    @rule(data=st.data(), answer=targets)
    def replace(self, data: st.DataObject, answer: str) -> None:
        fact = data.draw(st.sampled_from(self.workspace.store.live()))
        self.workspace.replace(f"#{fact.number}", answer)
        self.held[fact.fact.prompt, fact.fact.subject] = answer

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def forget(self, data: st.DataObject) -> None:
        gone = data.draw(st.sets(st.sampled_from([fact.number for fact in self.workspace.store.live()]), min_size=1))
        for fact in self.workspace.forget(*(f"#{number}" for number in sorted(gone))):
            del self.held[fact.fact.prompt, fact.fact.subject]

    @rule(data=st.data())
    def restore(self, data: st.DataObject) -> None:
        event = data.draw(st.sampled_from(sorted(self.points)))
        self.workspace.restore(event)
        self.held = dict(self.points[event])

    @rule()
    def reopen(self) -> None:
        before = {layer: matrix.change().clone() for layer, matrix in self.workspace.matrices.items()}
        self.workspace.close()
        self.workspace = Workspace.open(self.folder / "w", write=True, model=tiny_llama())
        for layer, matrix in self.workspace.matrices.items():
            assert torch.equal(matrix.change().clone(), before[layer])

    @rule()
    def collect(self) -> None:
        # Whatever its size: workspace.collect() keeps a history as short as these.
        self.workspace.store.collect(self.workspace._snapshot(), purge=False)

    @invariant()
    def it_holds_what_it_should(self) -> None:
        if not hasattr(self, "workspace"):
            return
        live = self.workspace.store.live()
        assert {(fact.fact.prompt, fact.fact.subject): fact.fact.target_new for fact in live} == self.held
        self.points[self.workspace.store.head] = dict(self.held)

    def teardown(self) -> None:
        if hasattr(self, "workspace"):
            try:
                assert max(self.workspace.replay_errors().values()) < 1e-6
                assert self.workspace.verify() == []
            finally:
                self.workspace.close()
                shutil.rmtree(self.folder)


TestSequences = Sequences.TestCase
TestSequences.settings = settings(max_examples=12, stateful_step_count=8, deadline=None, derandomize=True)
