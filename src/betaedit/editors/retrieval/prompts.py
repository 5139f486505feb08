"""What the model is asked by selective contextual reasoning, and how its reply is read (methods.md F.3)."""

from __future__ import annotations

import re
from collections.abc import Sequence

from betaedit.facts.fact import Fact
from betaedit.writing import joint_between

REFUSAL = "no relevant fact"
_OFFICIAL_REFUSALS = (REFUSAL, "no relevant information", "false")

_CONFIRM = """\
Below are facts and a question. Copy the one fact, word for word, that gives what the question asks for. \
If none of the facts answers it, write: {refusal}.

Facts:
{facts}

Question: {question}
Output:"""

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


def answer_prompt(fact: str, question: str) -> str:
    """Asks ``question`` with ``fact`` before it."""
    return _ANSWER.format(fact=fact, question=question)


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


_LEAST_SHARE = 0.5


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())
