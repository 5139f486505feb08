"""``betaedit compare``: how methods and their settings are named, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from betaedit.cli.options import variants
from betaedit.errors import ConfigError
from betaedit.experiments.variants import Variant


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("", []),
        ("memit, betaedit,", [Variant("memit"), Variant("betaedit")]),
        ("alphaedit[lookup=last],alphaedit", [Variant("alphaedit", {"lookup": "last"}), Variant("alphaedit")]),
        ("memit[ridge=3, layers=[4, 5]],rome", [Variant("memit", {"ridge": 3, "layers": [4, 5]}), Variant("rome")]),
        ("memit[]", [Variant("memit")]),
    ],
)
def test_settings_stand_in_brackets_behind_the_method(text: str, meant: list[Variant]) -> None:
    assert variants(text) == meant


@pytest.mark.parametrize(
    "text", ["memit[ridge=3", "memit]", "[ridge=3]", "memit[ridge=3]x", "memit[ridge]", "memit[=3]"]
)
def test_brackets_that_say_nothing_are_refused(text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        variants(text)
    assert "'alphaedit,alphaedit[lookup=last]'" in caught.value.hint


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--methods", "memit,memory"], "memory"),
        (["--methods", "memit,memit"], "both memit"),
        (["--methods", "memit[rigde=3]"], "ridge"),
        (["--set", "valueclamp=1"], "value_clamp"),
        (["--preset", "smolm2"], "smolm2"),
        (["--config", "none.yaml"], "none.yaml"),
        (["--methods", "memit,rome[layers=[4,5]]"], "rome edits one layer, not 2"),
        (["--evaluate-at", "1,30"], "cannot measure after 30 edits"),
    ],
)
def test_a_slip_is_told_before_the_model_is_loaded(betaedit, tmp_path: Path, options: list[str], told: str) -> None:
    (tmp_path / "none").mkdir()
    (tmp_path / "facts.jsonl").write_text('{"subject": "Ana", "prompt": "{} was born in", "target_new": "Lima"}\n')
    ran = betaedit("compare", "--model", tmp_path / "none", "--from", tmp_path / "facts.jsonl",
                   "--out", tmp_path / "runs", *options)  # fmt: skip
    assert ran.code == 2
    assert told in ran.err


def test_records_that_cannot_be_used_are_skipped_and_listed(betaedit, tiny_folder, tmp_path: Path) -> None:
    (tmp_path / "facts.jsonl").write_text(
        '{"subject": "Ana", "prompt": "{} was born in", "target_new": "Lima", "target_true": "Lima"}\n'
        '{"subject": "Ana", "prompt": "{} was born in", "target_new": "Lima"}\n'
    )
    args = ["compare", "--model", tiny_folder, "--from", tmp_path / "facts.jsonl", "--out", tmp_path / "runs",
            "--methods", "scr", "--json"]  # fmt: skip
    assert betaedit(*args).code == 3
    found = betaedit(*args, "--skip-invalid")
    assert json.loads(found.out)["scr"]["edits"] == 1
    assert "skipped: " in found.err
    assert "facts.jsonl:1: [target_new]" in found.err


def test_a_method_is_compared_with_itself_under_another_setting(betaedit, tiny_folder, tmp_path: Path) -> None:
    (tmp_path / "facts.jsonl").write_text('{"subject": "Ana", "prompt": "{} was born in", "target_new": "Lima"}\n')
    (tmp_path / "text.txt").write_text(
        "\n\n".join("Ordinary words follow one another in the text. " * 3 for _ in range(6))
    )
    args = ["compare", "--model", tiny_folder, "--from", tmp_path / "facts.jsonl", "--text", tmp_path / "text.txt",
            "--out", tmp_path / "runs", "--methods", "memit,memit[lookup=last]", "--set", "layers=[1, 2]",
            "--set", 'context_templates=["{}"]', "--set", "value_steps=2", "--set", "statistics_tokens=200",
            "--set", f"statistics_corpus={tmp_path / 'text.txt'}"]  # fmt: skip
    found = json.loads(betaedit(*args, "--json").out)
    assert {name: report["setup"]["config"]["lookup"] for name, report in found.items()} == {
        "memit": "subject_last",
        "memit-lookup-last": "last",
    }
    for name, report in found.items():
        assert [(each["first"], each["second"], each["figure"]) for each in report["comparisons"]] == [
            ("memit", "memit-lookup-last", "facts held")
        ]
        assert report["facts_held"]["edits"] == 1
        assert [fact["prompt"] for fact in report["facts_held"]["facts"]] == ["Ana was born in"], name
    shown, whole = betaedit(*args).out, betaedit(*args, "--all").out
    assert "facts held: too few facts" in whole
    assert "memit-lookup-last" in shown
    assert "facts held after 1 edit" in shown
    assert "facts held: too few facts to tell memit and memit-lookup-last apart (p = 1" in shown
    assert "betaedit report" in shown


def test_the_table_cuts_no_name_off_in_a_narrow_terminal(
    betaedit, tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    facts = tmp_path / "facts.jsonl"
    facts.write_text(json.dumps({"subject": "Bob", "prompt": "The home of {} is", "target_new": "Rome"}))
    monkeypatch.setenv("COLUMNS", "80")
    corpus = tmp_path / "corpus.txt"
    corpus.write_text("Ordinary words follow one another in the long text. " * 40)
    settings = ["--set", f"statistics_corpus={corpus}", "--set", "statistics_tokens=200"]
    ran = betaedit(
        "compare", "--from", facts, "--methods", "alphaedit-naive", "--out", tmp_path / "runs", *tiny[:2], *tiny[4:],
        *settings,
    )  # fmt: skip
    assert ran.code == 0, ran.err
    table = ran.out[ran.out.index("method") :]
    assert "…" not in table
    assert max(map(len, table.splitlines())) <= 80
    heads = [line.split() for line in table.splitlines() if line.strip().startswith(("method", "fact "))]
    assert heads == [
        ["method", "edits", "efficacy", "generality", "specificity", "kept", "verdict"],
        ["method", "edits", "perplexity", "agreement", "leakage", "weight", "change"],
        ["method", "edits", "edit"],
        ["fact", "wanted", "alphaedit-naive"],
    ]


def test_facts_are_written_in_groups_and_the_tables_say_so(betaedit, tiny, tmp_path: Path) -> None:
    facts = tmp_path / "facts.jsonl"
    facts.write_text("".join(f'{{"subject": "{name}", "prompt": "The home of {{}} is", "target_new": "Rome"}}\n'
                             for name in ("Ana", "Bob", "Zoe")))  # fmt: skip
    args = ["compare", "--from", facts, "--methods", "ft,grace", "--out", tmp_path / "runs", "--reset-every", "2",
            *tiny[:2], "--set", "steps=2"]  # fmt: skip
    found = json.loads(betaedit(*args, "--json").out)
    for report in found.values():
        assert report["setup"]["reset_every"] == 2
        assert report["checkpoints"][-1]["groups"] == {"size": 2, "count": 2, "drift": 2}
        assert report["edits"] == len(report["facts_held"]["facts"]) == 3
    shown = " ".join(betaedit(*args).out.split())
    assert "groups of 2 facts, each written into the unedited model" in shown
    assert "figures of the model itself: mean over all 2 groups" in shown
    ran = betaedit(*args, "--reset-every", "1")
    assert ran.code != 0
    assert "a different reset_every" in " ".join(ran.out.split())
