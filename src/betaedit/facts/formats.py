"""The record formats of the field, each converted into evaluation cases.

``FORMATS`` has one row for each: its name, the keys that give it away and the function that converts it. To add a
format, write its schema, its function and its row. Where the records come from (files, lines, compression) is the
business of ``readers``.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Annotated, Any, Literal, NoReturn, TypeVar

from pydantic import AfterValidator, AliasChoices, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from pydantic_core import ErrorDetails

from betaedit.errors import FactError
from betaedit.facts.fact import GROUPS, SLOT, EvaluationCase, Fact, Group, Probe, Question, slotted

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
        mend=f"Write one fact a line, as in {EXAMPLE}",
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


def _clean(text: str) -> str:
    text.encode("utf-8")  # JSON can smuggle in half a surrogate pair, on which tokenizers crash much later
    return text.strip()


def _clean_or_none(text: str | None) -> str | None:
    return None if text is None else _clean(text) or None


def _number_as_text(value: object) -> object:
    return str(value) if isinstance(value, int) else value


def _flat(value: object) -> list[object]:
    """Nothing, one thing or lists of things, however deep, as one flat list."""
    flat: list[object] = []
    waiting = [value]
    while waiting:
        item = waiting.pop()
        if isinstance(item, list | tuple):
            waiting.extend(reversed(item))
        elif item is not None:
            flat.append(item)
    return flat


def _filled(texts: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(text for text in texts if text)


def _open_neighbor(value: object) -> object:
    """A plain string leaves its target open, to be filled; a record that gives none says that nobody knows it."""
    if isinstance(value, str):
        return {"prompt": value}
    return {"target": None} | value if isinstance(value, dict) else value


def _named_groups(value: object) -> object:
    """Groups of questions by name; the one follow-up question that zsRE has is put in KnowEdit's form."""
    if isinstance(value, dict) and "New Question" in value:
        return {"Reasoning": {"prompt": value["New Question"], "ground_truth": value.get("New Answer")}}
    return value or {}


_T = TypeVar("_T")
_Text = Annotated[str, AfterValidator(_clean)]
_MaybeText = Annotated[str | None, AfterValidator(_clean_or_none)]
_Name = Annotated[_MaybeText, BeforeValidator(_number_as_text)]
_Many = Annotated[tuple[_T, ...], BeforeValidator(_flat)]
_Texts = Annotated[_Many[_Text], AfterValidator(_filled)]


class _Schema(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)


