"""Options that several commands share, and how they become library objects."""

from __future__ import annotations

import json
import logging
import os
import re
import sys
import warnings
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
import yaml

from betaedit.errors import ConfigError
from betaedit.models.runners import RunnerName
from betaedit.settings import read_settings_file

if TYPE_CHECKING:
    from betaedit.editors.editor import Editor
    from betaedit.experiments.figures import Measures
    from betaedit.experiments.variants import Variant
    from betaedit.facts.readers import Rejected
    from betaedit.progress import Progress

logger = logging.getLogger(__name__)

Dtype = Literal["float32", "bfloat16", "float16", "float64", "auto"]
_CONFIG_HINT = "Write lines like value_clamp: 1.0"


# Typos are reported before torch is imported; the library's own checks come later.


def _checked_model(name: str) -> str:
    from betaedit.models.places import find_place

    find_place(name)
    return name


def _checked_method(name: str) -> str:
    from betaedit.editors.names import check_names

    check_names(name, None, {})
    return name


def _checked_preset(preset: str | None) -> str | None:
    from betaedit.editors.names import check_names

    check_names("betaedit", preset, {})
    return preset


def _checked_choice(name: str | None) -> str | None:
    return None if name is None else _checked_method(name)


def _checked_config(config: Path | None) -> Path | None:
    from betaedit.editors.easyedit_file import is_easyedit
    from betaedit.editors.methods import check_settings

    if config is not None and not config.is_fifo():  # a pipe can be read once, by the command
        values = read_settings_file(config, _CONFIG_HINT).values
        if not is_easyedit(values):  # whose names only the command knows what to do with
            check_settings(values)
    return config


def _checked_settings(settings: list[str] | None) -> list[str] | None:
    from betaedit.editors.methods import check_settings

    check_settings(given(settings, None))
    return settings


