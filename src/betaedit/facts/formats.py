"""The record formats of the field, each converted into evaluation cases.

``FORMATS`` has one row for each: its name, the keys that give it away and the function that converts it. To add a
format, write its schema (in ``schemas``), its function and its row. Where the records come from (files, lines,
compression) is the business of ``readers``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, NoReturn

from betaedit.errors import FactError
from betaedit.facts import schemas
from betaedit.facts.fact import GROUPS, SLOT, EvaluationCase, Fact, Group, Probe, Question
from betaedit.facts.hints import refuse_placeholder
from betaedit.facts.schemas import validated
from betaedit.facts.subject import find_subject, names_subject

Record = dict[str, Any]
ZsreTarget = Literal["alt", "answers"]

EXAMPLE = '{"subject": "Danielle Darrieux", "prompt": "The mother tongue of {} is", "target_new": "English"}'
_NQ_PREFIX = "nq question: "
_UNKNOWN = "unknown"
_NO_FACT = "Leave this event out: it gives nothing to write."


@dataclass(frozen=True, slots=True)
class Reading:
    """The circumstances of a record: the format of its file, its line, and what the caller asked for."""

    format: str
    line: int
    zsre_target: ZsreTarget = "alt"

    def fact_id(self, given: str | None = None) -> str:
        """The id of the record's fact: what the file calls the case, else its line, after the format's name."""
        return f"{self.format}-{self.line if given is None else given}"


@dataclass(frozen=True, slots=True)
class Format:
    """A way to write facts down.

    Args:
        name: What reports call it; generated ids begin with it.
        keys: What a record must hold to be taken for it: ``a|b`` is either key, ``a.b`` a key inside another, and
            ``a.*`` a key that holds an object.
        convert: Makes the cases of a record, one for each of its facts, or raises FactError.
    """

    name: str
    keys: tuple[str, ...]
    convert: Callable[[Record, Reading], tuple[EvaluationCase, ...]]

    def fits(self, record: Record) -> bool:
        """Whether ``record`` has all the identifying keys."""
        return all(any(_holds(record, path) for path in key.split("|")) for key in self.keys)

    def __str__(self) -> str:
        keys = ", ".join(self.keys).replace("|", " or ").replace(".*", "")
        return f"{self.name} ({keys})"


OWN_FORMATS = frozenset({"own", "fastedit"})
"""Formats in which people write facts of their own; the others are those of published data sets."""


def find_format(record: Record) -> Format:
    """The first format whose identifying keys ``record`` has.

    Raises:
        FactError: No format fits.
    """
    for candidate in (*_REFUSED, *FORMATS):
        if candidate.fits(record):
            return candidate
    raise FactError(
        f"no known format has the keys {', '.join(record) or '(none)'}; known: {'; '.join(map(str, FORMATS))}.",
        hint=f"Write one fact a line, as in {EXAMPLE}",
    )


def _holds(value: object, path: str) -> bool:
    for key in path.split("."):
        if not isinstance(value, dict):
            return False
        if key == "*":
            return True
        if key not in value:
            return False
        value = value[key]
    return True


def _own(record: Record, reading: Reading) -> tuple[EvaluationCase, ...]:
    """The case of a record in the package's own format; ``{}`` in its prompts stands for the subject too.

    Paraphrases that name the subject are wordings of the fact, which may take part in writing it.
    """
    own = validated(schemas.Own, record, reading.format)
    prompt, subject = _slotted(own.prompt, own.subject)
    refuse_placeholder(own.target_new, "target_new")

    def filled(text: str) -> str:
        return text.replace(SLOT, subject)

    paraphrases = tuple(map(filled, own.paraphrases))
    wordings = tuple(text for text in paraphrases if names_subject(text, subject))
    name = own.id or reading.fact_id()
    fact = Fact(prompt, subject, own.target_new, own.target_true, name, own.joint, wordings)
    case = EvaluationCase(
        fact,
        paraphrases,
        _neighbors(own.neighbors, own.target_true),
        tuple(Question(filled(asked.prompt), asked.answers, asked.group) for asked in own.questions),
        tuple(map(filled, own.generation_prompts)),
        own.record,
    )
    return (case,)


def _counterfact(record: Record, reading: Reading) -> tuple[EvaluationCase, ...]:
    read = validated(schemas.CounterFact, record, reading.format)
    fact = _rewritten(read.requested_rewrite, reading.fact_id(read.case_id))
    case = EvaluationCase(
        fact,
        read.paraphrase_prompts,
        _neighbors(read.neighborhood_prompts, fact.target_true),
        generation_prompts=read.generation_prompts,
    )
    return (case,)


def _rome(record: Record, reading: Reading) -> tuple[EvaluationCase, ...]:
    read = validated(schemas.Rome, record, reading.format)
    return (EvaluationCase(_rewritten(read, reading.fact_id(read.case_id))),)


def _zsre(record: Record, reading: Reading) -> tuple[EvaluationCase, ...]:
    """The case of a zsRE question.

    The field disagrees on the target. EasyEdit writes ``alt``, which changes what the model says; MEMIT and AlphaEdit
    write the true answer, and then nothing is known about what the model says before. The follow-up question is
    about ``alt`` and is left out when that is not written.
    """
    read = validated(schemas.Zsre, record, reading.format)
    target_new, answers, questions = read.alt, read.answers, _grouped(read.portability)
    if reading.zsre_target == "answers":
        target_new, answers, questions = next(iter(read.answers), ""), (), ()
    fact = _fact(read.src, read.subject, target_new, answers, reading.fact_id())
    unrelated = [(_as_question(read.loc), read.loc_ans)] if read.loc else []
    return (EvaluationCase(fact, read.rephrase, _answered(unrelated), questions),)


def _easyedit(record: Record, reading: Reading) -> tuple[EvaluationCase, ...]:
    read = validated(schemas.EasyEdit, record, reading.format)
    return _edited(read, read.locality, (), reading)


def _knowedit(record: Record, reading: Reading) -> tuple[EvaluationCase, ...]:
    """The case of a KnowEdit record; its locality questions are neighbors (with one answer) as well."""
    read = validated(schemas.KnowEdit, record, reading.format)
    unrelated = [question for group in read.locality.values() for question in group]
    return _edited(read, unrelated, _grouped(read.portability) + _grouped(read.locality), reading)


def _edited(
    read: schemas.EditSchema, unrelated: Iterable[schemas.Question], questions: tuple[Question, ...], reading: Reading
) -> tuple[EvaluationCase, ...]:
    fact = _fact(read.prompt, read.subject, read.target_new, read.ground_truth, reading.fact_id(read.case_id))
    neighbors = [(question.prompt, question.ground_truth) for question in unrelated]
    if read.locality_prompt:
        neighbors.append((read.locality_prompt, read.locality_ground_truth))
    return (EvaluationCase(fact, read.rephrase_prompt, _answered(neighbors), questions),)


def _fastedit(record: Record, reading: Reading) -> tuple[EvaluationCase, ...]:
    """The case of a FastEdit record; those of its queries that name the subject are paraphrases."""
    read = validated(schemas.FastEdit, record, reading.format)
    fact = _fact(read.prompt, read.subject, read.target, (), reading.fact_id())
    queries = (query.replace(SLOT, fact.subject) for query in read.queries)
    return (EvaluationCase(fact, tuple(query for query in queries if names_subject(query, fact.subject))),)


def _mquake(record: Record, reading: Reading) -> tuple[EvaluationCase, ...]:
    """A case for each edit of a MQuAKE record; the questions about all of them belong to the last."""
    read = validated(schemas.Mquake, record, reading.format)
    name = reading.fact_id(read.case_id)
    facts = []
    for number, rewrite in enumerate(read.requested_rewrite):
        with _within(f"requested_rewrite.{number}"):
            facts.append(_rewritten(rewrite, f"{name}-{number + 1}"))
    answers = _alike(read.new_answer, read.new_answer_alias)
    return _one_record(name, facts, _asked(((prompt, answers) for prompt in read.questions), "multi_hop"))


def _elken(record: Record, reading: Reading) -> tuple[EvaluationCase, ...]:
    """A case for each fact that an ELKEN event makes known; its other questions belong to the last.

    Raises:
        FactError: The event makes no fact known, so there is nothing to write.
    """
    read = validated(schemas.Elken, record, reading.format)
    name = reading.fact_id()
    facts: list[Fact] = []
    others: list[schemas.ElkenQuestion] = []
    for number, asked in enumerate(read.fact.qas):
        if asked.answer.name in (None, _UNKNOWN) or asked.subject.name not in asked.question:
            others.append(asked)
            continue
        with _within(f"fact.qas.{number}"):
            facts.append(_fact(asked.question, asked.subject.name, asked.answer.name, (), f"{name}-{len(facts) + 1}"))
    if not facts:
        raise FactError("the event has no question with a known answer.", hint=_NO_FACT, field="fact.qas")
    questions = (
        *_asked(_elken_answers(others), "event"),
        *_asked(_elken_answers(read.fact.local_qas), "event_locality"),
        *_asked(_elken_choices(read.tendency.qas), "tendency"),
        *_asked(_elken_choices(read.tendency.local_qas), "tendency_locality"),
    )
    return _one_record(name, facts, questions)


def _elken_answers(asked: Iterable[schemas.ElkenQuestion]) -> Iterator[tuple[str, tuple[str, ...]]]:
    return ((one.question, _alike(one.answer.name, one.answer.alias)) for one in asked)


def _elken_choices(asked: Iterable[schemas.ElkenChoice]) -> Iterator[tuple[str, tuple[str, ...]]]:
    return ((f"{one.question} {one.candidate} Answer:", _given(one.answer)) for one in asked)


def _one_record(name: str, facts: list[Fact], questions: tuple[Question, ...]) -> tuple[EvaluationCase, ...]:
    """The cases of facts that belong together; questions about all of them belong to the last."""
    *first, last = facts
    return (
        *(EvaluationCase(fact, record=name) for fact in first),
        EvaluationCase(last, questions=questions, record=name),
    )


@contextmanager
def _within(field: str) -> Iterator[None]:
    """Names the part of the record that an error inside is about."""
    try:
        yield
    except FactError as error:
        raise error.within(field) from error


def _grouped(groups: dict[str, tuple[schemas.Question, ...]]) -> tuple[Question, ...]:
    """The questions of all groups that are known by name."""
    return tuple(
        question
        for name, asked in groups.items()
        if (group := name.lower()) in GROUPS
        for question in _asked(((one.prompt, one.ground_truth) for one in asked), group)
    )


def _asked(questions: Iterable[tuple[str, tuple[str, ...]]], group: Group) -> tuple[Question, ...]:
    """The questions of a group; questions without an answer cannot be scored and are dropped."""
    return tuple(Question(prompt, answers, group) for prompt, answers in questions if prompt and answers)


def _alike(name: str | None, aliases: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(text for text in (name, *aliases) if text))


def _rewritten(read: schemas.Rewrite, fact_id: str) -> Fact:
    true = None if read.target_true is None else read.target_true.text
    return _fact(read.prompt, read.subject, read.target_new.text, _given(true), fact_id)


def _fact(prompt: str, subject: str, target_new: str, answers: Sequence[str], fact_id: str) -> Fact:
    """The fact, whose true target is the first of ``answers``.

    A new target that is among the answers becomes the true target as well, so that ``Fact`` refuses it: such an edit
    would change nothing.
    """
    prompt, subject = _slotted(prompt, subject, last=True)
    refuse_placeholder(target_new, "target_new")
    target_true = target_new if target_new in answers else next(iter(answers), None)
    return Fact(prompt, subject, target_new, target_true, fact_id)


def _slotted(prompt: str, subject: str, *, last: bool = False) -> tuple[str, str]:
    """The prompt with a slot, and the subject as it is spelled there; ``last`` as in ``find_subject``."""
    if SLOT in prompt:
        return prompt, subject
    start, end = find_subject(prompt, subject, any_case=True, last=last)
    return prompt[:start] + SLOT + prompt[end:], prompt[start:end]


def _given(answer: str | None) -> tuple[str, ...]:
    return () if answer is None else (answer,)


def _neighbors(read: Iterable[schemas.OwnNeighbor | schemas.Neighbor], target_true: str | None) -> tuple[Probe, ...]:
    """The probes, with ``target_true`` where a neighbor was a plain string."""
    return tuple(
        Probe(neighbor.prompt, neighbor.target if "target" in neighbor.model_fields_set else target_true)
        for neighbor in read
        if neighbor.prompt
    )


def _answered(questions: Iterable[tuple[str, Sequence[str]]]) -> tuple[Probe, ...]:
    """A probe with the first answer of each question; questions without an answer cannot be scored and are dropped."""
    return tuple(Probe(prompt, answers[0]) for prompt, answers in questions if prompt and answers)


def _as_question(text: str) -> str:
    question = text.removeprefix(_NQ_PREFIX)
    return question if question.endswith("?") else f"{question}?"


def _known_facts(record: Record, reading: Reading) -> NoReturn:
    raise FactError(
        "this is a list of true facts (ROME's known facts): it has no new targets, so there is nothing to write.",
        hint=f"Give each fact a new target, as in {EXAMPLE}",
        field="target_new",
    )


# Recognized only to explain why they are not read.
_REFUSED: tuple[Format, ...] = (Format("known_facts", ("subject", "attribute", "template"), _known_facts),)

# The first row that fits is taken, so a row stands above those whose keys are part of its own.
FORMATS: tuple[Format, ...] = (
    Format("mquake", ("requested_rewrite", "questions", "new_answer"), _mquake),
    Format("counterfact", ("requested_rewrite",), _counterfact),
    Format("zsre", ("subject", "src", "answers"), _zsre),
    Format("rome", ("prompt", "subject", "target_new.str"), _rome),
    Format("knowedit", ("subject|concept", "prompt|text", "target_new|labels", "locality.*|portability.*"), _knowedit),
    Format(
        "easyedit",
        ("subject", "prompt", "target_new", "ground_truth|rephrase_prompt|locality_prompt|locality"),
        _easyedit,
    ),
    Format("elken", ("event", "fact.qas"), _elken),
    Format("fastedit", ("prompt", "subject", "target", "queries"), _fastedit),
    Format("own", ("subject", "prompt", "target_new|target"), _own),
)
