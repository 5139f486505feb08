"""Forgetting, replacing and sharing a subject, on tiny models: against dense solutions over the facts that are left."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from betaedit import Editor, Fact
from betaedit.editors.closed_form.encode import encode_batch
from betaedit.editors.closed_form.live import LiveFact
from betaedit.editors.closed_form.tensors import from_tensors
from betaedit.editors.closed_form.values import optimize_values
from betaedit.errors import FactError, NumericalError
from betaedit.evaluation.scoring import score_targets
from betaedit.experiments.state import load_batches, save_batch
from betaedit.models import LanguageModel
from support.edits import CONTEXTS, FACTS, editor_for, moments_for, relative, settings_of, unchanged, weights
from support.families import language_model
from support.procedure import ValueLoss
from support.reference import DenseMemory
from support.tiny import tiny_llama

NEVER = 10**9
ADDING_UP = ["memit-h", "alphaedit", "betaedit"]
LAYERS = (1, 2)
OTHER_ANSWER = Fact(FACTS[1].prompt, FACTS[1].subject, "Oslo")
ABOUT_ANA = [
    Fact("{} was born in", "Ana", "Lima"),
    Fact("{} works as an", "Ana", "artist"),
    Fact("{} speaks", "Ana", "French"),
]
ABOUT_A_HOUSE = [
    Fact("{} is near the", "the old house", "river"),
    Fact("{} was in", "the old house", "snow"),
    Fact("{} has a name, it is", "the old house", "moon"),
]
WIDE = {"value_steps": 30, "value_learning_rate": 1.5, "value_clamp": 30.0, "value_decay": 0.0, "kl_weight": 0.0}


def matrices(model: LanguageModel) -> dict[int, Tensor]:
    """The edited matrices, (d_out, d_in) in float64."""
    return {layer: model.anatomy.projection(layer).weight.detach().double().clone() for layer in LAYERS}


def solved(editor: Editor, first: dict[int, Tensor], live: Iterable[LiveFact]) -> dict[int, Tensor]:
    """What ``live`` make of the ``first`` matrices, one batch after another, by the dense formulas (methods.md B)."""
    batches: dict[int, list[LiveFact]] = {}
    for held in live:
        batches.setdefault(held.batch, []).append(held)
    ends, config = {}, editor.config
    for layer, moment in moments_for(editor.language_model).matrices.items():
        dense = DenseMemory(
            editor.method.name,
            moment,
            lambda1=config.leakage_weight,
            lambda2=config.ridge,
            threshold=config.nullspace_threshold,
            refresh_every=config.refresh_every,
        )
        W = first[layer]
        for batch in batches.values():
            if dense.due():
                dense.refresh()
            K, V = (
                torch.cat([getattr(h.written[layer], name).double() for h in batch], 1) for name in ("keys", "values")
            )
            W = W + dense.solve(K, V - (W - first[layer]) @ K)
            dense.remember(K)
        ends[layer] = W
    return ends


def assert_holds_only(editor: Editor, first: dict[int, Tensor], live: Iterable[LiveFact]) -> None:
    wanted = solved(editor, first, live)
    for layer, weight in matrices(editor.language_model).items():
        assert relative(weight, wanted[layer]) < 1e-5
        assert relative(weight - first[layer], wanted[layer] - first[layer]) < 1e-3, "float32 weights"


def norm_of(editor: Editor, fact: Fact) -> float:
    """Of the hidden state at the fact's lookup token in the unedited model."""
    with editor.editing.engine.unedited():
        encoded = encode_batch(editor.language_model, [fact], ("{}",), editor.config)
    return float(encoded.recording.inputs[LAYERS[-1] + 1][0, encoded.lookup[0]].norm())


def mean_log_probability(editor: Editor, facts: list[Fact]) -> float:
    """Of the targets, in nats per token."""
    scores = score_targets(editor.language_model, [(fact.text, fact.target_new) for fact in facts])
    return -sum(score.nll for score in scores) / len(scores)


