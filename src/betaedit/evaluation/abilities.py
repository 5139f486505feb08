"""General ability: the field's zero-shot classification tasks, read from local files (metrics.md G.7).

A task is a row of ``TASKS``: its file, its prompt and its answers. Each item is judged in two ways: *probability*, the
answer that is most probable per token after the prompt, and *generated*, the answer found in a few greedy tokens.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from betaedit.errors import ConfigError, FactError, did_you_mean
from betaedit.evaluation.continuing import complete_greedily
from betaedit.evaluation.interval import Estimate, estimate
from betaedit.evaluation.scoring import score_targets
from betaedit.extras import import_extra
from betaedit.facts.readers import iter_records
from betaedit.models.load import LanguageModel
from betaedit.progress import Progress

NO_ANSWER = -1
_FIRST_TEST = 10  # the papers keep items 0 to 9 for few-shot prompts
_GENERATED_TOKENS = 5
_LETTERS = ("A", "B", "C", "D")


@dataclass(frozen=True)
class AbilityTask:
    """One classification task.

    Args:
        name: What users call it.
        stem: Name of its file without ``.jsonl`` or ``.jsonl.gz``.
        prompt: From an item's fields to the text whose continuation is the answer.
        answers: What the model may say, by class.
        label_field: The field that holds the right answer.
        labels: From the field's values to classes.
    """

    name: str
    stem: str
    prompt: Callable[[Mapping[str, Any]], str]
    answers: tuple[str, ...]
    label_field: str
    labels: Mapping[Any, int]


@dataclass(frozen=True, slots=True)
class AbilityItem:
    """A prompt and the class of its right answer."""

    prompt: str
    label: int


@dataclass(frozen=True, slots=True)
class Classification:
    """How well one kind of prediction does.

    Args:
        predictions: The class predicted for each item, or ``NO_ANSWER``.
        accuracy: Share of right predictions; no answer is a wrong one.
        macro_f1: Plain mean of F1 over the task's own classes, which no answer is not among.
        weighted_f1: Mean of F1 weighted by how often each class is right, as the papers' code computes it.
        mcc: Matthews correlation of predictions and labels, no answer being a class of its own.
    """

    predictions: tuple[int, ...]
    accuracy: Estimate
    macro_f1: float
    weighted_f1: float
    mcc: float


@dataclass(frozen=True, slots=True)
class AbilityResult:
    """One task measured on one model.

    Args:
        task: Its name.
        labels: The right class of each item.
        probability: Figures of the answers most probable per token.
        generated: Figures of the answers found in generated text, where they were asked for.
    """

    task: str
    labels: tuple[int, ...]
    probability: Classification
    generated: Classification | None

    def to_dict(self) -> dict[str, Any]:
        """The result as plain data."""
        return asdict(self)


def _template(text: str) -> Callable[[Mapping[str, Any]], str]:
    return text.format_map


def _choices(question: str, line: str, options: str) -> Callable[[Mapping[str, Any]], str]:
    """A prompt of a question, its four lettered options and ``Answer:``."""

    def prompt(item: Mapping[str, Any]) -> str:
        lines = [line.format(letter, option) for letter, option in zip(_LETTERS, item[options], strict=True)]
        return question.format_map(item) + "".join(lines) + "Answer:"

    return prompt


_BINARY = {0: 0, 1: 1}

TASKS: dict[str, AbilityTask] = {
    task.name: task
    for task in (
        AbilityTask(
            "sst2",
            "cap_sst2",
            _template("Review :{sentence}\nSentiment :"),
            ("negative", "positive"),
            "label",
            _BINARY,
        ),
        AbilityTask(
            "mrpc",
            "cap_mrpc",
            _template(
                "Are the sentences paraphrases of each other.\n"
                "Sentence 1: {sentence1}\nSentence 2: {sentence2}\nAnswer:"
            ),
            ("No", "Yes"),
            "label",
            _BINARY,
        ),
        AbilityTask(
            "cola",
            "cap_cola",
            _template("Is this sentence linguistically acceptable?\nSentence: {sentence}\nAnswer: "),
            ("No", "Yes"),
            "label",
            _BINARY,
        ),
        AbilityTask(
            "rte",
            "cap_rte",
            _template("{sentence1}\nquestion: {sentence2} True or False?\nanswer:"),
            ("False", "True"),
            "label",
            {0: 1, 1: 0},  # the file follows GLUE, where 0 is entailment
        ),
        AbilityTask(
            "nli",
            "cap_nli",
            _template("{sentence1} entails the {sentence2} True or False? Answer:"),
            ("False", "True"),
            "label",
            {"not_entailment": 0, "entailment": 1},
        ),
        AbilityTask(
            "mmlu",
            "cap_mmlu",
            _choices("Question: {question}\n", "({}) {}\n", "choices"),
            _LETTERS,
            "answer",
            {at: at for at in range(4)},
        ),
        AbilityTask(
            "dialogue",
            "cap_dialogue",
            _choices("Q: Given the following: {article}\nWhich choice is correct?\n", "({}){}\n", "options"),
            _LETTERS,
            "answers",
            {letter: at for at, letter in enumerate(_LETTERS)},
        ),
    )
}
"""The tasks by name."""

PAPERS_TASKS = ("sst2", "mrpc", "cola", "rte", "nli", "mmlu")
"""The six that the papers' tables show."""


