"""Facts to write into a model, and the prompts to measure them: plain data, checked when made."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal, get_args

from betaedit.errors import FactError, UnchangedError
from betaedit.facts.hints import not_text
from betaedit.facts.subject import find_subject, names_subject

Group = Literal[
    "subject_aliasing",
    "reasoning",
    "logical_generalization",
    "multi_hop",
    "relation_specificity",
    "forgetfulness",
    "event",
    "event_locality",
    "tendency",
    "tendency_locality",
]

SLOT = "{}"
GROUPS: tuple[Group, ...] = get_args(Group)
PORTABILITY: tuple[Group, ...] = ("subject_aliasing", "reasoning", "logical_generalization", "multi_hop")
LOCALITY: tuple[Group, ...] = ("relation_specificity", "forgetfulness")
EARLIER_JOINT = " "
"""The text that earlier versions put between every prompt and answer."""
_BRACKETED = re.compile(r"\[([^\[\]]*)\]")


@dataclass(frozen=True, slots=True)
class Fact:
    """One thing a model should say: ``prompt`` with the subject in its slot continues with ``target_new``.

    Args:
        prompt: Text with exactly one ``{}`` where the subject goes, used unchanged, white space at its end included.
        subject: What the fact is about, as it is written in running text.
        target_new: The continuation to write, without its leading space.
        target_true: The answer that the model is expected to give now; ``None`` if unknown.
        id: A name that is unique within a run; readers fill it from the file.
        joint: The text between a prompt and its answer, here and in the other prompts that the fact is measured on
            (paraphrases, neighbors). ``None``: a space or nothing, as the language has it
            (``betaedit.writing.joint_between``).
        wordings: Other prompts, with the subject written out, that should continue with the new target as well. They
            are written too with ``paraphrases=written``.

    Raises:
        FactError: The slot is missing or repeated, the subject or a target is empty, or a wording lacks the subject.
        UnchangedError: Both targets are equal.
    """

    prompt: str
    subject: str
    target_new: str
    target_true: str | None = None
    id: str | None = None
    joint: str | None = None
    wordings: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Strip subject, targets and id, then refuse what no method could write."""
        for name in ("prompt", "subject", "target_new", "target_true", "id", "joint"):
            value = getattr(self, name)
            if value is None and name in ("target_true", "id", "joint"):
                continue
            if not isinstance(value, str):
                raise not_text(value, name)
            if name not in ("prompt", "joint"):
                object.__setattr__(self, name, value.strip())
        self._check()
        for text in self.wordings:
            if not names_subject(text, self.subject):
                raise FactError(
                    f"the wording {text!r} does not name the subject {self.subject!r}.",
                    hint="Name it there, or leave the wording out.",
                    field="wordings",
                )

    def _check(self) -> None:
        slots = self.prompt.count(SLOT)
        if slots != 1:
            raise FactError(
                f"the prompt {self.prompt!r} has {slots} slots for its subject.",
                hint="Put exactly one {} where the subject goes, as in 'The mother tongue of {} is'.",
                field="prompt",
            )
        if not self.subject:
            raise FactError("the subject is empty.", hint="Name what the fact is about.", field="subject")
        if SLOT in self.subject:
            raise FactError("the subject contains a slot {}.", hint="Write the subject itself.", field="subject")
        if not self.target_new:
            raise FactError(
                "the new target is empty.", hint="Give the answer that the model should give.", field="target_new"
            )
        if self.target_true is not None and not self.target_true:
            raise FactError("the true target is empty.", hint="Leave it out if it is not known.", field="target_true")
        if self.target_true is not None and self.target_new == self.target_true:
            raise UnchangedError(
                f"old and new target are both {self.target_new!r}: the edit would change nothing.",
                hint="Give a new target that differs from the old one.",
                field="target_new",
            )

    @property
    def text(self) -> str:
        """The prompt with the subject filled in."""
        return self.prompt.replace(SLOT, self.subject)

    @classmethod
    def from_text(cls, prompt: str, subject: str, target_new: str, target_true: str | None = None) -> Fact:
        """A fact from a prompt that holds either ``{}`` or the subject itself.

        Raises:
            FactError: The prompt has no slot, and the subject does not occur in it as a word, or occurs more than once.
        """
        return cls(slotted(prompt, subject), subject, target_new, target_true)

    @classmethod
    def from_bracketed(cls, prompt: str, target_new: str, target_true: str | None = None) -> Fact:
        """A fact from a prompt with its subject in brackets: ``The mother tongue of [Danielle Darrieux] is``.

        Raises:
            FactError: The prompt does not hold exactly one pair of brackets with text in it.
        """
        subjects = _BRACKETED.findall(prompt)
        if len(subjects) != 1:
            raise FactError(
                f"the prompt {prompt!r} has {len(subjects)} subjects in brackets.",
                hint="Put brackets round the one subject, as in 'The mother tongue of [Danielle Darrieux] is'.",
                field="prompt",
            )
        return cls(_BRACKETED.sub(SLOT, prompt), subjects[0], target_new, target_true)


def slotted(prompt: str, subject: str) -> str:
    """``prompt`` with a slot for ``subject``: unchanged if it has one, else at the place of the subject.

    Raises:
        FactError: There is no slot, and the subject does not occur exactly once as a word.
    """
    if SLOT in prompt:
        return prompt
    start, end = find_subject(prompt, subject.strip())
    return prompt[:start] + SLOT + prompt[end:]


@dataclass(frozen=True, slots=True)
class Probe:
    """A prompt that an edit should leave alone, with the answer it has today (``None`` when not known)."""

    prompt: str
    target: str | None = None


@dataclass(frozen=True, slots=True)
class Question:
    """A question that an edit bears on, with every answer that counts as right.

    Args:
        prompt: The question, or a sentence to be continued.
        answers: Right answers after the edit, the usual one first; any one of them will do.
        group: What the question tests. ``PORTABILITY`` groups should follow the new fact and ``LOCALITY`` groups keep
            what was known; the ``event`` and ``tendency`` groups do the same for an event that several facts tell of.

    Raises:
        FactError: There is no answer, or the group does not exist.
    """

    prompt: str
    answers: tuple[str, ...]
    group: Group

    def __post_init__(self) -> None:
        """Refuse what could not be scored."""
        if not self.answers:
            raise FactError(f"the question {self.prompt!r} has no answer.", hint="Give at least one.", field="answers")
        if self.group not in GROUPS:
            raise FactError(
                f"there is no group {self.group!r} of questions.", hint=f"Known are {', '.join(GROUPS)}.", field="group"
            )


@dataclass(frozen=True, slots=True)
class EvaluationCase:
    """A fact with the prompts it is measured on.

    Args:
        fact: The edit.
        paraphrases: Other wordings that should carry the new target (generality).
        neighbors: Prompts about other things that should keep their answer (specificity).
        questions: Questions on what follows from the fact and on what does not. Those of a record of several facts
            hold once all are written, and stand in the last of its cases.
        generation_prompts: Openings for free text about the subject (fluency, consistency).
        record: The record that the fact belongs to with others; ``None`` when it stands alone.
    """

    fact: Fact
    paraphrases: tuple[str, ...] = ()
    neighbors: tuple[Probe, ...] = ()
    questions: tuple[Question, ...] = ()
    generation_prompts: tuple[str, ...] = ()
    record: str | None = None