# ---- forgetting


@pytest.mark.parametrize("batch_size", [1, 2])
def test_what_is_kept_of_a_fact_is_its_key_and_the_output_wanted_beyond_the_unedited_matrix(batch_size: int) -> None:
    model = language_model("llama")
    editor = editor_for(model)
    first = before = matrices(model)
    for batch in editor.write(FACTS, batch_size=batch_size):
        held = editor.editing.engine.live_facts[-len(batch.results) :]
        for layer in LAYERS:
            keys, values = (torch.cat([getattr(h.written[layer], n) for h in held], 1) for n in ("keys", "values"))
            assert torch.equal(keys, from_tensors(batch.tensors)[layer][0])
            wanted = (before[layer] - first[layer]) @ keys.double() + from_tensors(batch.tensors)[layer][1].left
            assert relative(values.double(), wanted) < 1e-4
        before = matrices(model)


@pytest.mark.parametrize("method", [*ADDING_UP, "memit", "alphaedit-naive"])
@pytest.mark.parametrize(("refresh_every", "batch_size"), [(NEVER, 1), (NEVER, 2), (2, 1), (2, 2)])
def test_forgetting_one_of_five_leaves_the_weights_of_a_model_that_was_never_told_it(
    method: str, refresh_every: int, batch_size: int
) -> None:
    model = language_model("llama")
    editor = editor_for(model, method, refresh_every=refresh_every)
    first = matrices(model)
    editor.edit(FACTS, batch_size=batch_size)
    others = [held for held in editor.editing.engine.live_facts if held.fact != FACTS[1]]
    (gone,) = editor.forget(FACTS[1].subject)
    assert gone.fact == FACTS[1]
    assert [result.fact for result in editor.results] == [fact for fact in FACTS if fact != FACTS[1]]
    assert_holds_only(editor, first, others)
    assert {memory.n_written for memory in editor.editing.engine.memories.values()} == {4}


def test_edits_after_forgetting_are_those_of_a_model_that_was_never_told_it() -> None:
    told, never = language_model("gpt-j"), language_model("gpt-j")
    editor, other = (editor_for(model, refresh_every=NEVER) for model in (told, never))
    editor.edit(FACTS[0])
    editor.forget(FACTS[0].subject)
    editor.edit(FACTS[1:3])
    other.edit(FACTS[1:3])
    for layer, weight in matrices(told).items():
        assert relative(weight, matrices(never)[layer]) < 1e-5


@pytest.mark.parametrize("method", ["betaedit", "memit"])
def test_forgetting_everything_brings_the_original_weights_back(method: str) -> None:
    model = language_model("llama")
    first = matrices(model)
    editor = editor_for(model, method, refresh_every=NEVER)
    editor.edit(FACTS)
    for fact in FACTS:
        editor.forget(fact.subject)
    assert editor.results == []
    for layer, weight in matrices(model).items():
        assert relative(weight, first[layer]) < 1e-6


def test_half_precision_weights_come_back_when_everything_is_forgotten() -> None:
    model = language_model("llama")
    model.model.to(torch.bfloat16)
    before = weights(model)
    editor = editor_for(model, refresh_every=NEVER)
    editor.edit(FACTS[:2])
    assert not unchanged(before, weights(model))
    for fact in FACTS[:2]:
        editor.forget(fact.subject)
    assert unchanged(before, weights(model))


def test_a_name_means_one_fact_unless_all_are_asked_for() -> None:
    editor = editor_for(language_model("llama"))
    named = Fact("{} works as an", "Ana", "artist", id="a-1")
    editor.edit([FACTS[0], FACTS[2], named])
    with pytest.raises(FactError, match="'Ana' matches 2 facts: People know that Ana was born in -> Lima; Ana works"):
        editor.forget("Ana")
    assert [result.fact for result in editor.forget("a-1")] == [named]
    assert [result.fact for result in editor.forget("Ana")] == [FACTS[2]], "it is the only one now"
    editor.edit([FACTS[2], named])
    assert [result.fact for result in editor.forget(named)] == [named]
    editor.edit(named)
    assert [result.fact for result in editor.forget("Ana", all_matching=True)] == [FACTS[2], named]
    assert [result.fact for result in editor.forget(FACTS[0].subject)] == [FACTS[0]]


