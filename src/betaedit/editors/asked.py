"""What every family shares: plan a fact from its tokens, and measure facts that were just written."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from betaedit.editors.method import EditResult, PlannedEdit
from betaedit.errors import FactError, ModelError
from betaedit.evaluation.holding import measure_holding
from betaedit.facts.fact import Fact
from betaedit.models.load import LanguageModel
from betaedit.models.lookup import encode_target, tokenize


def plan_fact(model: LanguageModel, fact: Fact) -> PlannedEdit:
    """The tokens of a fact's prompt and target.

    Raises:
        LookupTokenError: The target has no tokens.
        ModelError: The tokenizer gives ids that the model has no embedding for.
        FactError: Prompt and target are longer than the model's positions.
    """
    prompt = tokenize(model.tokenizer, fact.text)
    target = encode_target(model.tokenizer, fact.text, fact.target_new, fact.joint)
    check_ids(model, [*prompt, *target])
    check_length(model, fact, len(prompt) + len(target) - 1)
    return PlannedEdit(fact, token_texts(model, prompt), token_texts(model, target))


def token_texts(model: LanguageModel, ids: Sequence[int]) -> tuple[str, ...]:
    """Each token as text."""
    return tuple(str(model.tokenizer.decode([token])) for token in ids)


def check_ids(model: LanguageModel, ids: Sequence[int]) -> None:
    """Refuse token ids that the model has no embedding for.

    Raises:
        ModelError: There is one.
    """
    known = model.n_tokens
    if ids and max(ids) >= known:
        raise ModelError(
            f"the token {model.tokenizer.decode([max(ids)])!r} has the id {max(ids)}, and the model has embeddings for "
            f"{known} tokens: the tokenizer belongs to another model, or has added tokens.",
            hint="Give the model its own tokenizer, or resize it first: model.resize_token_embeddings(len(tokenizer)).",
        )


def check_length(model: LanguageModel, fact: Fact, n_tokens: int) -> None:
    """Refuse a fact whose longest prompt with its target has more than the model's positions: ``n_tokens``.

    Raises:
        FactError: It has more.
    """
    if n_tokens > model.max_length:
        raise FactError(
            f"the prompt about {fact.subject[:40]!r} has {n_tokens} tokens with its longest context and its target, "
            f"and the model has {model.max_length} positions.",
            hint="Shorten the prompt or the target, or context_length.",
            field="prompt",
        )


def with_status(model: LanguageModel, results: Sequence[EditResult]) -> tuple[EditResult, ...]:
    """``results`` with the present status of their facts, measured on their own prompts."""
    found = measure_holding(model, [result.fact for result in results])
    return tuple(
        replace(result, status=held.status, measured_probability=held.probability, said=held.said)
        for result, held in zip(results, found, strict=True)
    )
