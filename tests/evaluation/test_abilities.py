from __future__ import annotations

import gzip
import json
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from betaedit.errors import ConfigError, FactError, MissingExtraError
from betaedit.evaluation import abilities, measure_abilities
from betaedit.evaluation.abilities import (
    NO_ANSWER,
    TASKS,
    AbilityTask,
    find_task,
    read_ability_items,
)
from betaedit.evaluation.continuing import complete_greedily
from betaedit.evaluation.scoring import Continuation, Pair, Score
from betaedit.models import LanguageModel
from support.data import data_file
from support.tiny import FAMILIES, RecordedProgress, count_calls, plain_score, tiny_llama

EXAMPLES: dict[str, Mapping[str, Any]] = {
    "sst2": {"sentence": "a {good} film", "label": 1},
    "mrpc": {"sentence1": "one", "sentence2": "two", "label": 0},
    "cola": {"sentence": "They sleeps.", "label": 0},
    "rte": {"sentence1": "It rains.", "sentence2": "It is wet.", "label": 0},
    "nli": {"sentence1": "It rains.", "sentence2": "It is wet.", "label": "entailment"},
    "mmlu": {"question": "2+2?", "choices": ["1", "2", "4", "8"], "answer": 2},
    "dialogue": {"article": "f : hi", "options": ["a", "b", "c", "d"], "answers": "D"},
}
PROMPTS = {
    "sst2": "Review :a {good} film\nSentiment :",
    "mrpc": "Are the sentences paraphrases of each other.\nSentence 1: one\nSentence 2: two\nAnswer:",
    "cola": "Is this sentence linguistically acceptable?\nSentence: They sleeps.\nAnswer: ",
    "rte": "It rains.\nquestion: It is wet. True or False?\nanswer:",
    "nli": "It rains. entails the It is wet. True or False? Answer:",
    "mmlu": "Question: 2+2?\n(A) 1\n(B) 2\n(C) 4\n(D) 8\nAnswer:",
    "dialogue": "Q: Given the following: f : hi\nWhich choice is correct?\n(A)a\n(B)b\n(C)c\n(D)d\nAnswer:",
}
RIGHT = {
    "sst2": "positive",
    "mrpc": "No",
    "cola": "No",
    "rte": "True",
    "nli": "True",
    "mmlu": "C",
    "dialogue": "D",
}


def write(folder: Path, name: str, records: Sequence[Mapping[str, Any]], ending: str = ".jsonl") -> Path:
    path = folder / f"{TASKS[name].stem}{ending}"
    text = "".join(json.dumps(record) + "\n" for record in records)
    path.write_bytes(gzip.compress(text.encode()) if ending.endswith(".gz") else text.encode())
    return path


def sentences(*labels: int) -> list[dict[str, Any]]:
    """SST-2 items of different length, the ten that are kept for examples before them."""
    kept = [{"sentence": "kept", "label": 0}] * 10
    return [*kept, *({"sentence": "the red sea " * (1 + at % 3), "label": label} for at, label in enumerate(labels))]


def constant(model: LanguageModel, text: str) -> LanguageModel:
    """The model with a head that everywhere finds the tokens of ``text`` most probable, the first above the next."""
    ids = model.tokenizer(text, add_special_tokens=False)["input_ids"]
    logits = torch.zeros(len(model.tokenizer))
    for rank, token in enumerate(reversed(ids)):
        logits[token] = 5 + rank

    class Constant(torch.nn.Module):
        def forward(self, hidden: torch.Tensor) -> torch.Tensor:
            return logits.expand(*hidden.shape[:-1], len(logits))

    model.model.set_output_embeddings(Constant())
    return model


# The tasks


@pytest.mark.parametrize("name", TASKS)
def test_a_task_asks_with_the_words_of_the_papers_code(name: str):
    assert TASKS[name].prompt(EXAMPLES[name]) == PROMPTS[name]


@pytest.mark.parametrize("name", TASKS)
def test_a_label_stands_for_the_answer_that_is_right(name: str, tmp_path: Path):
    write(tmp_path, name, [EXAMPLES[name]] * 11)
    (item,) = read_ability_items(find_task(name), tmp_path, 5)
    assert TASKS[name].answers[item.label] == RIGHT[name]