@pytest.mark.parametrize(
    ("other", "changes", "told"),
    [
        (Fact("{} speaks", "Ana", "French", id="own-1"), {}, True),
        (Fact("{} was born in", "Bob", "Lima", id="own-1"), {}, True),
        (Fact("{} was born in", "Ana", "Rome", id="own-1"), {"conflicts": "naive"}, True),
        (Fact("{} was born in", "Ana", "Rome", id="own-1"), {}, False),
        (Fact("{} was born in", "Ana", "Lima", id="own-1"), {"conflicts": "naive"}, False),
        (Fact("{} speaks", "Bob", "French", id="own-2"), {}, False),
        (Fact("{} speaks", "Bob", "French"), {}, False),
    ],
)
def test_an_id_that_another_fact_has_is_warned_of_and_then_asked_about(
    caplog: pytest.LogCaptureFixture, other: Fact, changes: dict[str, str], told: bool
) -> None:
    editor = editor_for(language_model("llama"), **changes)
    editor.edit([Fact("{} was born in", "Ana", "Lima", id="own-1"), Fact("{} was born in", "Carl", "Oslo")])
    caplog.clear()
    editor.edit(other)
    assert ("the id of another fact in the model (own-1)" in caplog.text) == told
    if told:
        with pytest.raises(FactError, match="'own-1' matches 2 facts"):
            editor.forget("own-1")
        assert [result.fact for result in editor.forget(other)] == [other]
        assert len(editor.forget("own-1")) == 1


def test_a_name_that_nothing_has_is_answered_with_the_nearest() -> None:
    model = language_model("llama")
    editor = editor_for(model)
    with pytest.raises(FactError, match="No facts are written"):
        editor.forget("Ana")
    editor.edit(FACTS[0])
    before = weights(model)
    with pytest.raises(FactError, match="there is no fact 'Daniele Darieux' to forget") as caught:
        editor.forget("Daniele Darieux")
    assert caught.value.hint == "Did you mean Danielle Darrieux?"
    with pytest.raises(FactError, match="Name the subject or the id"):
        editor.forget("xyzzy")
    assert unchanged(before, weights(model))


# ---- replacing


@pytest.mark.parametrize("method", [*ADDING_UP, "memit"])
@pytest.mark.parametrize("refresh_every", [NEVER, 2])
def test_a_new_answer_takes_the_place_of_the_old_one(method: str, refresh_every: int) -> None:
    model = language_model("llama")
    editor = editor_for(model, method, refresh_every=refresh_every)
    first = matrices(model)
    editor.edit([*FACTS[:3], OTHER_ANSWER])
    assert [result.fact for result in editor.results] == [FACTS[0], FACTS[2], OTHER_ANSWER]
    assert_holds_only(editor, first, editor.editing.engine.live_facts)


def test_the_value_of_a_new_answer_is_sought_without_the_old_one() -> None:
    told, never = language_model("llama"), language_model("llama")
    editor, other = (editor_for(model, refresh_every=NEVER) for model in (told, never))
    editor.edit([FACTS[1], OTHER_ANSWER])
    other.edit(OTHER_ANSWER)
    for layer, weight in matrices(told).items():
        assert relative(weight, matrices(never)[layer]) < 1e-5


def test_naive_writing_keeps_both_answers() -> None:
    editor = editor_for(language_model("llama"), conflicts="naive")
    editor.edit([FACTS[1], OTHER_ANSWER])
    assert [result.fact for result in editor.results] == [FACTS[1], OTHER_ANSWER]


