"""The record schemas of each format, and the errors for other records.

Other formats may have keys that are not read; in the package's own format an unknown key is an error.
"""

from __future__ import annotations

from collections.abc import Sequence
from difflib import get_close_matches
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, AliasChoices, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from pydantic_core import ErrorDetails

from betaedit.errors import FactError
from betaedit.facts.fact import Group
from betaedit.facts.hints import is_placeholder, kind_of, not_text


def _encodable(text: str) -> str:
    text.encode("utf-8")  # JSON may hold half a surrogate pair, on which tokenizers fail later
    return text


def _clean(text: str) -> str:
    return _encodable(text).strip()


def _as_typed(text: str) -> str:
    """An unchanged prompt: white space at its end is kept."""
    return text if _clean(text) else ""


def _clean_or_none(text: str | None) -> str | None:
    return None if text is None else _clean(text) or None


def _only_entry(value: object) -> object:
    """The entry of a list of one."""
    return value[0] if isinstance(value, list | tuple) and len(value) == 1 else value


def _null_as_none(value: object) -> object:
    return None if kind_of(value) == "null" else _only_entry(value)


def _answer_or_none(text: str | None) -> str | None:
    return None if text is None or is_placeholder(text) else text


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
        elif kind_of(item) != "null":
            flat.append(item)
    return flat


