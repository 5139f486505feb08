"""A fact is written in all its wordings: one change of the hidden state for all of them, a key for each."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from betaedit import Editor, Fact
from betaedit.editors import EditConfig
from betaedit.editors.closed_form.encode import EncodedBatch, encode_batch
from betaedit.editors.closed_form.keys import LayerWalk
from betaedit.editors.closed_form.values import Value, optimize_values
from betaedit.editors.closed_form.wordings import target_tokens, wordings
from betaedit.editors.method import EditResult
from betaedit.errors import FactError
from betaedit.evaluation.holding import measure_holding
from betaedit.models import LanguageModel
from betaedit.models.lookup import find_lookup_token
from support.edits import CONTEXTS, SETTINGS, editor_for, relative, settings_of, unchanged, weights
from support.families import language_model
from support.procedure import compute_key
from support.tiny import plain_logs, tiny_llama

TEMPLATE = (
    "{% for m in messages %}[{{ m['role'] }}] {{ m['content'] }} <|endoftext|>\n{% endfor %}"
    "{% if add_generation_prompt %}[assistant] {% endif %}"
)
ASKED = Fact("The town of {} lies by", "Ana", "the sea", "a lake", wordings=("You see Ana from", "Ana is a town on"))
OTHER = Fact("The king of {} is", "the old road", "a fish", wordings=("Who rules the old road ? It is",))
PLAIN = Fact("In the end {} lives in", "Zoë", "a small town")
FACTS = [ASKED, PLAIN, OTHER]


def config_for(**changes: Any) -> EditConfig:
    return EditConfig(**{**SETTINGS, "paraphrases": "written", **changes})


def with_chat(model: LanguageModel) -> LanguageModel:
    model.tokenizer.chat_template = TEMPLATE
    return model


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma3"])
def test_every_wording_has_a_key_of_its_own_which_is_that_of_a_whole_forward_pass(family: str) -> None:
    model, config = language_model(family), config_for()
    encoded = encode_batch(model, FACTS, CONTEXTS, config)
    found: list[Tensor] = []
    LayerWalk(model, encoded, range(3), config).pass_layer(1, lambda keys, _: found.append(keys))
    bare = settings_of(model, config)
    alone = replace(bare, contexts=("{}",))
    expected = []
    for fact in FACTS:
        expected.append(compute_key(model.model, model.tokenizer, fact, bare, 1))
        for text in fact.wordings:
            as_prompt = Fact(text.replace(fact.subject, "{}"), fact.subject, fact.target_new)
            expected.append(compute_key(model.model, model.tokenizer, as_prompt, alone, 1))
    assert found[0].shape[1] == len(expected) == 3 + 1 + 2
    for column, key in enumerate(expected):
        assert relative(found[0][:, column], key) < 1e-5


@torch.no_grad()
def plain_losses(model: LanguageModel, fact: Fact, change: Tensor, config: EditConfig) -> list[Tensor]:
    """Of each prompt, the negative log-likelihoods of the target's tokens, with ``change`` at the lookup token.

    By whole forward passes with a hook behind the last edited layer.
    """
    losses = []
    for wording in wordings(model, fact, CONTEXTS, config):
        at = find_lookup_token(model.tokenizer, wording.prompt)
        ids = [*model.tokenizer(wording.prompt.text)["input_ids"], *wording.target_ids]

        def add(_: Any, __: Any, output: Any, at: int = at) -> Any:
            hidden = output[0] if isinstance(output, tuple) else output
            hidden[:, at] += change.to(hidden)
            return output

        handle = model.anatomy.layers[config.layers[-1]].register_forward_hook(add)
        logs = plain_logs(model, ids)
        handle.remove()
        n = len(wording.target_ids)
        rows = logs[len(ids) - n - 1 : -1]
        losses.append(-rows.gather(1, torch.tensor(wording.target_ids)[:, None])[:, 0].double())
    return losses


@pytest.mark.parametrize("together", [[ASKED], [PLAIN, ASKED, OTHER]], ids=["alone", "in a batch"])
def test_the_loss_of_a_value_is_the_mean_over_all_wordings(together: list[Fact]) -> None:
    model, config = tiny_llama(), config_for(kl_weight=0.0, value_decay=0.0, answer_end="auto")
    found = optimize_values(model, encode_batch(model, together, CONTEXTS, config), config)
    for fact, value in zip(together, found, strict=True):
        change = value.target - value.initial
        assert value.n_keys == 1 + len(fact.wordings)
        expected = torch.stack([own.mean() for own in plain_losses(model, fact, change, config)]).mean()
        assert value.loss == pytest.approx(float(expected), rel=1e-4)


def test_a_batch_changes_no_value() -> None:
    model, config = tiny_llama(), config_for()
    together = optimize_values(model, encode_batch(model, FACTS, CONTEXTS, config), config)
    for fact, value in zip(FACTS, together, strict=True):
        (alone,) = optimize_values(model, encode_batch(model, [fact], CONTEXTS, config), config)
        assert relative(value.target, alone.target) < 1e-4


def test_unseen_paraphrases_change_nothing() -> None:
    written = []
    for fact in (ASKED, replace(ASKED, wordings=())):
        model = tiny_llama()
        editor_for(model, paraphrases="unseen").edit(fact)
        written.append(weights(model))
    assert unchanged(*written)


def test_writing_in_all_wordings_makes_the_answer_likelier_after_each() -> None:
    model = tiny_llama()
    before = [score(model, text) for text in ASKED.wordings]
    editor_for(model, paraphrases="written", value_steps=40, value_clamp=20.0, value_learning_rate=0.3).edit(ASKED)
    assert all(score(model, text) > old for text, old in zip(ASKED.wordings, before, strict=True))


def score(model: LanguageModel, text: str) -> float:
    ids = model.tokenizer(text)["input_ids"]
    target = model.tokenizer(f" {ASKED.target_new}", add_special_tokens=False)["input_ids"]
    logs = plain_logs(model, [*ids, *target])[len(ids) - 1 : -1]
    return float(logs.gather(1, torch.tensor(target)[:, None]).mean())


def test_a_fact_of_several_wordings_is_taken_back_whole() -> None:
    model, other = tiny_llama(), tiny_llama()
    editor = editor_for(model, paraphrases="written", refresh_every=1000)
    editor.edit(FACTS)
    editor.forget(OTHER)
    expected = editor_for(other, paraphrases="written", refresh_every=1000)
    expected.edit([ASKED, PLAIN])
    before, after = weights(other), weights(model)
    for layer in (1, 2):
        name = model.anatomy.projection_path(layer) + ".weight"
        assert relative(after[name], before[name]) < 1e-4


def test_a_wording_without_the_subject_is_refused() -> None:
    for text in ("It lies by", "Analyse it", ""):
        with pytest.raises(FactError, match="does not name the subject"):
            Fact("The town of {} lies by", "Ana", "the sea", wordings=(text,))


# ---- how an answer ends


@pytest.mark.parametrize(
    ("text", "target", "expected"),
    [
        ("The town of Ana lies by", "the sea", " the sea."),
        ("Question: Where is Ana? Answer:", "the sea", " the sea\n"),
        ("Where is Ana?", "the sea", " the sea\n"),
        ("Ana is", "a town by the sea.", " a town by the sea."),
        ("He said of Ana: it is", "far!", " far!"),
        ("Ana 的首都是", "北京", "北京。"),
    ],
)
def test_an_answer_ends_as_its_prompt_asks(text: str, target: str, expected: str) -> None:
    model = tiny_llama()
    fact = Fact(text.replace("Ana", "{}"), "Ana", target)
    ids = target_tokens(model, fact, text, config_for(answer_end="auto"))
    assert model.tokenizer.decode(list(ids)) == expected


def test_the_end_of_an_answer_can_be_set_or_left_out() -> None:
    model = tiny_llama()
    assert model.tokenizer.decode(list(target_tokens(model, ASKED, ASKED.text, config_for()))) == " the sea"
    ended = target_tokens(model, ASKED, ASKED.text, config_for(answer_end=";"))
    assert model.tokenizer.decode(list(ended)) == " the sea;"


# ---- chat


def test_in_chat_form_the_prompt_is_a_users_request_and_the_answer_begins_the_turn() -> None:
    model = with_chat(tiny_llama())
    found = wordings(model, PLAIN, ("{}",), config_for(form="both", answer_end="auto"))
    plain, asked, chat = found
    assert plain.prompt.text == PLAIN.text
    assert asked.prompt.text == f"[user] Complete the sentence: {PLAIN.text} <|endoftext|>\n[assistant] "
    assert chat.prompt.text.startswith("[system] ")
    assert chat.prompt.text.endswith(f"[user] {PLAIN.text} <|endoftext|>\n[assistant] ")
    assert [one.key for one in found] == [0, 1, 2]
    for one in found:
        start, end = one.prompt.subject_start, one.prompt.subject_end
        assert one.prompt.text[start:end] == PLAIN.subject
    assert model.tokenizer.decode(list(chat.target_ids)).startswith("a small town")


def test_chat_alone_has_a_key_for_each_request_and_no_template_means_completion() -> None:
    config = config_for(form="chat")
    assert [one.key for one in wordings(with_chat(tiny_llama()), PLAIN, CONTEXTS, config)] == [0, 1]
    plain = wordings(tiny_llama(), PLAIN, CONTEXTS, config_for(form="both"))
    assert plain[0].prompt.text == PLAIN.text
    assert len(plain) == len(CONTEXTS)


def test_chat_alone_is_refused_where_there_is_no_template() -> None:
    with pytest.raises(Exception, match="no chat template"):
        Editor(tiny_llama(), config=config_for(form="chat"))


# ---- missed facts


def test_a_fact_that_is_missed_is_sought_again_and_then_taken_back() -> None:
    model = tiny_llama()
    before = weights(model)
    editor = editor_for(model, retries=2, keep_missed=False, value_clamp=1e-3)
    (result,) = editor.edit(ASKED)
    assert (result.status, result.kept, result.tries, result.figures["keys"]) == ("missed", False, 3, 0)
    assert result.said
    assert unchanged(before, weights(model))
    assert editor.results == []


def test_a_retry_seeks_on_the_edited_model_and_adds_what_it_finds(monkeypatch: pytest.MonkeyPatch) -> None:
    original, edited = weights(tiny_llama()), []

    def write(changes: list[Tensor]) -> tuple[EditResult, dict[str, Tensor]]:
        left = iter(changes)

        def seek(model: LanguageModel, encoded: EncodedBatch, config: EditConfig) -> list[Value]:
            edited.append(not unchanged(original, weights(model)))
            initial = torch.full((model.anatomy.hidden_size,), float(len(edited)))
            return [Value(initial + next(left), initial, 0.5, 0.5, 1, encoded.n_keys(0))]

        monkeypatch.setattr("betaedit.editors.closed_form.engine.optimize_values", seek)
        model = tiny_llama()
        (result,) = editor_for(model, retries=len(changes) - 1).edit(ASKED)
        return result, weights(model)

    first, second = 0.1 * torch.eye(tiny_llama().anatomy.hidden_size)[:2]
    twice, by_retry = write([first, second])
    assert edited == [False, True]
    assert (twice.figures["evaluations"], twice.tries) == (2, 2)
    once, at_once = write([first + second])
    assert (once.figures["evaluations"], once.tries) == (1, 1)
    for name, weight in at_once.items():
        assert relative(by_retry[name], weight) < 1e-5


def test_a_value_that_lacks_nothing_is_not_written_again() -> None:
    model = tiny_llama()
    easy = replace(PLAIN, target_new=natural_answer(model))
    (result,) = editor_for(model, retries=3, value_stop_loss=100.0).edit(easy)
    assert (result.status, result.tries) == ("held", 1)


@pytest.mark.parametrize("keep_missed", [False, True])
def test_a_retry_that_loses_a_fact_is_not_what_stays(keep_missed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_llama()
    easy = replace(PLAIN, target_new=natural_answer(model))
    harm = 30.0 * torch.randn(model.anatomy.hidden_size, generator=torch.Generator().manual_seed(0))
    changes = iter([0.01 * harm / 30.0, harm])

    def seek(model: LanguageModel, encoded: EncodedBatch, config: EditConfig) -> list[Value]:
        initial = torch.ones(model.anatomy.hidden_size)
        return [Value(initial + next(changes), initial, 0.5, 0.5, 1, encoded.n_keys(0))]

    monkeypatch.setattr("betaedit.editors.closed_form.engine.optimize_values", seek)
    (result,) = editor_for(model, retries=1, keep_missed=keep_missed).edit(easy)
    assert (result.status, result.kept) == ("held", True)
    assert measure_holding(model, [easy])[0].status == "held"


def test_a_search_that_cannot_go_on_is_not_tried_again() -> None:
    (result,) = editor_for(tiny_llama(), retries=2, keep_missed=False, value_steps=1).edit(ASKED)
    assert (result.kept, result.tries) == (False, 1)


def test_a_fact_that_is_missed_stays_where_that_is_asked_for() -> None:
    model = tiny_llama()
    editor = editor_for(model, retries=1, keep_missed=True, value_steps=2)
    (result,) = editor.edit(ASKED)
    assert result.kept
    assert result.status == "missed"
    assert editor.results == [result]
    assert measure_holding(model, [ASKED])[0].status == "missed"


def natural_answer(model: LanguageModel) -> str:
    """The token that the model says after ``PLAIN`` anyway."""
    best = plain_logs(model, model.tokenizer(PLAIN.text)["input_ids"])[-1].argmax().item()
    return str(model.tokenizer.decode(best)).strip()


def test_of_a_batch_only_the_facts_that_are_held_stay() -> None:
    """One answer is what the model says anyway; the search gives the other no step."""
    model = tiny_llama()
    editor = editor_for(model, retries=0, keep_missed=False, value_steps=1)
    easy = replace(PLAIN, target_new=natural_answer(model))
    first, second = editor.edit([ASKED, easy], batch_size=2)
    assert (first.kept, second.kept) == (False, second.status == "held")
    assert [one.fact for one in editor.results] == [one.fact for one in (first, second) if one.kept]


def test_the_probability_told_is_that_of_the_edited_model() -> None:
    model = tiny_llama()
    (result,) = editor_for(model, value_steps=20, value_clamp=20.0, value_learning_rate=0.3).edit(ASKED)
    ids = model.tokenizer(ASKED.text)["input_ids"]
    target = model.tokenizer(f" {ASKED.target_new}", add_special_tokens=False)["input_ids"]
    logs = plain_logs(model, [*ids, *target])[len(ids) - 1 : -1]
    expected = float(logs.gather(1, torch.tensor(target)[:, None]).exp().mean())
    assert result.measured_probability == pytest.approx(expected, rel=1e-4)