@pytest.mark.parametrize("batch_size", [1, 3])
def test_facts_that_concern_no_other_are_written_alike_by_every_setting(batch_size: int) -> None:
    ends = []
    for changes in ({"conflicts": "naive"}, {"conflicts": "replace"}, {"shared_subjects": "together"}):
        model = language_model("llama")
        editor_for(model, value_look_ahead=2, **changes).edit(FACTS, batch_size=batch_size)
        ends.append(weights(model))
    assert unchanged(ends[0], ends[1])
    assert unchanged(ends[0], ends[2])


@pytest.mark.parametrize("look_ahead", [1, 3])
def test_two_answers_asked_for_at_once_are_written_one_after_the_other(look_ahead: int) -> None:
    together, apart = language_model("llama"), language_model("llama")
    editor = editor_for(together, value_look_ahead=look_ahead)
    sizes = [len(batch.results) for batch in editor.write([FACTS[1], OTHER_ANSWER], batch_size=2)]
    assert sizes == [1, 1]
    other = editor_for(apart)
    other.edit(FACTS[1])
    other.edit(OTHER_ANSWER)
    assert unchanged(weights(together), weights(apart))


@pytest.mark.parametrize("method", ["betaedit", "memit"])
def test_a_replacement_that_fails_leaves_everything_as_it_was(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = language_model("llama")
    editor = editor_for(model, method, refresh_every=NEVER)
    editor.edit(FACTS[:3])
    before, results = weights(model), editor.results

    def refuse(*_: Any) -> None:
        raise NumericalError("no")

    monkeypatch.setattr(editor.editing.engine, "_write_values", refuse)
    with pytest.raises(NumericalError):
        editor.edit(OTHER_ANSWER)
    assert unchanged(before, weights(model))
    assert editor.results == results
    assert {memory.n_written for memory in editor.editing.engine.memories.values()} == {3}
    monkeypatch.undo()
    editor.edit(OTHER_ANSWER)
    assert len(editor.results) == 3


# ---- facts that share a subject


def test_facts_of_one_subject_share_the_change_of_their_values_and_others_are_not_touched() -> None:
    model = language_model("llama")
    editor = editor_for(model, shared_subjects="together", value_steps=4, value_stop_loss=0)
    facts = [ABOUT_ANA[0], FACTS[0], *ABOUT_ANA[1:]]
    values = optimize_values(model, encode_batch(model, facts, CONTEXTS, editor.config), editor.config)
    changes = [value.target - value.initial for value in values]
    assert torch.allclose(changes[0], changes[2], atol=1e-6)
    assert torch.allclose(changes[0], changes[3], atol=1e-6)
    alone = optimize_values(model, encode_batch(model, [FACTS[0]], CONTEXTS, editor.config), editor.config)[0]
    assert relative(values[1].target, alone.target) < 1e-5
    settings = settings_of(model, editor.config)
    losses = [ValueLoss(model.model, model.tokenizer, fact, settings)(changes[0])[0] for fact in ABOUT_ANA]
    assert values[0].loss == pytest.approx(float(sum(losses)) / 3, rel=1e-4)


@pytest.mark.parametrize("mode", ["together", "apart"])
def test_values_of_one_subject_are_all_reached_when_they_are_sought_together_and_not_when_apart(mode: str) -> None:
    """The facts' keys coincide in the first edited layer: one key has one value."""
    editor = editor_for(tiny_llama(), "memit-h", shared_subjects=mode, leakage_weight=1e-3, **WIDE)
    for fact in ABOUT_A_HOUSE:
        editor.edit(fact)
    change = editor.editing.engine.matrices[1].change()
    asked = [held.written[1] for held in editor.editing.engine.live_facts]
    lacking = [float(facts.residuals(change).norm() / facts.values.norm()) for facts in asked]
    assert max(lacking) < 1e-3 if mode == "together" else min(lacking) > 0.3


@pytest.mark.parametrize("refresh_every", [NEVER, 2])
def test_a_new_fact_about_a_subject_is_written_with_those_it_joins_and_theirs_is_taken_out(refresh_every: int) -> None:
    model = language_model("llama")
    editor = editor_for(model, shared_subjects="together", refresh_every=refresh_every)
    first = matrices(model)
    editor.edit([ABOUT_ANA[0], FACTS[0], ABOUT_ANA[1]])
    (batch,) = editor.write(ABOUT_ANA[2])
    assert [result.fact for result in batch.results] == ABOUT_ANA[2:]
    assert [result.fact for result in batch.again] == ABOUT_ANA[:2]
    assert [result.fact for result in editor.results] == [FACTS[0], *ABOUT_ANA]
    assert_holds_only(editor, first, editor.editing.engine.live_facts)
    assert {memory.n_written for memory in editor.editing.engine.memories.values()} == {4}


def test_a_new_answer_leaves_the_old_one_out_of_the_value_that_is_shared() -> None:
    editor = editor_for(language_model("llama"), shared_subjects="together")
    editor.edit(ABOUT_ANA)
    other = Fact(ABOUT_ANA[1].prompt, "Ana", "author")
    editor.edit(other)
    assert [result.fact for result in editor.results] == [ABOUT_ANA[0], ABOUT_ANA[2], other]


def test_forgetting_one_fact_of_a_subject_leaves_what_the_others_alone_would_have_made() -> None:
    model, never = language_model("llama"), language_model("llama")
    settings = {"shared_subjects": "together", "refresh_every": NEVER}
    editor, other = editor_for(model, **settings), editor_for(never, **settings)
    named = Fact("{} has a", "Ana", "dog", id="dog")
    editor.edit([*ABOUT_ANA, named], batch_size=4)
    editor.forget("dog")
    other.edit(ABOUT_ANA, batch_size=3)
    assert [result.fact for result in editor.results] == ABOUT_ANA
    for layer, weight in matrices(model).items():
        assert relative(weight, matrices(never)[layer]) < 1e-5


@pytest.mark.parametrize("method", ["memit-h", "betaedit"])
@pytest.mark.parametrize("gone", [0, 1])
def test_forgetting_one_of_the_facts_of_a_subject_leaves_no_trace_of_it_in_those_written_later(
    method: str, gone: int
) -> None:
    model, never = language_model("llama"), language_model("llama")
    settings = {"refresh_every": NEVER, **WIDE}
    editor, other = editor_for(model, method, **settings), editor_for(never, method, **settings)
    editor.edit(ABOUT_A_HOUSE)
    others = [fact for fact in ABOUT_A_HOUSE if fact is not ABOUT_A_HOUSE[gone]]
    editor.forget(ABOUT_A_HOUSE[gone])
    other.edit(others)
    assert [result.fact for result in editor.results] == others
    for layer, weight in matrices(model).items():
        assert relative(weight, matrices(never)[layer]) < 1e-3, "a search amplifies rounding"
    asked = [(ABOUT_A_HOUSE[gone].text, ABOUT_A_HOUSE[gone].target_new)]
    assert score_targets(editor.language_model, asked)[0].nll == pytest.approx(
        score_targets(other.language_model, asked)[0].nll, rel=1e-3
    )


def test_only_later_facts_of_the_same_subject_are_sought_again(searches: list[int]) -> None:
    editor = editor_for(language_model("llama"))
    editor.edit([FACTS[0], ABOUT_A_HOUSE[0], FACTS[1], ABOUT_A_HOUSE[1], FACTS[2]])
    kept = {held.fact: held for held in editor.editing.engine.live_facts}
    searches.clear()
    editor.forget(FACTS[1])
    editor.forget(ABOUT_A_HOUSE[1])
    assert searches == []
    editor.edit(ABOUT_A_HOUSE[1:])
    searches.clear()
    editor.forget(ABOUT_A_HOUSE[0])
    assert searches == [1, 1]
    assert [held.fact for held in editor.editing.engine.live_facts] == [FACTS[0], FACTS[2], *ABOUT_A_HOUSE[1:]]
    assert editor.editing.engine.live_facts[:2] == [kept[FACTS[0]], kept[FACTS[2]]]


def test_a_fact_of_the_same_batch_is_sought_again_where_batches_share_values(searches: list[int]) -> None:
    for mode, sought in (("batch", [2]), ("apart", [])):
        editor = editor_for(language_model("llama"), shared_subjects=mode)
        editor.edit(ABOUT_ANA, batch_size=3)
        searches.clear()
        editor.forget(ABOUT_ANA[2])
        assert searches == sought


def test_where_prompts_have_keys_of_their_own_nothing_is_sought_again(searches: list[int]) -> None:
    editor = editor_for(language_model("llama"), lookup="last")
    editor.edit(ABOUT_A_HOUSE)
    searches.clear()
    editor.forget(ABOUT_A_HOUSE[0])
    assert searches == []


@pytest.mark.parametrize("failing", [1, 2])
def test_a_search_that_fails_while_forgetting_leaves_everything_as_it_was(
    monkeypatch: pytest.MonkeyPatch, failing: int
) -> None:
    from betaedit.editors.closed_form import engine

    model = language_model("llama")
    editor = editor_for(model, refresh_every=NEVER)
    editor.edit([FACTS[0], *ABOUT_A_HOUSE])
    before, held = matrices(model), list(editor.editing.engine.live_facts)
    calls, search = [], engine.optimize_values

    def fails(*args: Any) -> Any:
        calls.append(1)
        if len(calls) == failing:
            raise NumericalError("no")
        return search(*args)

    monkeypatch.setattr(engine, "optimize_values", fails)
    with pytest.raises(NumericalError):
        editor.forget(ABOUT_A_HOUSE[0])
    assert editor.editing.engine.live_facts == held
    for layer, weight in matrices(model).items():
        assert torch.equal(weight, before[layer])
    monkeypatch.setattr(engine, "optimize_values", search)
    editor.forget(FACTS[0])
    never = language_model("llama")
    other = editor_for(never, refresh_every=NEVER)
    other.edit([FACTS[0], *ABOUT_A_HOUSE])
    other.forget(FACTS[0])
    for layer, weight in matrices(model).items():
        assert relative(weight, matrices(never)[layer]) < 1e-6


def test_batches_that_replace_and_join_are_written_again_from_disk_bit_for_bit(tmp_path: Path) -> None:
    facts = [*FACTS[:3], OTHER_ANSWER, *ABOUT_ANA]
    model, continued = language_model("llama"), language_model("llama")
    editor, other = (editor_for(each, shared_subjects="together") for each in (model, continued))
    done = 0
    for batch in editor.write(facts, batch_size=2):
        save_batch(tmp_path, done + 1, batch)
        done += len(batch.results)
    for batch in load_batches(tmp_path, len(facts)):
        other.replay(batch)
    assert unchanged(weights(model), weights(continued))
    assert other.results == editor.results


def test_facts_that_weaken_others_of_their_subject_are_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    editor = editor_for(tiny_llama(), value_steps=1)
    editor.edit([ABOUT_ANA[0], FACTS[0]])
    assert "share their subject" not in caplog.text
    editor.edit([ABOUT_ANA[1], ABOUT_ANA[2], FACTS[3]])
    assert "2 of 3 facts share their subject with another fact (Ana)" in caplog.text
    assert "shared_subjects=together" in caplog.text


@pytest.mark.parametrize(
    ("changes", "facts"),
    [
        ({"shared_subjects": "together"}, ABOUT_ANA),
        ({"lookup": "last"}, ABOUT_ANA),
        ({}, [FACTS[1], OTHER_ANSWER]),
    ],
    ids=["sought together", "keyed elsewhere", "another answer to one question"],
)
def test_facts_that_weaken_no_other_are_not_warned_of(
    changes: dict[str, Any], facts: list[Fact], caplog: pytest.LogCaptureFixture
) -> None:
    editor_for(tiny_llama(), value_steps=1, **changes).edit(facts)
    assert "share their subject" not in caplog.text