class _OwnSchema(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class _OwnNeighbor(_OwnSchema):
    prompt: _Text
    target: _MaybeText = None


class _OwnQuestion(_OwnSchema):
    prompt: _Text
    answers: Annotated[_Texts, Field(min_length=1)]
    group: Group


class _Own(_OwnSchema):
    subject: _Text
    prompt: _Text
    target_new: _Text = Field(validation_alias=AliasChoices("target_new", "target"))
    target_true: _MaybeText = None
    id: _Name = None
    paraphrases: _Texts = ()
    neighbors: _Many[Annotated[_OwnNeighbor, BeforeValidator(_open_neighbor)]] = ()
    questions: _Many[_OwnQuestion] = ()
    generation_prompts: _Texts = ()
    record: _Name = None
    source: Any = None
    time: Any = None
    note: Any = None


class _Target(_Schema):
    text: _Text = Field(validation_alias="str")


class _Rewrite(_Schema):
    prompt: _Text
    subject: _Text
    target_new: _Target
    target_true: _Target | None = None


class _Rome(_Rewrite):
    case_id: _Name = None


class _Neighbor(_Schema):
    prompt: _Text
    target: _MaybeText = None


class _CounterFact(_Schema):
    case_id: _Name = None
    requested_rewrite: _Rewrite
    paraphrase_prompts: _Texts = ()
    neighborhood_prompts: _Many[Annotated[_Neighbor, BeforeValidator(_open_neighbor)]] = ()
    generation_prompts: _Texts = ()


class _Question(_Schema):
    prompt: _Text
    ground_truth: _Texts = ()


_Groups = Annotated[dict[str, _Many[_Question]], BeforeValidator(_named_groups)]


class _Zsre(_Schema):
    subject: _Text
    src: _Text
    alt: _Text
    answers: _Texts
    rephrase: _Texts = ()
    loc: _MaybeText = None
    loc_ans: _Texts = ()
    portability: _Groups = Field(default_factory=dict)


class _EditSchema(_Schema):
    case_id: _Name = None
    subject: _Text = Field(validation_alias=AliasChoices("subject", "concept"))
    prompt: _Text = Field(validation_alias=AliasChoices("prompt", "text"))
    target_new: _Text = Field(validation_alias=AliasChoices("target_new", "labels"))
    ground_truth: _Texts = ()
    rephrase_prompt: _Texts = Field((), validation_alias=AliasChoices("rephrase_prompt", "rephrase"))
    locality_prompt: _MaybeText = None
    locality_ground_truth: _Texts = ()


class _EasyEdit(_EditSchema):
    locality: _Many[_Question] = ()


class _KnowEdit(_EditSchema):
    locality: _Groups = Field(default_factory=dict)
    portability: _Groups = Field(default_factory=dict)


class _Mquake(_Schema):
    case_id: _Name = None
    requested_rewrite: Annotated[tuple[_Rewrite, ...], Field(min_length=1)]
    questions: _Texts = ()
    new_answer: _Text
    new_answer_alias: _Texts = ()


class _ElkenSubject(_Schema):
    # A slip in the published files: some subjects have their name under the other key.
    name: _Text = Field(validation_alias=AliasChoices("name", "ent2name"))


class _ElkenAnswer(_Schema):
    name: _Text
    alias: _Texts = ()


class _ElkenQuestion(_Schema):
    question: _Text
    subject: _ElkenSubject
    answer: _ElkenAnswer


class _ElkenFacts(_Schema):
    qas: _Many[_ElkenQuestion] = ()
    local_qas: _Many[_ElkenQuestion] = ()


class _ElkenChoice(_Schema):
    question: _Text
    candidate: _Text
    answer: _Text


class _ElkenTendency(_Schema):
    qas: _Many[_ElkenChoice] = ()
    local_qas: _Many[_ElkenChoice] = ()


class _Elken(_Schema):
    fact: _ElkenFacts
    tendency: _ElkenTendency = _ElkenTendency()


def _own(record: Record, reading: Reading) -> tuple[EvaluationCase, ...]:
    """The case of a record in the package's own format; ``{}`` in its prompts stands for the subject too."""
    own = _validated(_Own, record, reading)
    fact = _fact(own.prompt, own.subject, own.target_new, _given(own.target_true), own.id or reading.fact_id())

    def filled(text: str) -> str:
        return text.replace(SLOT, fact.subject)

    case = EvaluationCase(
        fact,
        tuple(map(filled, own.paraphrases)),
        _neighbors(own.neighbors, own.target_true),
        tuple(Question(filled(asked.prompt), asked.answers, asked.group) for asked in own.questions),
        tuple(map(filled, own.generation_prompts)),
        own.record,
    )
    return (case,)


def _counterfact(record: Record, reading: Reading) -> tuple[EvaluationCase, ...]:
    read = _validated(_CounterFact, record, reading)
    fact = _rewritten(read.requested_rewrite, reading.fact_id(read.case_id))
    case = EvaluationCase(
        fact,
        read.paraphrase_prompts,
        _neighbors(read.neighborhood_prompts, fact.target_true),
        generation_prompts=read.generation_prompts,
    )
    return (case,)


def _rome(record: Record, reading: Reading) -> tuple[EvaluationCase, ...]:
    read = _validated(_Rome, record, reading)
    return (EvaluationCase(_rewritten(read, reading.fact_id(read.case_id))),)


def _zsre(record: Record, reading: Reading) -> tuple[EvaluationCase, ...]:
    """The case of a zsRE question.

    The field disagrees on the target. EasyEdit writes ``alt``, which changes what the model says; MEMIT and AlphaEdit
    write the true answer, and then nothing is known about what the model says before. The follow-up question is
    about ``alt`` and is left out when that is not written.
    """
    read = _validated(_Zsre, record, reading)
    target_new, answers, questions = read.alt, read.answers, _grouped(read.portability)
    if reading.zsre_target == "answers":
        target_new, answers, questions = next(iter(read.answers), ""), (), ()
    fact = _fact(read.src, read.subject, target_new, answers, reading.fact_id())
    unrelated = [(_as_question(read.loc), read.loc_ans)] if read.loc else []
    return (EvaluationCase(fact, read.rephrase, _answered(unrelated), questions),)


def _easyedit(record: Record, reading: Reading) -> tuple[EvaluationCase, ...]:
    read = _validated(_EasyEdit, record, reading)
    return _edited(read, read.locality, (), reading)


def _knowedit(record: Record, reading: Reading) -> tuple[EvaluationCase, ...]:
    """The case of a KnowEdit record; its locality questions are neighbors (with one answer) as well."""
    read = _validated(_KnowEdit, record, reading)
    unrelated = [question for group in read.locality.values() for question in group]
    return _edited(read, unrelated, _grouped(read.portability) + _grouped(read.locality), reading)


def _edited(
    read: _EditSchema, unrelated: Iterable[_Question], questions: tuple[Question, ...], reading: Reading
) -> tuple[EvaluationCase, ...]:
    fact = _fact(read.prompt, read.subject, read.target_new, read.ground_truth, reading.fact_id(read.case_id))
    neighbors = [(question.prompt, question.ground_truth) for question in unrelated]
    if read.locality_prompt:
        neighbors.append((read.locality_prompt, read.locality_ground_truth))
    return (EvaluationCase(fact, read.rephrase_prompt, _answered(neighbors), questions),)


def _mquake(record: Record, reading: Reading) -> tuple[EvaluationCase, ...]:
    """A case for each edit of a MQuAKE record; the questions that need them all go with the last."""
    read = _validated(_Mquake, record, reading)
    name = reading.fact_id(read.case_id)
    facts = []
    for number, rewrite in enumerate(read.requested_rewrite):
        with _within(f"requested_rewrite.{number}"):
            facts.append(_rewritten(rewrite, f"{name}-{number + 1}"))
    answers = _alike(read.new_answer, read.new_answer_alias)
    return _one_record(name, facts, _asked(((prompt, answers) for prompt in read.questions), "multi_hop"))


def _elken(record: Record, reading: Reading) -> tuple[EvaluationCase, ...]:
    """A case for each fact that an ELKEN event makes known; all its other questions go with the last.

    Raises:
        FactError: The event makes no fact known, so there is nothing to write.
    """
    read = _validated(_Elken, record, reading)
    name = reading.fact_id()
    facts: list[Fact] = []
    others: list[_ElkenQuestion] = []
    for number, asked in enumerate(read.fact.qas):
        if asked.answer.name == _UNKNOWN or asked.subject.name not in asked.question:
            others.append(asked)
            continue
        with _within(f"fact.qas.{number}"):
            facts.append(_fact(asked.question, asked.subject.name, asked.answer.name, (), f"{name}-{len(facts) + 1}"))
    if not facts:
        raise FactError("the event has no question with a known answer.", mend=_NO_FACT, field="fact.qas")
    questions = (
        *_asked(_elken_answers(others), "event"),
        *_asked(_elken_answers(read.fact.local_qas), "event_locality"),
        *_asked(_elken_choices(read.tendency.qas), "tendency"),
        *_asked(_elken_choices(read.tendency.local_qas), "tendency_locality"),
    )
    return _one_record(name, facts, questions)


def _elken_answers(asked: Iterable[_ElkenQuestion]) -> Iterator[tuple[str, tuple[str, ...]]]:
    return ((one.question, _alike(one.answer.name, one.answer.alias)) for one in asked)


def _elken_choices(asked: Iterable[_ElkenChoice]) -> Iterator[tuple[str, tuple[str, ...]]]:
    return ((f"{one.question} {one.candidate} Answer:", _given(one.answer or None)) for one in asked)


def _one_record(name: str, facts: list[Fact], questions: tuple[Question, ...]) -> tuple[EvaluationCase, ...]:
    """The cases of facts that belong together; what is asked of them all goes with the last."""
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


def _grouped(groups: dict[str, tuple[_Question, ...]]) -> tuple[Question, ...]:
    """The questions of all groups that are known by name."""
    return tuple(
        question
        for name, asked in groups.items()
        if (group := name.lower()) in GROUPS
        for question in _asked(((one.prompt, one.ground_truth) for one in asked), group)
    )


def _asked(questions: Iterable[tuple[str, tuple[str, ...]]], group: Group) -> tuple[Question, ...]:
    """The questions of a group; what has no answer cannot be scored and is dropped."""
    return tuple(Question(prompt, answers, group) for prompt, answers in questions if prompt and answers)


def _alike(name: str, aliases: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(text for text in (name, *aliases) if text))


def _rewritten(read: _Rewrite, fact_id: str) -> Fact:
    true = None if read.target_true is None else read.target_true.text
    return _fact(read.prompt, read.subject, read.target_new.text, _given(true), fact_id)


def _fact(prompt: str, subject: str, target_new: str, answers: Sequence[str], fact_id: str) -> Fact:
    """The fact, expected to be answered with the first of ``answers`` today.

    A new target that is among the answers becomes the true target as well, so that ``Fact`` refuses it: such an edit
    would change nothing. A subject that the prompt spells in other case is taken as it stands in the prompt.
    """
    if SLOT not in prompt and subject not in prompt:
        written = re.findall(re.escape(subject), prompt, re.IGNORECASE)
        subject = written[-1] if written else subject
    target_true = target_new if target_new in answers else next(iter(answers), None)
    return Fact(slotted(prompt, subject), subject, target_new, target_true, fact_id)


def _given(answer: str | None) -> tuple[str, ...]:
    return () if answer is None else (answer,)


def _neighbors(read: Iterable[_OwnNeighbor | _Neighbor], target_true: str | None) -> tuple[Probe, ...]:
    """The probes, with ``target_true`` where a neighbor was a plain string."""
    return tuple(
        Probe(neighbor.prompt, neighbor.target if "target" in neighbor.model_fields_set else target_true)
        for neighbor in read
        if neighbor.prompt
    )


def _answered(questions: Iterable[tuple[str, Sequence[str]]]) -> tuple[Probe, ...]:
    """A probe with the first answer of each question; what has no answer cannot be scored and is dropped."""
    return tuple(Probe(prompt, answers[0]) for prompt, answers in questions if prompt and answers)


def _as_question(text: str) -> str:
    question = text.removeprefix(_NQ_PREFIX)
    return question if question.endswith("?") else f"{question}?"


def _known_facts(record: Record, reading: Reading) -> NoReturn:
    raise FactError(
        "this is a list of true facts (ROME's known facts): it has no new targets, so there is nothing to write.",
        mend=f"Give each fact a new target, as in {EXAMPLE}",
        field="target_new",
    )


# Recognized only to say why they are not read.
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
    Format("own", ("subject", "prompt", "target_new|target"), _own),
)


