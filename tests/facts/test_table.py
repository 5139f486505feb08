from __future__ import annotations

from pathlib import Path

import pytest

from betaedit.errors import FactError
from betaedit.facts import Fact, Rejected, iter_results, read_cases

FACT = Fact("The capital of {} is", "Japan", "Rome", None, "own-2")


def written(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


@pytest.fixture
def table(tmp_path: Path):
    return lambda text, name="f.csv": written(tmp_path / name, text)


def reason(path: Path) -> FactError:
    (result,) = iter_results(path)
    assert isinstance(result, Rejected)
    return result.error


@pytest.mark.parametrize(
    "text",
    [
        ",subject,prompt,target_new\n0,Japan,The capital of {} is,Rome\n",
        "Unnamed: 0,subject,prompt,target_new\n17,Japan,The capital of {} is,Rome\n",
        "Unnamed: 0.1,Unnamed: 0,subject,prompt,target_new\n0,0,Japan,The capital of {} is,Rome\n",
        ";subject;prompt;target_new\n0;Japan;The capital of {} is;Rome\n",
    ],
)
def test_the_row_numbers_of_pandas_are_passed_over(table, text: str):
    assert [case.fact for case in read_cases(table(text)).cases] == [FACT]


@pytest.mark.parametrize(
    "text",
    [
        ",subject,prompt,target_new\nfirst,Japan,The capital of {} is,Rome\n",
        "subject,prompt,,target_new\nJapan,The capital of {} is,7,Rome\n",
        "Unnamed: 0,subject,prompt,target_new\n1.5,Japan,The capital of {} is,Rome\n",
    ],
)
def test_another_column_without_a_header_is_to_be_named_or_dropped(table, text: str):
    error = reason(table(text))
    assert "has no header" in error.message
    assert "Name or drop that column (in pandas: to_csv(..., index=False))" in error.hint


@pytest.mark.parametrize("separator", [",", ";", "\t"])
@pytest.mark.parametrize("name", ["f.csv", "f.tsv"])
def test_cells_are_separated_by_commas_semicolons_or_tabs(table, separator: str, name: str):
    text = 'subject,prompt,target_new\nJapan,The capital of {} is,Rome\n"a,b;c\td",{} is,"1,5"\n'
    first, second = read_cases(table(text.replace(",", separator), name)).cases
    assert first.fact == FACT
    assert second.fact.target_new == f"1{separator}5"


def test_cells_of_a_spreadsheet_with_decimal_commas_keep_them(table):
    path = table("subject;prompt;target_new\nPi, roughly;The value of {} is;3,14\n")
    assert read_cases(path).cases[0].fact == Fact("The value of {} is", "Pi, roughly", "3,14", None, "own-2")


@pytest.mark.parametrize(
    "text",
    [
        "sep=;\nsubject;prompt;target_new\nJapan;The capital of {} is;Rome\n",
        "sep=|\r\nsubject|prompt|target_new\r\nJapan|The capital of {} is|Rome\r\n",
        "\n\nsubject,prompt,target_new\nJapan,The capital of {} is,Rome\n",
    ],
)
def test_lines_above_the_headers_are_passed_over_and_counted(table, text: str):
    (case,) = read_cases(table(text)).cases
    assert case.fact.text == FACT.text
    assert case.fact.id == f"own-{text.count(chr(10))}"


@pytest.mark.parametrize("length", [131_072, 131_073, 500_000])
def test_a_long_cell_is_read(table, length: int):
    path = table(f"subject,prompt,target_new,note\nJapan,The capital of {{}} is,Rome,{'x' * length}\n")
    assert read_cases(path).cases[0].fact == FACT


def test_a_key_that_comes_twice_in_a_question_is_refused(table):
    question = '"{""prompt"": ""a"", ""prompt"": ""b"", ""answers"": ""c"", ""group"": ""reasoning""}"'
    error = reason(table(f"subject,prompt,target_new,questions\nJapan,{{}} is,Rome,{question}\n"))
    assert (error.line, error.field) == (2, "questions")
    assert "the key 'prompt' occurs twice" in error.message
