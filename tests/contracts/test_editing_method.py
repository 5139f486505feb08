"""What every row of ``METHODS`` keeps to, whichever family it belongs to."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import pytest
import torch

from betaedit import Editor, Fact
from betaedit.editors.method import (
    EditsMatrices,
    EditsWeights,
    Forgets,
    HoldsFacts,
    HoldsMemory,
    Method,
    WrittenBatch,
    memory_use,
)
from betaedit.editors.methods import METHODS, find_method
from betaedit.errors import ConfigError, FactError, MethodError
from betaedit.evaluation import score_targets
from betaedit.experiments.state import load_batches, save_batch
from betaedit.models import LanguageModel
from support.counting import COUNTING
from support.edits import FACTS, unchanged, weights
from support.families import language_model
from support.methods import small_editor

OVER = [find_method(name) for name in ("memit-h+scr", "memit-h+ike", "rome+prompt", "ft+rag")]
EVERY = [*METHODS.values(), *OVER, COUNTING]


@pytest.fixture(autouse=True)
def _counting() -> Iterator[None]:
    METHODS.register(COUNTING)
    yield
    METHODS.unregister(COUNTING.name)


@pytest.fixture(params=EVERY, ids=lambda row: row.name)
def method(request: pytest.FixtureRequest) -> Method:
    found: Method = request.param
    return found


def answers(model: LanguageModel) -> list[float]:
    """How likely the model, as served, finds the answers of all facts."""
    pairs = [(fact.text, target) for fact in FACTS for target in (fact.target_new, fact.target_true or "none")]
    return [score.nll for score in score_targets(model, pairs)]


def moved(before: Mapping[str, torch.Tensor], model: LanguageModel) -> set[str]:
    """The weights that are not as ``before``."""
    return {name for name, now in weights(model).items() if not torch.equal(before[name], now)}


def held(editor: Editor) -> Sequence[WrittenBatch]:
    assert isinstance(editor.editing, HoldsFacts)
    return editor.editing.held()


class TestEveryMethod:
    """The protocol ``EditingMethod``."""

    def test_its_row_is_plain_data_and_its_names_find_it(self, method: Method) -> None:
        assert json.loads(json.dumps(method.to_dict()))["name"] == method.name
        assert all(find_method(name) is method for name in (method.name, *method.aliases))
        assert method.title
        assert method.paper

    def test_its_configuration_refuses_unknown_names_and_survives_json(self, method: Method) -> None:
        with pytest.raises(ConfigError, match="no hyper-parameter 'sead'"):
            method.configure({"sead": 1})
        config = method.configure({"seed": 3})
        assert method.configure(json.loads(config.model_dump_json())) == config
        assert config.seed == 3

    def test_planning_changes_nothing_and_shows_the_tokens(self, method: Method) -> None:
        model = language_model("llama")
        before, editor = weights(model), small_editor(method, model)
        (plan,) = editor.plan(FACTS[0])
        assert "".join(plan.target_tokens).strip() == FACTS[0].target_new
        assert unchanged(before, weights(model))
        assert not editor.results

    def test_facts_are_written_in_order_and_reported_once_each(self, method: Method) -> None:
        editor = small_editor(method, language_model("llama"))
        batches = list(editor.write(FACTS[:2]))
        assert [result.fact for batch in batches for result in batch.results] == FACTS[:2]
        assert [result.fact for result in editor.results] == FACTS[:2]
        assert all(result.status is not None and result.seconds >= 0 for result in editor.results)
        json.dumps([result.to_dict() for result in editor.results])

    def test_a_duplicate_id_is_refused_before_anything_is_written(self, method: Method) -> None:
        model = language_model("llama")
        before, editor = weights(model), small_editor(method, model)
        twice = [Fact("{} is in", name, "Rome", id="one") for name in ("Ana", "Bob")]
        with pytest.raises(FactError, match="share the id"):
            editor.edit(twice)
        assert unchanged(before, weights(model))

    def test_batches_kept_on_disk_and_replayed_give_the_same_model(self, method: Method, tmp_path: Path) -> None:
        written, replayed = language_model("llama"), language_model("llama")
        first, again = small_editor(method, written), small_editor(method, replayed)
        for number, batch in enumerate(first.write(FACTS[:2]), start=1):
            save_batch(tmp_path, number, batch)
        for batch in load_batches(tmp_path, 2):
            again.replay(batch)
        assert unchanged(weights(written), weights(replayed))
        assert answers(first.language_model) == answers(again.language_model)
        assert [result.to_dict() for result in again.results] == [result.to_dict() for result in first.results]

    def test_unedited_is_the_model_before_the_first_edit_and_ends_with_the_edits(self, method: Method) -> None:
        editor = small_editor(method, language_model("llama"))
        before = answers(editor.language_model)
        editor.edit(FACTS[:2])
        after = answers(editor.language_model)
        with editor.unedited():
            assert answers(editor.language_model) == before
        assert answers(editor.language_model) == after

    def test_reset_gives_back_the_model_and_forgets_all(self, method: Method) -> None:
        model = language_model("llama")
        before, editor = weights(model), small_editor(method, model)
        said = answers(editor.language_model)
        editor.edit(FACTS[:2])
        editor.reset()
        assert unchanged(before, weights(model))
        assert answers(editor.language_model) == said
        assert not editor.results

    def test_an_interrupt_leaves_the_model_as_it_was_before_the_batch(
        self, method: Method, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        model = language_model("llama")
        editor = small_editor(method, model)
        editor.edit(FACTS[0])
        before, said = weights(model), answers(editor.language_model)

        def interrupted(*_: object) -> None:
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            for module in ("betaedit.editors.asked", "betaedit.editors.closed_form.engine"):
                patch.setattr(f"{module}.measure_holding", interrupted)
            with pytest.raises(KeyboardInterrupt):
                editor.edit(FACTS[1])
        assert unchanged(before, weights(model))
        assert answers(editor.language_model) == said
        assert [result.fact for result in editor.results] == FACTS[:1]

    def test_what_it_says_of_itself_is_plain_data(self, method: Method) -> None:
        editor = small_editor(method, language_model("llama"))
        editor.prepare()
        plain = json.loads(json.dumps(editor.to_dict()))
        assert plain["method"] == method.name
        assert plain["config"]["seed"] == 0

    def test_answering_needs_memory_beside_the_weights_only_where_they_do_not_hold_the_edits(
        self, method: Method
    ) -> None:
        model = language_model("llama")
        before, editor = weights(model), small_editor(method, model)
        said = answers(editor.language_model)
        assert sum(memory_use(editor.editing).answering.values()) == 0
        editor.edit(FACTS[:2])
        use = memory_use(editor.editing)
        assert json.loads(json.dumps([use.answering, use.editing])) == [dict(use.answering), dict(use.editing)]
        assert all(type(size) is int and size >= 0 for size in (*use.answering.values(), *use.editing.values()))
        in_weights = isinstance(editor.editing, EditsMatrices | EditsWeights) and model is editor.language_model
        if in_weights:
            assert sum(use.answering.values()) == 0
        elif answers(editor.language_model) != said:
            assert sum(use.answering.values()) > 0
        if not unchanged(before, weights(model)):
            assert isinstance(editor.editing, HoldsMemory)
            assert sum(use.editing.values()) >= sum(before[name].nbytes for name in moved(before, model))
        editor.reset()
        assert sum(memory_use(editor.editing).answering.values()) == 0


class TestEveryMethodThatForgets:
    """The capability ``Forgets``."""

    def test_a_row_says_truly_whether_its_editor_forgets(self, method: Method) -> None:
        editor = small_editor(method, language_model("llama"))
        assert isinstance(editor.editing, Forgets) == method.can_forget

    def test_the_only_fact_forgotten_leaves_the_model_it_was(self, method: Method) -> None:
        model = language_model("llama")
        before, editor = weights(model), small_editor(method, model)
        said = answers(editor.language_model)
        editor.edit(FACTS[0])
        if not method.can_forget:
            with pytest.raises(MethodError, match="cannot forget"):
                editor.forget(FACTS[0])
            return
        editor.forget(FACTS[0])
        assert not editor.results
        assert all(torch.allclose(before[name], now, atol=1e-5) for name, now in weights(model).items())
        assert answers(editor.language_model) == pytest.approx(said, abs=1e-3)


class TestEveryMethodThatHoldsFacts:
    """The capability ``HoldsFacts``."""

    def test_what_it_holds_is_made_again_by_replaying_it_and_by_the_other_facts_alone(self, method: Method) -> None:
        editor = small_editor(method, language_model("llama"))
        if not isinstance(editor.editing, HoldsFacts):
            return
        editor.edit(FACTS[:3], batch_size=2)
        before = {id(result): batch.tensors for result, batch in zip(editor.results, held(editor), strict=True)}
        editor.editing.forget(editor.results[:1])
        again, never = (small_editor(method, language_model("llama")) for _ in range(2))
        for batch in held(editor):
            again.replay(batch)
        never.edit(FACTS[1:3])
        for other in (again, never):
            assert [result.fact for result in other.results] == FACTS[1:3]
            assert [batch.results[0].fact for batch in held(other)] == FACTS[1:3]
            for one, two in zip(held(editor), held(other), strict=True):
                assert one.tensors.keys() == two.tensors.keys()
                assert all(torch.equal(one.tensors[name], two.tensors[name]) for name in one.tensors)
            assert answers(other.language_model) == answers(editor.language_model)
        for result, batch in zip(editor.results, held(editor), strict=True):
            known = before.get(id(result), {})
            assert all(torch.equal(tensor, batch.tensors[name]) for name, tensor in known.items())


class TestEveryMethodThatEditsWeights:
    """The capabilities ``EditsMatrices`` and ``EditsWeights``."""

    def test_its_matrices_hold_all_that_changed(self, method: Method) -> None:
        model = language_model("llama")
        before, editor = weights(model), small_editor(method, model)
        editor.edit(FACTS[:2])
        changed = moved(before, model)
        if not isinstance(editor.editing, EditsMatrices | EditsWeights):
            assert not changed
            return
        assert changed == {f"{path}.weight" for path in editor.weights()}
