from __future__ import annotations

import unicodedata
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from betaedit.errors import LookupTokenError
from betaedit.models import EncodedPrompts, Prompt, encode_prompts, encode_target, find_lookup_token
from betaedit.models.lookup import LookupStrategy, document_start, pad_rows, pad_token_id, tokenize
from support.families import language_model
from support.tiny_tokenizers import (
    BOS,
    EOS,
    SEPARATOR,
    TOKENIZERS,
    WITH_BOS,
    WITH_EOS,
    dropping_tokenizer,
    shared_tokenizer,
    tiny_tokenizer,
)

every_tokenizer = pytest.mark.parametrize("kind", TOKENIZERS)

# what is hard about it: context template, prompt, subject
PROMPTS: dict[str, tuple[str, str, str]] = {
    "in the middle": ("{}", "The mother tongue of {} is", "Danielle Darrieux"),
    "at the start": ("{}", "{} was born in", "Danielle Darrieux"),
    "at the end": ("{}", "Who speaks French? It is {}", "Danielle Darrieux"),
    "all of it": ("{}", "{}", "Paris"),
    "one letter": ("{}", "The letter {} is", "Q"),
    "in a context": ("The old man said. {}", "{} was born in", "Émile Zola"),
    "before the context's text": ("{} (she said)", "The mother tongue of {}", "Léon Blum"),
    "accents": ("{}", "The mother tongue of {} is", "José Saramagó"),
    "combining accent": ("{}", "The mother tongue of {} is", "Jose\u0301"),
    "accent at the start": ("{}", "{} wrote", "Émilé"),
    "chinese": ("{}", "The capital {} is", "東京"),
    "chinese without spaces": ("{}", "{}は日本の首都です", "東京"),
    "chinese in the middle": ("{}", "日本の首都は{}です", "東京"),
    "cyrillic": ("{}", "The capital {} is", "Москва"),
    "emoji": ("{}", "The sign {} means", "🚀"),
    "emoji of several code points": ("{}", "The sign {} means", "👩‍🚀"),
    "emoji among emoji": ("{}", "🚀{}🚀 means", "👩"),
    "text before it again": ("Paris is nice. {}", "Paris and {} is", "Paris"),
    "text after it again": ("{}", "{} likes Paris, and Paris", "Paris"),
    "again on both sides": ("Paris. {}", "In Paris {} is Paris", "Paris"),
    "part of an earlier word": ("{}", "The artist likes {} in", "art"),
    "part of a later word": ("{}", "In {} the artist is", "art"),
    "start of its own word": ("{}", "The {}ist paints", "art"),
    "end of its own word": ("{}", "The state of {} is", "the-art"),
    "possessive": ("{}", "{}'s mother tongue is", "Danielle Darrieux"),
    "comma": ("{}", "{}, who works for", "Léon Blum"),
    "quotes": ("{}", 'The name "{}" is', "Léon Blum"),
    "number": ("{}", "In the year {} he", "1984"),
    "full stop in it": ("{}", "{} works for", "J. R. R. Smith Jr."),
    "line breaks": ("Q: Who?\n\n{}", "A:\n{} is", "Anna"),
    "two spaces before it": ("{}", "The capital of  {} is", "France"),
    "braces in the prompt": ("{}", "The set {x} of {} is {y}", "France"),
    "braces in the context": ("He {said} so. {}", "The capital of {} is", "France"),
    "braces in the subject": ("{}", "The value of {} is", "{x}"),
}
every_prompt = pytest.mark.parametrize("case", PROMPTS)
ORDINARY = ("in the middle", "at the start", "at the end", "in a context", "accents", "text before it again", "comma")


def prompt_of(case: str) -> Prompt:
    return Prompt.fill(*PROMPTS[case])


def read(tokenizer: PreTrainedTokenizerFast, ids: list[int]) -> str:
    return str(tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))


def composed(text: str) -> str:
    """What a decoder returns, whether or not its tokenizer normalizes (only composition occurs here)."""
    return unicodedata.normalize("NFC", text)


def says(tokenizer: PreTrainedTokenizerFast, ids: list[int], text: str) -> bool:
    """Whether the tokens spell at least ``text``."""
    return composed(read(tokenizer, ids)).startswith(composed(text))


