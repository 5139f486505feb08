"""Eigendecompositions of second moments, cached on disk: large ones take minutes to compute and seconds to read."""

from __future__ import annotations

import hashlib
import logging
import shutil
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from betaedit.files import atomic_write, clear_unfinished
from betaedit.memory.projector import Spectrum
from betaedit.paths import cache_folder
from betaedit.progress import Progress

logger = logging.getLogger(__name__)

_LEAST_WIDTH = 1024
"""Smaller ones are computed as fast as read."""

_ROUNDING = 1e-10

_ROOM_LEFT = 2
"""A spectrum is cached if the free disk space is at least this many times its size."""


def spectra(moments: Mapping[int, Tensor], progress: Progress) -> Iterator[tuple[int, Spectrum]]:
    """The spectrum of each layer's ``C0`` (d_in, d_in), one at a time, to save memory.

    Raises: NumericalError when a matrix is not finite.
    """
    files = {layer: _file(moment) for layer, moment in moments.items()}
    missing = {file for file in files.values() if file is not None and not _is_readable(file)}
    shown = progress.task("null spaces", len(missing), "layers") if missing else nullcontext()
    with shown as task:
        for layer, moment in moments.items():
            file = files[layer]
            found = _spectrum(moment, file, readable=file not in missing)
            if task is not None and file in missing:
                task.advance()
                if file.exists():  # layers may share a matrix
                    missing.remove(file)
            yield layer, found


def _file(moment: Tensor) -> Path | None:
    """Where its spectrum is kept; ``None`` if it is not."""
    if len(moment) < _LEAST_WIDTH:
        return None
    held = moment.detach().cpu().contiguous()
    digest = hashlib.sha256(f"{held.dtype} {tuple(held.shape)}".encode())
    digest.update(held.view(torch.uint8).numpy().data)
    return cache_folder("spectra") / f"{digest.hexdigest()[:24]}.safetensors"


def _is_readable(file: Path) -> bool:
    """Whether there is a whole file; says so if it is damaged."""
    if not file.exists():
        return False
    try:
        with safe_open(file, framework="pt") as held:
            found = set(held.keys())
    except (OSError, SafetensorError) as error:
        logger.warning("%s cannot be read (%s) and is computed again.", file, error)
        return False
    return found == {"values", "vectors"}


def _spectrum(moment: Tensor, file: Path | None, *, readable: bool) -> Spectrum:
    if file is None:
        return Spectrum.of(moment)
    if readable:
        held = Spectrum(**load_file(file, device=str(moment.device)))
        if _is_of(held, moment):
            return held
        logger.warning("%s has changed since it was written and is computed again.", file)
    found = Spectrum.of(moment)
    _keep(found, file)
    return found


def _is_of(held: Spectrum, moment: Tensor) -> bool:
    """Whether they are the same matrix, checked on one vector: a flipped bit on the disk would change every edit."""
    probe = torch.randn(len(moment), dtype=torch.float64, generator=torch.Generator().manual_seed(0)).to(moment.device)
    turned = held.vectors.T @ probe
    wanted, found = moment.double() @ probe, held.vectors @ (held.values * turned)
    lost = abs(float(turned.norm() / probe.norm()) - 1)
    return lost <= _ROUNDING and bool((found - wanted).norm() <= _ROUNDING * wanted.norm())


def _keep(found: Spectrum, file: Path) -> None:
    """Write it if there is room; without it only time is lost."""
    tensors = {"values": found.values, "vectors": found.vectors}
    try:
        if shutil.disk_usage(file.parent).free < _ROOM_LEFT * found.vectors.nbytes:
            logger.info("not enough disk space to cache %s", file)
            return
        clear_unfinished(file)  # another process that writes the same file continues without
        with atomic_write(file) as scratch:
            save_file(tensors, scratch)
    except (OSError, SafetensorError) as error:
        logger.warning("%s is not cached: %s", file, error)