def find_task(name: str, *, official_rte: bool = False) -> AbilityTask:
    """The task of that name.

    Args:
        name: A key of ``TASKS``.
        official_rte: Score RTE with the inverted labels of the papers' code: what is entailed counts as "False".

    Raises:
        ConfigError: There is none.
    """
    if name not in TASKS:
        hint = did_you_mean(name, TASKS, f"Choose from {', '.join(TASKS)}.")
        raise ConfigError(f"there is no ability task {name!r}.", hint=hint)
    task = TASKS[name]
    return replace(task, labels=_BINARY) if official_rte and name == "rte" else task


def task_file(task: AbilityTask, folder: str | Path) -> Path:
    """The task's file in ``folder``.

    Raises:
        ConfigError: It is not there.
    """
    paths = [Path(folder) / f"{task.stem}{ending}" for ending in (".jsonl", ".jsonl.gz")]
    for path in paths:
        if path.is_file():
            return path
    raise ConfigError(
        f"the task {task.name} has no file {paths[1]}.",
        hint=f"Give the folder that holds {task.stem}.jsonl or {task.stem}.jsonl.gz.",
    )


def read_ability_items(task: AbilityTask, folder: str | Path, n_tests: int) -> list[AbilityItem]:
    """The task's items 10 to ``10 + n_tests`` (the ones before are the papers' few-shot examples); fewer at the end.

    Raises:
        ConfigError: There is no file, or ``n_tests`` is below one.
        FactError: A line is broken, lacks a field or has an unknown label, or no item is left.
    """
    if n_tests < 1:
        raise ConfigError(f"n_tests is {n_tests}.", hint="Give at least 1.")
    path = task_file(task, folder)
    items: list[AbilityItem] = []
    for number, (line, record) in enumerate(iter_records(path)):
        if number >= _FIRST_TEST:
            try:
                items.append(_item(task, record))
            except FactError as error:
                raise error.at(path, line) from error
        if len(items) == n_tests:
            break
    if not items:
        raise FactError(
            f"the file has no item after the first {_FIRST_TEST}, which are reserved for examples.",
            hint="Add items.",
            path=path,
        )
    return items


def _item(task: AbilityTask, record: Mapping[str, Any]) -> AbilityItem:
    try:
        prompt, answer = task.prompt(record), record[task.label_field]
    except KeyError as error:
        hint = f"Items of {task.name} need it."
        raise FactError("the field is missing.", hint=hint, field=str(error.args[0])) from error
    except (TypeError, ValueError) as error:
        raise FactError(f"this is not an item of {task.name}: {error}.", hint="Compare it with other lines.") from error
    for known, label in task.labels.items():
        if known == answer:
            return AbilityItem(prompt, label)
    hint = f"Use one of {', '.join(map(repr, task.labels))}."
    raise FactError(f"{answer!r} is not a label of {task.name}.", hint=hint, field=task.label_field)


