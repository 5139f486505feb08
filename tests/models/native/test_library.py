"""The kernels are compiled once for a processor, and where that fails there are none, with a reason."""

from __future__ import annotations

import ctypes
import subprocess
from pathlib import Path
from typing import Any

import pytest

from betaedit.models.native import library
from betaedit.models.native.kernels import find_kernels
from betaedit.models.native.library import SWITCH, NoKernelsError, load_library


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, on a machine that has a compiler."""
    found = find_kernels()
    if isinstance(found, NoKernelsError):
        pytest.skip(f"no kernels on this machine: {found}")
    monkeypatch.setenv("BETAEDIT_CACHE", str(tmp_path))
    return tmp_path / "kernels"


def compilations(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The commands that compile something from now on."""
    commands: list[list[str]] = []
    run = subprocess.run

    def heard(command: list[str], **options: Any) -> Any:
        if "-o" in command:
            commands.append(command)
        return run(command, **options)

    monkeypatch.setattr(library.subprocess, "run", heard)
    return commands


def test_a_library_is_compiled_once_and_kept(cache: Path, monkeypatch: pytest.MonkeyPatch):
    commands = compilations(monkeypatch)
    assert isinstance(load_library(), ctypes.CDLL)
    (made,) = cache.iterdir()
    load_library()
    assert (len(commands), list(cache.iterdir())) == (1, [made])


def test_another_processor_or_compiler_gets_a_library_of_its_own(cache: Path, monkeypatch: pytest.MonkeyPatch):
    load_library()
    monkeypatch.setattr(library, "_processor", lambda: "another")
    load_library()
    monkeypatch.setattr(library, "_OPTIONS", (*library._OPTIONS, "-DOTHER"))
    load_library()
    assert len(list(cache.iterdir())) == 3


def test_a_damaged_library_is_made_again(cache: Path):
    made = library._compiled()
    made.write_bytes(b"damaged")
    load_library()
    assert list(cache.iterdir()) == [made]
    assert made.stat().st_size > 1000


@pytest.mark.usefixtures("cache")
def test_a_cache_from_which_nothing_can_be_loaded_leaves_none(monkeypatch: pytest.MonkeyPatch):
    load = ctypes.CDLL

    def refuse(name: str) -> ctypes.CDLL:
        if "kernels" in name:
            raise OSError("failed to map segment from shared object")
        return load(name)

    monkeypatch.setattr(library.ctypes, "CDLL", refuse)
    with pytest.raises(NoKernelsError, match="failed to map"):
        load_library()


def test_a_cache_that_cannot_be_written_to_costs_a_compilation_each_time(cache: Path, monkeypatch: pytest.MonkeyPatch):
    def refuse(*_: str) -> Path:
        raise PermissionError("read only")

    monkeypatch.setattr(library, "cache_folder", refuse)
    commands = compilations(monkeypatch)
    load_library()
    load_library()
    assert (len(commands), cache.exists()) == (2, False)


@pytest.mark.usefixtures("cache")
@pytest.mark.parametrize(
    ("settings", "compilers", "reason"),
    [
        ({SWITCH: "0"}, None, f"{SWITCH}=0"),
        ({}, (), "no C compiler"),
        ({"CC": "/no/such/compiler"}, None, "/no/such/compiler"),
        ({"CC": "false"}, None, "false"),
    ],
    ids=["switched off", "no compiler", "a compiler that is not there", "a compiler that fails"],
)
def test_without_a_compiler_that_works_there_are_none(
    settings: dict[str, str], compilers: tuple[str, ...] | None, reason: str, monkeypatch: pytest.MonkeyPatch
):
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    if compilers is not None:
        monkeypatch.delenv("CC", raising=False)
        monkeypatch.setattr(library, "_COMPILERS", compilers)
    with pytest.raises(NoKernelsError, match=reason):
        load_library()


def test_without_threads_that_can_be_shared_there_are_none(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(library, "_TEAM", ("no_such_function",))
    with pytest.raises(NoKernelsError, match=r"OpenMP|not tried"):
        load_library()
