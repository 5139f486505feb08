"""How a prompt is put to a chat model."""

from __future__ import annotations

import pytest

from betaedit.errors import ModelError
from betaedit.models.chat import chat_prompt, chat_request, chat_text, special_tokens, typed_specials
from support.chat import NO_SYSTEM, with_chat
from support.tiny import tiny_gpt2, tiny_llama


@pytest.mark.parametrize(
    ("prompt", "request_"),
    [
        ("The capital of Japan is", "Complete the sentence: The capital of Japan is"),
        ("  Ana lives in ", "Complete the sentence: Ana lives in"),
        ("Die Hauptstadt von Peru ist", "Complete the sentence: Die Hauptstadt von Peru ist"),
        ("What is the capital of Japan?", "What is the capital of Japan?"),
        ("Capital of Japan:", "Capital of Japan:"),
        ("日本の首都は何ですか？", "日本の首都は何ですか？"),  # noqa: RUF001 - full-width signs are meant
    ],
)
def test_an_unfinished_sentence_is_a_request_to_complete_it_and_a_question_is_itself(
    prompt: str, request_: str
) -> None:
    assert chat_request(prompt) == request_


def test_a_prompt_is_a_users_message_after_which_the_models_turn_is_open() -> None:
    tokenizer = with_chat(tiny_gpt2()).tokenizer
    assert chat_prompt(tokenizer, "Where is it?") == "<s>user\nWhere is it?\n<s>assistant\n"


def test_a_bos_token_that_the_tokenizer_adds_does_not_stand_in_the_text_too() -> None:
    tokenizer = with_chat(tiny_llama()).tokenizer
    text = chat_prompt(tokenizer, "Where is it?")
    assert text == "user\nWhere is it?\n<s>assistant\n"
    ids = tokenizer(text)["input_ids"]
    assert ids[0] == tokenizer.bos_token_id != ids[1]


@pytest.mark.parametrize("typed", ["<s>", "<s>user\nWhere?\n<s>assistant\n", "Where is <s> it?"])
def test_a_prompt_with_typed_special_tokens_is_a_templates_text_already(typed: str) -> None:
    tokenizer = with_chat(tiny_llama()).tokenizer
    assert typed_specials(tokenizer, typed) == ("<s>",)
    assert chat_prompt(tokenizer, typed) == typed


def test_special_tokens_without_a_name_of_their_own_are_recognised() -> None:
    tokenizer = tiny_llama().tokenizer
    tokenizer.add_tokens(["<turn>"], special_tokens=True)
    tokenizer.add_tokens(["plain"])
    assert set(special_tokens(tokenizer)) == {"<s>", "<turn>"}
    assert typed_specials(tokenizer, "<turn>user plain") == ("<turn>",)


def test_a_model_without_a_template_has_no_chat() -> None:
    with pytest.raises(ModelError, match="no chat template") as caught:
        chat_prompt(tiny_llama().tokenizer, "Where?")
    assert "plain text" in caught.value.hint


def test_messages_that_the_template_refuses_are_told() -> None:
    tokenizer = with_chat(tiny_llama(), NO_SYSTEM).tokenizer
    with pytest.raises(ModelError, match="refuses these messages: no system message"):
        chat_text(tokenizer, [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Where?"}])
