"""Questions to a model, a run or a workspace: its answers, beside those of the unedited model."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from betaedit.editors.saved import EDITS_FILE
from betaedit.errors import ConfigError, ModelError
from betaedit.evaluation.free_text import Answer, ask
from betaedit.experiments.target import editor_of, load_target
from betaedit.ledger.place import LEDGER
from betaedit.ledger.workspace import Workspace
from betaedit.models.chat import chat_text, takes_system_message, typed_specials
from betaedit.models.load import DtypeName, LanguageModel, load_language_model
from betaedit.progress import Progress, SilentProgress
from betaedit.statistics.moments import Moments

logger = logging.getLogger(__name__)

_ROUNDING = 2**-7  # of bfloat16
_NAMES_ITS_BASE = {EDITS_FILE: "model", "adapter_config.json": "base_model_name_or_path"}


@dataclass(frozen=True)
class Asked:
    """A question and its answers.

    Args:
        question: The question as typed.
        answer: The model's answer.
        base: The answer of the unedited model; ``None`` if there is none.
    """

    question: str
    answer: Answer
    base: Answer | None

    @property
    def differs(self) -> bool | None:
        """Whether the edits changed the first sentence of the greedy answer; ``None`` without a base."""
        return None if self.base is None else self.answer.differs(self.base)

    def to_dict(self) -> dict[str, Any]:
        """The question and its answers as plain data."""
        base = None if self.base is None else self.base.to_dict()
        return {"question": self.question, "answer": self.answer.to_dict(), "base": base, "differs": self.differs}


@dataclass(frozen=True)
class Conversation:
    """A loaded model, and its unedited model.

    Args:
        model: The loaded model.
        base: A context with the unedited model; ``None`` without edits, or if there is no such model.
        base_name: Name of the unedited model; empty without edits.
        why_no_base: Why the unedited model cannot be asked; empty if it can, or without edits.
        progress: Shows the progress.
    """

    model: LanguageModel
    base: Callable[[], AbstractContextManager[LanguageModel]] | None = None
    base_name: str = ""
    why_no_base: str = ""
    progress: Progress = field(default_factory=SilentProgress)

    def ask(
        self,
        questions: Sequence[str],
        *,
        chat: bool = False,
        system: str | None = None,
        n_tokens: int = 32,
        top: int = 3,
    ) -> list[Asked]:
        """The answers of the model and of the unedited model to each question, in order.

        Args:
            questions: The questions as typed.
            chat: Whether each is a user's message in the model's chat template; otherwise the model continues its text.
            system: The system message before it, in chat.
            n_tokens: Maximum number of new tokens of the greedy answer.
            top: Number of most probable answers.

        Raises:
            ConfigError: A question is empty, or there is a system message without chat.
            ModelError: The model has no chat template or no system message, or no position is left for an answer.
        """
        check_questions(questions, chat=chat, system=system)
        prompts = [self._prompt(question, chat, system) for question in questions]
        said = ask(self.model, prompts, n_tokens=n_tokens, top=top, progress=self.progress)
        before: list[Answer | None] = [None] * len(prompts)
        if self.base is not None:
            with self.base() as base:
                before = [*ask(base, prompts, n_tokens=n_tokens, top=top, progress=self.progress)]
        return [Asked(*each) for each in zip(questions, said, before, strict=True)]

    def _prompt(self, question: str, chat: bool, system: str | None) -> str:
        tokenizer = self.model.tokenizer
        if typed := typed_specials(tokenizer, question):
            logger.warning("the model reads %s in the question as control tokens, not as text.", ", ".join(typed))
        if not chat:
            return question
        user = {"role": "user", "content": question}
        text = chat_text(tokenizer, [user])
        if system is None:
            return text
        if not takes_system_message(tokenizer):
            raise ModelError("the model's chat template has no system message.", hint="Leave it out.")
        return chat_text(tokenizer, [{"role": "system", "content": system}, user])


def check_questions(questions: Sequence[str], *, chat: bool, system: str | None) -> None:
    """Refuse invalid questions before a model is loaded.

    Raises:
        ConfigError: A question is empty, or there is a system message without chat.
    """
    if any(not question.strip() for question in questions):
        raise ConfigError("the question is empty.", hint="Write a question.")
    if system is not None and not chat:
        raise ConfigError("a system message needs --chat.", hint="Add --chat, or leave the system message out.")


@contextmanager
def open_conversation(
    name: str,
    *,
    statistics: Moments | Path | None = None,
    dtype: DtypeName | None = None,
    device: str | None = None,
    progress: Progress | None = None,
) -> Iterator[Conversation]:
    """Load the model ``name``, and its unedited model.

    The base of a workspace or run is the model it was made with. The base of a saved model or an adapter is the one it
    names; if that cannot be loaded, ``why_no_base`` is set. Any other model has none.

    Args:
        name: See ``load_target``.
        statistics: See ``load_target``.
        dtype: See ``load_target``.
        device: Device of the models.
        progress: Shows the progress.

    Raises:
        BetaEditError: As ``load_target``.
    """
    folder, progress = Path(name), progress or SilentProgress()
    with ExitStack() as opened:
        if (folder / LEDGER).is_file() and statistics is None and dtype is None:
            workspace = opened.enter_context(Workspace.open(folder, device=device))
            yield _with_edits(workspace.language_model, workspace.unedited, progress)
        elif (folder / LEDGER).is_file() or (folder / "run.json").is_file():
            editor = editor_of(name, statistics=statistics, dtype=dtype, device=device)
            yield _with_edits(editor.language_model, editor.unedited, progress)
        else:
            model = load_target(name, dtype=dtype, device=device)
            yield _beside_its_base(folder, model, dtype, device, progress)


def _with_edits(
    model: LanguageModel, unedited: Callable[[], AbstractContextManager[None]], progress: Progress
) -> Conversation:
    """A conversation with a model whose edits can be set aside."""

    @contextmanager
    def base() -> Iterator[LanguageModel]:
        with unedited():
            yield model

    return Conversation(model, base, model.name, progress=progress)


def _beside_its_base(
    folder: Path, model: LanguageModel, dtype: DtypeName | None, device: str | None, progress: Progress
) -> Conversation:
    """A conversation with the model of a folder, and with the base model that the folder names."""
    file = next((folder / file for file in _NAMES_ITS_BASE if (folder / file).is_file()), None)
    if file is None:
        return Conversation(model, progress=progress)
    try:
        name = json.loads(file.read_text(encoding="utf-8"))[_NAMES_ITS_BASE[file.name]]
        if Path(name).exists() and Path(name).resolve() == folder.resolve():
            raise ModelError(f"{file} names the folder itself as its base.")
        base = load_language_model(name, dtype=dtype or "float32", device=device)
        _check_related(model, base)
    except (ValueError, KeyError, TypeError) as error:
        why = f"{file} does not say which model it was made from ({type(error).__name__}: {error})."
    except ModelError as error:
        why = error.message
    else:
        return Conversation(model, lambda: nullcontext(base), name, progress=progress)
    return Conversation(model, why_no_base=why, progress=progress)


def _check_related(model: LanguageModel, base: LanguageModel) -> None:
    """Refuse a base with other embeddings: edits do not change them, and a narrower type only rounds them."""
    own, others = (each.model.get_input_embeddings().get_parameter("weight").float() for each in (model, base))
    if own.shape != others.shape or not torch.allclose(own, others, rtol=_ROUNDING):
        raise ModelError(f"{base.name} is not the model that was edited: its embeddings differ.")
