from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import yaml

from betaedit.errors import ConfigError, MissingExtraError
from betaedit.evaluation import measure_abilities
from betaedit.evaluation.abilities import TASKS
from betaedit.evaluation.harness import OWN_TASKS, _check_names, run_harness
from betaedit.models import LanguageModel
from support.data import data_file
from support.tiny import tiny_llama


@pytest.fixture
def installed() -> None:
    pytest.importorskip("lm_eval", reason="the harness is not installed: pip install 'betaedit[harness]'")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Eleven or more items of two tasks; the answers are one token for no tokenizer of ours."""
    sst2 = [{"sentence": f"the red sea {at}", "label": at % 2} for at in range(16)]
    mmlu = [{"question": f"{at}?", "choices": ["1", "2", "3", "4"], "answer": at % 4} for at in range(18)]
    for name, records in (("sst2", sst2), ("mmlu", mmlu)):
        text = "".join(json.dumps(record) + "\n" for record in records)
        (tmp_path / f"{TASKS[name].stem}.jsonl").write_text(text)
    return tmp_path


def test_every_ability_task_is_a_task_of_the_harness():
    assert {name.removeprefix("betaedit_") for name in OWN_TASKS} == set(TASKS)


@pytest.mark.usefixtures("installed")
def test_the_harness_finds_the_accuracy_that_we_find_where_all_answers_are_one_token_long(folder: Path):
    """Its score is the sum over an answer's tokens, ours the mean."""
    model = tiny_llama()
    found = run_harness(model, ["betaedit_mmlu"], folder=folder)
    own = measure_abilities(model, folder, tasks=["mmlu"])["mmlu"]
    assert len({len(model.tokenizer(f" {letter}")["input_ids"]) for letter in "ABCD"}) == 1
    assert found["results"]["betaedit_mmlu"]["acc,none"] == own.probability.accuracy.mean
    assert found["n-samples"]["betaedit_mmlu"]["effective"] == own.probability.accuracy.count == 8
    assert json.loads(json.dumps(found)) == found


@pytest.mark.usefixtures("installed")
def test_a_limit_and_a_batch_size_are_kept_to(folder: Path):
    found = [run_harness(tiny_llama(), ["betaedit_sst2"], folder=folder, limit=4, batch_size=n) for n in (1, 3)]
    assert found[0] == found[1]
    assert found[0]["n-samples"]["betaedit_sst2"] == {"original": 6, "effective": 4}


@pytest.mark.usefixtures("installed")
def test_model_and_tokenizer_are_left_as_they_were(folder: Path):
    model = tiny_llama()
    before = model.fingerprint(), len(model.tokenizer), model.tokenizer.pad_token_id, model.tokenizer.padding_side
    run_harness(model, ["betaedit_sst2"], folder=folder, limit=2)
    after = model.fingerprint(), len(model.tokenizer), model.tokenizer.pad_token_id, model.tokenizer.padding_side
    assert after == before


@pytest.mark.usefixtures("installed")
def test_tasks_of_your_own_are_found_in_a_folder_of_yaml_files(folder: Path, tmp_path: Path):
    items = tmp_path / "items.jsonl"
    items.write_text('{"text": "the red", "answer": 0}\n{"text": "the blue", "answer": 1}\n')
    task = {
        "task": "seas",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(items)}, "cache_dir": str(tmp_path / "cache")},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "{{text}}",
        "doc_to_target": "answer",
        "doc_to_choice": ["sea", "sky"],
    }
    own = tmp_path / "own"
    own.mkdir()
    (own / "seas.yaml").write_text(yaml.safe_dump(task))
    found = run_harness(tiny_llama(), ["seas", "betaedit_sst2"], folder=folder, include_path=own)
    assert set(found["results"]) == {"seas", "betaedit_sst2"}


@pytest.mark.usefixtures("installed")
def test_an_unknown_task_is_refused(folder: Path):
    with pytest.raises(ConfigError, match="no ability task 'sst'"):
        run_harness(tiny_llama(), ["betaedit_sst"], folder=folder)
    with pytest.raises(ConfigError, match=r"the harness has no task 'hellaswagg'\. Did you mean hellaswag"):
        _check_names(["piqa", "hellaswagg"], ["piqa", "hellaswag"])


@pytest.mark.usefixtures("installed")
def test_a_task_over_local_files_needs_their_folder():
    with pytest.raises(ConfigError, match="betaedit_rte reads local files"):
        run_harness(tiny_llama(), ["betaedit_rte"])


def test_without_the_harness_the_extra_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(MissingExtraError, match=r"betaedit\[harness\]"):
        run_harness(tiny_llama(), ["betaedit_sst2"], folder=folder)


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize("name", ["sst2", "cola"])
def test_the_harness_agrees_with_us_on_the_default_model(name: str, smollm2: LanguageModel):
    place = data_file(f"{TASKS[name].stem}.jsonl.gz").parent
    found = run_harness(smollm2, [f"betaedit_{name}"], folder=place, n_tests=10)
    own = measure_abilities(smollm2, place, tasks=[name], n_tests=10)[name]
    assert found["results"][f"betaedit_{name}"]["acc,none"] == own.probability.accuracy.mean
