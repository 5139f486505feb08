from __future__ import annotations

import unicodedata
from pathlib import Path
from typing import Any

import pytest

from betaedit.errors import FactError
from betaedit.facts import Fact, slotted
from betaedit.facts.hints import is_placeholder


@pytest.mark.parametrize(
    "text",
    [
        "<|endoftext|>", "</s>", "<eos>", "<|end_of_text|>", "<|im_end|>", "<unk>", "<pad>", "<|eot_id|>", "[PAD]",
        " <|endoftext|> ", "<|endoftext|><|endoftext|>", "<EOS>", "<end_of_turn>", "<\uff5cend▁of▁sentence\uff5c>",
    ],
)  # fmt: skip
def test_a_special_token_is_no_answer(text: str):
    assert is_placeholder(text)


@pytest.mark.parametrize("text", ["", "unknown", "Paris<|endoftext|>", "<b>", "[Rome]", "<|", "s", "N/A", "a < b"])
def test_other_answers_are_answers(text: str):
    assert not is_placeholder(text)


@pytest.mark.parametrize(
    ("value", "kind", "hint"),
    [
        (None, "null", "Leave the record out, or name the subject."),
        (float("nan"), "null", "Leave the record out, or name the subject."),
        (["Rome", "Pisa"], "a list", "Give one text."),
        (1998, "a number", 'Give it as a text, as in "1998".'),
        (1.5, "a number", 'Give it as a text, as in "1.5".'),
        (True, "a truth value", "Give the words of the sentence, such as yes or no."),
        ({"str": "Rome"}, "an object", "Give the text alone, without an object around it."),
        (Path("Rome"), "PosixPath", "Give it as a text: str(subject)."),
        (b"Rome", "bytes", "Give it as a text: str(subject)."),
    ],
)
def test_each_kind_of_value_that_is_no_text_has_its_own_hint(value: Any, kind: str, hint: str):
    with pytest.raises(FactError) as caught:
        Fact("{} is in", value, "France")
    assert (caught.value.message, caught.value.hint) == (f"must be text, not {kind}.", hint)


def test_a_list_of_new_targets_is_told_that_one_is_written():
    with pytest.raises(FactError, match="One answer is written: give one text"):
        Fact("{} is in", "Rome", ["France", "Spain"])  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("prompt", "subject", "told"),
    [
        (unicodedata.normalize("NFD", "The mayor of Kraków is"), "Kraków", "composed and decomposed letters"),
        ("The mayor of Kraków is", unicodedata.normalize("NFD", "Kraków"), "composed and decomposed letters"),
        (unicodedata.normalize("NFD", "한국 is in"), "한국", "composed and decomposed letters"),
        ("The mayor of New\xa0York is", "New York", "spaces"),
        ("The author of It\u2019s is", "It's", "quotes"),
        ("Saint\u2011Denis is in", "Saint-Denis", "dashes"),
        ("Ro\u200bme is in", "Rome", "invisible characters"),
        ("rome is in", "Rome", "upper and lower case"),
        (
            unicodedata.normalize("NFD", "São\xa0Paulo is in"),
            "São Paulo",
            "letters .* and plain and non-breaking spaces",
        ),
    ],
)
def test_a_subject_that_only_looks_like_the_one_in_the_prompt_is_told(prompt: str, subject: str, told: str):
    with pytest.raises(FactError, match=f"the two differ in .*{told}") as caught:
        slotted(prompt, subject)
    assert caught.value.hint.startswith("Copy it from the prompt.")


def test_a_subject_that_is_not_there_at_all_is_told_so_alone():
    with pytest.raises(FactError) as caught:
        slotted("The capital is", "Peru")
    assert "differ" not in str(caught.value)
