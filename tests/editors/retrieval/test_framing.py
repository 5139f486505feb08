"""Facts put before prompts: what is found, confirmed and written there."""

from __future__ import annotations

import logging

import pytest

from betaedit import Editor, Fact
from betaedit.editors.method import EditsMatrices, Forgets
from betaedit.editors.methods import find_method
from betaedit.editors.retrieval import framing
from betaedit.editors.retrieval.prompts import confirmed, confirmed_officially, sentence
from betaedit.errors import FactError, MethodError, ModelError
from betaedit.evaluation.retrieval import measure_retrieval
from betaedit.facts.fact import EvaluationCase, Probe
from betaedit.models import LanguageModel
from support.edits import FACTS
from support.families import language_model
from support.methods import small_editor
from support.tiny import tiny_llama

ANA = Fact("The mother tongue of {} is", "Ana", "Dutch")
BOB = Fact("The mother tongue of {} is", "Bob", "French")


def editor(name: str = "scr", **settings: object) -> Editor:
    made = Editor(tiny_llama(), method=name, config=find_method(name).configure({"template": "continue", **settings}))
    made.edit([ANA, BOB])
    return made


def framed(made: Editor, *prompts: str) -> list[str]:
    return made.language_model.framed(prompts)


def test_the_fact_whose_subject_stands_in_the_prompt_is_put_on_the_line_above_it():
    assert framed(editor(), "ANA grew up with", "The mother tongue of Eve is") == [
        "The mother tongue of Ana is Dutch.\nANA grew up with",
        "The mother tongue of Eve is",
    ]


def test_without_confirmation_the_first_fact_found_is_taken():
    found = framed(editor(confirm="none"), "The mother tongue of Eve is", "xyz")
    assert found == ["The mother tongue of Ana is Dutch.\nThe mother tongue of Eve is", "xyz"]


def test_yes_or_no_takes_the_first_fact_where_yes_is_more_probable(monkeypatch: pytest.MonkeyPatch):
    made = editor(confirm="yes-no")

    def scores(_: LanguageModel, pairs: list[tuple[str, str]]) -> list[object]:
        wanted = [(("Ana" in prompt) == (said == "yes")) for prompt, said in pairs]
        return [type("Score", (), {"nll": 0.0 if right else 1.0}) for right in wanted]

    monkeypatch.setattr(framing, "score_targets", scores)
    assert framed(made, "mother of Ana", "mother of Bob") == [f"{sentence(ANA)}\nmother of Ana", "mother of Bob"]


def test_the_published_way_reads_the_reply_and_asks_for_an_answer(monkeypatch: pytest.MonkeyPatch):
    made = editor(confirm="reply", template="answer")
    replies = {"Ana": f" {sentence(ANA)}\nQuestion", "Bob": " No relevant fact."}

    def reply(_: LanguageModel, prompts: list[str], n_tokens: int, **__: object) -> list[str]:
        assert n_tokens == 50
        return [next(said for name, said in replies.items() if f"of {name} is\nOutput" in prompt) for prompt in prompts]

    monkeypatch.setattr(framing, "complete_greedily", reply)
    ana, bob = framed(made, ANA.text, BOB.text)
    assert ana.endswith(f"Fact: {sentence(ANA)}\nQuestion: {ANA.text}\nAnswer:")
    assert bob == BOB.text


def test_a_reply_names_a_retrieved_fact_or_is_a_refusal():
    facts = ["The sky of Mars is false blue.", "Ana speaks Dutch."]
    assert confirmed("The sky of Mars is false blue", facts) == facts[0]
    assert confirmed("no relevant fact.", facts) is None
    assert confirmed("Something else altogether.", facts) is None
    assert confirmed("", facts) is None


def test_the_official_reading_refuses_at_any_refusing_word_and_believes_every_other_reply():
    facts = ["The sky of Mars is false blue.", "Ana speaks Dutch."]
    assert confirmed_officially("The sky of Mars is false blue", facts) is None
    assert confirmed_officially("Something else", facts) == "Something else."
    assert confirmed_officially("The fact that best matches the question is: Ana speaks Dutch. Yes", facts) == facts[1]
    assert confirmed_officially("anything", facts[:1]) == facts[0]


def test_rag_puts_all_facts_found_before_a_prompt():
    both = "The mother tongue of Ana is Dutch.\nThe mother tongue of Bob is French."
    assert framed(editor("rag"), "The mother of Ana", "xyz") == [f"{both}\nThe mother of Ana", "xyz"]


def test_prompt_puts_a_fact_before_every_prompt_the_newest_where_none_is_near():
    assert framed(editor("prompt"), "of Ana", "xyz") == [
        f"New Fact: {sentence(ANA)}\nPrompt: of Ana",
        f"New Fact: {sentence(BOB)}\nPrompt: xyz",
    ]


def test_ike_puts_demonstrations_before_the_fact_the_nearest_first():
    (text,) = framed(editor("ike", n_demonstrations=3), "of Ana")
    *shown, asked = text.split("\n\n")
    assert asked == f"New Fact: {sentence(ANA)}\nPrompt: of Ana"
    assert len(shown) == 3
    assert all(part.startswith("New Fact: ") and not part.endswith("Prompt:") for part in shown)