def test_the_official_labels_of_rte_are_the_wrong_way_round_and_no_other_tasks_change():
    assert find_task("rte", official_rte=True).labels == {0: 0, 1: 1}
    assert find_task("rte").labels == {0: 1, 1: 0}
    assert find_task("nli", official_rte=True) is TASKS["nli"]


@pytest.mark.parametrize(("typed", "hint"), [("sst", "Did you mean sst2"), ("xyz", "Choose from sst2, mrpc")])
def test_an_unknown_task_is_refused_with_the_nearest_name(typed: str, hint: str):
    with pytest.raises(ConfigError, match=hint):
        find_task(typed)


# Files


@pytest.mark.parametrize("ending", [".jsonl", ".jsonl.gz"])
def test_tests_begin_after_the_ten_items_that_are_kept_for_examples(tmp_path: Path, ending: str):
    write(tmp_path, "sst2", [{"sentence": str(at), "label": at % 2} for at in range(14)], ending)
    items = read_ability_items(TASKS["sst2"], tmp_path, 3)
    assert [item.prompt for item in items] == [f"Review :{at}\nSentiment :" for at in (10, 11, 12)]
    assert [item.label for item in items] == [0, 1, 0]
    assert len(read_ability_items(TASKS["sst2"], tmp_path, 100)) == 4


def test_a_missing_file_is_named(tmp_path: Path):
    with pytest.raises(ConfigError, match=r"sst2 has no file .*cap_sst2\.jsonl\.gz"):
        read_ability_items(TASKS["sst2"], tmp_path, 5)


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("{broken", "not JSON"),
        ('{"label": 1}', r"\[sentence\] the field is missing"),
        ('{"sentence": "a"}', r"\[label\] the field is missing"),
        ('{"sentence": "a", "label": 7}', r"\[label\] 7 is not a label of sst2\. Use one of 0, 1"),
        ('{"sentence": "a", "label": [1]}', "is not a label of sst2"),
    ],
)
def test_a_broken_line_is_named_with_its_file(tmp_path: Path, line: str, says: str):
    path = write(tmp_path, "sst2", sentences(1))
    path.write_text(path.read_text() + line + "\n")
    with pytest.raises(FactError, match=rf"cap_sst2\.jsonl:12: .*{says}"):
        read_ability_items(TASKS["sst2"], tmp_path, 5)


@pytest.mark.parametrize("choices", [["1", "2", "3"], None])
def test_a_question_without_its_four_options_is_refused(tmp_path: Path, choices: object):
    write(tmp_path, "mmlu", [{**EXAMPLES["mmlu"], "choices": choices}] * 11)
    with pytest.raises(FactError, match=r"cap_mmlu\.jsonl:11: this is not an item of mmlu"):
        read_ability_items(TASKS["mmlu"], tmp_path, 5)


def test_a_file_of_nothing_but_examples_is_refused(tmp_path: Path):
    write(tmp_path, "sst2", sentences())
    with pytest.raises(FactError, match="no item after the first 10"):
        read_ability_items(TASKS["sst2"], tmp_path, 5)


def test_no_tests_are_refused(tmp_path: Path):
    with pytest.raises(ConfigError, match="n_tests is 0"):
        read_ability_items(TASKS["sst2"], tmp_path, 0)


# Reading an answer


@pytest.mark.parametrize(
    ("task", "text", "found"),
    [
        ("sst2", " Positive\nRe", "positive"),
        ("sst2", " not negative but positive", "negative"),
        ("sst2", " seapositively", None),
        ("cola", " I know nothing", None),
        ("cola", "yes.", "Yes"),
        ("rte", " TRUE, false", "True"),
        ("mmlu", " B\n", "B"),
        ("mmlu", " (C) is", "C"),
        ("mmlu", " a bad D", "D"),
        ("mmlu", " Banana\n", None),
    ],
)
def test_the_answer_said_first_as_a_word_of_its_own_counts(task: str, text: str, found: str | None):
    expected = NO_ANSWER if found is None else TASKS[task].answers.index(found)
    assert abilities._said_answer(TASKS[task], text) == expected


@pytest.mark.parametrize(
    ("text", "found"), [(" C", NO_ANSWER), (" C\n", 2), (" Banana\n", 0), ("D\nB\n", 1), ("(D)\n", NO_ANSWER)]
)
def test_the_papers_code_finds_letters_at_ends_of_lines_even_in_words(text: str, found: int):
    assert abilities._official_letter(TASKS["mmlu"], text) == found