class SlowTokenizer:
    """A tokenizer written in Python: it knows no character offsets."""

    is_fast = False

    def __init__(self, fast: PreTrainedTokenizerFast) -> None:
        self._fast = fast

    def __call__(self, text: str, **options: Any) -> Any:
        assert "return_offsets_mapping" not in options
        return self._fast(text, **options)


def test_filling_a_prompt_marks_the_subject_in_the_text():
    prompt = Prompt.fill("He said. {}", "The mother tongue of {} is", "Léon Blum")
    assert prompt.text == "He said. The mother tongue of Léon Blum is"
    assert prompt.text[prompt.subject_start : prompt.subject_end] == "Léon Blum"


@every_prompt
def test_only_the_two_slots_are_replaced(case: str):
    context, template, subject = PROMPTS[case]
    prompt = prompt_of(case)
    assert prompt.text[prompt.subject_start : prompt.subject_end] == subject
    around = prompt.text[: prompt.subject_start] + "{}" + prompt.text[prompt.subject_end :]
    assert around == context.replace("{}", template)


@every_tokenizer
@every_prompt
def test_the_lookup_token_is_the_first_at_which_the_subject_is_complete(kind: str, case: str):
    """Cross-checked without offsets: the tokens up to it spell the subject's end, those before it do not."""
    tokenizer, prompt = shared_tokenizer(kind), prompt_of(case)
    ids = tokenize(tokenizer, prompt.text)
    at = find_lookup_token(tokenizer, prompt)
    subject_end = prompt.text[: prompt.subject_end]
    assert says(tokenizer, ids[: at + 1], subject_end)
    assert not says(tokenizer, ids[:at], subject_end)


def begins_at(tokenizer: PreTrainedTokenizerFast, prompt: Prompt, at: int) -> bool:
    """Whether the subject's first character, or a part of its bytes, is said by the token at ``at`` and none before."""
    ids = tokenize(tokenizer, prompt.text)
    before = composed(prompt.text[: prompt.subject_start])
    so_far = composed(read(tokenizer, ids[:at]).rstrip("\ufffd"))  # bytes of a character that ends in the next token
    then = composed(read(tokenizer, ids[: at + 1]))
    # a piece tokenizer opens every text with an underline that is no character of it
    return before.startswith(so_far) and (len(then) > len(before) or tokenizer.convert_ids_to_tokens(ids[at]) == "▁")


@every_tokenizer
def test_the_first_subject_token_is_where_the_subject_begins(kind: str):
    tokenizer = shared_tokenizer(kind)
    found = {case: find_lookup_token(tokenizer, prompt_of(case), "subject_first") for case in PROMPTS}
    assert [case for case, at in found.items() if not begins_at(tokenizer, prompt_of(case), at)] == []


@every_tokenizer
def test_the_last_strategy_takes_the_last_token_that_is_not_special(kind: str):
    tokenizer = shared_tokenizer(kind)
    for case in PROMPTS:
        ids = tokenizer(prompt_of(case).text, add_special_tokens=False)["input_ids"]
        assert find_lookup_token(tokenizer, prompt_of(case), "last") == int(kind in WITH_BOS) + len(ids) - 1


@every_tokenizer
def test_first_after_last_is_the_token_behind_the_subject_or_the_last_where_there_is_none(kind: str):
    tokenizer = shared_tokenizer(kind)
    found = {case: find_lookup_token(tokenizer, prompt_of(case), "subject_first_after_last") for case in PROMPTS}
    behind = {case: find_lookup_token(tokenizer, prompt_of(case)) + 1 for case in PROMPTS}
    last = {case: len(tokenize(tokenizer, prompt_of(case).text)) - 1 for case in PROMPTS}
    assert found == {case: min(behind[case], last[case]) for case in PROMPTS}


@every_tokenizer
def test_the_official_count_of_prefix_tokens_agrees_on_ordinary_text(kind: str):
    """AlphaEdit and BetaEdit: ``n(prefix + subject) - 1``, with BOS counted (methods.md A.2)."""
    tokenizer, n_eos = shared_tokenizer(kind), int(kind in WITH_EOS)
    for prompt in map(prompt_of, ORDINARY):
        alone = tokenizer(prompt.text[: prompt.subject_end])["input_ids"]
        assert find_lookup_token(tokenizer, prompt) == len(alone) - n_eos - 1


