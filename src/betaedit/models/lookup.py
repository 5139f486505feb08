"""Prompts as tokens: where the subject ends, and where a target begins.

The lookup token is the last token of the subject, found from character offsets in the whole prompt. Batches are
padded here, on the right, so neither the tokenizer's padding side nor a missing pad token can move an index.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from betaedit.errors import LookupTokenError
from betaedit.writing import joint_between

SLOT = "{}"
LookupStrategy = Literal["subject_last", "subject_first", "subject_first_after_last", "last"]


@dataclass(frozen=True, slots=True)
class Prompt:
    """Text with its subject marked as a half-open span of characters."""

    text: str
    subject_start: int
    subject_end: int

    @classmethod
    def fill(cls, template: str, prompt: str, subject: str) -> Prompt:
        """``prompt`` with ``subject`` in its slot, set into the slot of a context ``template``.

        Only the two slots are replaced: other braces in any of the texts stay as they are.
        """
        before, _, after = template.partition(SLOT)
        head, _, tail = prompt.partition(SLOT)
        start = len(before) + len(head)
        return cls(before + head + subject + tail + after, start, start + len(subject))


@dataclass(frozen=True)
class EncodedPrompts:
    """Right-padded tokens of several prompts.

    Args:
        input_ids: ``(n, length)`` token ids.
        attention_mask: ``(n, length)``, 1 on real tokens.
        lookup: ``(n,)`` index of each prompt's lookup token.
    """

    input_ids: Tensor
    attention_mask: Tensor
    lookup: Tensor

    @property
    def lengths(self) -> Tensor:
        """``(n,)`` true length of each row."""
        return self.attention_mask.sum(dim=1)

    def cut_after_lookup(self, rows: Tensor) -> EncodedPrompts:
        """The same, ``rows`` ``(n,)`` among them without what follows their lookup tokens, which see nothing of it."""
        places = torch.arange(self.input_ids.shape[1], device=self.lookup.device)
        mask = self.attention_mask.masked_fill(rows[:, None] & (places > self.lookup[:, None]), 0)
        return EncodedPrompts(self.input_ids, mask, self.lookup)


def tokenize(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Token ids of ``text`` with the special tokens that open an input (BOS), without any that would close it (EOS)."""
    ids = list(tokenizer(text)["input_ids"])
    return ids[: len(ids) - _n_closing(tokenizer)]


def _n_closing(tokenizer: PreTrainedTokenizerBase) -> int:
    """How many special tokens the tokenizer appends to every input."""
    full = list(tokenizer("a")["input_ids"])
    bare = list(tokenizer("a", add_special_tokens=False)["input_ids"])
    spare = len(full) - len(bare)
    return next((spare - lead for lead in range(spare + 1) if full[lead : lead + len(bare)] == bare), 0)


