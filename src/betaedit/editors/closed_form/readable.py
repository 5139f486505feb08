"""Whether a model can read a fact: token ids inside its embedding, and no more tokens than it has positions."""

from __future__ import annotations

from collections.abc import Sequence

from betaedit.editors.asked import check_ids, check_length
from betaedit.editors.closed_form.config import EditConfig
from betaedit.facts.fact import SLOT, Fact
from betaedit.models.load import LanguageModel
from betaedit.models.lookup import Prompt, encode_target, tokenize


def check_readable(model: LanguageModel, fact: Fact, config: EditConfig, contexts: Sequence[str] | None) -> None:
    """Refuse a fact that the model cannot read in its longest context.

    Args:
        model: The model.
        fact: The fact.
        config: Contexts, and the prompt whose answer is kept (KL).
        contexts: Templates of the contexts; those of ``config``, or the length that sampled ones have, without them.

    Raises:
        ModelError: The tokenizer gives ids that the model has no embedding for.
        FactError: Prompt and target are longer than the model's positions.
    """
    templates = contexts or config.context_templates or (SLOT,)
    prompts = [Prompt.fill(template, fact.prompt, fact.subject) for template in templates]
    *rows, kept = (
        tokenize(model.tokenizer, prompt.text)
        for prompt in (*prompts, Prompt.fill(SLOT, config.kl_template, fact.subject))
    )
    target = encode_target(model.tokenizer, fact.text, fact.target_new, fact.joint)
    for row in (*rows, kept, target):
        check_ids(model, row)
    sampled = contexts is None and config.context_templates is None
    before = _sampled_length(model, config) if sampled else 0
    check_length(model, fact, max(before + max(map(len, rows)) + len(target) - 1, len(kept)))


def _sampled_length(model: LanguageModel, config: EditConfig) -> int:
    """The maximum tokens of a sampled context before a prompt (``editors/contexts.py``), its full stop included."""
    openings = [len(tokenize(model.tokenizer, opening)) for opening in config.context_openings]
    return max(config.context_length, *openings) + 1 if openings else 0