_S = TypeVar("_S", bound=BaseModel)
_OWN_PARTS: dict[str, type[BaseModel]] = {"neighbors": _OwnNeighbor, "questions": _OwnQuestion}
_EXPECTED = {"string_type": "text", "model_type": "an object", "dict_type": "an object"}


def _validated(schema: type[_S], record: Record, reading: Reading) -> _S:
    """``record`` in the shape of ``schema``.

    Raises:
        FactError: It has another shape; the field is named with its path.
    """
    try:
        return schema.model_validate(record)
    except ValidationError as error:
        # A misspelt key is the cause, a missing field then only its consequence.
        worst = min(error.errors(include_url=False), key=lambda found: found["type"] != "extra_forbidden")
        raise _explained(worst, schema, reading.format) from None


def _explained(found: ErrorDetails, schema: type[BaseModel], format_name: str) -> FactError:
    field = ".".join(map(str, found["loc"]))
    if found["type"] == "missing":
        message, mend = "the field is missing.", f"Every record of a file in the {format_name} format has it."
    elif found["type"] == "extra_forbidden":
        message, mend = _unknown_key(str(found["loc"][-1]), _schema_at(schema, found["loc"]))
    elif found["type"] in _EXPECTED:
        message = f"must be {_EXPECTED[found['type']]}, not {type(found['input']).__name__}."
        mend = "Put it in quotes." if found["type"] == "string_type" else f"Write it as the {format_name} format does."
    else:
        message, mend = f"{found['msg']}.", "Correct or leave out this record."
    return FactError(message, mend=mend, field=field)


def _schema_at(schema: type[BaseModel], loc: Sequence[int | str]) -> type[BaseModel]:
    """The schema of the object that holds the key at ``loc``."""
    return schema if len(loc) == 1 else _OWN_PARTS[str(loc[0])]


def _unknown_key(key: str, schema: type[BaseModel]) -> tuple[str, str]:
    """What to say of a key that ``schema`` does not have, and what to do about it."""
    if schema is _Own and key == "target":
        return "'target' and 'target_new' mean the same and are both given.", "Keep one of them."
    known = list(schema.model_fields)
    close = get_close_matches(key, known, n=1)
    mend = f"Did you mean {close[0]!r}?" if close else f"Known are {', '.join(known)}; other remarks go into 'note'."
    return f"unknown key {key!r}.", mend