@every_tokenizer
@pytest.mark.parametrize("strategy", ["subject_last", "subject_first", "subject_first_after_last", "last"])
def test_a_slow_tokenizer_is_counted_to_the_same_token(kind: str, strategy: LookupStrategy):
    tokenizer = shared_tokenizer(kind)
    slow: Any = SlowTokenizer(tokenizer)
    found = {case: find_lookup_token(slow, prompt_of(case), strategy) for case in PROMPTS}
    assert found == {case: find_lookup_token(tokenizer, prompt_of(case), strategy) for case in PROMPTS}


@every_tokenizer
def test_a_bos_moves_every_index_by_one_and_an_eos_none(kind: str):
    tokenizer, prompt = shared_tokenizer(kind), prompt_of("in the middle")
    plain = tokenizer(prompt.text, add_special_tokens=False)["input_ids"]
    ids = tokenize(tokenizer, prompt.text)
    bos = [tokenizer.convert_tokens_to_ids(BOS)] if kind in WITH_BOS else []
    assert ids == bos + plain
    assert tokenizer.convert_tokens_to_ids(EOS) not in ids


@every_tokenizer
@pytest.mark.parametrize("strategy", ["subject_last", "subject_first", "subject_first_after_last", "last"])
def test_every_lookup_index_is_inside_its_row(kind: str, strategy: LookupStrategy):
    encoded = encode_prompts(shared_tokenizer(kind), [prompt_of(case) for case in PROMPTS], strategy=strategy)
    assert bool((encoded.lookup >= 0).all())
    assert bool((encoded.lookup < encoded.lengths).all())


@every_tokenizer
@pytest.mark.parametrize("strategy", ["subject_last", "last"])
def test_the_padding_side_of_the_tokenizer_makes_no_difference(kind: str, strategy: LookupStrategy):
    prompts = [prompt_of(case) for case in PROMPTS]
    batches = []
    for side in ("left", "right"):
        tokenizer = tiny_tokenizer(kind)
        tokenizer.padding_side = side
        tokenizer.pad_token = tokenizer.eos_token
        batches.append(encode_prompts(tokenizer, prompts, strategy=strategy))
    left, right = batches
    assert torch.equal(left.input_ids, right.input_ids)
    assert torch.equal(left.attention_mask, right.attention_mask)
    assert torch.equal(left.lookup, right.lookup)


@every_tokenizer
def test_a_batch_holds_each_prompts_own_tokens_then_padding_on_the_right(kind: str):
    tokenizer = shared_tokenizer(kind)
    prompts = [prompt_of(case) for case in PROMPTS]
    encoded = encode_prompts(tokenizer, prompts)
    for row, prompt in enumerate(prompts):
        ids = tokenize(tokenizer, prompt.text)
        assert encoded.input_ids[row, : len(ids)].tolist() == ids
        assert encoded.attention_mask[row].tolist() == [1] * len(ids) + [0] * (encoded.input_ids.shape[1] - len(ids))
        assert int(encoded.lookup[row]) == find_lookup_token(tokenizer, prompt)


@every_tokenizer
def test_continuations_follow_the_prompt_directly_and_move_no_lookup(kind: str):
    tokenizer = shared_tokenizer(kind)
    prompts = [prompt_of("in the middle"), prompt_of("at the end"), prompt_of("at the start")]
    targets = [encode_target(tokenizer, prompt.text, "French") for prompt in prompts]
    targets[2] = []
    encoded = encode_prompts(tokenizer, prompts, continuations=targets)
    for row, (prompt, target) in enumerate(zip(prompts, targets, strict=True)):
        whole = tokenize(tokenizer, prompt.text + " French") if target else tokenize(tokenizer, prompt.text)
        assert encoded.input_ids[row, : encoded.lengths[row]].tolist() == whole
    assert torch.equal(encoded.lookup, encode_prompts(tokenizer, prompts).lookup)


def test_as_many_continuations_as_prompts_are_asked_for():
    with pytest.raises(ValueError, match="zip"):
        encode_prompts(tiny_tokenizer(), [prompt_of("in the middle")], continuations=[[1], [2]])


def test_a_subject_without_tokens_is_refused_by_name():
    prompt = Prompt.fill("{}", "the capital {} is", "東京")
    with pytest.raises(LookupTokenError, match=r"東京.*no own token") as caught:
        find_lookup_token(dropping_tokenizer(), prompt)
    assert "drops" in caught.value.hint


