"""What becomes of the keys of an EasyEdit hyper-parameter file: the kinds of entries of a family's table.

A family's ``easyedit.py`` holds its tables as data, its ``Method`` rows carry them (``Method.easyedit``), and
``easyedit_file`` reads files with them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from betaedit.models.output_names import OUTPUT_NAMES

_PROJECTION = re.compile(
    rf"(?:.+\.)?\w+[.\[](?P<layer>\d+|\{{\}})\]?\.(?P<block>(?:\w+\.)*)(?:{'|'.join(OUTPUT_NAMES)})(?:\.weight)?"
)


class UnusableError(ValueError):
    """A value that cannot be used.

    Args:
        message: Why, as the end of a sentence that begins with the key.
        hint: What to do.
    """

    def __init__(self, message: str, hint: str = "Change the value, or delete the key.") -> None:
        super().__init__(message)
        self.hint = hint


class Key(Protocol):
    """What becomes of one key."""

    @property
    def meaning(self) -> str:
        """For the documentation, in one line."""

    def take(self, value: Any, others: Mapping[str, Any]) -> Mapping[str, Any]:
        """The settings that the value becomes.

        Args:
            value: The key's value.
            others: The whole file.

        Raises:
            UnusableError: The value cannot be used.
            TypeError: It is of another type.
            ArithmeticError: It is zero where it divides.
        """

    def remark(self, value: Any) -> str:
        """What to say where the value is not carried over exactly; else empty."""


def as_it_is(value: Any) -> Any:
    """``value``; the default of ``Becomes``."""
    return value


@dataclass(frozen=True)
class Becomes:
    """The value is that of a setting.

    Args:
        setting: The setting.
        convert: From the value, and those of ``using``, to the setting's.
        using: Other keys on which it depends; 1 where the file does not have them.
        how: What ``convert`` does, for the documentation.
        note: What differs.
    """

    setting: str
    convert: Callable[..., Any] = as_it_is
    using: tuple[str, ...] = ()
    how: str = ""
    note: str = ""

    @property
    def meaning(self) -> str:
        """See ``Key``."""
        return f"`{self.setting}`" + "".join(f"; {more}" for more in (self.how, self.note) if more)

    def take(self, value: Any, others: Mapping[str, Any]) -> Mapping[str, Any]:
        """See ``Key``."""
        return {self.setting: self.convert(value, *(others.get(name, 1) for name in self.using))}

    def remark(self, value: Any) -> str:
        """See ``Key``."""
        return self.note


@dataclass(frozen=True)
class Spreads:
    """The values of a list are those of several settings, in order."""

    settings: tuple[str, ...]

    @property
    def meaning(self) -> str:
        """See ``Key``."""
        return ", ".join(f"`{name}`" for name in self.settings)

    def take(self, value: Any, others: Mapping[str, Any]) -> Mapping[str, Any]:
        """See ``Key``."""
        if not isinstance(value, Sequence) or isinstance(value, str) or len(value) != len(self.settings):
            raise UnusableError(f"must be a list of {len(self.settings)} values")
        return dict(zip(self.settings, value, strict=True))

    def remark(self, value: Any) -> str:
        """See ``Key``."""
        return ""


@dataclass(frozen=True)
class Switches:
    """Each possible value stands for some settings.

    Args:
        by_value: The settings by value.
        otherwise: Why there is no other.
        notes: By value, what differs.
    """

    by_value: tuple[tuple[Any, Mapping[str, Any]], ...]
    otherwise: str = ""
    notes: Mapping[Any, str] = field(default_factory=dict)

    @property
    def meaning(self) -> str:
        """See ``Key``."""
        said = [
            f"`{value}`" + (f": {', '.join(f'`{name}={one}`' for name, one in settings.items())}" if settings else "")
            for value, settings in self.by_value
        ]
        head = "" if any(settings for _, settings in self.by_value) else "must be "
        more = [self.otherwise] if self.otherwise else []
        more += [f"`{value}`: {note}" for value, note in self.notes.items()]
        return "; ".join([head + " or ".join(said), *more])

    def take(self, value: Any, others: Mapping[str, Any]) -> Mapping[str, Any]:
        """See ``Key``."""
        for known, settings in self.by_value:
            if value == known and isinstance(value, bool) == isinstance(known, bool):
                return settings
        allowed = " or ".join(str(known) for known, _ in self.by_value)
        raise UnusableError(f"must be {allowed}" + (f": {self.otherwise}" if self.otherwise else ""))

    def remark(self, value: Any) -> str:
        """See ``Key``."""
        return next((note for known, note in self.notes.items() if known == value), "")


def only(*values: Any, otherwise: str = "") -> Switches:
    """The key must have one of these values, for which nothing is to be set."""
    return Switches(tuple((value, {}) for value in values), otherwise)


@dataclass(frozen=True)
class Projections:
    """Names of matrices, which must be MLP output projections: no others are edited here.

    Args:
        setting: The setting that takes their layers; none where other keys say them.
        several: Whether it takes more than one.
    """

    setting: str = ""
    several: bool = False

    @property
    def meaning(self) -> str:
        """See ``Key``."""
        if not self.setting:
            return "must name MLP output projections"
        if not self.several:
            return f"must name one MLP output projection; its layer is `{self.setting}`"
        return f"must name MLP output projections; their layers are `{self.setting}`"

    def take(self, value: Any, others: Mapping[str, Any]) -> Mapping[str, Any]:
        """See ``Key``."""
        names = value if isinstance(value, list) else [value]
        found = [_PROJECTION.fullmatch(str(name)) for name in names]
        if foreign := [name for name, one in zip(names, found, strict=True) if one is None or "att" in one["block"]]:
            raise UnusableError(
                f"names {', '.join(map(str, foreign))}: only MLP output projections are edited here",
                "Name only output projections (down_proj, c_proj, fc_out, ...).",
            )
        if not self.setting:
            return {}
        layers = sorted({int(one["layer"]) for one in found if one is not None and one["layer"] != "{}"})
        if not layers or (len(layers) > 1 and not self.several):
            raise UnusableError("must name one matrix with its layer" + ("" if not self.several else " at least"))
        return {self.setting: tuple(layers) if self.several else layers[0]}

    def remark(self, value: Any) -> str:
        """See ``Key``."""
        return ""


@dataclass(frozen=True)
class LayerTemplate:
    """The name of decoder layers, which must be whole ones."""

    meaning: str = "must name decoder layers, such as `model.layers.{}`"

    def take(self, value: Any, others: Mapping[str, Any]) -> Mapping[str, Any]:
        """See ``Key``."""
        if not re.fullmatch(r"[\w.]+\.\{\}", str(value)):
            raise UnusableError(f"names {value}, which is no decoder layer; values are read at decoder layers here")
        return {}

    def remark(self, value: Any) -> str:
        """See ``Key``."""
        return ""


@dataclass(frozen=True)
class Unused:
    """The key has no effect here.

    Args:
        reason: Why, or what has that effect.
    """

    reason: str

    @property
    def meaning(self) -> str:
        """See ``Key``."""
        return f"not used: {self.reason}"

    def take(self, value: Any, others: Mapping[str, Any]) -> Mapping[str, Any]:
        """See ``Key``."""
        return {}

    def remark(self, value: Any) -> str:
        """See ``Key``; ``easyedit_file`` says all unused keys together."""
        return ""


@dataclass(frozen=True, kw_only=True)
class EasyEditTable:
    """How files of one EasyEdit method are read.

    Args:
        alg_name: The method's name there; whatever the case.
        methods: The methods here that such a file is for; the first is taken when none is named.
        keys: What becomes of each key in an edit.
        training: What becomes of each key in a training.
        fixed: Settings for what EasyEdit's code does without a key.
        when: Values by key that a file of this table has, where an ``alg_name`` has several tables.
    """

    alg_name: str
    methods: tuple[str, ...]
    keys: Mapping[str, Key] = field(default_factory=dict)
    training: Mapping[str, Key] = field(default_factory=dict)
    fixed: Mapping[str, Any] = field(default_factory=dict)
    when: Mapping[str, str] = field(default_factory=dict)

    def of(self, *, training: bool) -> dict[str, Key]:
        """All keys for an edit or a training: its own and those that all files have."""
        if training:
            return {**EVERYWHERE, **self.keys, **self.training}
        return {**EVERYWHERE, **dict.fromkeys(self.training, _TRAINED), **self.keys}


UNREAD = Unused("EasyEdit does not read it either")
FOUND = Unused("found in the model")


TOKENS = Switches(
    (("ans", {}), ("mask", {})),
    notes={"mask": "EasyEdit takes all tokens of prompt and answer, here those that say the answer are taken"},
)
LIMIT = "none where it is no number with a point"


def limit(constraint: Any) -> float | None:
    """A norm constraint; none for anything but a number with a point, as EasyEdit has it."""
    return constraint if isinstance(constraint, float) else None


_TRAINED = Unused("decided when the editor is trained: `betaedit train-editor`")
_MODEL = Unused("`--model` names the model")
_DEVICE = Unused("`--device`, `--device-map`")
_DTYPE = Unused("`--dtype`")
_OUT = Unused("`--out`")
EVERYWHERE: Mapping[str, Key] = {
    "model_name": _MODEL,
    "model_class": _MODEL,
    "class_name": _MODEL,
    "tokenizer_class": _MODEL,
    "tokenizer_name": _MODEL,
    "device": _DEVICE,
    "model_parallel": _DEVICE,
    "fp16": _DTYPE,
    "half": _DTYPE,
    "batch_size": Unused("`--batch-size`"),
    "max_length": Unused("no text is cut off here"),
    "results_dir": _OUT,
}
"""Keys that files of all methods have."""
