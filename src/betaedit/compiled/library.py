"""Compiles a C source for this processor, caches the library and loads it."""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

from betaedit.files import atomic_write
from betaedit.paths import cache_folder

SWITCH = "BETAEDIT_NATIVE"
"""An environment variable; 0 disables the kernels."""

_SHARED = Path(__file__).with_name("team.h")
_COMPILERS = ("cc", "gcc", "clang")
# Not -ffast-math: linked with it, a library of gcc makes the whole process round tiny numbers to zero.
_OPTIONS = (
    *("-O3", "-mcpu=native" if platform.machine() == "aarch64" else "-march=native", "-ffp-contract=fast"),
    *("-fno-math-errno", "-fno-trapping-math", "-fopenmp-simd", "-shared", "-fPIC"),
)
_TEAM = ("GOMP_parallel", "omp_get_thread_num", "omp_get_num_threads")
_SECONDS = 120


_Bound = TypeVar("_Bound")


class NoKernelsError(Exception):
    """The reason why there are no kernels."""


class NoCompilerError(NoKernelsError):
    """There is no C compiler."""


def find_bound(
    source: Path, bind: Callable[[ctypes.CDLL], _Bound], agrees: Callable[[_Bound], bool]
) -> _Bound | NoKernelsError:
    """The result of ``bind`` on the library of ``source``, or the reason why none ``agrees`` with torch."""
    try:
        bound = bind(load_library(source))
    except NoKernelsError as error:
        return error
    return bound if agrees(bound) else NoKernelsError("the compiled code does not agree with torch")


def load_library(source: Path) -> ctypes.CDLL:
    """The library of ``source``, which includes ``team.h``; its threads are those of torch.

    Raises:
        NoKernelsError: There is no compiler, it fails, or torch's thread library cannot be used.
    """
    if os.environ.get(SWITCH) == "0":
        raise NoKernelsError(f"{SWITCH}=0")
    try:
        team, library = _team(), _loaded(source)
    except OSError as error:
        raise NoKernelsError(str(error)) from error
    library.use_team(*(ctypes.cast(getattr(team, name), ctypes.c_void_p) for name in _TEAM))
    return library


def _team() -> ctypes.CDLL:
    """The OpenMP library whose threads torch uses, with GNU's interface."""
    if sys.platform != "linux":
        raise NoKernelsError(f"not tried on {platform.system()}")
    lines = Path("/proc/self/maps").read_text(encoding="utf-8", errors="replace").splitlines()
    mapped = [Path(path) for path in dict.fromkeys(line[line.find("/") :] for line in lines if "/" in line)]
    mapped.sort(key=lambda path: not {"torch", "torch.libs"} & set(path.parts[-3:]))  # other packages have their own
    for path in mapped:
        if path.name.startswith(("libgomp", "libiomp5", "libomp")):
            with suppress(OSError):
                library = ctypes.CDLL(str(path))
                if all(hasattr(library, name) for name in _TEAM):
                    return library
    raise NoKernelsError("torch runs without OpenMP")


def describe_library(source: Path) -> str:
    """The state of the library of ``source``, in a few words; nothing is compiled or loaded."""
    try:
        if os.environ.get(SWITCH) == "0":
            raise NoKernelsError(f"{SWITCH}=0")
        compiler = _compiler()
        made = (cache_folder("kernels") / _name(source, compiler)).is_file()
    except (NoKernelsError, OSError) as error:
        return f"none, so value searches on a CPU take longer ({error})"
    return "compiled for this processor" if made else f"compiled when they are first needed, by {compiler[0]}"


def _loaded(source: Path) -> ctypes.CDLL:
    """The cached library, or a new one if there is none or it cannot be loaded."""
    compiler = _compiler()
    name = _name(source, compiler)
    kept: Path | None = None
    with suppress(OSError):
        kept = cache_folder("kernels") / name
        if kept.stat().st_uid in (0, os.getuid()):  # do not run code of another user
            return ctypes.CDLL(str(kept))
    with tempfile.TemporaryDirectory(prefix="betaedit-") as folder:
        made = Path(folder) / name
        _run([*compiler, *_OPTIONS, f"-I{_SHARED.parent}", "-o", str(made), str(source), "-lm"])
        if kept is not None:
            with suppress(OSError), atomic_write(kept) as scratch:
                shutil.copyfile(made, scratch)
        return ctypes.CDLL(str(made))


def _compiler() -> list[str]:
    """The command of a C compiler."""
    named = os.environ.get("CC") or next(filter(shutil.which, _COMPILERS), None)
    if named is None:
        raise NoCompilerError("no C compiler")
    return shlex.split(named)


def _name(source: Path, compiler: list[str]) -> str:
    """The file name, from a hash of everything that affects its content."""
    texts = [file.read_text(encoding="utf-8") for file in (_SHARED, source)]
    made_of = "\n".join([*compiler, *_OPTIONS, _run([*compiler, "--version"]), _processor(), *texts])
    return f"{source.stem}-{hashlib.sha256(made_of.encode()).hexdigest()[:16]}.so"


def _run(command: list[str]) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=True, timeout=_SECONDS)
    except (OSError, subprocess.SubprocessError) as error:
        said = (getattr(error, "stderr", "") or str(error)).strip().splitlines()
        first = next((line for line in said if "error" in line), (said or ["failed"])[0])
        raise NoKernelsError(f"{command[0]}: {first}") from error
    return done.stdout


def _processor() -> str:
    """The processor as the compiler sees it: a home may be shared by several kinds of machines."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines() if cpuinfo.exists() else []
    kinds = ("model name", "flags", "Features", "CPU part")
    return "\n".join([platform.machine(), *dict.fromkeys(line for line in lines if line.startswith(kinds))])