@pytest.mark.parametrize(
    ("values", "found"),
    [([2.0, 1.0], 1), ([1.0, 2.0, 3.0, 1.5], 0), ([1.0, 1.0], -1), ([1.0, 1.0, 0.5], 2), ([math.nan, 1.0], -1)],
)
def test_only_an_answer_above_all_others_is_predicted(values: list[float], found: int):
    assert abilities._strictly_lowest(values) == found


# Figures


def figures(labels: Sequence[int], predictions: Sequence[int], task: str = "sst2") -> abilities.Classification:
    return abilities._classified(TASKS[task], labels, predictions)


def test_a_constant_answer_has_the_figures_worked_out_by_hand():
    """Class 1 said 4 times, right 3 times: F1 2*3/(4+3) = 6/7; class 0 never: 0. Weights 3/4 and 1/4."""
    found = figures([1, 1, 0, 1], [1, 1, 1, 1])
    assert (found.accuracy.mean, found.accuracy.count) == (0.75, 4)
    assert found.macro_f1 == pytest.approx(3 / 7)
    assert found.weighted_f1 == pytest.approx(3 / 4 * 6 / 7)
    assert found.mcc == 0


def test_no_answer_is_wrong_and_no_class_of_its_own():
    """Class 0: said once, right once of 2: 2/3. Class 1: said twice, right twice of 2: 1."""
    found = figures([0, 0, 1, 1], [0, NO_ANSWER, 1, 1])
    assert found.accuracy.mean == 0.75
    assert found.macro_f1 == pytest.approx((2 / 3 + 1) / 2)
    assert found.weighted_f1 == pytest.approx((2 / 3 + 1) / 2)


def test_a_constant_letter_on_balanced_classes_has_the_floor_of_the_papers_tables():
    found = figures([0, 1, 2, 3] * 5, [2] * 20, "mmlu")
    assert (found.macro_f1, found.weighted_f1) == pytest.approx((0.1, 0.1))


def test_right_everywhere_is_one_everywhere_and_wrong_everywhere_correlates_by_minus_one():
    right, wrong = figures([0, 1, 1], [0, 1, 1]), figures([0, 1, 1], [1, 0, 0])
    assert (right.accuracy.mean, right.macro_f1, right.weighted_f1, right.mcc) == (1, 1, 1, 1)
    assert (wrong.accuracy.mean, wrong.macro_f1, wrong.weighted_f1, wrong.mcc) == (0, 0, 0, -1)


# On a model


def plain_generation(model: LanguageModel, prompt: str) -> str:
    ids = list(model.tokenizer(prompt)["input_ids"])
    for _ in range(5):
        logits = model.model(input_ids=torch.tensor([ids], device=model.device)).logits[0, -1]
        ids.append(int(logits.argmax()))
    return str(model.tokenizer.decode(ids[-5:]))


def plain_prediction(model: LanguageModel, task: AbilityTask, prompt: str) -> int:
    scores = [plain_score(model, prompt, answer).nll for answer in task.answers]
    return scores.index(min(scores))


@pytest.mark.parametrize("family", FAMILIES)
def test_predictions_are_those_of_a_plain_loop(family: str, tmp_path: Path):
    model = FAMILIES[family]()
    write(tmp_path, "sst2", sentences(0, 1, 1, 0, 1))
    items = read_ability_items(TASKS["sst2"], tmp_path, 5)
    prompts = [item.prompt for item in items]
    texts = complete_greedily(model, prompts, abilities._GENERATED_TOKENS, label="generating")
    assert texts == [plain_generation(model, prompt) for prompt in prompts]
    result = measure_abilities(model, tmp_path, tasks=["sst2"])["sst2"]
    assert result.labels == (0, 1, 1, 0, 1)
    assert list(result.probability.predictions) == [plain_prediction(model, TASKS["sst2"], p) for p in prompts]


