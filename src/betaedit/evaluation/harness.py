"""lm-evaluation-harness on a model in memory, with its own tasks or with those of ``abilities`` over local files."""

from __future__ import annotations

import copy
import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import yaml

from betaedit.errors import ConfigError, did_you_mean
from betaedit.evaluation.abilities import TASKS, AbilityItem, AbilityTask, find_task, read_ability_items
from betaedit.extras import import_extra
from betaedit.models.load import LanguageModel

_PREFIX = "betaedit_"
OWN_TASKS = tuple(f"{_PREFIX}{name}" for name in TASKS)
"""Tasks of ``abilities`` under the names they have in the harness."""

_KEPT = ("results", "groups", "versions", "n-shot", "n-samples")


def run_harness(
    model: LanguageModel,
    tasks: Sequence[str],
    *,
    folder: str | Path | None = None,
    n_tests: int = 100,
    limit: int | None = None,
    include_path: str | Path | None = None,
    batch_size: int = 8,
) -> dict[str, Any]:
    """The results of lm-evaluation-harness on ``model``.

    Its tokenizer is copied, since the harness gives it a padding token. The harness seeds the global random generators.

    Args:
        model: The model in memory.
        tasks: Names of the harness's tasks, of those in ``include_path``, or of ``OWN_TASKS``. Own tasks need no
            network; most others are downloaded once.
        folder: Where the files of own tasks are.
        n_tests: Items of each own task.
        limit: At most this many items of every task.
        include_path: A folder of more YAML tasks.
        batch_size: Rows per forward pass.

    Returns:
        Its ``results`` (metrics by task), ``groups``, ``versions``, ``n-shot`` and ``n-samples``, as plain data.

    Raises:
        ConfigError: A task is unknown, or an own task has no folder or no file there.
        FactError: The file of an own task is broken.
        MissingExtraError: lm-eval is not installed.
    """
    lm_eval, wrapper, manager = _library()
    own = [name for name in tasks if name.startswith(_PREFIX)]
    with TemporaryDirectory(prefix="betaedit-harness-") as place:
        for name in own:
            _write_task(name, _own_folder(name, folder), n_tests, Path(place))
        included = [place] if include_path is None else [place, str(include_path)]
        known = manager(include_path=included, include_defaults=False)
        if not set(tasks) <= set(known.all_tasks):
            known = manager(include_path=included)  # slow: the harness has thousands of task files
        _check_names(tasks, known.all_tasks)
        wrapped = _framing(wrapper, model)(
            pretrained=model.model,
            tokenizer=copy.deepcopy(model.tokenizer),
            batch_size=batch_size,
            max_length=_bounded_length(model),
            trust_remote_code=False,
        )
        found = lm_eval.simple_evaluate(
            model=wrapped, tasks=list(tasks), limit=limit, task_manager=known, log_samples=False, bootstrap_iters=1000
        )
    plain: dict[str, Any] = json.loads(json.dumps({key: found[key] for key in _KEPT if key in found}, default=str))
    return plain


def _framing(wrapper: type[Any], model: LanguageModel) -> type[Any]:
    """A subclass of ``wrapper`` whose contexts are framed by ``model``."""

    def framed(requests: Sequence[Any]) -> list[Any]:
        texts = model.framed([request.args[0] for request in requests])
        return [
            dataclasses.replace(request, arguments=(text, *request.args[1:]))
            for request, text in zip(requests, texts, strict=True)
        ]

    class Framing(wrapper):  # type: ignore[misc]
        def loglikelihood(self, requests: Sequence[Any], *args: Any, **kwargs: Any) -> Any:
            return super().loglikelihood(framed(requests), *args, **kwargs)

        def generate_until(self, requests: Sequence[Any], *args: Any, **kwargs: Any) -> Any:
            return super().generate_until(framed(requests), *args, **kwargs)

    return Framing


def _library() -> tuple[Any, Any, Any]:
    """The harness, its wrapper of a model and its index of tasks."""
    names = ("lm_eval", "lm_eval.models.huggingface", "lm_eval.tasks")
    harness, models, tasks = (import_extra(name, "harness", "running the harness") for name in names)
    return harness, models.HFLM, tasks.TaskManager


def _bounded_length(model: LanguageModel) -> int:
    return min(model.max_length, 2**20)  # models without a limit have sys.maxsize


def _own_folder(name: str, folder: str | Path | None) -> Path:
    if folder is None:
        raise ConfigError(f"the task {name} reads local files.", hint="Give the folder they are in.")
    return Path(folder)


def _write_task(name: str, folder: Path, n_tests: int, place: Path) -> None:
    """Write the task for the harness: its items as filled prompts, and a YAML file that describes them."""
    task = find_task(name.removeprefix(_PREFIX))
    items = place / f"{name}.jsonl"
    items.write_text("".join(_line(item) for item in read_ability_items(task, folder, n_tests)), encoding="utf-8")
    (place / f"{name}.yaml").write_text(yaml.safe_dump(task_yaml(name, task, items)), encoding="utf-8")


def _line(item: AbilityItem) -> str:
    return json.dumps({"prompt": item.prompt, "label": item.label}) + "\n"


def task_yaml(name: str, task: AbilityTask, items: Path) -> dict[str, Any]:
    """The harness's description of ``task`` over a file of filled prompts: zero-shot, the likelier answer wins."""
    return {
        "task": name,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(items)}, "cache_dir": str(items.parent / "cache")},
        "test_split": "test",
        "output_type": "multiple_choice",
        "num_fewshot": 0,
        "doc_to_text": "{{prompt}}",
        "doc_to_target": "label",
        "doc_to_choice": list(task.answers),
        "target_delimiter": " ",
        "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
        "metadata": {"version": 1.0},
    }


def _check_names(tasks: Sequence[str], known: Sequence[str]) -> None:
    for name in tasks:
        if name not in known:
            hint = did_you_mean(name, known, "List the tasks with: lm-eval ls tasks.")
            raise ConfigError(f"the harness has no task {name!r}.", hint=hint)
