"""What the model is asked with facts before it, and how its replies are read (methods.md F.3, F.4)."""

from __future__ import annotations

import re
from collections.abc import Sequence

from betaedit.facts.fact import Fact
from betaedit.writing import joint_between

REFUSAL = "no relevant fact"
_OFFICIAL_REFUSALS = (REFUSAL, "no relevant information", "false")
_LEAST_SHARE = 0.5

_CONFIRM = """\
Below are facts and a question. Copy the one fact, word for word, that gives what the question asks for. \
If none of the facts answers it, write: {refusal}.

Facts:
{facts}

Question: {question}
Output:"""

_YES_OR_NO = """\
Fact: {fact}
Question: {question}
Does the fact answer the question? Answer yes or no.
Answer:"""

_ANSWER = """\
Answer the question with what the fact says.

Fact: {fact}
Question: {question}
Answer:"""


def sentence(fact: Fact) -> str:
    """A fact as the sentence that is kept."""
    joint = joint_between(fact.text, fact.target_new) if fact.joint is None else fact.joint
    return f"{fact.text}{joint}{fact.target_new}".rstrip(".") + "."


def confirm_prompt(facts: Sequence[str], question: str) -> str:
    """Asks which of the retrieved ``facts`` bears on ``question``."""
    return _CONFIRM.format(facts="\n".join(facts), question=question, refusal=REFUSAL)


def yes_or_no_prompt(fact: str, question: str) -> str:
    """Asks whether ``fact`` bears on ``question``."""
    return _YES_OR_NO.format(fact=fact, question=question)


def answer_prompt(facts: Sequence[str], question: str) -> str:
    """Asks ``question`` with ``facts`` before it, as published: a text that asks for an answer."""
    return _ANSWER.format(fact="\n".join(facts), question=question)


def continued_prompt(facts: Sequence[str], prompt: str) -> str:
    """``prompt`` on a line behind ``facts``, whatever it asks for: a sentence goes on as a sentence."""
    return "\n".join([*facts, prompt])


def new_fact_prompt(facts: Sequence[str], prompt: str) -> str:
    """``prompt`` under new facts, as in-context editing (IKE) puts it; an answer follows, or is to follow."""
    return "\n".join([*(f"New Fact: {fact}" for fact in facts), f"Prompt: {prompt}"])


def confirmed(reply: str, facts: Sequence[str]) -> str | None:
    """The one of ``facts`` that a reply names: the one most of whose words stand in it; ``None`` for a refusal."""
    line = reply.strip().partition("\n")[0]
    if not line or line.lower().lstrip("\"'- ").startswith(REFUSAL):
        return None
    said = set(_words(line))
    shares = [len(said & set(_words(fact))) / len(set(_words(fact))) for fact in facts]
    best = max(range(len(facts)), key=shares.__getitem__)
    return facts[best] if shares[best] > _LEAST_SHARE else None


def confirmed_officially(reply: str, facts: Sequence[str]) -> str | None:
    """The fact as the published code reads it off a reply, which need not be one of ``facts``; ``None`` for a refusal.

    A single retrieved fact takes the place of a reply that is no refusal.
    """
    lowered = reply.lower()
    if any(refusal in lowered for refusal in _OFFICIAL_REFUSALS):
        return None
    if len(facts) == 1:
        return facts[0]
    named = re.search(r"the fact that best matches the .*? is:?\s*\"?([^\".\n]+)", reply, flags=re.IGNORECASE)
    return f"{(named[1] if named else reply).strip().rstrip('.')}."


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())
