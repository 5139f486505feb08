from __future__ import annotations

import errno
import os
import signal
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load, save_file

from betaedit.errors import ConfigError
from betaedit.files import atomic_folder, atomic_write, file_errors, holds_nothing


def write(path: Path, text: str) -> None:
    with atomic_write(path) as scratch:
        scratch.write_text(text)


def test_two_writers_of_a_file_at_once_do_not_meet_and_the_last_to_end_stays(tmp_path: Path):
    path = tmp_path / "block.json"
    with atomic_write(path) as scratch:
        scratch.write_text("slow")
        other = threading.Thread(target=write, args=(path, "quick"))
        other.start()
        other.join()
        assert path.read_text() == "quick"
    assert path.read_text() == "slow"
    assert list(tmp_path.iterdir()) == [path]


def test_a_writer_that_fails_leaves_the_file_as_it_was_and_nothing_else(tmp_path: Path):
    path = tmp_path / "block.json"
    path.write_text("before")
    with pytest.raises(UnicodeEncodeError):
        write(path, "half \ud800")
    assert path.read_text() == "before"
    assert list(tmp_path.iterdir()) == [path]


def test_a_link_stays_a_link_and_folders_are_made(tmp_path: Path):
    link, place = tmp_path / "link.json", tmp_path / "far" / "away.json"
    link.symlink_to(place)
    write(link, "text")
    assert link.is_symlink()
    assert place.read_text() == "text"


def test_a_pipe_is_written_to_and_not_replaced(tmp_path: Path):
    pipe, read = tmp_path / "pipe", []
    os.mkfifo(pipe)
    reader = threading.Thread(target=lambda: read.append(pipe.read_text()))
    reader.start()
    write(pipe, "text")
    reader.join()
    assert read == ["text"]
    assert pipe.is_fifo()


def test_what_cannot_be_written_is_an_error_that_names_it(tmp_path: Path):
    with (
        pytest.raises(ConfigError, match=rf"{tmp_path} cannot be written: .*directory"),
        file_errors(tmp_path, ConfigError),
    ):
        write(tmp_path, "text")


def fill(folder: Path, *names: str) -> None:
    """Put a file of each name there, as a library does it."""
    with atomic_folder(folder) as scratch:
        for name in names:
            (scratch / name).parent.mkdir(exist_ok=True)
            save_file({"weight": torch.ones(2)}, scratch / name)


@pytest.mark.parametrize("place", ["out", "far/away/out", "there"])
def test_a_folder_appears_whole(tmp_path: Path, place: str):
    (tmp_path / "there").mkdir()
    fill(tmp_path / place, "weights", "part/weights")
    assert sorted(file.name for file in (tmp_path / place).iterdir()) == ["part", "weights"]
    assert not list((tmp_path / place).parent.glob(".*"))


@pytest.mark.parametrize("place", ["out", "far/away/out", "there"])
@pytest.mark.parametrize(
    "error",
    [OSError(errno.ENOSPC, "full"), OSError(errno.EDQUOT, "quota"), SafetensorError("full"), KeyboardInterrupt()],
)
def test_a_folder_that_fails_leaves_nothing_and_can_be_written_later(tmp_path: Path, place: str, error: BaseException):
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "mine").write_text("text")
    before = sorted(tmp_path.rglob("*"))

    def fail() -> None:
        with atomic_folder(tmp_path / place) as scratch:
            (scratch / "half").write_text("text")
            raise error

    with pytest.raises(type(error)):
        fail()
    assert sorted(tmp_path.rglob("*")) == before
    fill(tmp_path / place, "weights")
    assert (tmp_path / place / "weights").exists()


def test_other_files_of_a_folder_stay_and_those_of_the_same_name_are_replaced(tmp_path: Path):
    (tmp_path / "mine").write_text("text")
    (tmp_path / "weights").write_text("old")
    fill(tmp_path, "weights")
    assert (tmp_path / "mine").read_text() == "text"
    assert (tmp_path / "weights").read_bytes() != b"old"


@pytest.mark.parametrize("place", ["out", "there"])
def test_what_a_killed_process_left_is_hidden_and_goes_with_the_next_one(tmp_path: Path, place: str):
    (tmp_path / "there").mkdir()
    code = (
        "import os, signal; from pathlib import Path; from betaedit.files import atomic_folder\n"
        f"with atomic_folder(Path({str(tmp_path / place)!r})) as scratch:\n"
        "    (scratch / 'half').write_text('text'); os.kill(os.getpid(), signal.SIGKILL)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == -signal.SIGKILL
    left = [file for file in tmp_path.rglob("*") if file.name == "half"]
    assert [file.parent.name[0] for file in left] == ["."]
    assert holds_nothing(tmp_path / "there")
    fill(tmp_path / place, "weights")
    assert [file.name for file in tmp_path.rglob("*") if file.is_file()] == ["weights"]


def test_a_folder_that_another_thread_is_writing_is_not_taken_for_left_over(tmp_path: Path):
    with atomic_folder(tmp_path) as scratch:
        (scratch / "slow").write_text("text")
        other = threading.Thread(target=fill, args=(tmp_path, "quick"))
        other.start()
        other.join()
        assert sorted(file.name for file in tmp_path.iterdir()) == [scratch.name, "quick"]
    assert sorted(file.name for file in tmp_path.iterdir()) == ["quick", "slow"]


@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002])
def test_rights_are_those_of_the_umask_whatever_library_writes(tmp_path: Path, umask: int):
    before = os.umask(umask)
    try:
        fill(tmp_path / "new", "weights")
        fill(tmp_path, "weights")
        with atomic_write(tmp_path / "file") as scratch:
            save_file({"weight": torch.ones(2)}, scratch)
    finally:
        os.umask(before)
    for file in ("new/weights", "weights", "file"):
        assert stat.S_IMODE((tmp_path / file).stat().st_mode) == 0o666 & ~umask
    assert stat.S_IMODE((tmp_path / "new").stat().st_mode) == 0o777 & ~umask


def test_a_pipe_is_not_replaced_by_a_library_that_renames(tmp_path: Path):
    pipe, read = tmp_path / "pipe", []
    os.mkfifo(pipe)
    reader = threading.Thread(target=lambda: read.append(pipe.read_bytes()))
    reader.start()
    with atomic_write(pipe) as scratch:
        save_file({"weight": torch.ones(2)}, scratch)
    reader.join()
    assert load(read[0])["weight"].tolist() == [1, 1]
    assert pipe.is_fifo()


@pytest.mark.parametrize("name", ["file", "file/below"])
def test_a_file_in_the_place_of_a_folder_stays(tmp_path: Path, name: str):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(OSError, match="file"):
        fill(tmp_path / name, "weights")
    assert (tmp_path / "file").read_text() == "mine"
