from __future__ import annotations

import gzip
import json
import subprocess
import sys
import tracemalloc
from collections import Counter, defaultdict
from pathlib import Path

import pytest

from betaedit.errors import FactError
from betaedit.facts import check_facts, demo_path
from betaedit.facts.check import Conflict, Duplicate, RejectedRecord
from support.data import data_file
from support.facts import long_file

ROME = {"subject": "Rome", "prompt": "{} is in", "target_new": "France"}
PISA = {"subject": "Pisa", "prompt": "{} is in", "target_new": "France"}


def written(path: Path, *records: object) -> Path:
    text = "\n".join(record if isinstance(record, str) else json.dumps(record) for record in records)
    with gzip.open(path, "wt") if path.suffix == ".gz" else path.open("w") as file:
        file.write(text)
    return path


def test_prompts_are_counted_by_kind(tmp_path: Path):
    asked = [{"prompt": "a", "answers": "b", "group": group} for group in ("multi_hop", "multi_hop", "reasoning")]
    more = {"paraphrases": ["a", "b"], "neighbors": ["c"], "generation_prompts": ["d"], "questions": asked}
    check = check_facts(written(tmp_path / "f.jsonl", ROME | more, PISA | more))
    assert (check.format, check.records, check.facts, check.n_rejected) == ("own", 2, 2, 0)
    assert check.prompts == {
        "paraphrases": 4,
        "neighbors": 2,
        "generation_prompts": 2,
        "questions.multi_hop": 4,
        "questions.reasoning": 2,
    }


def test_a_fact_met_before_is_a_duplicate_and_one_of_another_target_a_conflict(tmp_path: Path):
    spain, malta = ROME | {"target_new": "Spain"}, ROME | {"target_new": "Malta"}
    other_prompt = ROME | {"prompt": "{} lies in"}
    path = written(tmp_path / "f.jsonl", ROME, PISA, spain, ROME, malta, spain, other_prompt)
    check = check_facts(path)
    assert check.duplicates == [
        Duplicate("Rome", "{} is in", "France", 4, 1),
        Duplicate("Rome", "{} is in", "Spain", 6, 3),
    ]
    assert check.conflicts == [Conflict("Rome", "{} is in", [1, 3, 5])]
    assert (check.n_duplicates, check.n_conflicts, check.n_rejected) == (2, 1, 0)
    assert (check.subjects, check.repeated_subjects, check.facts_of_repeated_subjects) == (2, 1, 6)
    assert check.worst_subjects == [("Rome", 6)]


def test_facts_of_one_record_are_compared_with_each_other(tmp_path: Path):
    rewrite = {"prompt": "{} is in", "subject": "Rome", "target_new": {"str": "Spain"}}
    record = {
        "requested_rewrite": [rewrite, rewrite, rewrite | {"target_new": {"str": "Peru"}}],
        "questions": [],
        "new_answer": "x",
    }
    check = check_facts(written(tmp_path / "f.jsonl", record))
    assert (check.records, check.facts) == (1, 3)
    assert [(one.line, one.first_line) for one in check.duplicates] == [(1, 1)]
    assert [one.lines for one in check.conflicts] == [[1, 1]]


def test_the_five_subjects_of_most_facts_are_named(tmp_path: Path):
    rows = [
        {"subject": name, "prompt": "{} is in", "target_new": str(n)}
        for name, number in {"a": 1, "b": 2, "c": 7, "d": 3, "e": 2, "f": 2, "g": 4}.items()
        for n in range(number)
    ]
    check = check_facts(written(tmp_path / "f.jsonl", *rows))
    assert check.worst_subjects == [("c", 7), ("g", 4), ("d", 3), ("b", 2), ("e", 2)]
    assert (check.subjects, check.repeated_subjects) == (7, 6)


@pytest.mark.parametrize("name", ["f.jsonl", "f.jsonl.gz"])
def test_every_record_that_cannot_be_used_is_listed_with_line_field_and_reason(tmp_path: Path, name: str):
    known = ROME | {"target_true": "France"}
    path = written(tmp_path / name, ROME, {"subject": "Pisa"}, PISA | {"target_new": " "}, known, '{"subject": "Ly')
    check = check_facts(path)
    assert (check.records, check.facts, check.n_rejected) == (5, 1, 4)
    assert [(one.line, one.field) for one in check.rejected] == [
        (2, "prompt"),
        (3, "target_new"),
        (4, "target_new"),
        (5, None),
    ]
    assert [one.reason.partition(":")[0] for one in check.rejected[1:]] == [
        "the new target is empty.",
        "old and new target are both 'France'",
        "this is not JSON",
    ]
    assert (check.n_unchanged, check.unchanged_lines) == (1, [4])


def test_another_encoding_is_told_by_line(tmp_path: Path):
    path = tmp_path / "f.jsonl"
    path.write_bytes(json.dumps(ROME).encode() + b'\n{"subject": "L\xe9on"}\n' + json.dumps(PISA).encode())
    check = check_facts(path)
    assert (check.records, check.facts) == (3, 2)
    assert check.rejected == [
        RejectedRecord(2, None, "this is not UTF-8: invalid continuation byte.", "Save the file as UTF-8.")
    ]