def _filled(texts: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(text for text in texts if text)


def _known(answers: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(answer for answer in answers if not is_placeholder(answer))


def _open_neighbor(value: object) -> object:
    """A plain string leaves its target to be filled; a record without a target has an unknown one."""
    if isinstance(value, str):
        return {"prompt": value}
    return {"target": None} | value if isinstance(value, dict) else value


def _named_groups(value: object) -> object:
    """Groups of questions by name; the one follow-up question that zsRE has is put in KnowEdit's form."""
    if isinstance(value, dict) and "New Question" in value:
        return {"Reasoning": {"prompt": value["New Question"], "ground_truth": value.get("New Answer")}}
    return value or {}


_T = TypeVar("_T")
_Text = Annotated[str, BeforeValidator(_only_entry), AfterValidator(_clean)]
_MaybeText = Annotated[str | None, BeforeValidator(_null_as_none), AfterValidator(_clean_or_none)]
_MaybeAnswer = Annotated[_MaybeText, AfterValidator(_answer_or_none)]
_Name = Annotated[_MaybeText, BeforeValidator(_number_as_text)]
_Prompt = Annotated[str, BeforeValidator(_only_entry), AfterValidator(_as_typed)]
_Joint = Annotated[str, AfterValidator(_encodable)]
_Many = Annotated[tuple[_T, ...], BeforeValidator(_flat)]
_Texts = Annotated[_Many[_Text], AfterValidator(_filled)]
_Answers = Annotated[_Texts, AfterValidator(_known)]
_Prompts = Annotated[_Many[_Prompt], AfterValidator(_filled)]


class _Schema(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)


class _OwnSchema(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class OwnNeighbor(_OwnSchema):
    """A prompt that should keep its answer."""

    prompt: _Prompt
    target: _MaybeAnswer = None


class OwnQuestion(_OwnSchema):
    """A question with its right answers."""

    prompt: _Prompt
    answers: Annotated[_Answers, Field(min_length=1)]
    group: Group


class Own(_OwnSchema):
    """A record of the package's own format."""

    subject: _Text
    prompt: _Prompt
    target_new: _Text = Field(validation_alias=AliasChoices("target_new", "target"))
    target_true: _MaybeAnswer = None
    joint: _Joint | None = None
    id: _Name = None
    paraphrases: _Prompts = ()
    neighbors: _Many[Annotated[OwnNeighbor, BeforeValidator(_open_neighbor)]] = ()
    questions: _Many[OwnQuestion] = ()
    generation_prompts: _Prompts = ()
    record: _Name = None
    source: Any = None
    time: Any = None
    note: Any = None


class Target(_Schema):
    """A new answer as ROME writes it."""

    text: _Text = Field(validation_alias="str")


class TrueTarget(_Schema):
    """The present answer as ROME writes it."""

    text: _MaybeAnswer = Field(validation_alias="str")


class Rewrite(_Schema):
    """An edit as ROME writes it."""

    prompt: _Text
    subject: _Text
    target_new: Target
    target_true: TrueTarget | None = None


class Rome(Rewrite):
    """A request of its own."""

    case_id: _Name = None


class Neighbor(_Schema):
    """A prompt that should keep its answer."""

    prompt: _Text
    target: _MaybeAnswer = None


class CounterFact(_Schema):
    """A record of CounterFact or multi_counterfact."""

    case_id: _Name = None
    requested_rewrite: Rewrite
    paraphrase_prompts: _Texts = ()
    neighborhood_prompts: _Many[Annotated[Neighbor, BeforeValidator(_open_neighbor)]] = ()
    generation_prompts: _Texts = ()


class Question(_Schema):
    """A question as KnowEdit writes it."""

    prompt: _Text
    ground_truth: _Answers = ()


_Groups = Annotated[dict[str, _Many[Question]], BeforeValidator(_named_groups)]


class Zsre(_Schema):
    """A record of zsRE as MEND published it."""

    subject: _Text
    src: _Text
    alt: _Text
    answers: _Answers
    rephrase: _Texts = ()
    loc: _MaybeText = None
    loc_ans: _Answers = ()
    portability: _Groups = Field(default_factory=dict)


class EditSchema(_Schema):
    """What records in the style of EasyEdit share."""

    case_id: _Name = None
    subject: _Text = Field(validation_alias=AliasChoices("subject", "concept"))
    prompt: _Text = Field(validation_alias=AliasChoices("prompt", "text"))
    target_new: _Text = Field(validation_alias=AliasChoices("target_new", "labels"))
    ground_truth: _Answers = ()
    rephrase_prompt: _Texts = Field((), validation_alias=AliasChoices("rephrase_prompt", "rephrase"))
    locality_prompt: _MaybeText = None
    locality_ground_truth: _Answers = ()


class EasyEdit(EditSchema):
    """A flat record."""

    locality: _Many[Question] = ()


class KnowEdit(EditSchema):
    """A record with groups of questions."""

    locality: _Groups = Field(default_factory=dict)
    portability: _Groups = Field(default_factory=dict)


class FastEdit(_Schema):
    """A record of FastEdit."""

    prompt: _Text
    subject: _Text
    target: _Text
    queries: _Texts = ()


class Mquake(_Schema):
    """A record of several edits with questions over several hops."""

    case_id: _Name = None
    requested_rewrite: Annotated[tuple[Rewrite, ...], Field(min_length=1)]
    questions: _Texts = ()
    new_answer: _MaybeAnswer
    new_answer_alias: _Answers = ()


class ElkenSubject(_Schema):
    """What a question about an event is about."""

    # An error in the published files: some subjects have their name under the other key.
    name: _Text = Field(validation_alias=AliasChoices("name", "ent2name"))


class ElkenAnswer(_Schema):
    """The answer after the event."""

    name: _MaybeAnswer
    alias: _Answers = ()


class ElkenQuestion(_Schema):
    """A question on a fact."""

    question: _Text
    subject: ElkenSubject
    answer: ElkenAnswer


class ElkenFacts(_Schema):
    """The questions on facts, and those on other facts."""

    qas: _Many[ElkenQuestion] = ()
    local_qas: _Many[ElkenQuestion] = ()


class ElkenChoice(_Schema):
    """A multiple choice question."""

    question: _Text
    candidate: _Text
    answer: _MaybeAnswer


class ElkenTendency(_Schema):
    """The questions on tendencies, and those on what should not change."""

    qas: _Many[ElkenChoice] = ()
    local_qas: _Many[ElkenChoice] = ()


class Elken(_Schema):
    """An event."""

    fact: ElkenFacts
    tendency: ElkenTendency = ElkenTendency()


_S = TypeVar("_S", bound=BaseModel)
_OWN_PARTS: dict[str, type[BaseModel]] = {"neighbors": OwnNeighbor, "questions": OwnQuestion}
_OBJECT_EXPECTED = ("model_type", "dict_type")


def validated(schema: type[_S], record: dict[str, Any], format_name: str) -> _S:
    """``record`` in the shape of ``schema``.

    Raises:
        FactError: It does not fit; the field is named with its path.
    """
    try:
        return schema.model_validate(record)
    except ValidationError as error:
        # A misspelt key is the cause, a missing field then only its consequence.
        worst = min(error.errors(include_url=False), key=lambda found: found["type"] != "extra_forbidden")
        raise _explained(worst, schema, format_name) from None


def _explained(found: ErrorDetails, schema: type[BaseModel], format_name: str) -> FactError:
    field = ".".join(map(str, found["loc"]))
    if found["type"] == "string_type":
        return not_text(found["input"], field)
    if found["type"] == "missing":
        message, hint = "the field is missing.", f"Every record of a file in the {format_name} format has it."
    elif found["type"] == "extra_forbidden":
        message, hint = _unknown_key(str(found["loc"][-1]), _schema_at(schema, found["loc"]))
    elif found["type"] in _OBJECT_EXPECTED:
        message, hint = (
            f"must be an object, not {kind_of(found['input'])}.",
            f"Write it as the {format_name} format does.",
        )
    else:
        message, hint = f"{found['msg']}.", "Correct or leave out this record."
    return FactError(message, hint=hint, field=field)


def _schema_at(schema: type[BaseModel], loc: Sequence[int | str]) -> type[BaseModel]:
    """The schema of the object that holds the key at ``loc``."""
    return schema if len(loc) == 1 else _OWN_PARTS[str(loc[0])]


def _unknown_key(key: str, schema: type[BaseModel]) -> tuple[str, str]:
    """Message and hint for a key that ``schema`` does not have."""
    if schema is Own and key == "target":
        return "'target' and 'target_new' mean the same and are both given.", "Keep one of them."
    known = list(schema.model_fields)
    close = get_close_matches(key, known, n=1)
    hint = f"Did you mean {close[0]!r}?" if close else f"Known are {', '.join(known)}; other remarks go into 'note'."
    return f"unknown key {key!r}.", hint