ModelOption = Annotated[
    str,
    typer.Option(
        "--model",
        "-m",
        callback=_checked_model,
        help="smollm2, gemma3-270m, a folder, a .gguf file, or a Hugging Face id.",
    ),
]
MethodOption = Annotated[
    str, typer.Option("--method", callback=_checked_method, help="An editing method; see `betaedit methods`.")
]
ChosenMethodOption = Annotated[
    str | None,
    typer.Option(
        "--method",
        callback=_checked_choice,
        help="An editing method; see `betaedit methods`. Default: betaedit, or the one that an EasyEdit file names.",
    ),
]
DtypeOption = Annotated[Dtype, typer.Option("--dtype", help="Type of the weights; auto: the checkpoint's own type.")]
OwnDtypeOption = Annotated[
    Dtype | None,
    typer.Option("--dtype", help="Type of the weights; default: that of the run or workspace, else float32."),
]
DeviceOption = Annotated[str | None, typer.Option("--device", help="cpu, cuda, ...; default: a GPU if there is one.")]
DeviceMapOption = Annotated[
    str | None,
    typer.Option("--device-map", help="Spread the model over several devices (accelerate's device_map, e.g. auto)."),
]
RunnerOption = Annotated[
    RunnerName,
    typer.Option(
        "--runner", help="How layers are computed; auto is the fastest. To trace a wrong number, try modules."
    ),
]
SeedOption = Annotated[int | None, typer.Option("--seed", help="Seed of the sampled contexts and the sampled text.")]
ConfigOption = Annotated[
    Path | None,
    typer.Option(
        "--config",
        callback=_checked_config,
        help="A YAML, JSON or TOML file of hyper-parameters, or one of EasyEdit's; overrides the preset.",
    ),
]
SetOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        callback=_checked_settings,
        help="Set one hyper-parameter; overrides preset and file. Repeatable.",
    ),
]
PresetOption = Annotated[
    str | None,
    typer.Option(
        "--preset",
        callback=_checked_preset,
        help="A preset of `betaedit models`, untuned, or a file of `betaedit calibrate`; default: the model's own.",
    ),
]
StatisticsOption = Annotated[
    Path | None, typer.Option("--statistics", help="Second moments from a file of `betaedit statistics --save`.")
]
FactsOption = Annotated[Path, typer.Option("--from", help="Facts with the prompts to measure on; - for a pipe.")]
LimitOption = Annotated[int | None, typer.Option("--limit", min=1, help="Use only the first N facts of the file.")]
SkipInvalidOption = Annotated[
    bool, typer.Option("--skip-invalid", help="Skip records that cannot be used, and list them.")
]
ZsreTargetOption = Annotated[
    Literal["alt", "answers"], typer.Option("--zsre-target", help="Which field of a zsRE record is written.")
]
BatchSizeOption = Annotated[int, typer.Option("--batch-size", min=1, help="Facts solved together.")]
ResetEveryOption = Annotated[
    int | None,
    typer.Option(
        "--reset-every",
        metavar="N",
        min=1,
        help="Write the facts in groups of N, each into the unedited model, and measure each group by itself; the "
        "figures are those over all facts.",
    ),
]
EvaluateAtOption = Annotated[
    str, typer.Option("--evaluate-at", help="Also measure after these numbers of edits: 30,300,1000.")
]
TextOption = Annotated[
    Path | None, typer.Option("--text", help="Held-out text for the perplexity; default: the package's own.")
]
AlsoOption = Annotated[
    str,
    typer.Option("--also", help="Slower figures: abilities,questions,tokens,chat,fluency,latency,retrieval; or all."),
]
TasksOption = Annotated[
    Path | None, typer.Option("--tasks", help="Folder of the ability tasks' files (cap_sst2.jsonl.gz, ...).")
]
TestsOption = Annotated[int, typer.Option("--tests", min=1, help="Items per ability task.")]
JudgeOption = Annotated[
    str | None,
    typer.Option(
        "--judge",
        help="URL of an OpenAI-compatible server that judges answers; default: answers are compared word by word.",
    ),
]
JudgeModelOption = Annotated[
    str | None, typer.Option("--judge-model", help="Name of the judge's model on that server.")
]
FormOption = Annotated[
    Literal["completion", "chat", "both"] | None,
    typer.Option("--form", help="Write for the plain prompt, for the chat template, or both; default: the preset's."),
]
ParaphrasesOption = Annotated[
    Literal["written", "unseen"] | None,
    typer.Option(
        "--paraphrases", help="written: a record's paraphrases are used in writing; unseen: they are only measured."
    ),
]
FailUnderOption = Annotated[
    float | None,
    typer.Option("--fail-under", min=0.0, max=1.0, help="Exit with code 10 if a smaller share of the facts is held."),
]
AllOption = Annotated[bool, typer.Option("--all", help="Show every fact, even if there are hundreds.")]
WorkspaceOption = Annotated[
    Path | None,
    typer.Option("--workspace", "-w", help="A workspace; default: the one that contains the current folder."),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout, and nothing else.")]


def say_skipped(rejected: Iterable[Rejected]) -> None:
    """List the records that are skipped on stderr, with what is wrong with each."""
    for record in rejected:
        typer.echo(f"skipped: {record.error}", err=True)


def overrides(config: Path | None, settings: list[str] | None, seed: int | None) -> dict[str, Any]:
    """The hyper-parameters of ``choose``, for commands of which betaedit is the method."""
    return choose("betaedit", config, settings, seed)[1]


def choose(
    method: str | None,
    config: Path | None,
    settings: list[str] | None,
    seed: int | None,
    *,
    default: str = "betaedit",
    training: bool = False,
) -> tuple[str, dict[str, Any]]:
    """The method, and the hyper-parameters the user gave: file, then ``--seed``, then ``--set``; later ones win.

    An EasyEdit file names the method where ``method`` does not; what is not used of it is said on stderr.

    Raises:
        ConfigError: The file cannot be read or is for another method, or a setting is not KEY=VALUE.
    """
    values: dict[str, Any] = {}
    if config is not None:
        from betaedit.editors.easyedit_file import is_easyedit, translate

        file = read_settings_file(config, _CONFIG_HINT)
        if is_easyedit(file.values):
            found = translate(file, method, training=training)
            _say(found.remarks)
            method, values = found.method, found.settings
        else:
            values = file.values
    return method or default, values | given(settings, seed)


def choose_for(
    variants: list[Variant], config: Path | None, settings: list[str] | None, seed: int | None
) -> tuple[list[Variant], dict[str, Any]]:
    """As ``choose`` for several methods: an EasyEdit file is for those of them that it fits, any other for all.

    Raises:
        ConfigError: As ``choose``; or the file fits none of them.
    """
    if config is None:
        return variants, given(settings, seed)
    from betaedit.editors.easyedit_file import fits, is_easyedit, translate

    file = read_settings_file(config, _CONFIG_HINT)
    if not is_easyedit(file.values):
        return variants, file.values | given(settings, seed)
    found = {each.method: translate(file, each.method) for each in variants if fits(file, each.method)}
    if not found:
        hint = f"Write --methods {translate(file).method},..."
        raise ConfigError(f"{config} is an EasyEdit file for a method that is not compared.", hint=hint)
    _say(dict.fromkeys(remark for each in found.values() for remark in each.remarks))
    filled = [replace(each, file=found[each.method].settings) if each.method in found else each for each in variants]
    return filled, given(settings, seed)


def _say(remarks: Iterable[str]) -> None:
    for remark in remarks:
        typer.echo(remark, err=True)


def given(settings: list[str] | None, seed: int | None) -> dict[str, Any]:
    """Hyper-parameters by options: ``--seed``, then ``--set``.

    Raises:
        ConfigError: A setting is not KEY=VALUE.
    """
    values: dict[str, Any] = {} if seed is None else {"seed": seed}
    for setting in settings or []:
        values |= _setting(setting, "--set", "Write --set value_clamp=1.0.")
    return values


def variants(text: str) -> list[Variant]:
    """Methods with commas between them, each with settings in brackets or none: ``memit,betaedit[ridge=3,layers=[4]]``.

    Raises:
        ConfigError: A bracket is not closed, or a setting is not KEY=VALUE.
    """
    from betaedit.experiments.variants import Variant

    hint = "Write --methods 'alphaedit,alphaedit[lookup=last]'."
    found = []
    for part in _split(text):
        match = re.fullmatch(r"([^\[\]]+)(?:\[(.*)\])?", part)
        if match is None:
            raise ConfigError(f"--methods: {part!r} is not a method with settings in brackets.", hint=hint)
        settings: dict[str, Any] = {}
        for setting in _split(match[2] or ""):
            settings |= _setting(setting, "--methods:", hint)
        found.append(Variant(match[1].strip(), settings))
    return found


def _setting(text: str, option: str, hint: str) -> dict[str, Any]:
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise ConfigError(f"{option} {text!r} is not KEY=VALUE.", hint=hint)
    return {key.strip(): _value(value)}


def _split(text: str) -> list[str]:
    """The parts between the commas outside brackets."""
    parts, depth = [""], 0
    for letter in text:
        depth += (letter == "[") - (letter == "]")
        if letter == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += letter
    return [part.strip() for part in parts if part.strip()]


def _value(text: str) -> Any:
    """A list, number or truth value if the text is one in YAML, else the text itself."""
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        return text
    return text if isinstance(value, dict) else value


def load_editor(
    model: str,
    method: str,
    *,
    dtype: Dtype,
    device: str | None,
    device_map: str | None,
    preset: str | None,
    values: dict[str, Any],
    statistics: Path | None,
    progress: Progress,
    own_facts: bool = False,
    runner: RunnerName = "auto",
) -> Editor:
    """The editor that the options describe; ``own_facts`` as in ``Editor.from_pretrained``."""
    from betaedit.compiled.library import NoCompilerError
    from betaedit.editors.editor import Editor
    from betaedit.models.runners.kernels import find_kernels

    quiet_libraries()
    editor = Editor.from_pretrained(
        model,
        method=method,
        dtype=dtype,
        device=device,
        device_map=device_map,
        runner=runner,
        preset=preset,
        statistics=statistics,
        progress=progress,
        own_facts=own_facts,
        **values,
    )
    if runner == "auto" and editor.language_model.device.type == "cpu" and isinstance(find_kernels(), NoCompilerError):
        logger.warning(
            "no C compiler was found; with one (gcc, clang, or the one that CC names) searches take half of the time."
        )
    return editor


def measures(
    text: Path | None,
    also: str,
    tasks: Path | None,
    n_tests: int,
    judge: str | None,
    judge_model: str | None,
    *,
    by_harness: bool = False,
    quick: bool = False,
) -> Measures:
    """What a checkpoint measures.

    ``by_harness`` says that lm-evaluation-harness reads the tasks, too; ``quick`` leaves drift out.

    Raises:
        ConfigError: A figure is unknown, abilities have no folder, or an option needs another that is missing.
    """
    from betaedit.experiments.record import EXTRAS

    extras = tuple(name for name in EXTRAS if name != "abilities" or tasks) if also == "all" else names(also)
    unknown = [name for name in extras if name not in EXTRAS]
    if unknown:
        raise ConfigError(f"--also: there is no figure {unknown[0]!r}.", hint=f"Choose from {', '.join(EXTRAS)}.")
    if "abilities" in extras and tasks is None:
        raise ConfigError(
            "--also abilities needs the files of its tasks.", hint="Name their folder with --tasks FOLDER."
        )
    if (judge is None) != (judge_model is None):
        raise ConfigError("--judge and --judge-model belong together.", hint="Give --judge URL and --judge-model NAME.")
    if judge is not None and "questions" not in extras:
        raise ConfigError("--judge needs --also questions.", hint="Add --also questions.")
    if tasks is not None and "abilities" not in extras and not by_harness:
        raise ConfigError("--tasks needs --also abilities.", hint="Add --also abilities.")
    if quick and text is not None:
        raise ConfigError("--text and --quick cannot be combined.", hint="Give one of them.")
    from betaedit.evaluation.judge import EndpointJudge, MatchJudge
    from betaedit.experiments.figures import Measures
    from betaedit.statistics.corpus import TextFiles

    return Measures(
        held_out=None if text is None else tuple(TextFiles((text,)).texts()),
        drift=not quick,
        extras=extras,
        abilities_folder=tasks,
        n_tests=n_tests,
        judge=MatchJudge()
        if judge is None
        else EndpointJudge(judge, judge_model or "", os.environ.get("BETAEDIT_JUDGE_KEY")),
    )


def numbers(option: str, text: str) -> list[int]:
    """A list of whole numbers with commas between them.

    Raises:
        ConfigError: A part is not a number.
    """
    try:
        return [int(part) for part in names(text)]
    except ValueError as error:
        raise ConfigError(f"{option} {text!r} is not a list of numbers.", hint=f"Write {option} 30,300.") from error


def names(text: str) -> tuple[str, ...]:
    """The parts of a list with commas between them."""
    return tuple(part.strip() for part in text.split(",") if part.strip())


def check_new(option: str, path: Path | None) -> None:
    """Refuse to overwrite anything but an empty folder, and a place that is not writable.

    Raises:
        ConfigError: The path exists and is not empty, or cannot be made.
    """
    if path is None:
        return
    from betaedit.files import holds_nothing

    if path.exists() and not (path.is_dir() and holds_nothing(path)):
        raise ConfigError(f"{option} {path} exists and is not empty.", hint="Name a new one.")
    place = next(place for place in (path, *path.absolute().parents) if place.exists())
    if not place.is_dir() or not os.access(place, os.W_OK):
        raise ConfigError(
            f"{option} {path}: cannot write to {place}.", hint="Name another place, or change its permissions."
        )


def quiet_libraries() -> None:
    """Turn off the libraries' own progress bars and notices; ours show the progress."""
    import huggingface_hub
    import transformers

    huggingface_hub.utils.logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    transformers.utils.logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    transformers.utils.logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")  # what peft still calls


def print_json(data: Any) -> None:
    """``data`` on stdout as one JSON object; in ASCII where stdout has no other letters."""
    shows_all = sys.stdout.encoding.lower().startswith("utf")
    typer.echo(json.dumps(data, ensure_ascii=not shows_all, indent=2))
