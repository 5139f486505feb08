from __future__ import annotations

import gzip
import io
import json
import os
import sys
import threading
from pathlib import Path

import pytest

from betaedit.errors import FactError
from betaedit.facts import check_facts, iter_records, read_cases
from betaedit.facts.sources import source_name

ROWS = [
    {"subject": "Zürich", "prompt": "{} is in", "target_new": "Spain"},
    {"subject": "Rome\u2028City", "prompt": "{} is in", "target_new": "Peru"},
]
JSONL = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS)
JSON = json.dumps(ROWS, indent=2, ensure_ascii=False)
CSV = "subject,prompt,target_new\nZürich,{} is in,Spain\nRome\u2028City,{} is in,Peru\n"
TEXTS = {".jsonl": JSONL, ".json": JSON, ".csv": CSV}


def subjects(path: str | Path) -> list[str]:
    return [case.fact.subject for case in read_cases(path).cases]


@pytest.fixture
def piped(monkeypatch: pytest.MonkeyPatch):
    """Makes bytes the standard input."""

    def pipe(content: bytes) -> None:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))

    return pipe


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
@pytest.mark.parametrize("kind", TEXTS)
def test_a_file_is_read_in_every_encoding_that_has_a_mark(tmp_path: Path, kind: str, encoding: str, packed: bool):
    path = tmp_path / f"f{kind}{'.gz' if packed else ''}"
    raw = TEXTS[kind].encode(encoding)
    path.write_bytes(gzip.compress(raw) if packed else raw)
    assert subjects(path) == ["Zürich", "Rome\u2028City"]


@pytest.mark.parametrize("kind", TEXTS)
def test_a_long_file_in_another_encoding_is_cut_nowhere(tmp_path: Path, kind: str):
    path, name = tmp_path / f"f{kind}", "ü𝄞" * 70_000
    path.write_bytes(TEXTS[kind].replace("Zürich", name).encode("utf-16"))
    assert subjects(path)[0] == name


def test_broken_utf_16_is_told_by_its_name(tmp_path: Path):
    path = tmp_path / "f.jsonl"
    path.write_bytes(JSONL.encode("utf-16") + b"\x00\xd8\x0a\x00")
    with pytest.raises(FactError, match=r"not UTF-16.*Save the file as UTF-8"):
        read_cases(path)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
@pytest.mark.parametrize("kind", TEXTS)
@pytest.mark.parametrize("name", ["-", "/dev/stdin"])
def test_standard_input_is_read_by_what_it_holds(piped, name: str, kind: str, encoding: str, packed: bool):
    raw = TEXTS[kind].encode(encoding)
    piped(gzip.compress(raw) if packed else raw)
    file = read_cases(name)
    assert [case.fact.subject for case in file.cases] == ["Zürich", "Rome\u2028City"]
    assert file.path == Path("standard input")


@pytest.mark.parametrize("kind", TEXTS)
def test_a_named_pipe_is_read_under_its_name(tmp_path: Path, kind: str):
    path = tmp_path / "facts"
    os.mkfifo(path)
    writer = threading.Thread(target=path.write_text, args=(TEXTS[kind],))
    writer.start()
    file = read_cases(path)
    writer.join()
    assert (len(file.cases), file.path) == (2, path)


@pytest.mark.parametrize("kind", TEXTS)
def test_what_a_shell_hands_over_under_a_number_is_read(tmp_path: Path, kind: str):
    # As <(...), a pipe; and as 3< FILE, a file whose name is not told.
    (tmp_path / "facts").write_text(TEXTS[kind])
    reading, writing = os.pipe()
    os.write(writing, TEXTS[kind].encode())
    os.close(writing)
    with (tmp_path / "facts").open() as file:
        for number in (reading, file.fileno()):
            found = read_cases(f"/dev/fd/{number}")
            assert (len(found.cases), found.path) == (2, Path("a pipe"))
    os.close(reading)


def test_an_error_in_a_pipe_names_it_and_the_line(piped):
    piped(JSONL.encode() + b"{")
    with pytest.raises(FactError, match=r"^standard input:3: this is not JSON"):
        read_cases("-")


def test_every_reader_takes_a_pipe(piped):
    piped(JSONL.encode())
    assert [line for line, _ in iter_records("-")] == [1, 2]
    piped(JSON.encode())
    found = check_facts("-")
    assert (found.facts, found.to_dict()["path"]) == (2, "standard input")


def test_an_empty_pipe_holds_no_record(piped):
    piped(b"")
    with pytest.raises(FactError, match="standard input: the file holds no record"):
        read_cases("-")
    with pytest.raises(FactError, match="holds no record"):
        read_cases("/dev/null")


@pytest.mark.parametrize("closed", [False, True])
def test_a_terminal_or_nothing_where_a_pipe_should_be_is_told(monkeypatch: pytest.MonkeyPatch, closed: bool):
    leader, terminal = os.openpty()
    with os.fdopen(terminal) as stdin:
        monkeypatch.setattr(sys, "stdin", None if closed else stdin)
        with pytest.raises(FactError, match=r"nothing is piped in.*cat facts\.jsonl"):
            read_cases("-")
        with pytest.raises(FactError, match="nothing is piped in"):
            read_cases(os.ttyname(terminal))
    os.close(leader)


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("-", "standard input"),
        (Path("/dev/stdin"), "standard input"),
        ("/dev/fd/63", "a pipe"),
        ("/proc/self/fd/9", "a pipe"),
        ("facts.jsonl", "facts.jsonl"),
        ("dataset:ann/facts", "dataset:ann/facts"),
    ],
)
def test_a_record_of_the_work_says_where_facts_came_from(path: str | Path, name: str):
    assert source_name(path) == name