def test_ike_takes_fewer_demonstrations_where_the_model_has_no_more_positions():
    made = editor("ike", n_demonstrations=60)
    (text,) = framed(made, "of Ana")
    assert text.endswith(f"New Fact: {sentence(ANA)}\nPrompt: of Ana")
    assert len(made.tokenizer(text)["input_ids"]) + framing.ROOM <= made.language_model.max_length


def test_a_missing_file_of_demonstrations_is_refused_before_anything_is_written():
    with pytest.raises(FactError):
        Editor(tiny_llama(), method="ike", config=find_method("ike").configure({"demonstrations": "/no/file.jsonl"}))


def test_a_prompt_without_room_for_a_fact_is_asked_as_it_is_and_that_is_said(caplog: pytest.LogCaptureFixture):
    made, long = editor(), "Ana " * 150
    with caplog.at_level(logging.WARNING):
        assert framed(made, long) == [long]
    assert "no room" in caplog.text


def test_a_later_fact_with_the_same_prompt_replaces_the_earlier_one_and_forgetting_drops_it():
    made = editor()
    made.edit(Fact("The mother tongue of {} is", "Ana", "Greek"))
    assert [result.fact.target_new for result in made.results] == ["French", "Greek"]
    assert framed(made, "Ana says") == ["The mother tongue of Ana is Greek.\nAna says"]
    made.forget("Ana")
    assert framed(made, "Ana says") == ["Ana says"]


def test_nothing_found_earlier_is_used_again_when_timing(monkeypatch: pytest.MonkeyPatch):
    made = editor()
    framed(made, ANA.text)
    monkeypatch.setattr(made.language_model.frame, "put_before", lambda prompts: ["new" for _ in prompts])
    assert framed(made, ANA.text) == [f"{sentence(ANA)}\n{ANA.text}"]
    assert made.language_model.framed([ANA.text], fresh=True) == ["new"]


def test_recall_and_what_is_shown_are_measured_by_kind_of_prompt():
    cases = [
        EvaluationCase(ANA, ("What does Ana speak? It is",), (Probe("The mother tongue of Eve is"),)),
        EvaluationCase(BOB, ("His mother tongue is",), (Probe("Bob's sister speaks"),)),
    ]
    found = measure_retrieval(editor().language_model, cases, [False, False])
    means = {name: value.mean for name, value in found.items() if value is not None}
    assert means["retrieved at 1, prompts"] == means["shown, prompts"] == 1.0
    assert means["retrieved at 1, paraphrases"] == 0.5
    assert means["retrieved at 3, paraphrases"] == 1.0
    assert means["shown, paraphrases"] == 0.5
    assert means["shown wrongly, neighbors"] == 0.5
    assert found["shown wrongly, questions"] is None
    assert measure_retrieval(tiny_llama(), cases, [False, False]) == {}


class TestAnEditorUnderAMemory:
    """``X+scr``."""

    def test_its_row_is_made_of_two_and_keeps_what_the_writer_can_do(self) -> None:
        memit, fine = small_editor("memit-h+scr", language_model("llama")), small_editor("ft+rag", tiny_llama())
        assert (memit.method.name, fine.method.name) == ("memit-h+scr", "ft+rag")
        assert isinstance(memit.editing, Forgets)
        assert isinstance(memit.editing, EditsMatrices)
        assert not isinstance(fine.editing, Forgets)
        assert isinstance(fine.editing, EditsMatrices)
        assert find_method("memit-h+scr") is memit.method

    def test_an_editor_that_is_trained_can_stand_under_one(self) -> None:
        made = small_editor("mend+scr", language_model("llama"))
        assert made.edit(FACTS[0])
        (text,) = made.language_model.framed([FACTS[0].text])
        assert text == f"{sentence(FACTS[0])}\n{FACTS[0].text}"

    @pytest.mark.parametrize(("name", "said"), [("scr+rome", "cannot be put over"), ("scr+rag", "cannot be put over")])
    def test_what_does_not_combine_is_refused(self, name: str, said: str) -> None:
        with pytest.raises(MethodError, match=said):
            find_method(name)

    def test_the_edited_model_is_asked_with_the_fact_before_the_prompt(self) -> None:
        made = small_editor("ft+scr", tiny_llama())
        made.edit(FACTS[0])
        (text,) = made.language_model.framed([FACTS[0].text])
        assert text == f"{sentence(FACTS[0])}\n{FACTS[0].text}"
        with made.unedited():
            assert made.language_model.framed([FACTS[0].text]) == [FACTS[0].text]

    def test_a_folder_of_weights_cannot_hold_its_facts_and_is_refused(self, tmp_path) -> None:
        made = small_editor("ft+scr", tiny_llama())
        made.edit(FACTS[0])
        with pytest.raises(ModelError, match="kept as text"):
            made.save_pretrained(tmp_path / "model")