def measure_abilities(
    model: LanguageModel,
    folder: str | Path,
    *,
    tasks: Sequence[str] = PAPERS_TASKS,
    n_tests: int = 100,
    official_rte: bool = False,
    official_letters: bool = False,
    generate: bool = True,
    progress: Progress | None = None,
) -> dict[str, AbilityResult]:
    """Zero-shot figures of ``model`` on each task.

    Args:
        model: The model as it is now.
        folder: Where the tasks' files are.
        tasks: Keys of ``TASKS``.
        n_tests: Items per task: 100 in AlphaEdit and the alignment paper, 200 in BetaEdit.
        official_rte: See ``find_task``.
        official_letters: Look for A to D in generated text as the papers' code does: the first of ``a``, ``b``, ``c``
            and ``d`` at the end of a line, even as the end of a longer word.
        generate: Whether to read generated answers as well; they take most of the time.
        progress: Hears of every item.

    Raises:
        ConfigError: A task is unknown, its file is absent, or an item is too long for the model.
        FactError: A file is broken.
        MissingExtraError: scikit-learn is not installed.
    """
    _metrics()
    chosen = {name: find_task(name, official_rte=official_rte) for name in tasks}
    items = {name: read_ability_items(task, folder, n_tests) for name, task in chosen.items()}
    for name, task in chosen.items():
        _check_lengths(model, task, items[name])
    search = (_official_letter if official_letters else _said_answer) if generate else None
    return {name: _measure(model, chosen[name], items[name], search, progress) for name in chosen}


def _check_lengths(model: LanguageModel, task: AbilityTask, items: Sequence[AbilityItem]) -> None:
    longest = max(map(len, model.encode([item.prompt for item in items]))) + _GENERATED_TOKENS
    if longest > model.max_length:
        raise ConfigError(
            f"an item of {task.name} needs {longest} positions and the model has {model.max_length}.",
            hint="Leave the task out, or use fewer items.",
        )


_Search = Callable[[AbilityTask, str], int]


def _measure(
    model: LanguageModel,
    task: AbilityTask,
    items: Sequence[AbilityItem],
    search: _Search | None,
    progress: Progress | None,
) -> AbilityResult:
    labels = tuple(item.label for item in items)
    prompts = [item.prompt for item in items]
    generated = None
    if search is not None:
        label = f"{task.name}, generating"
        texts = complete_greedily(model, prompts, _GENERATED_TOKENS, progress=progress, label=label)
        generated = _classified(task, labels, [search(task, text) for text in texts])
    probable = _classified(task, labels, _most_probable(model, task, prompts, progress))
    return AbilityResult(task.name, labels, probable, generated)


def _most_probable(
    model: LanguageModel, task: AbilityTask, prompts: Sequence[str], progress: Progress | None
) -> list[int]:
    """The answer with the lowest mean negative log-likelihood per token, if it is strictly the lowest."""
    # The published templates join with a space, that of CoLA, which ends in one, too.
    pairs = [(prompt, answer, " ") for prompt in prompts for answer in task.answers]
    scores = score_targets(model, pairs, progress=progress, label=f"{task.name}, scoring")
    width = len(task.answers)
    rows = [[score.nll for score in scores[at : at + width]] for at in range(0, len(scores), width)]
    return [_strictly_lowest(row) for row in rows]


def _strictly_lowest(values: Sequence[float]) -> int:
    """Index of the one value below all others; ``NO_ANSWER`` on a tie, and where a value is not a number."""
    for index, value in enumerate(values):
        if all(value < other for other in (*values[:index], *values[index + 1 :])):
            return index
    return NO_ANSWER


def _said_answer(task: AbilityTask, text: str) -> int:
    """The answer said first as a word of its own, in any case; letters in capitals only, since "a" is a word too."""
    case = re.NOFLAG if task.answers == _LETTERS else re.IGNORECASE
    found = re.search(rf"\b(?:{'|'.join(task.answers)})\b", text, case)
    return NO_ANSWER if found is None else [answer.lower() for answer in task.answers].index(found[0].lower())


def _official_letter(task: AbilityTask, text: str) -> int:
    """What the papers' code makes of a text in which it seeks a letter; other answers as by ``_said_answer``."""
    if task.answers != _LETTERS:
        return _said_answer(task, text)
    ends = [f"{letter}\n" in text.upper() for letter in _LETTERS]
    return ends.index(True) if True in ends else NO_ANSWER


def _metrics() -> Any:
    return import_extra("sklearn.metrics", "evaluation", "an ability task")


def _classified(task: AbilityTask, labels: Sequence[int], predictions: Sequence[int]) -> Classification:
    metrics = _metrics()
    classes = list(range(len(task.answers)))
    accuracy = estimate([label == predicted for label, predicted in zip(labels, predictions, strict=True)])
    assert accuracy is not None  # a file without items has been refused

    def f1(average: str) -> float:
        return float(metrics.f1_score(labels, predictions, labels=classes, average=average, zero_division=0.0))

    return Classification(
        predictions=tuple(predictions),
        accuracy=accuracy,
        macro_f1=f1("macro"),
        weighted_f1=f1("weighted"),
        mcc=float(metrics.matthews_corrcoef(labels, predictions)),
    )