def document_start(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Token ids before generated text, so that it starts like a document.

    Empty when the tokenizer puts a BOS token there by itself. Models trained on ``<|endoftext|>``-separated text ramble
    without it; what follows it is ordinary prose.
    """
    if list(tokenizer("a")["input_ids"])[:1] != list(tokenizer("a", add_special_tokens=False)["input_ids"])[:1]:
        return []
    separator = tokenizer.get_vocab().get("<|endoftext|>", tokenizer.bos_token_id)
    return [] if separator is None else [int(separator)]


def find_lookup_token(
    tokenizer: PreTrainedTokenizerBase, prompt: Prompt, strategy: LookupStrategy = "subject_last"
) -> int:
    """Index of the token at which ``prompt``'s fact is looked up (methods.md A.2).

    Raises:
        LookupTokenError: The subject covers no token of the prompt.
    """
    if strategy == "last":
        return len(tokenize(tokenizer, prompt.text)) - 1
    covered, n_tokens = subject_tokens(tokenizer, prompt)
    if not covered:
        raise LookupTokenError(
            f"the subject {prompt.text[prompt.subject_start : prompt.subject_end]!r} has no own token in "
            f"{prompt.text!r}.",
            hint="Check the subject for characters that the tokenizer drops.",
        )
    if strategy == "subject_first":
        return covered[0]
    if strategy == "subject_first_after_last":
        return min(covered[-1] + 1, n_tokens - 1)
    return covered[-1]


def subject_tokens(tokenizer: PreTrainedTokenizerBase, prompt: Prompt) -> tuple[list[int], int]:
    """Indices of the tokens that cover the subject, and the number of tokens of the whole prompt."""
    ids = tokenize(tokenizer, prompt.text)
    if not tokenizer.is_fast:
        before = tokenize(tokenizer, prompt.text[: prompt.subject_start])
        until = tokenize(tokenizer, prompt.text[: prompt.subject_end])
        last = min(_n_shared(until, ids), len(until) - 1)
        return list(range(_n_shared(before, ids), last + 1)), len(ids)
    offsets = tokenizer(prompt.text, return_offsets_mapping=True)["offset_mapping"]
    covered = [
        index for index, (start, end) in enumerate(offsets) if start < prompt.subject_end and end > prompt.subject_start
    ]
    return covered, len(ids)


def _n_shared(first: Sequence[int], second: Sequence[int]) -> int:
    """How many leading tokens two texts share."""
    pairs = enumerate(zip(first, second, strict=False))
    return next((at for at, (a, b) in pairs if a != b), min(len(first), len(second)))


def pad_rows(
    rows: Sequence[Sequence[int]], pad_id: int, side: Literal["left", "right"] = "right"
) -> tuple[Tensor, Tensor]:
    """``(ids, mask)`` of rows of different length, padded on one side: on the left, all end together."""
    width = max(len(row) for row in rows)
    ids = torch.full((len(rows), width), pad_id)
    mask = torch.zeros(len(rows), width, dtype=torch.long)
    for index, row in enumerate(rows):
        first = width - len(row) if side == "left" else 0
        ids[index, first : first + len(row)] = torch.tensor(row)
        mask[index, first : first + len(row)] = 1
    return ids, mask


def pad_token_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """An id to pad with; masked everywhere, so any will do where the tokenizer names none.

    None that was added to the vocabulary: the model may have no embedding for it.
    """
    for value in (tokenizer.pad_token_id, tokenizer.eos_token_id):
        if isinstance(value, int) and value < tokenizer.vocab_size:
            return value
    return 0


def encode_prompts(
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Prompt],
    *,
    continuations: Sequence[Sequence[int]] | None = None,
    strategy: LookupStrategy = "subject_last",
    device: torch.device | str = "cpu",
) -> EncodedPrompts:
    """``prompts`` as one right-padded batch, each followed by its own token ids of ``continuations``.

    Raises:
        LookupTokenError: A subject covers no token.
    """
    follow = continuations or [()] * len(prompts)
    rows = [[*tokenize(tokenizer, prompt.text), *ids] for prompt, ids in zip(prompts, follow, strict=True)]
    lookup = torch.tensor([find_lookup_token(tokenizer, prompt, strategy) for prompt in prompts])
    ids, mask = pad_rows(rows, pad_token_id(tokenizer))
    return EncodedPrompts(ids.to(device), mask.to(device), lookup.to(device))


def encode_target(
    tokenizer: PreTrainedTokenizerBase, prompt_text: str, target: str, joint: str | None = None
) -> list[int]:
    """Token ids with which ``target`` continues ``prompt_text``.

    Read off the tokens of the whole text where these begin with the prompt's own tokens: SentencePiece tokenizers
    split the lone target differently (an underline token of its own). Otherwise the target is tokenized alone.

    Args:
        tokenizer: The model's.
        prompt_text: The prompt as the model is asked it.
        target: The answer; white space before it is dropped.
        joint: What stands between the two; by the rule of ``joint_between`` when not given.

    Raises:
        LookupTokenError: The target has no tokens.
    """
    target = target.lstrip()
    following = (joint_between(prompt_text, target) if joint is None else joint) + target
    prompt_ids = tokenize(tokenizer, prompt_text)
    ids = tokenize(tokenizer, prompt_text + following)
    target_ids = ids[len(prompt_ids) :] if ids[: len(prompt_ids)] == prompt_ids else _alone(tokenizer, following)
    if not target_ids:
        raise LookupTokenError(
            f"the target {target!r} has no tokens.", hint="Check it for characters that the tokenizer drops."
        )
    return target_ids


def _alone(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Token ids of ``text`` without a prefix such as BOS.

    SentencePiece tokenizers put a space before a lone text, so one that begins without is read off behind a line end.
    """
    if not text[:1].isspace():
        line_end = tokenize(tokenizer, "\n")
        ids = tokenize(tokenizer, "\n" + text)
        if ids[: len(line_end)] == line_end:
            return ids[len(line_end) :]
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])
