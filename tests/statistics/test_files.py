from __future__ import annotations

import threading
from pathlib import Path

import pytest

from betaedit.statistics.files import written_whole


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
