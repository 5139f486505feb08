from __future__ import annotations

import copy
import gzip
import json
import random
import re
import sys
import types
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch

from betaedit.errors import MissingExtraError, StatisticsError
from betaedit.models import LanguageModel
from betaedit.models.lookup import document_start
from betaedit.statistics import DatasetText, SampledText, TextFiles, collect_moments, corpus_from
from betaedit.statistics import corpus as corpora
from support.tiny import FAMILIES, WORDS, count_calls, plain_logs, tiny_gpt2, tiny_llama

Rows = list[list[int]]
ROWS, WIDTH, BLOCK = 8, 16, 32


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("BETAEDIT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def few_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of sampled text in which a tiny model spends little time."""
    monkeypatch.setattr(corpora, "_SAMPLE_ROWS", ROWS)
    monkeypatch.setattr(corpora, "_SAMPLE_WIDTH", WIDTH)


@pytest.fixture(params=FAMILIES)
def model(request: pytest.FixtureRequest) -> LanguageModel:
    return FAMILIES[request.param]()


@pytest.fixture(scope="module")
def llama() -> LanguageModel:
    return tiny_llama()


@pytest.fixture(scope="module")
def gpt2() -> LanguageModel:
    return tiny_gpt2()


def take(corpus: Any, model: LanguageModel, n_blocks: int, first: int = 0) -> list[Rows]:
    return list(islice(corpus.blocks(model, first), n_blocks))


def rows_of(corpus: Any, model: LanguageModel) -> Rows:
    return [row for block in corpus.blocks(model, 0) for row in block]


def decoded(corpus: Any, model: LanguageModel) -> list[str]:
    return [model.tokenizer.decode(row, skip_special_tokens=True) for row in rows_of(corpus, model)]


# Text sampled from the model


@pytest.mark.usefixtures("few_rows")
class TestSampledText:
    def test_a_block_has_rows_of_one_length(self, model: LanguageModel):
        for block in take(SampledText(), model, 2):
            assert [len(row) for row in block] == [WIDTH] * ROWS

    def test_the_same_seed_gives_the_same_tokens(
        self, model: LanguageModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ):
        first = take(SampledText(seed=3), model, 2)
        monkeypatch.setenv("BETAEDIT_CACHE", str(tmp_path / "other"))
        assert take(SampledText(seed=3), model, 2) == first

    def test_another_seed_gives_other_tokens(self, model: LanguageModel):
        assert take(SampledText(seed=0), model, 1) != take(SampledText(seed=1), model, 1)

    def test_no_two_blocks_are_alike(self, model: LanguageModel):
        blocks = take(SampledText(), model, 3)
        assert len({json.dumps(block) for block in blocks}) == 3

    def test_blocks_and_seeds_differ_in_more_than_their_first_words(
        self, llama: LanguageModel, monkeypatch: pytest.MonkeyPatch
    ):
        monkeypatch.setattr(corpora, "_OPENINGS", "The")
        blocks = [*take(SampledText(seed=0), llama, 2), *take(SampledText(seed=1), llama, 2)]
        assert len({json.dumps(block) for block in blocks}) == 4

    def test_rows_of_a_block_differ(self, model: LanguageModel):
        (block,) = take(SampledText(), model, 1)
        assert len({tuple(row) for row in block}) == ROWS

    def test_the_same_weights_in_another_process_give_the_same_tokens(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ):
        first = take(SampledText(), tiny_llama(), 1)
        monkeypatch.setenv("BETAEDIT_CACHE", str(tmp_path / "other"))
        torch.rand(100)
        random.random()
        assert take(SampledText(), tiny_llama(), 1) == first

    def test_starting_at_a_block_gives_what_counting_up_to_it_gives(
        self, model: LanguageModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ):
        counted = take(SampledText(), model, 3)
        monkeypatch.setenv("BETAEDIT_CACHE", str(tmp_path / "other"))
        assert take(SampledText(), model, 1, first=2) == counted[2:]

    def test_drawn_blocks_are_on_disk_and_cost_no_forward_pass(self, model: LanguageModel, cache: Path):
        first = take(SampledText(), model, 2)
        assert len(list((cache / "samples").rglob("*.json"))) == 2
        with count_calls(model.model.base_model) as calls:
            assert take(SampledText(), model, 2) == first
        assert len(calls) == 0

    def test_a_block_that_breaks_off_leaves_nothing_behind(
        self, llama: LanguageModel, cache: Path, monkeypatch: pytest.MonkeyPatch
    ):
        def pull(*_: object, **__: object) -> None:
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(corpora, "sample", pull)
            with pytest.raises(KeyboardInterrupt):
                take(SampledText(), llama, 1)
        assert list((cache / "samples").rglob("*.json")) == []
        assert len(take(SampledText(), llama, 1)) == 1

    def test_the_global_random_streams_are_untouched(self, model: LanguageModel):
        torch.manual_seed(1)
        random.seed(1)
        before = torch.get_rng_state(), random.getstate()
        take(SampledText(), model, 1)
        assert torch.equal(torch.get_rng_state(), before[0])
        assert random.getstate() == before[1]

    def test_the_state_of_the_global_streams_does_not_decide_the_text(
        self, model: LanguageModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ):
        torch.manual_seed(1)
        random.seed(1)
        first = take(SampledText(), model, 1)
        torch.manual_seed(2)
        random.seed(2)
        monkeypatch.setenv("BETAEDIT_CACHE", str(tmp_path / "other"))
        assert take(SampledText(), model, 1) == first

    def test_rows_open_with_a_common_english_word(self, model: LanguageModel):
        (block,) = take(SampledText(), model, 1)
        texts = [model.tokenizer.decode(row, skip_special_tokens=True) for row in block]
        assert all(re.match("[A-Z]", text) for text in texts)
        assert len({text[0] for text in texts}) > 1

    def test_rows_have_the_opening_token_that_inputs_have_and_no_other_special_one(
        self, llama: LanguageModel, gpt2: LanguageModel
    ):
        (block,) = take(SampledText(), llama, 1)
        assert all(row[0] == llama.tokenizer.bos_token_id for row in block)
        (lead,) = document_start(gpt2.tokenizer)
        (block,) = take(SampledText(), gpt2, 1)
        assert all(row[0] != lead for row in block)

    def test_every_token_is_among_the_fifty_most_probable_after_the_document_start(self, model: LanguageModel):
        (block,) = take(SampledText(), model, 1)
        lead = document_start(model.tokenizer)
        opening = 1 + (not lead)  # one letter at least, after the BOS token where there is one
        for row in block[:3]:
            likely = plain_logs(model, [*lead, *row])[len(lead) :].topk(51).indices
            assert all(row[at] in likely[at - 1] for at in range(opening, WIDTH))
            assert len(set(row)) > WIDTH / 2  # drawn, not the most probable one each time

    def test_the_fingerprint_depends_on_the_seed_and_on_every_weight(self, llama: LanguageModel):
        known = SampledText(seed=0).fingerprint(llama)
        assert SampledText(seed=0).fingerprint(llama) == known
        assert SampledText(seed=1).fingerprint(llama) != known
        changed = LanguageModel.wrap(copy.deepcopy(llama.model), llama.tokenizer)
        with torch.no_grad():
            changed.anatomy.projection(3).weight[0, 0] += 0.01
        assert SampledText(seed=0).fingerprint(changed) != known

    def test_an_edited_model_does_not_read_the_text_of_the_unedited_one(self, llama: LanguageModel):
        changed = LanguageModel.wrap(copy.deepcopy(llama.model), llama.tokenizer)
        with torch.no_grad():
            changed.anatomy.projection(3).weight.mul_(-1)
        first = take(SampledText(), llama, 1)
        assert take(SampledText(), changed, 1) != first

    def test_another_tokenizer_does_not_read_the_text_of_the_first(self, llama: LanguageModel, gpt2: LanguageModel):
        (first,) = take(SampledText(), llama, 1)
        (other,) = take(SampledText(), LanguageModel.wrap(llama.model, gpt2.tokenizer, llama.name), 1)
        assert all(row[0] == llama.tokenizer.bos_token_id for row in first)
        assert not any(row[0] == llama.tokenizer.bos_token_id for row in other)

    def test_the_label_says_that_it_is_the_models_own_text_and_its_seed(self):
        assert "model itself" in SampledText(seed=7).label
        assert "7" in SampledText(seed=7).label


# Text files


Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def to_file(name: str, content: str | bytes) -> Path:
        path = tmp_path / name
        raw = content.encode() if isinstance(content, str) else content
        path.write_bytes(gzip.compress(raw) if name.endswith(".gz") and isinstance(content, str) else raw)
        return path

    return to_file


def jsonl(*texts: str) -> str:
    return "".join(json.dumps({"text": text}) + "\n" for text in texts)


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_documents_in_plain_text_are_separated_by_blank_lines(write: Write, model: LanguageModel, suffix: str):
    file = write(f"text.txt{suffix}", "the king\nis old\n\nthe queen\n\n\n\nthe sea")
    assert list(TextFiles((file,)).texts()) == ["the king\nis old", "the queen", "the sea"]
    assert decoded(TextFiles((file,)), model) == ["the king\nis old", "the queen", "the sea"]


def test_any_number_of_blank_lines_separates_documents(write: Write):
    file = write("text.txt", "\n\n\nthe king\n\n\nthe queen\n \nthe sea\n\n\n")
    assert [text.strip() for text in TextFiles((file,)).texts()] == ["the king", "the queen", "the sea"]


def test_line_ends_of_windows_separate_documents_too(write: Write):
    file = write("text.txt", "the king\r\n\r\nthe queen\r\n")
    assert [text.strip() for text in TextFiles((file,)).texts()] == ["the king", "the queen"]


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_jsonl_holds_a_document_a_line(write: Write, model: LanguageModel, suffix: str):
    file = write(f"text.jsonl{suffix}", jsonl("the king\n\nis old", "la reine âgée", "the sea\u2028wind"))
    assert decoded(TextFiles((file,)), model) == ["the king\n\nis old", "la reine âgée", "the sea\u2028wind"]


def test_other_fields_of_a_record_are_ignored(write: Write):
    file = write("text.jsonl", '{"id": 1, "text": "the king", "label": null}\n')
    assert list(TextFiles((file,)).texts()) == ["the king"]


def test_files_are_read_in_the_order_given(write: Write):
    first, second = write("b.txt", "the king"), write("a.jsonl", jsonl("the queen", "the sea"))
    assert list(TextFiles((first, second)).texts()) == ["the king", "the queen", "the sea"]


def test_rows_are_tokenized_as_inputs_are(write: Write, llama: LanguageModel, gpt2: LanguageModel):
    file = write("text.txt", "the king\n\nthe old queen")
    for model in (llama, gpt2):
        expected = [model.tokenizer(text)["input_ids"] for text in ("the king", "the old queen")]
        assert rows_of(TextFiles((file,)), model) == expected
    assert rows_of(TextFiles((file,)), llama)[0][0] == llama.tokenizer.bos_token_id


def test_a_long_document_is_cut_into_rows_without_losing_a_token(write: Write, model: LanguageModel):
    text = " ".join(random.Random(0).choices(WORDS, k=50))
    file = write("text.txt", f"{text}\n\nthe king")
    whole = model.tokenizer(text)["input_ids"]
    *cut, last = rows_of(TextFiles((file,), max_length=20), model)
    assert [len(row) for row in cut] == [20] * (len(whole) // 20) + [len(whole) % 20]
    assert [token for row in cut for token in row] == whole
    assert last == model.tokenizer("the king")["input_ids"]


def test_a_document_of_just_the_row_length_is_one_row(write: Write, gpt2: LanguageModel):
    file = write("text.txt", "abcdefghij")
    assert [len(row) for row in rows_of(TextFiles((file,), max_length=10), gpt2)] == [10]


def test_blocks_hold_all_rows_in_order_and_can_be_entered_anywhere(write: Write, gpt2: LanguageModel):
    texts = [f"{index} king" for index in range(2 * BLOCK + 5)]
    corpus = TextFiles((write("text.jsonl", jsonl(*texts)),))
    blocks = list(corpus.blocks(gpt2, 0))
    assert [len(block) for block in blocks] == [BLOCK, BLOCK, 5]
    assert decoded(corpus, gpt2) == texts
    assert list(corpus.blocks(gpt2, 1)) == blocks[1:]
    assert list(corpus.blocks(gpt2, 3)) == []


@pytest.mark.parametrize("suffix", ["", ".gz"])
@pytest.mark.parametrize(
    "broken",
    ['{"text": "the', "the king", '{"body": "the king"}', '["the king"]', '"the king"', "3", "null"],
)
def test_a_broken_line_is_named_with_its_file_and_number(write: Write, llama: LanguageModel, broken: str, suffix: str):
    file = write(f"text.jsonl{suffix}", jsonl("the king", "the queen") + broken + "\n" + jsonl("the sea"))
    with pytest.raises(StatisticsError) as caught:
        rows_of(TextFiles((file,)), llama)
    assert f"{file}:3" in str(caught.value)
    assert "text" in caught.value.hint


@pytest.mark.parametrize("value", ["null", "3", '["the", "king"]', "{}"])
def test_a_text_that_is_no_text_is_a_broken_line(write: Write, value: str):
    file = write("text.jsonl", f'{jsonl("the king")}{{"text": {value}}}\n')
    with pytest.raises(StatisticsError) as caught:
        list(TextFiles((file,)).texts())
    assert f"{file}:2" in str(caught.value)


def test_blank_lines_of_jsonl_are_passed_over_as_in_files_of_facts(write: Write):
    file = write("text.jsonl", jsonl("the king") + "\n" + jsonl("the queen") + "\n\n")
    assert list(TextFiles((file,)).texts()) == ["the king", "the queen"]


@pytest.mark.parametrize("name", ["absent.txt", "absent.jsonl", "absent.txt.gz", "absent.jsonl.gz"])
def test_a_missing_file_is_named_before_any_work(tmp_path: Path, llama: LanguageModel, name: str):
    corpus = TextFiles((tmp_path / name,))
    with count_calls(llama.model.base_model) as calls, pytest.raises(StatisticsError) as caught:
        collect_moments(llama, [0], corpus, n_tokens=100)
    assert str(tmp_path / name) in str(caught.value)
    assert caught.value.hint
    assert len(calls) == 0
    with pytest.raises(StatisticsError, match=name):
        list(corpus.texts())


def test_a_folder_is_no_text_file(tmp_path: Path, llama: LanguageModel):
    with pytest.raises(StatisticsError, match=str(tmp_path)):
        TextFiles((tmp_path,)).fingerprint(llama)


@pytest.mark.parametrize("name", ["text.txt", "text.jsonl"])
def test_a_file_that_is_not_utf_8_is_named(write: Write, name: str):
    file = write(name, jsonl("the king").encode() + b'{"text": "reine \xe2g\xe9e"}\n')
    with pytest.raises(StatisticsError, match=str(file)):
        list(TextFiles((file,)).texts())


@pytest.mark.parametrize("name", ["text.txt.gz", "text.jsonl.gz"])
@pytest.mark.parametrize("damage", ["not compressed", "cut short"])
def test_a_damaged_gzip_file_is_named(write: Write, name: str, damage: str):
    text = jsonl(*(f"the king {random.Random(index).random()}" for index in range(500))).encode()
    file = write(name, text if damage == "not compressed" else gzip.compress(text)[:-100])
    with pytest.raises(StatisticsError, match=str(file)):
        list(TextFiles((file,)).texts())


def test_a_file_with_too_few_tokens_is_refused(write: Write, llama: LanguageModel):
    with pytest.raises(StatisticsError, match=r"only \d+ tokens") as caught:
        collect_moments(llama, [0], TextFiles((write("text.txt", "the king is old"),)), n_tokens=1000)
    assert "more text" in caught.value.hint


def test_an_empty_file_is_refused(write: Write, llama: LanguageModel):
    with pytest.raises(StatisticsError, match="only 0 tokens"):
        collect_moments(llama, [0], TextFiles((write("text.txt", ""),)), n_tokens=1000)


def test_the_fingerprint_of_files_depends_on_bytes_and_row_length(write: Write, llama: LanguageModel):
    file = write("text.txt", "the king")
    known = TextFiles((file,)).fingerprint(llama)
    assert TextFiles((write("copy.txt", "the king"),)).fingerprint(llama) == known
    assert TextFiles((file,), max_length=5).fingerprint(llama) != known
    assert TextFiles((file, file)).fingerprint(llama) != known
    write("text.txt", "the kinG")
    assert TextFiles((file,)).fingerprint(llama) != known


def test_the_label_of_files_is_their_names(tmp_path: Path):
    assert TextFiles((tmp_path / "a.txt", tmp_path / "b.jsonl")).label == "a.txt, b.jsonl"


# Data sets of the hub


class FakeHub:
    """Stands in for the datasets library."""

    def __init__(self, records: list[dict[str, Any]] | Exception) -> None:
        self.records = records
        self.asked: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
        self.read = 0

    def load_dataset(self, *args: Any, **kwargs: Any) -> Iterator[dict[str, Any]]:
        self.asked.append((args, kwargs))
        if isinstance(self.records, Exception):
            raise self.records
        return self._stream(self.records)

    def _stream(self, records: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        for record in records:
            self.read += 1
            yield record


Hub = Callable[[list[dict[str, Any]] | Exception], FakeHub]


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Hub:
    def install(records: list[dict[str, Any]] | Exception) -> FakeHub:
        fake = FakeHub(records)
        module = types.ModuleType("datasets")
        module.load_dataset = fake.load_dataset  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "datasets", module)
        return fake

    return install


def test_a_dataset_is_streamed_record_by_record(hub: Hub, model: LanguageModel):
    fake = hub([{"text": f"king {index}"} for index in range(3 * BLOCK)])
    corpus = DatasetText("owner/name")
    blocks = corpus.blocks(model, 0)
    next(blocks)
    assert fake.read == BLOCK
    assert fake.asked == [(("owner/name", None), {"split": "train", "streaming": True})]
    assert decoded(corpus, model) == [f"king {index}" for index in range(3 * BLOCK)]


def test_config_split_and_column_of_a_dataset_can_be_named(hub: Hub, llama: LanguageModel):
    fake = hub([{"text": "no", "body": "the king"}])
    corpus = DatasetText("owner/name:en", split="test", column="body")
    assert decoded(corpus, llama) == ["the king"]
    assert fake.asked == [(("owner/name", "en"), {"split": "test", "streaming": True})]
    assert "owner/name" in corpus.label
    assert "test" in corpus.label


def test_long_records_of_a_dataset_are_cut(hub: Hub, gpt2: LanguageModel):
    hub([{"text": "abcdefghij"}, {"text": "xyz"}])
    assert [len(row) for row in rows_of(DatasetText("owner/name", max_length=4), gpt2)] == [4, 4, 2, 3]


def test_a_dataset_can_be_entered_at_any_block(hub: Hub, gpt2: LanguageModel):
    hub([{"text": f"king {index}"} for index in range(2 * BLOCK + 1)])
    corpus = DatasetText("owner/name")
    assert take(corpus, gpt2, 9, first=1) == take(corpus, gpt2, 9)[1:]


def test_without_the_datasets_library_the_pip_line_is_given(monkeypatch: pytest.MonkeyPatch, llama: LanguageModel):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(MissingExtraError, match="datasets") as caught:
        collect_moments(llama, [0], DatasetText("owner/name"), n_tokens=100)
    assert caught.value.hint == f'{sys.executable} -m pip install "betaedit[datasets]"'


def test_a_missing_column_is_named(hub: Hub, llama: LanguageModel):
    hub([{"body": "the king"}])
    with pytest.raises(StatisticsError, match=r"owner/name has no column .*text") as caught:
        rows_of(DatasetText("owner/name"), llama)
    assert "column" in caught.value.hint


@pytest.mark.parametrize("error", [ConnectionError("no route"), ValueError("unknown split"), FileNotFoundError("gone")])
def test_a_dataset_that_cannot_be_read_is_named_with_the_reason(hub: Hub, llama: LanguageModel, error: Exception):
    hub(error)
    with pytest.raises(StatisticsError) as caught:
        rows_of(DatasetText("owner/name"), llama)
    assert "owner/name" in str(caught.value)
    assert str(error) in str(caught.value)
    assert caught.value.__cause__ is error


def test_a_record_whose_text_is_null_is_passed_over(hub: Hub, llama: LanguageModel):
    hub([{"text": "the king"}, {"text": None}, {"text": "the queen"}])
    assert decoded(DatasetText("owner/name"), llama) == ["the king", "the queen"]


def test_a_dataset_with_too_few_tokens_is_refused(hub: Hub, llama: LanguageModel):
    hub([{"text": "the king"}])
    with pytest.raises(StatisticsError, match=r"only \d+ tokens"):
        collect_moments(llama, [0], DatasetText("owner/name"), n_tokens=1000)


def test_the_fingerprint_of_a_dataset_depends_on_all_that_names_its_rows(llama: LanguageModel):
    named = [
        DatasetText("owner/name"),
        DatasetText("owner/name:en"),
        DatasetText("owner/name", split="test"),
        DatasetText("owner/name", column="body"),
        DatasetText("owner/name", max_length=5),
    ]
    prints = {corpus.fingerprint(llama) for corpus in named}
    assert len(prints) == len(named)


# What a user names


def test_self_means_sampled_text_with_the_seed():
    assert corpus_from("self", seed=4) == SampledText(4)
    assert corpus_from("self") == SampledText(0)


def test_a_path_means_that_file():
    assert corpus_from("texts/a.txt") == TextFiles((Path("texts/a.txt"),))


def test_a_list_means_those_files_in_order():
    assert corpus_from(["b.txt", Path("a.jsonl")]) == TextFiles((Path("b.txt"), Path("a.jsonl")))


def test_dataset_and_a_name_mean_a_dataset():
    assert corpus_from("dataset:owner/name") == DatasetText("owner/name")
    assert corpus_from("dataset:owner/name:en") == DatasetText("owner/name:en")


def test_a_seed_does_not_matter_to_files():
    assert corpus_from("a.txt", seed=1) == corpus_from("a.txt", seed=2)
