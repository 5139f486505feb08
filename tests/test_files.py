from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from betaedit.errors import ConfigError
from betaedit.files import file_errors, written_whole


def write(path: Path, text: str) -> None:
    with written_whole(path) as scratch:
        scratch.write_text(text)


def test_two_writers_of_a_file_at_once_do_not_meet_and_the_last_to_end_stays(tmp_path: Path):
    path = tmp_path / "block.json"
    with written_whole(path) as scratch:
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
