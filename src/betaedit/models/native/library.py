"""The kernels of kernels.c as a library of this process, compiled once for the processor and kept in the cache."""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path

import psutil

from betaedit.files import written_whole
from betaedit.paths import cache_folder

SWITCH = "BETAEDIT_NATIVE"
"""An environment variable: at 0 the kernels are left alone."""

_SOURCE = Path(__file__).with_name("kernels.c")
_COMPILERS = ("cc", "gcc", "clang")
# Not -ffast-math: linked with it, a library of gcc makes the whole process round tiny numbers to zero.
_OPTIONS = (
    *("-O3", "-mcpu=native" if platform.machine() == "aarch64" else "-march=native", "-ffp-contract=fast"),
    *("-fno-math-errno", "-fno-trapping-math", "-fassociative-math", "-fno-signed-zeros", "-shared", "-fPIC"),
)
_TEAM = ("GOMP_parallel", "omp_get_thread_num", "omp_get_num_threads")
_SECONDS = 120


class NoKernelsError(Exception):
    """Why there are no kernels here, in a few words."""


def load_library() -> ctypes.CDLL:
    """The library, its threads those of torch.

    Raises:
        NoKernelsError: There is no compiler, it fails, or torch's threads are not of a kind that can be used.
    """
    if os.environ.get(SWITCH) == "0":
        raise NoKernelsError(f"{SWITCH}=0")
    team, library = _team(), _loaded()
    library.use_team(*(ctypes.cast(getattr(team, name), ctypes.c_void_p) for name in _TEAM))
    return library


def _team() -> ctypes.CDLL:
    """The OpenMP library whose threads torch uses, with GNU's interface."""
    if sys.platform != "linux":
        raise NoKernelsError(f"not tried on {platform.system()}")
    mapped = [Path(each.path) for each in psutil.Process().memory_maps()]
    mapped.sort(key=lambda path: "torch" not in path.parts)  # other packages may bring one of their own
    for path in mapped:
        if path.name.startswith(("libgomp", "libiomp5", "libomp")):
            with suppress(OSError):
                library = ctypes.CDLL(str(path))
                if all(hasattr(library, name) for name in _TEAM):
                    return library
    raise NoKernelsError("torch runs without OpenMP")


def _loaded() -> ctypes.CDLL:
    path = _compiled()
    try:
        return ctypes.CDLL(str(path))
    except OSError:  # a damaged file is made again
        with suppress(OSError):
            path.unlink()
    try:
        return ctypes.CDLL(str(_compiled()))
    except OSError as error:
        raise NoKernelsError(str(error)) from error


def _compiled() -> Path:
    compiler = os.environ.get("CC") or next(filter(shutil.which, _COMPILERS), None)
    if compiler is None:
        raise NoKernelsError("no C compiler")
    command = [*compiler.split(), *_OPTIONS]
    version = _run([*compiler.split(), "--version"])
    made_of = "\n".join([*command, version, _processor(), _SOURCE.read_text(encoding="utf-8")])
    name = f"kernels-{hashlib.sha256(made_of.encode()).hexdigest()[:16]}.so"
    try:
        path = cache_folder("kernels") / name
        if not path.exists():
            with written_whole(path) as scratch:
                _run([*command, "-o", str(scratch), str(_SOURCE), "-lm"])
    except OSError:  # a cache that cannot be written to
        path = Path(tempfile.mkdtemp(prefix="betaedit-")) / name
        _run([*command, "-o", str(path), str(_SOURCE), "-lm"])
    return path


def _run(command: list[str]) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=_SECONDS)
    except (OSError, subprocess.SubprocessError) as error:
        said = (getattr(error, "stderr", "") or str(error)).strip().splitlines()
        raise NoKernelsError(f"{command[0]}: {said[0] if said else 'failed'}") from error
    return done.stdout


def _processor() -> str:
    """What the compiler looks at: a home may be shared by machines of several kinds."""
    told = Path("/proc/cpuinfo")
    lines = told.read_text(encoding="utf-8", errors="replace").splitlines() if told.exists() else []
    kinds = ("model name", "flags", "Features", "CPU part")
    return "\n".join([platform.machine(), *dict.fromkeys(line for line in lines if line.startswith(kinds))])