def test_a_file_that_breaks_off_is_counted_as_far_as_it_goes(tmp_path: Path):
    path = tmp_path / "f.json"
    path.write_text(f"[{json.dumps(ROME)},\n{json.dumps(PISA)[:-5]}")
    check = check_facts(path)
    assert (check.facts, check.n_rejected, check.rejected[0].line) == (1, 1, 2)


def test_a_file_of_which_nothing_can_be_read_is_an_error(tmp_path: Path):
    with pytest.raises(FactError, match="no such file"):
        check_facts(tmp_path / "none.jsonl")
    with pytest.raises(FactError, match="no record"):
        check_facts(written(tmp_path / "empty.jsonl"))


def test_records_without_a_known_format_are_all_rejected(tmp_path: Path):
    check = check_facts(written(tmp_path / "f.jsonl", {"a": 1}, {"b": 1}))
    assert (check.format, check.records, check.facts, check.n_rejected) == (None, 2, 0, 2)


def test_a_limit_is_one_of_records(tmp_path: Path):
    check = check_facts(written(tmp_path / "f.jsonl", ROME, "{", PISA), limit=2)
    assert (check.records, check.facts, check.n_rejected) == (2, 1, 1)


def test_a_check_is_plain_data(tmp_path: Path):
    check = check_facts(written(tmp_path / "f.jsonl", ROME, ROME | {"target_new": "Peru"}, "{"))
    data = json.loads(json.dumps(check.to_dict()))
    assert data["path"] == str(tmp_path / "f.jsonl")
    assert data["conflicts"] == [{"subject": "Rome", "prompt": "{} is in", "lines": [1, 2]}]
    assert data["rejected"][0]["line"] == 3


def test_a_long_file_is_checked_in_little_memory(tmp_path: Path):
    path = long_file(tmp_path / "f.jsonl.gz", 3_000)
    tracemalloc.start()
    try:
        check = check_facts(path)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert (check.facts, check.subjects) == (3_000, 3_000)
    assert peak < 3.5e6  # the file is 3 MB of text, its objects more; a fact leaves about 600 bytes


def test_a_hundred_thousand_records_are_checked_in_less_memory_than_they_take_on_disk(tmp_path: Path):
    path = long_file(tmp_path / "f.jsonl", 100_000)
    program = """
import resource, sys
from betaedit.facts import check_facts

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)

before = peak()
print(check_facts(sys.argv[1]).facts, peak() - before)
"""
    ran = subprocess.run([sys.executable, "-c", program, path], capture_output=True, text=True, check=True)
    facts, grown = map(int, ran.stdout.split())
    assert facts == 100_000
    assert path.stat().st_size > 95e6
    assert grown < 60e6  # about 400 bytes a fact for the hashes of what was met


def test_the_demo_file_is_clean():
    check = check_facts(demo_path())
    assert (check.n_rejected, check.n_duplicates, check.n_conflicts) == (0, 0, 0)


# The real files, against the figures in their README


def test_counterfact_repeats_its_subjects_as_is_known():
    check = check_facts(data_file("counterfact_core.jsonl.gz"))
    assert (check.repeated_subjects, check.facts_of_repeated_subjects) == (1_076, 2_604)
    assert check.worst_subjects == [
        ("European Union", 19),
        ("Athens", 16),
        ("Saint Petersburg", 16),
        ("Mexico City", 15),
        ("Beijing", 13),
    ]
    assert check.n_conflicts == 198
    # 206 pairs of subject and prompt in 530 records: each record beyond the first repeats a target or disagrees.
    assert check.n_duplicates + sum(len(one.lines) - 1 for one in check.conflicts) == 530 - 206


def test_counterfact_full_agrees_with_a_plain_count():
    path = data_file("counterfact_full.jsonl.gz")
    subjects: Counter[str] = Counter()
    targets: dict[tuple[str, str], set[str]] = defaultdict(set)
    with gzip.open(path, "rt", encoding="utf-8", newline="\n") as file:
        for rewrite in (json.loads(line)["requested_rewrite"] for line in file):
            subjects[rewrite["subject"]] += 1
            targets[rewrite["subject"], rewrite["prompt"]].add(rewrite["target_new"]["str"])
    check = check_facts(path)
    assert check.repeated_subjects == sum(number > 1 for number in subjects.values())
    assert {(one.subject, one.prompt) for one in check.conflicts} == {
        pair for pair, found in targets.items() if len(found) > 1
    }


def test_zsre_answers_that_are_known_already_are_told():
    check = check_facts(data_file("zsre_eval_portability.jsonl.gz"))
    assert (check.records, check.facts, check.n_unchanged, check.n_rejected) == (837, 813, 24, 24)
    assert check_facts(data_file("zsre_dev_500_rephrases.jsonl.gz")).n_unchanged == 23
    assert check_facts(data_file("zsre_eval_portability.jsonl.gz"), zsre_target="answers").n_rejected == 0


def test_the_exact_repeats_of_knowedit_are_found():
    assert check_facts(data_file("knowedit_wiki_counterfact_train.jsonl.gz")).n_duplicates == 11