def test_a_model_that_says_an_answer_is_found_saying_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Answers of one token each, and a head under which "red" is likelier than "blue": class 1 everywhere."""
    task = AbilityTask("colors", "cap_sst2", TASKS["sst2"].prompt, ("blue", "red"), "label", {0: 0, 1: 1})
    monkeypatch.setitem(TASKS, "colors", task)
    write(tmp_path, "sst2", sentences(1, 0, 1, 1))
    model = constant(tiny_llama(), " red blue")
    result = measure_abilities(model, tmp_path, tasks=["colors"])["colors"]
    for found in (result.probability, result.generated):
        assert found.predictions == (1, 1, 1, 1)
        assert found.accuracy.mean == 0.75
        assert found.weighted_f1 == pytest.approx(3 / 4 * 6 / 7)


@pytest.mark.parametrize("ending", ["Answer:", "Answer: ", "Answer:\n"])
def test_every_answer_is_scored_after_a_space_as_published(
    ending: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    task = AbilityTask("ends", "cap_sst2", lambda _: ending, ("blue", "red"), "label", {0: 0, 1: 1})
    monkeypatch.setitem(TASKS, "ends", task)
    write(tmp_path, "sst2", sentences(1))
    model = tiny_llama()
    first: list[str] = []

    def scores(model: LanguageModel, pairs: Sequence[Pair], **_: object) -> list[Score]:
        first.extend(model.tokenizer.decode(each.target) for each in Continuation.encode(model, pairs))
        return [Score(1.0, True) for _ in pairs]

    monkeypatch.setattr(abilities, "score_targets", scores)
    measure_abilities(model, tmp_path, tasks=["ends"], generate=False)
    assert first == [" blue", " red"]


def test_answers_of_one_token_share_the_pass_of_their_prompt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    task = AbilityTask("colors", "cap_sst2", TASKS["sst2"].prompt, ("blue", "red"), "label", {0: 0, 1: 1})
    monkeypatch.setitem(TASKS, "colors", task)
    write(tmp_path, "sst2", sentences(1, 0, 1))
    model = tiny_llama()
    with count_calls(model.model.base_model) as calls:
        result = measure_abilities(model, tmp_path, tasks=["colors"], generate=False)
    assert result["colors"].generated is None
    assert sum(n_rows for n_rows, _ in calls.rows) == 3


def test_a_model_without_a_preference_predicts_nothing(tmp_path: Path):
    model = tiny_llama()
    with torch.no_grad():
        model.model.get_output_embeddings().weight.zero_()
    write(tmp_path, "mmlu", [EXAMPLES["mmlu"]] * 12)
    assert measure_abilities(model, tmp_path, tasks=["mmlu"])["mmlu"].probability.predictions == (-1, -1)


def test_a_prompt_longer_than_the_model_is_refused_before_anything_runs(tmp_path: Path):
    write(tmp_path, "sst2", [{"sentence": "red " * 700, "label": 0}] * 11)
    model = tiny_llama()
    with count_calls(model.model.base_model) as calls, pytest.raises(ConfigError, match="the model has 600"):
        measure_abilities(model, tmp_path, tasks=["sst2"])
    assert len(calls) == 0


def test_results_are_plain_data(tmp_path: Path):
    write(tmp_path, "sst2", sentences(0, 1))
    data = measure_abilities(tiny_llama(), tmp_path, tasks=["sst2"])["sst2"].to_dict()
    text = json.dumps(data)
    assert json.loads(text)["labels"] == [0, 1]
    assert set(data["probability"]) == {"predictions", "accuracy", "macro_f1", "weighted_f1", "mcc"}


def test_progress_is_told_of_scoring_and_of_generating(tmp_path: Path):
    write(tmp_path, "sst2", sentences(0, 1, 1))
    progress = RecordedProgress()
    measure_abilities(tiny_llama(), tmp_path, tasks=["sst2"], progress=progress)
    told = {task.description: (task.total, sum(task.steps)) for task in progress.tasks}
    assert told == {"sst2, generating": (3, 3), "sst2, scoring": (6, 6)}


def test_without_scikit_learn_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(MissingExtraError, match=r"betaedit\[evaluation\]"):
        measure_abilities(tiny_llama(), tmp_path)


# The default model on the data of the papers' code


@pytest.mark.parametrize("name", ["sst2", "rte", "mmlu"])
def test_the_default_model_on_real_items_is_what_a_plain_loop_finds(name: str, smollm2: LanguageModel):
    folder = data_file(f"{TASKS[name].stem}.jsonl.gz").parent
    prompts = [item.prompt for item in read_ability_items(TASKS[name], folder, 5)]
    result = measure_abilities(smollm2, folder, tasks=[name], n_tests=5)[name]
    assert list(result.probability.predictions) == [plain_prediction(smollm2, TASKS[name], p) for p in prompts]
    said = [abilities._said_answer(TASKS[name], plain_generation(smollm2, prompt)) for prompt in prompts]
    assert list(result.generated.predictions) == said
