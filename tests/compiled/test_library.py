"""The kernels are compiled once for a processor, and where that fails there are none, with a reason."""

from __future__ import annotations

import ctypes
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from betaedit.compiled import library
from betaedit.compiled.library import SWITCH, NoKernelsError, load_library
from betaedit.memory.reading import _SOURCE as SOURCE
from betaedit.memory.reading import find_reader


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, on a machine that has a compiler."""
    found = find_reader()
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
    assert isinstance(load_library(SOURCE), ctypes.CDLL)
    (made,) = cache.iterdir()
    load_library(SOURCE)
    assert (len(commands), list(cache.iterdir())) == (1, [made])


def test_another_processor_or_compiler_gets_a_library_of_its_own(cache: Path, monkeypatch: pytest.MonkeyPatch):
    load_library(SOURCE)
    monkeypatch.setattr(library, "_processor", lambda: "another")
    load_library(SOURCE)
    monkeypatch.setattr(library, "_OPTIONS", (*library._OPTIONS, "-DOTHER"))
    load_library(SOURCE)
    assert len(list(cache.iterdir())) == 3


def spoil(cache: Path) -> None:
    """Something of the right name that is no library, from another process."""
    (made,) = cache.iterdir()
    made.unlink()
    made.write_bytes(b"damaged")


def test_a_damaged_library_is_made_again(cache: Path, monkeypatch: pytest.MonkeyPatch):
    in_another_process()
    spoil(cache)
    commands = compilations(monkeypatch)
    load_library(SOURCE)
    (made,) = cache.iterdir()
    assert (len(commands), made.stat().st_size > 1000) == (1, True)


def in_another_process() -> None:
    imports = "from pathlib import Path; import torch; from betaedit.compiled.library import load_library"
    work = f"{imports}; load_library(Path({str(SOURCE)!r}))"
    subprocess.run([sys.executable, "-c", work], check=True)


def test_a_library_that_somebody_else_put_there_is_not_loaded(cache: Path, monkeypatch: pytest.MonkeyPatch):
    in_another_process()
    loaded: list[str] = []
    load = ctypes.CDLL
    monkeypatch.setattr(library.ctypes, "CDLL", lambda name: (loaded.append(name), load(name))[1])
    monkeypatch.setattr(library.os, "getuid", lambda: 12345)
    uid = next(cache.iterdir()).stat().st_uid
    load_library(SOURCE)
    assert (str(cache) in "".join(loaded)) == (uid == 0)


@pytest.mark.parametrize("error", [PermissionError("read only"), OSError("no space left on device")], ids=str)
@pytest.mark.parametrize("place", ["cache_folder", "atomic_write"])
def test_a_cache_that_takes_nothing_costs_a_compilation_each_time(
    cache: Path, place: str, error: OSError, monkeypatch: pytest.MonkeyPatch
):
    def refuse(*_: object) -> Path:
        raise error

    monkeypatch.setattr(library, place, refuse)
    commands = compilations(monkeypatch)
    load_library(SOURCE)
    load_library(SOURCE)
    assert len(commands) == 2
    assert not cache.exists() or not list(cache.iterdir())


@pytest.mark.usefixtures("cache")
def test_nothing_that_is_compiled_is_left_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr(library.tempfile, "tempdir", str(scratch))
    load_library(SOURCE)
    assert list(scratch.iterdir()) == []


@pytest.mark.usefixtures("cache")
def test_a_machine_on_which_nothing_can_be_loaded_has_none(monkeypatch: pytest.MonkeyPatch):
    load = ctypes.CDLL

    def refuse(name: str) -> ctypes.CDLL:
        if SOURCE.stem in name:
            raise OSError("failed to map segment from shared object")
        return load(name)

    monkeypatch.setattr(library.ctypes, "CDLL", refuse)
    with pytest.raises(NoKernelsError, match="failed to map"):
        load_library(SOURCE)


@pytest.mark.usefixtures("cache")
def test_a_package_without_its_source_has_none(tmp_path: Path):
    with pytest.raises(NoKernelsError, match=r"missing\.c"):
        load_library(tmp_path / "missing.c")


@pytest.mark.usefixtures("cache")
def test_a_compiler_that_knows_its_version_and_no_more_gives_its_first_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    script = tmp_path / "a compiler"
    script.write_text(
        '#!/bin/sh\ncase "$*" in *-o*) echo In function f: >&2; echo error: no such thing >&2; exit 1;; esac\n'
    )
    script.chmod(0o755)
    monkeypatch.setenv("CC", f"'{script}'")
    with pytest.raises(NoKernelsError, match="error: no such thing"):
        load_library(SOURCE)


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
        load_library(SOURCE)


def test_without_threads_that_can_be_shared_there_are_none(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(library, "_TEAM", ("no_such_function",))
    with pytest.raises(NoKernelsError, match=r"OpenMP|not tried"):
        load_library(SOURCE)
