"""Spectra of second moments are made once and kept."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import save

from betaedit.editors.closed_form import spectra as kept
from betaedit.errors import NumericalError
from betaedit.memory import Spectrum
from betaedit.progress import SilentProgress
from support.tiny import RecordedProgress

WIDTH = 12


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(kept, "_LEAST_WIDTH", WIDTH)
    monkeypatch.setenv("BETAEDIT_CACHE", str(tmp_path))
    return tmp_path / "spectra"


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Widths of the matrices that were decomposed."""
    widths: list[int] = []
    of = Spectrum.of.__func__

    def noted(cls: type[Spectrum], moment: torch.Tensor) -> Spectrum:
        widths.append(len(moment))
        return of(cls, moment)

    monkeypatch.setattr(Spectrum, "of", classmethod(noted))
    return widths


def moment(seed: int, width: int = WIDTH) -> torch.Tensor:
    keys = torch.randn(width, 3 * width, generator=torch.Generator().manual_seed(seed))
    return keys @ keys.T / keys.shape[1]


def spectrum(matrix: torch.Tensor) -> Spectrum:
    ((_, found),) = kept.spectra({0: matrix}, SilentProgress())
    return found


def test_a_spectrum_is_computed_once_and_read_again_bit_for_bit(made, folder) -> None:
    first, second = spectrum(moment(0)), spectrum(moment(0))
    assert made == [WIDTH]
    assert torch.equal(first.values, second.values)
    assert torch.equal(first.vectors, second.vectors)
    torch.testing.assert_close((second.vectors * second.values) @ second.vectors.T, moment(0).double())


def test_another_matrix_has_another_spectrum_even_if_one_number_differs(made) -> None:
    changed = moment(0)
    changed[3, 3] += 1e-6
    assert not torch.equal(spectrum(moment(0)).values, spectrum(changed).values)
    assert made == [WIDTH, WIDTH]


def test_narrow_matrices_leave_nothing_on_disk(made, folder) -> None:
    for _ in range(2):
        spectrum(moment(0, WIDTH - 1))
    assert made == [WIDTH - 1, WIDTH - 1]
    assert not folder.exists()


@pytest.mark.parametrize("left", [b"", b"\x10" + b"\0" * 50, save({"vectors": torch.eye(2)})])
def test_a_damaged_file_is_made_again(left, made, folder) -> None:
    whole = spectrum(moment(0))
    (file,) = folder.iterdir()
    file.write_bytes(left)
    assert torch.equal(spectrum(moment(0)).values, whole.values)
    assert torch.equal(spectrum(moment(0)).values, whole.values)
    assert made == [WIDTH, WIDTH]


@pytest.mark.parametrize("at", ["values", "vectors"])
def test_a_number_that_changed_on_disk_is_noticed(at, made, folder, caplog) -> None:
    whole = spectrum(moment(0))
    (file,) = folder.iterdir()
    held = {"values": whole.values.clone(), "vectors": whole.vectors.clone()}
    held[at].view(-1)[5] += 1e-6
    file.write_bytes(save(held))
    assert torch.equal(spectrum(moment(0)).vectors, whole.vectors)
    assert "computed again" in caplog.text
    assert made == [WIDTH, WIDTH]


def test_layers_that_share_a_matrix_share_its_spectrum(made) -> None:
    progress = RecordedProgress()
    assert len(list(kept.spectra(dict.fromkeys([0, 1, 2], moment(0)), progress))) == 3
    assert made == [WIDTH]
    assert [(task.total, sum(task.steps)) for task in progress.tasks] == [(1, 1)]


def test_what_a_killed_process_began_to_write_is_removed(folder) -> None:
    spectrum(moment(0))
    (file,) = folder.iterdir()
    file.unlink()
    file.with_name(f".{file.name}.7-7.writing").write_bytes(b"begun")
    spectrum(moment(0))
    assert list(folder.iterdir()) == [file]


def test_a_full_disk_costs_time_and_nothing_else(made, folder, monkeypatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(1, 1, 0))
    for _ in range(2):
        spectrum(moment(0))
    assert made == [WIDTH, WIDTH]
    assert not any(folder.iterdir())


@pytest.mark.parametrize("error", [PermissionError, SafetensorError])
def test_a_folder_that_cannot_be_written_costs_time_and_nothing_else(error, monkeypatch, made) -> None:
    def refuse(*_: object) -> None:
        raise error("read-only")

    monkeypatch.setattr(kept, "save_file", refuse)
    progress = RecordedProgress()
    for _, found in kept.spectra({3: moment(0), 4: moment(1)}, progress):
        assert len(found.values) == WIDTH
    assert [(task.total, sum(task.steps)) for task in progress.tasks] == [(2, 2)]


def test_only_what_must_be_computed_is_shown(folder) -> None:
    progress = RecordedProgress()
    for _ in range(2):
        assert [layer for layer, _ in kept.spectra({3: moment(0), 4: moment(1)}, progress)] == [3, 4]
    list(kept.spectra({4: moment(1), 5: moment(2)}, progress))
    next(folder.iterdir()).write_bytes(b"damaged")
    list(kept.spectra({3: moment(0), 4: moment(1), 5: moment(2)}, progress))
    shown = [(task.description, task.total, sum(task.steps), task.finished) for task in progress.tasks]
    assert shown == [("null spaces", 2, 2, True), *[("null spaces", 1, 1, True)] * 2]


def test_a_matrix_that_is_not_finite_is_refused_and_not_kept(folder) -> None:
    broken = moment(0)
    broken[0, 0] = torch.nan
    with pytest.raises(NumericalError, match="not finite"):
        list(kept.spectra({0: broken}, SilentProgress()))
    assert not any(folder.iterdir())
