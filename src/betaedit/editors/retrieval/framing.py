"""From a prompt to what is put before the model: the facts found for it, tested or not, and the prompt."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

from betaedit.editors.retrieval.config import RetrievalConfig
from betaedit.editors.retrieval.memory import FactMemory
from betaedit.editors.retrieval.prompts import (
    answer_prompt,
    confirm_prompt,
    confirmed,
    confirmed_officially,
    continued_prompt,
    new_fact_prompt,
    sentence,
    yes_or_no_prompt,
)
from betaedit.evaluation.continuing import complete_greedily
from betaedit.evaluation.latency import timed_part
from betaedit.evaluation.scoring import score_targets
from betaedit.facts.fact import Fact
from betaedit.models.load import LanguageModel
from betaedit.models.lookup import tokenize

logger = logging.getLogger(__name__)

ROOM = 16
"""Positions that stay free behind a framed prompt at least, for its answer."""

_TEMPLATES: dict[str, Callable[[Sequence[str], str], str]] = {
    "new-fact": new_fact_prompt,
    "answer": answer_prompt,
    "continue": continued_prompt,
}


class Framing:
    """Puts facts before prompts.

    Args:
        model: Confirms facts; its own prompts are not framed.
        config: Hyper-parameters.
        memory: Where the facts are.
    """

    def __init__(self, model: LanguageModel, config: RetrievalConfig, memory: FactMemory) -> None:
        self.model, self.config, self.memory = model, config, memory

    def confirmed(self, prompts: Sequence[str]) -> list[str]:
        """Each prompt behind the one fact that is found for it and confirmed; as it is where there is none."""
        found = self.memory.retrieve(prompts, self.config.top_k)
        with timed_part("confirmation"):
            kept = self.confirm(prompts, found)
        return self._framed(prompts, [[] if fact is None else [fact] for fact in kept])

    def retrieved(self, prompts: Sequence[str]) -> list[str]:
        """Each prompt behind all facts that are found for it."""
        found = self.memory.retrieve(prompts, self.config.top_k)
        return self._framed(prompts, [[sentence(fact) for fact in facts] for facts in found])

    def confirm(self, prompts: Sequence[str], found: Sequence[Sequence[Fact]]) -> list[str | None]:
        """For each prompt the sentence of the fact found for it that bears on it; ``None`` where none does."""
        ways = {"subject": self._by_subject, "yes-no": self._by_yes_or_no, "reply": self._by_reply}
        way = ways.get(self.config.confirm)
        if way is None:
            return [sentence(facts[0]) if facts else None for facts in found]
        kept: list[str | None] = [None] * len(prompts)
        asked = [at for at, facts in enumerate(found) if facts]
        for at, fact in zip(asked, way([prompts[at] for at in asked], [found[at] for at in asked]), strict=True):
            kept[at] = fact
        return kept

    def fits(self, text: str) -> bool:
        """Whether the model has positions for ``text`` and an answer."""
        return len(tokenize(self.model.tokenizer, text)) + ROOM <= self.model.max_length

    def _by_subject(self, prompts: Sequence[str], found: Sequence[Sequence[Fact]]) -> list[str | None]:
        return [
            next((sentence(fact) for fact in facts if fact.subject.casefold() in prompt.casefold()), None)
            for prompt, facts in zip(prompts, found, strict=True)
        ]

    def _by_yes_or_no(self, prompts: Sequence[str], found: Sequence[Sequence[Fact]]) -> list[str | None]:
        nearest = [sentence(facts[0]) for facts in found]
        asked = [yes_or_no_prompt(fact, prompt) for fact, prompt in zip(nearest, prompts, strict=True)]
        fitting = [at for at, text in enumerate(asked) if self.fits(text)]
        scores = iter(score_targets(self.model, [(asked[at], said) for at in fitting for said in ("yes", "no")]))
        agreed = {at for at in fitting if next(scores).nll < next(scores).nll}
        return [fact if at in agreed else None for at, fact in enumerate(nearest)]

    def _by_reply(self, prompts: Sequence[str], found: Sequence[Sequence[Fact]]) -> list[str | None]:
        texts = [[sentence(fact) for fact in facts] for facts in found]
        asked = [confirm_prompt(facts, prompt) for facts, prompt in zip(texts, prompts, strict=True)]
        fitting = [at for at, text in enumerate(asked) if self.fits(text)]
        n_tokens = self.config.confirm_tokens
        replies = complete_greedily(self.model, [asked[at] for at in fitting], n_tokens, label="confirming")
        read = confirmed if self.config.refusal == "whole" else confirmed_officially
        said = dict(zip(fitting, replies, strict=True))
        return [read(said[at], facts) if at in said else None for at, facts in enumerate(texts)]

    def _framed(self, prompts: Sequence[str], facts: Sequence[Sequence[str]]) -> list[str]:
        put = _TEMPLATES[self.config.template]
        pairs = zip(prompts, facts, strict=True)
        return [self.or_bare(put(before, prompt), prompt) if before else prompt for prompt, before in pairs]

    def or_bare(self, text: str, prompt: str) -> str:
        """``text``, where it fits; else the bare prompt, of which the user is told."""
        if self.fits(text):
            return text
        logger.warning("a prompt has no room for facts before it, and is asked without: %.60s ...", prompt)
        return prompt