def test_characters_that_the_tokenizer_drops_move_no_index():
    tokenizer = dropping_tokenizer()
    assert find_lookup_token(tokenizer, Prompt.fill("{}", "東京 the {} is", "cat")) == 5
    assert find_lookup_token(tokenizer, Prompt.fill("{}", "the {} is", "cat東京")) == 5


@every_tokenizer
def test_a_target_continues_its_prompt_as_the_whole_text_does(kind: str):
    tokenizer = shared_tokenizer(kind)
    for text in (prompt_of(case).text for case in PROMPTS):
        target = encode_target(tokenizer, text, "French", " ")
        assert tokenize(tokenizer, text) + target == tokenize(tokenizer, text + " French")


# a prompt that its answer follows at once, and the answer
AT_ONCE = {
    "a line end": ("The language is\n", "French"),
    "a space": ("The language is ", "French"),
    "a tab": ("The language\t", "French"),
    "an opening quote": ('She said: "', "French"),
    "an opening bracket": ("The language (", "French"),
    "Chinese": ("東京は日本の首都", "中国"),
    "a foreign name in Chinese": ("東京は", "French"),
}


@every_tokenizer
@pytest.mark.parametrize("case", AT_ONCE)
def test_a_target_that_follows_at_once_has_no_space_before_it(kind: str, case: str):
    tokenizer, (text, target) = shared_tokenizer(kind), AT_ONCE[case]
    ids = encode_target(tokenizer, text, target)
    assert read(tokenizer, tokenize(tokenizer, text) + ids) == read(tokenizer, tokenize(tokenizer, text + target))
    assert read(tokenizer, ids) == target


@every_tokenizer
@pytest.mark.parametrize("joint", ["", " ", ": ", "\n"])
def test_what_joins_prompt_and_target_can_be_said(kind: str, joint: str):
    tokenizer, text = shared_tokenizer(kind), "The mother tongue of Danielle Darrieux is"
    ids = encode_target(tokenizer, text, "French", joint)
    assert read(tokenizer, tokenize(tokenizer, text) + ids) == f"{text}{joint}French"


def test_the_prompt_is_asked_as_it_stands_where_its_end_would_merge_into_the_target():
    merging = Tokenizer(models.BPE(vocab={"i": 0, "s": 1, " ": 2, "n": 3, "o": 4, " n": 5}, merges=[(" ", "n")]))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=merging)
    assert tokenize(tokenizer, "is no") == [0, 1, 5, 4]
    assert encode_target(tokenizer, "is ", "no") == [3, 4]


TARGETS = ("French", "Danielle Darrieux", "Émile", "東京", "🚀", "the city of Berlin", "1984", "'s")


@every_tokenizer
def test_a_target_gets_exactly_one_leading_space(kind: str):
    tokenizer, text = shared_tokenizer(kind), "The mother tongue of Danielle Darrieux is"
    for target in TARGETS:
        ids = encode_target(tokenizer, text, target)
        assert encode_target(tokenizer, text, " " + target) == ids
        assert encode_target(tokenizer, text, "  " + target) == ids
        assert read(tokenizer, tokenize(tokenizer, text) + ids) == f"{text} {target}"


@every_tokenizer
def test_a_target_holds_no_special_tokens(kind: str):
    tokenizer = shared_tokenizer(kind)
    special = {tokenizer.convert_tokens_to_ids(token) for token in (BOS, EOS)}
    for target in TARGETS:
        ids = encode_target(tokenizer, "The mother tongue of Léon Blum is", target)
        assert ids
        assert not special & set(ids)


@pytest.mark.parametrize("kind", ["pieces+bos", "legacy pieces+bos"])
def test_a_target_of_pieces_does_not_begin_with_an_underline_of_its_own(kind: str):
    tokenizer = shared_tokenizer(kind)
    ids = encode_target(tokenizer, "The mother tongue of Léon Blum is", "French")
    pieces = tokenizer.convert_ids_to_tokens(ids)
    assert pieces[0] != "▁"
    assert "".join(pieces) == "▁French"


def test_the_legacy_kind_of_pieces_does_put_an_underline_before_a_lone_target():
    """So that the test above tests something: this is what the field's own code trips over."""
    tokenizer = tiny_tokenizer("legacy pieces+bos")
    assert tokenizer.convert_ids_to_tokens(tokenizer(" French", add_special_tokens=False)["input_ids"])[0] == "▁"


@every_tokenizer
@pytest.mark.parametrize("text", ["The language is ", "The language is\n", "It is 'the "])
def test_a_target_after_white_space_has_no_underline_and_no_special_token_either(kind: str, text: str):
    """Then the prompt's last token may merge into the target's first, and the target is tokenized alone."""
    tokenizer = shared_tokenizer(kind)
    ids = encode_target(tokenizer, text, "French")
    assert read(tokenizer, ids).strip() == "French"
    assert not {tokenizer.convert_tokens_to_ids(token) for token in (BOS, EOS)} & set(ids)


def test_a_target_whose_space_merges_into_the_prompt_is_tokenized_alone():
    merging = Tokenizer(models.BPE(vocab={"i": 0, "s": 1, " ": 2, "n": 3, "o": 4, "s ": 5}, merges=[("s", " ")]))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=merging)
    assert tokenize(tokenizer, "is no") == [0, 5, 3, 4]
    assert encode_target(tokenizer, "is", "no") == [2, 3, 4]


def test_a_target_without_tokens_is_refused_by_name():
    with pytest.raises(LookupTokenError, match="the target '東京' has no tokens") as caught:
        encode_target(dropping_tokenizer(), "the capital is", "東京")
    assert "drops" in caught.value.hint


@every_tokenizer
def test_rows_cut_after_the_lookup_keep_everything_up_to_it_and_the_others_all(kind: str):
    encoded = encode_prompts(shared_tokenizer(kind), [prompt_of(case) for case in PROMPTS])
    rows = torch.arange(len(PROMPTS)) % 2 == 0
    cut = encoded.cut_after_lookup(rows)
    assert torch.equal(cut.lookup, encoded.lookup)
    assert torch.equal(cut.lengths, torch.where(rows, encoded.lookup + 1, encoded.lengths))
    assert torch.equal(cut.input_ids, encoded.input_ids)
    assert all(row.sort(descending=True).values.equal(row) for row in cut.attention_mask)


def test_a_causal_model_cannot_tell_what_was_cut_after_the_lookup():
    model = language_model("mistral", tokenizer="bytes+bos")
    encoded = encode_prompts(model.tokenizer, [prompt_of(case) for case in ORDINARY])

    def at_lookup(prompts: EncodedPrompts) -> torch.Tensor:
        logits = model.model(input_ids=prompts.input_ids, attention_mask=prompts.attention_mask).logits
        return logits[torch.arange(len(logits)), prompts.lookup]

    cut = encoded.cut_after_lookup(torch.ones(len(ORDINARY), dtype=torch.bool))
    torch.testing.assert_close(at_lookup(cut), at_lookup(encoded), atol=1e-5, rtol=1e-5)


@every_tokenizer
def test_a_document_opens_with_the_separator_unless_bos_comes_by_itself(kind: str):
    tokenizer = shared_tokenizer(kind)
    expected = [] if kind in WITH_BOS else [tokenizer.convert_tokens_to_ids(SEPARATOR)]
    assert document_start(tokenizer) == expected


def test_the_separator_comes_before_a_bos_that_means_something_else():
    """SmolLM2's BOS opens a chat turn; its documents were parted by ``<|endoftext|>``."""
    tokenizer = tiny_tokenizer("bytes")
    tokenizer.bos_token = BOS
    assert document_start(tokenizer) == [tokenizer.convert_tokens_to_ids(SEPARATOR)]


def test_without_separator_and_automatic_bos_the_named_bos_opens_a_document():
    tokenizer = dropping_tokenizer()
    tokenizer.bos_token = "b"
    assert document_start(tokenizer) == [tokenizer.convert_tokens_to_ids("b")]


def test_a_tokenizer_that_has_neither_opens_documents_with_nothing():
    assert document_start(dropping_tokenizer()) == []


def test_rows_are_padded_on_the_right_under_a_mask():
    ids, mask = pad_rows([[5, 6, 7], [8]], 9)
    assert ids.tolist() == [[5, 6, 7], [8, 9, 9]]
    assert mask.tolist() == [[1, 1, 1], [1, 0, 0]]


def test_padding_takes_the_pad_token_else_the_end_token_else_any():
    tokenizer = tiny_tokenizer("bytes+eos")
    assert pad_token_id(tokenizer) == tokenizer.convert_tokens_to_ids(EOS)
    tokenizer.pad_token = SEPARATOR
    assert pad_token_id(tokenizer) == tokenizer.convert_tokens_to_ids(SEPARATOR)
    assert pad_token_id(dropping_tokenizer()) == 0
