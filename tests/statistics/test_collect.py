from __future__ import annotations

import copy
import hashlib
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from filelock import FileLock, Timeout
from safetensors.torch import load_file, save_file
from torch import Tensor

from betaedit.errors import AnatomyError, StatisticsError
from betaedit.models import LanguageModel
from betaedit.statistics import Moments, SampledText, TextFiles, collect, collect_moments
from betaedit.statistics import corpus as corpora
from betaedit.statistics.origin import same_statistics
from support.tiny import (
    FAMILIES,
    LAYERS,
    MLP,
    Calls,
    RecordedProgress,
    count_calls,
    random_rows,
    tiny_llama,
    tiny_tokenizer,
)

Rows = list[list[int]]
PLENTY = 10**6


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("BETAEDIT_CACHE", str(tmp_path))
    return tmp_path


@pytest.fixture(params=FAMILIES)
def model(request: pytest.FixtureRequest) -> LanguageModel:
    return FAMILIES[request.param]()


@pytest.fixture
def llama() -> LanguageModel:
    return tiny_llama()


@dataclass
class Blocks:
    """Given rows as a corpus, which can fail before one of its blocks."""

    content: list[Rows]
    fails_at: int | None = None
    failure: type[BaseException] = RuntimeError
    handed: list[int] = field(default_factory=list)
    label: str = "given rows"

    def fingerprint(self, model: LanguageModel) -> str:
        return hashlib.sha256(json.dumps(self.content).encode()).hexdigest()

    def blocks(self, model: LanguageModel, first: int) -> Iterator[Rows]:
        for index in range(first, len(self.content)):
            if index == self.fails_at:
                raise self.failure("pulled the plug")
            self.handed.append(index)
            yield self.content[index]

    @property
    def rows(self) -> Rows:
        return [row for block in self.content for row in block]


def mixed_blocks(model: LanguageModel, n_blocks: int = 4) -> list[Rows]:
    return [random_rows(model, [9, 3, 14, 1, 8, 14], seed) for seed in range(n_blocks)]


@torch.no_grad()
def plain_keys(model: LanguageModel, row: Sequence[int], layers: Sequence[int]) -> dict[int, Tensor]:
    """Float64 keys ``(length, d_in)`` of one row, by a full forward pass of the model as it stands."""
    keys: dict[int, Tensor] = {}

    def keep(layer: int) -> object:
        return lambda _, args, __: keys.__setitem__(layer, args[0][0].double())

    handles = [model.anatomy.projection(layer).register_forward_hook(keep(layer)) for layer in layers]
    model.model(input_ids=torch.tensor([list(row)]))
    for handle in handles:
        handle.remove()
    return keys


def plain_moments(model: LanguageModel, rows: Rows, layers: Sequence[int], *, skip: int = 0) -> dict[int, Tensor]:
    """``C0`` by definition: everything in float64, the weights too."""
    exact = LanguageModel.wrap(copy.deepcopy(model.model).double(), model.tokenizer)
    keys = [plain_keys(exact, row, layers) for row in rows]
    stacked = {layer: torch.cat([found[layer][skip:] for found in keys]) for layer in layers}
    return {layer: k.T @ k / len(k) for layer, k in stacked.items()}


def assert_close(found: Moments, expected: dict[int, Tensor]) -> None:
    assert found.layers == tuple(sorted(expected))
    for layer, matrix in expected.items():
        error = (found.matrices[layer].double() - matrix).norm() / matrix.norm()
        assert error < 1e-5, f"layer {layer} is off by {error:.1e}"


def assert_identical(found: Moments, expected: Moments) -> None:
    assert (found.layers, found.n_tokens, found.origin) == (expected.layers, expected.n_tokens, expected.origin)
    assert all(torch.equal(found.matrices[layer], expected.matrices[layer]) for layer in expected.layers)


def forwards(model: LanguageModel) -> AbstractContextManager[Calls]:
    return count_calls(model.model.base_model)


def finished(cache: Path) -> list[Path]:
    return sorted((cache / "moments").glob("*.safetensors"))


def kept(cache: Path) -> list[Path]:
    """All files of statistics, finished or not; the empty ones that processes lock are none."""
    return [file for file in (cache / "moments").iterdir() if file.suffix != ".lock"]


# What is computed


def test_moments_are_the_mean_of_outer_products_at_every_layer_as_full_float64_passes_give_it(model: LanguageModel):
    corpus = Blocks(mixed_blocks(model))
    layers = list(range(LAYERS))
    found = collect_moments(model, layers, corpus, n_tokens=PLENTY)
    assert_close(found, plain_moments(model, corpus.rows, layers))


def test_keys_are_the_input_of_the_projection_and_its_width(model: LanguageModel):
    found = collect_moments(model, [0], Blocks(mixed_blocks(model)), n_tokens=PLENTY)
    assert found.matrices[0].shape == (MLP, MLP)
    assert found.matrices[0].dtype == torch.float32


def test_several_layers_in_one_pass_are_what_each_is_alone(model: LanguageModel):
    together = collect_moments(model, [2, 0, 1], Blocks(mixed_blocks(model)), n_tokens=PLENTY)
    assert together.layers == (0, 1, 2)
    for layer in together.layers:
        alone = collect_moments(model, [layer], Blocks(mixed_blocks(model)), n_tokens=PLENTY)
        torch.testing.assert_close(alone.matrices[layer], together.matrices[layer], rtol=1e-5, atol=1e-7)


def test_several_layers_cost_one_forward_pass_a_batch(llama: LanguageModel):
    with forwards(llama) as calls:
        collect_moments(llama, [0, 1, 2, 3], Blocks(mixed_blocks(llama, 3)), n_tokens=PLENTY)
    assert len(calls) == 3


def test_the_pass_stops_at_the_input_of_the_last_edited_projection(model: LanguageModel):
    anatomy = model.anatomy
    projected: list[int] = []
    handle = anatomy.projection(1).register_forward_hook(lambda *_: projected.append(1))
    with (
        count_calls(anatomy.layers[1]) as last,
        count_calls(anatomy.layers[2]) as later,
        count_calls(anatomy.layers[3]) as latest,
        count_calls(anatomy.norm) as norm,
        count_calls(anatomy.head) as head,
    ):
        collect_moments(model, [0, 1], Blocks(mixed_blocks(model)), n_tokens=PLENTY)
    handle.remove()
    assert len(last) > 0
    assert [len(calls) for calls in (later, latest, norm, head)] == [0, 0, 0, 0]
    assert projected == []


def test_the_model_is_left_without_hooks_and_with_its_weights(model: LanguageModel):
    before = model.fingerprint()
    collect_moments(model, [0, 2], Blocks(mixed_blocks(model)), n_tokens=PLENTY)
    assert model.fingerprint() == before
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in model.model.modules())


def test_half_precision_models_have_float32_moments():
    model = tiny_llama()
    model.model.bfloat16()
    found = collect_moments(model, [1], Blocks(mixed_blocks(model)), n_tokens=PLENTY)
    assert found.matrices[1].dtype == torch.float32
    expected = plain_moments(tiny_llama(), Blocks(mixed_blocks(model)).rows, [1])[1]
    assert (found.matrices[1].double() - expected).norm() / expected.norm() < 0.05


def test_a_layer_that_is_not_there_is_an_anatomy_error(llama: LanguageModel):
    with pytest.raises(AnatomyError, match="no layer 4"):
        collect_moments(llama, [0, 4], Blocks(mixed_blocks(llama)), n_tokens=PLENTY)


# Which tokens count


def test_padding_is_not_counted(model: LanguageModel):
    corpus = Blocks(mixed_blocks(model))
    found = collect_moments(model, [1], corpus, n_tokens=PLENTY)
    assert found.n_tokens == sum(len(row) for row in corpus.rows)


def test_batches_of_mixed_lengths_give_what_rows_give_one_by_one(model: LanguageModel):
    rows = random_rows(model, [20, 2, 7, 7, 31, 1])
    together = collect_moments(model, [0, 3], Blocks([rows]), n_tokens=PLENTY)
    single = collect_moments(model, [0, 3], Blocks([[row] for row in rows]), n_tokens=PLENTY)
    assert together.n_tokens == single.n_tokens == 68
    assert_close(together, {layer: matrix.double() for layer, matrix in single.matrices.items()})


def test_splitting_a_block_over_several_forward_passes_changes_nothing(
    model: LanguageModel, monkeypatch: pytest.MonkeyPatch
):
    corpus = Blocks(mixed_blocks(model, 2))
    monkeypatch.setattr(collect, "_TOKENS_PER_FORWARD", 30)
    with forwards(model) as calls:
        found = collect_moments(model, [1, 2], corpus, n_tokens=PLENTY)
    assert len(calls) > 2
    assert all(n_rows * width <= 30 for n_rows, width in calls.rows)
    assert_close(found, plain_moments(model, corpus.rows, [1, 2]))


def test_a_row_longer_than_the_forward_budget_goes_alone(llama: LanguageModel, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(collect, "_TOKENS_PER_FORWARD", 30)
    corpus = Blocks([random_rows(llama, [40, 12, 5])])
    found = collect_moments(llama, [1], corpus, n_tokens=PLENTY)
    assert_close(found, plain_moments(llama, corpus.rows, [1]))


def test_empty_rows_are_passed_over(llama: LanguageModel):
    rows = random_rows(llama, [30, 30])
    found = collect_moments(llama, [1], Blocks([[[], rows[0], []], [[]], [rows[1]]]), n_tokens=PLENTY)
    assert_close(found, plain_moments(llama, rows, [1]))


@pytest.mark.parametrize("n_tokens", [48, 49, 98, 99, 120])
def test_the_token_budget_is_met_exactly(model: LanguageModel, n_tokens: int):
    corpus = Blocks(mixed_blocks(model))
    found = collect_moments(model, [2], corpus, n_tokens=n_tokens)
    assert found.n_tokens == n_tokens
    assert len(corpus.handed) == -(-n_tokens // 49)  # a block holds 49 tokens; none is asked for beyond the budget


def test_the_row_that_meets_the_budget_is_cut_after_its_last_counted_token(model: LanguageModel):
    rows = random_rows(model, [40, 30])
    found = collect_moments(model, [0, 2], Blocks([[row] for row in rows]), n_tokens=51)
    assert_close(found, plain_moments(model, [rows[0], rows[1][:11]], [0, 2]))


def test_a_corpus_that_ends_before_the_budget_counts_what_it_has(llama: LanguageModel):
    found = collect_moments(llama, [1], Blocks([random_rows(llama, [60])]), n_tokens=PLENTY)
    assert found.n_tokens == 60


def test_skip_first_token_leaves_exactly_the_first_token_of_each_row_out(model: LanguageModel):
    corpus = Blocks(mixed_blocks(model))
    found = collect_moments(model, [0, 1], corpus, n_tokens=PLENTY, skip_first_token=True)
    assert found.n_tokens == sum(len(row) - 1 for row in corpus.rows)
    assert_close(found, plain_moments(model, corpus.rows, [0, 1], skip=1))


def test_skip_first_token_counts_other_tokens_only_against_the_budget(llama: LanguageModel):
    rows = random_rows(llama, [40, 30])
    found = collect_moments(llama, [1], Blocks([[row] for row in rows]), n_tokens=50, skip_first_token=True)
    assert found.n_tokens == 50
    assert_close(found, plain_moments(llama, [rows[0], rows[1][:12]], [1], skip=1))


def test_too_few_tokens_for_the_width_are_refused(llama: LanguageModel, cache: Path):
    with pytest.raises(StatisticsError, match=f"only {MLP - 1} tokens.*{MLP} directions") as caught:
        collect_moments(llama, [1], Blocks([random_rows(llama, [MLP - 1])]), n_tokens=PLENTY)
    assert caught.value.hint
    assert finished(cache) == []


def test_as_many_tokens_as_directions_are_enough(llama: LanguageModel):
    assert collect_moments(llama, [1], Blocks([random_rows(llama, [MLP])]), n_tokens=PLENTY).n_tokens == MLP


def test_a_corpus_without_any_token_is_refused(llama: LanguageModel):
    with pytest.raises(StatisticsError, match="only 0 tokens"):
        collect_moments(llama, [1], Blocks([]), n_tokens=PLENTY)


def test_keys_that_are_no_numbers_are_refused_and_not_kept(llama: LanguageModel, cache: Path):
    with torch.no_grad():
        llama.anatomy.layers[1].mlp.up_proj.weight.fill_(float("inf"))
    with pytest.raises(StatisticsError, match="keys of layer 1 are not finite") as caught:
        collect_moments(llama, [0, 1], Blocks(mixed_blocks(llama)), n_tokens=100)
    assert "--dtype" in caught.value.hint
    assert finished(cache) == []


@pytest.mark.parametrize("n_tokens", [-5, 0, MLP - 1])
def test_a_budget_below_the_width_is_refused_without_blaming_the_corpus(llama: LanguageModel, n_tokens: int):
    with pytest.raises(StatisticsError) as caught:
        collect_moments(llama, [1], Blocks(mixed_blocks(llama)), n_tokens=n_tokens)
    assert "corpus has only" not in str(caught.value)
    assert "Give more text" not in caught.value.hint


# Where they came from, and when they are computed again


def test_moments_say_where_they_came_from(llama: LanguageModel):
    origin = collect_moments(llama, [0, 2], Blocks(mixed_blocks(llama)), n_tokens=100).origin
    assert origin["model"] == "tiny-llama"
    assert origin["weights"] == llama.fingerprint(2)
    assert origin["corpus"] == "given rows"
    assert origin["corpus_hash"] == Blocks(mixed_blocks(llama)).fingerprint(llama)
    assert origin["skip_first_token"] == "False"


def text_of(model: LanguageModel, blocks: list[Rows], n_tokens: int, layers: Sequence[int] = (0,)) -> str:
    """The hash of the tokens read, with nothing from the cache."""
    for file in Path(os.environ["BETAEDIT_CACHE"]).rglob("*.safetensors"):
        file.unlink()
    return collect_moments(model, layers, Blocks(blocks), n_tokens=n_tokens).origin["text_sha256"]


def test_the_text_is_told_by_a_hash_of_the_blocks_of_token_ids_that_were_read(llama: LanguageModel):
    blocks = mixed_blocks(llama)
    digest = ""
    for block in blocks[:3]:  # of 49 tokens each
        digest = hashlib.sha256(f"{digest}{json.dumps(block)}".encode()).hexdigest()
    assert text_of(llama, blocks, 120) == f"sha256:{digest}"
    assert text_of(llama, [*blocks[:3], []], 120, (1, 2)) == f"sha256:{digest}"


@pytest.mark.parametrize(("block", "row"), [(0, 0), (1, 3), (2, 5)])
def test_one_other_token_is_another_text(llama: LanguageModel, block: int, row: int):
    blocks = mixed_blocks(llama)
    changed = copy.deepcopy(blocks)
    changed[block][row][-1] = changed[block][row][-1] % 20 + 4
    assert changed != blocks
    assert text_of(llama, blocks, 120) != text_of(llama, changed, 120)


def test_the_same_command_with_another_sampled_text_is_told_apart(
    llama: LanguageModel, cache: Path, monkeypatch: pytest.MonkeyPatch
):
    """As by another number of threads: rounding turns a token over, and all else that decides the text is equal."""
    monkeypatch.setattr(corpora, "_SAMPLE_ROWS", 8)
    first = collect_moments(llama, [0], SampledText(), n_tokens=8 * 64)
    draw = SampledText._draw

    def turned(self: SampledText, model: LanguageModel, index: int) -> Rows:
        rows = draw(self, model, index)
        rows[3][-1] = rows[3][-1] % 20 + 4
        return rows

    monkeypatch.setattr(SampledText, "_draw", turned)
    monkeypatch.setenv("BETAEDIT_CACHE", str(cache / "elsewhere"))
    second = collect_moments(llama, [0], SampledText(), n_tokens=8 * 64)
    assert first.origin["corpus_hash"] == second.origin["corpus_hash"]
    assert first.origin["text_sha256"] != second.origin["text_sha256"]
    assert first.fingerprint != second.fingerprint
    assert not same_statistics(first.to_dict(), second.to_dict())


def test_statistics_of_an_older_version_are_read_and_say_that_their_text_is_not_recorded(
    llama: LanguageModel, cache: Path
):
    found = collect_moments(llama, [0], Blocks(mixed_blocks(llama)), n_tokens=100)
    (file,) = finished(cache)
    older = {key: value for key, value in found.origin.items() if key != "text_sha256"}
    Moments(found.matrices, found.n_tokens, older).save(file)
    with forwards(llama) as calls:
        again = collect_moments(llama, [0], Blocks(mixed_blocks(llama)), n_tokens=100)
    assert len(calls) == 0
    assert again.to_dict()["text_sha256"] == "not recorded"
    assert same_statistics(again.to_dict(), found.to_dict())


def test_a_checkpoint_of_an_older_version_is_made_anew(llama: LanguageModel, cache: Path, caplog):
    _interrupted(llama, [1], Blocks(mixed_blocks(llama), 2), 120)
    (partial,) = cache.rglob("*.partial")
    saved = load_file(partial)
    save_file({name: tensor for name, tensor in saved.items() if name != "text"}, partial)
    corpus = Blocks(mixed_blocks(llama))
    found = collect_moments(llama, [1], corpus, n_tokens=120)
    assert corpus.handed == [0, 1, 2]
    assert "older version" in caplog.text
    assert found.origin["text_sha256"] == text_of(llama, mixed_blocks(llama), 120, (1,))


def test_a_second_call_runs_no_forward_pass_and_reads_no_block(model: LanguageModel):
    first = collect_moments(model, [0, 2], Blocks(mixed_blocks(model)), n_tokens=100)
    corpus = Blocks(mixed_blocks(model))
    with forwards(model) as calls:
        second = collect_moments(model, [0, 2], corpus, n_tokens=100)
    assert len(calls) == 0
    assert corpus.handed == []
    assert_identical(second, first)


def test_the_order_of_layers_does_not_matter_to_the_cache(llama: LanguageModel):
    collect_moments(llama, [0, 2], Blocks(mixed_blocks(llama)), n_tokens=100)
    with forwards(llama) as calls:
        collect_moments(llama, [2, 0], Blocks(mixed_blocks(llama)), n_tokens=100)
    assert len(calls) == 0


def test_weights_above_the_last_edited_layer_do_not_matter_to_the_cache(llama: LanguageModel):
    collect_moments(llama, [0, 1], Blocks(mixed_blocks(llama)), n_tokens=100)
    with torch.no_grad():
        llama.anatomy.projection(2).weight += 1
    with forwards(llama) as calls:
        collect_moments(llama, [0, 1], Blocks(mixed_blocks(llama)), n_tokens=100)
    assert len(calls) == 0


@pytest.mark.parametrize("name", ["another name", "./m", "/elsewhere/m/"])
def test_what_the_model_is_called_does_not_matter_to_the_cache(llama: LanguageModel, name: str):
    first = collect_moments(llama, [0, 1], Blocks(mixed_blocks(llama)), n_tokens=100)
    renamed = LanguageModel.wrap(llama.model, llama.tokenizer, name)
    with forwards(renamed) as calls:
        second = collect_moments(renamed, [0, 1], Blocks(mixed_blocks(llama)), n_tokens=100)
    assert len(calls) == 0
    assert_identical(second, first)


def settings(llama: LanguageModel, **changes: object) -> dict[str, object]:
    usual = {"layers": [0, 1], "corpus": Blocks(mixed_blocks(llama)), "n_tokens": 100, "skip_first_token": False}
    return usual | changes


@pytest.mark.parametrize("what", ["layers", "tokens", "content", "skip", "embedding", "weights below"])
def test_whatever_decides_the_moments_makes_them_be_computed_again(llama: LanguageModel, cache: Path, what: str):
    collect_moments(llama, **settings(llama))
    changes: dict[str, object] = {}
    if what == "layers":
        changes = {"layers": [0, 2]}
    elif what == "tokens":
        changes = {"n_tokens": 101}
    elif what == "content":
        content = mixed_blocks(llama)
        content[-1][-1][-1] ^= 1
        changes = {"corpus": Blocks(content)}
    elif what == "skip":
        changes = {"skip_first_token": True}
    elif what == "embedding":
        with torch.no_grad():
            llama.model.get_input_embeddings().weight[0, 0] += 0.01
    else:
        with torch.no_grad():
            llama.anatomy.projection(0).weight[0, 0] += 0.01
    with forwards(llama) as calls:
        collect_moments(llama, **settings(llama, **changes))
    assert len(calls) > 0
    assert len(finished(cache)) == 2


def test_another_seed_of_sampled_text_makes_them_be_computed_again(
    llama: LanguageModel, cache: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(corpora, "_SAMPLE_ROWS", 8)
    monkeypatch.setattr(corpora, "_SAMPLE_WIDTH", 16)
    first = collect_moments(llama, [0], SampledText(seed=0), n_tokens=100)
    other = collect_moments(llama, [0], SampledText(seed=1), n_tokens=100)
    again = collect_moments(llama, [0], SampledText(seed=0), n_tokens=100)
    assert len(finished(cache)) == 2
    assert not torch.equal(first.matrices[0], other.matrices[0])
    assert_identical(again, first)


def test_changed_bytes_of_a_text_file_make_them_be_computed_again(llama: LanguageModel, cache: Path):
    file = cache / "text.txt"
    file.write_text("the old king lives by the sea " * 20)
    collect_moments(llama, [0], TextFiles((file,)), n_tokens=100)
    file.write_text("the new king lives by the sea " * 20)
    collect_moments(llama, [0], TextFiles((file,)), n_tokens=100)
    assert len(finished(cache)) == 2


def test_another_tokenizer_makes_them_be_computed_again(llama: LanguageModel, cache: Path):
    file = cache / "text.txt"
    file.write_text("the old king lives by the sea\n\n" * 20)
    other = LanguageModel.wrap(llama.model, tiny_tokenizer(bos=False), llama.name)
    first = collect_moments(llama, [0], TextFiles((file,)), n_tokens=100)
    second = collect_moments(other, [0], TextFiles((file,)), n_tokens=100)
    assert not torch.equal(first.matrices[0], second.matrices[0])  # rows open with <s> in the first only


# Interruption


class PlugPulledError(Exception):
    """An error of no kind that the package knows."""


def _interrupted(model: LanguageModel, layers: Sequence[int], corpus: Blocks, n_tokens: int) -> None:
    with pytest.raises(corpus.failure):
        collect_moments(model, layers, corpus, n_tokens=n_tokens)


def _uninterrupted(
    model: LanguageModel, cache: Path, monkeypatch: pytest.MonkeyPatch, layers: Sequence[int], n_tokens: int
) -> tuple[Moments, Calls]:
    with monkeypatch.context() as patch, forwards(model) as calls:
        patch.setenv("BETAEDIT_CACHE", str(cache / "elsewhere"))
        return collect_moments(model, layers, Blocks(mixed_blocks(model, 6)), n_tokens=n_tokens), calls


@pytest.mark.parametrize("failure", [PlugPulledError, KeyboardInterrupt])
@pytest.mark.parametrize("fails_at", [0, 1, 4])
def test_an_interrupted_run_goes_on_at_its_last_finished_block_and_ends_bit_identical(
    model: LanguageModel, cache: Path, monkeypatch: pytest.MonkeyPatch, failure: type[BaseException], fails_at: int
):
    whole, all_calls = _uninterrupted(model, cache, monkeypatch, [0, 2], 270)
    _interrupted(model, [0, 2], Blocks(mixed_blocks(model, 6), fails_at, failure), 270)
    assert finished(cache) == []
    corpus = Blocks(mixed_blocks(model, 6))
    with forwards(model) as calls:
        found = collect_moments(model, [0, 2], corpus, n_tokens=270)
    assert_identical(found, whole)
    assert corpus.handed == list(range(fails_at, 6))
    assert len(calls) == len(all_calls) - fails_at


def test_a_run_interrupted_twice_ends_bit_identical(model: LanguageModel, cache: Path, monkeypatch: pytest.MonkeyPatch):
    whole, _ = _uninterrupted(model, cache, monkeypatch, [1, 3], PLENTY)
    _interrupted(model, [1, 3], Blocks(mixed_blocks(model, 6), 2), PLENTY)
    _interrupted(model, [1, 3], Blocks(mixed_blocks(model, 6), 5, KeyboardInterrupt), PLENTY)
    corpus = Blocks(mixed_blocks(model, 6))
    assert_identical(collect_moments(model, [1, 3], corpus, n_tokens=PLENTY), whole)
    assert corpus.handed == [5]


def test_a_block_interrupted_half_way_is_counted_once(
    model: LanguageModel, cache: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(collect, "_TOKENS_PER_FORWARD", 30)
    whole, all_calls = _uninterrupted(model, cache, monkeypatch, [0, 2], PLENTY)
    per_block = len(all_calls) // 6
    assert per_block > 2
    left = [2 * per_block + 2]  # stops in the third block's third pass

    def pull(*_: object) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt

    handle = model.anatomy.layers[1].register_forward_pre_hook(pull)
    with pytest.raises(KeyboardInterrupt):
        collect_moments(model, [0, 2], Blocks(mixed_blocks(model, 6)), n_tokens=PLENTY)
    handle.remove()
    assert not any(module._forward_pre_hooks for module in model.model.modules())
    corpus = Blocks(mixed_blocks(model, 6))
    assert_identical(collect_moments(model, [0, 2], corpus, n_tokens=PLENTY), whole)
    assert corpus.handed == [2, 3, 4, 5]


def test_a_finished_run_leaves_one_file(llama: LanguageModel, cache: Path):
    _interrupted(llama, [0], Blocks(mixed_blocks(llama), 2), 150)
    assert len(kept(cache)) == 1
    collect_moments(llama, [0], Blocks(mixed_blocks(llama)), n_tokens=150)
    assert kept(cache) == finished(cache)
    assert len(finished(cache)) == 1


def test_an_interrupted_run_is_no_start_for_other_settings(llama: LanguageModel):
    _interrupted(llama, [0], Blocks(mixed_blocks(llama), 2), 150)
    corpus = Blocks(mixed_blocks(llama))
    collect_moments(llama, [0], corpus, n_tokens=151)
    assert corpus.handed[0] == 0


def test_an_interrupted_run_over_sampled_text_goes_on_and_ends_bit_identical(
    llama: LanguageModel, cache: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(corpora, "_SAMPLE_ROWS", 8)
    monkeypatch.setattr(corpora, "_SAMPLE_WIDTH", 16)
    n_tokens = 3 * 8 * 16 - 50
    with monkeypatch.context() as patch:
        patch.setenv("BETAEDIT_CACHE", str(cache / "elsewhere"))
        whole = collect_moments(llama, [0], SampledText(), n_tokens=n_tokens)
    draw = SampledText._draw

    def pull(self: SampledText, model: LanguageModel, index: int) -> Rows:
        if index == 2:
            raise KeyboardInterrupt
        return draw(self, model, index)

    with monkeypatch.context() as patch:
        patch.setattr(SampledText, "_draw", pull)
        with pytest.raises(KeyboardInterrupt):
            collect_moments(llama, [0], SampledText(), n_tokens=n_tokens)
    assert_identical(collect_moments(llama, [0], SampledText(), n_tokens=n_tokens), whole)


# Several processes


@dataclass
class SlowBlocks(Blocks):
    """Blocks that say when the first is asked for, and wait for leave to hand it out."""

    asked: threading.Event = field(default_factory=threading.Event)
    leave: threading.Event = field(default_factory=threading.Event)

    def blocks(self, model: LanguageModel, first: int) -> Iterator[Rows]:
        self.asked.set()
        assert self.leave.wait(60)
        yield from super().blocks(model, first)


def test_of_two_that_want_the_same_statistics_one_collects_and_the_other_waits_and_says_so(
    llama: LanguageModel, caplog: pytest.LogCaptureFixture
):
    slow, idle = SlowBlocks(mixed_blocks(llama)), Blocks(mixed_blocks(llama))
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(collect_moments, tiny_llama(), [0], slow, n_tokens=150)
        assert slow.asked.wait(60)
        second = pool.submit(collect_moments, llama, [0], idle, n_tokens=150)
        ends = time.monotonic() + 60
        while "waiting for it" not in caplog.text and time.monotonic() < ends:
            time.sleep(0.01)
        assert not second.done()
        slow.leave.set()
    assert "waiting for it" in caplog.text
    assert_identical(second.result(), first.result())
    assert idle.handed == []


HOLDER = """
import sys, time
from filelock import FileLock
lock = FileLock(sys.argv[1])
lock.acquire()
print("held", flush=True)
time.sleep(600)
"""


def test_a_process_that_was_killed_holds_nobody_up_and_leaves_nothing(llama: LanguageModel, cache: Path):
    _interrupted(llama, [0], Blocks(mixed_blocks(llama), 2), 150)
    (partial,) = kept(cache)
    partial.with_name(f".{partial.name}.7-7.writing").write_bytes(b"begun")
    lock = partial.with_suffix(".lock")
    with subprocess.Popen([sys.executable, "-c", HOLDER, str(lock)], stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(Timeout):
            FileLock(lock).acquire(timeout=0)
        holder.kill()
    corpus = Blocks(mixed_blocks(llama))
    assert collect_moments(llama, [0], corpus, n_tokens=150).n_tokens == 150
    assert corpus.handed == [2, 3]
    assert kept(cache) == finished(cache)


# Progress


def test_progress_is_told_the_budget_and_every_token(llama: LanguageModel):
    progress = RecordedProgress()
    collect_moments(llama, [1], Blocks(mixed_blocks(llama)), n_tokens=120, progress=progress)
    (task,) = progress.tasks
    assert (task.total, task.unit) == (120, "tokens")
    assert sum(task.steps) == 120
    assert task.description
    assert task.finished


def test_progress_of_a_continued_run_starts_where_the_other_stopped(llama: LanguageModel):
    _interrupted(llama, [1], Blocks(mixed_blocks(llama), 2), 150)
    progress = RecordedProgress()
    collect_moments(llama, [1], Blocks(mixed_blocks(llama)), n_tokens=150, progress=progress)
    (task,) = progress.tasks
    assert task.done == 98
    assert task.done + sum(task.steps) == task.total == 150


def test_progress_is_told_nothing_when_the_cache_answers(llama: LanguageModel):
    collect_moments(llama, [1], Blocks(mixed_blocks(llama)), n_tokens=120)
    progress = RecordedProgress()
    collect_moments(llama, [1], Blocks(mixed_blocks(llama)), n_tokens=120, progress=progress)
    assert progress.tasks == []


# Damage


def test_a_damaged_file_in_the_cache_is_named_or_made_anew(llama: LanguageModel, cache: Path):
    collect_moments(llama, [1], Blocks(mixed_blocks(llama)), n_tokens=120)
    (file,) = finished(cache)
    file.write_bytes(file.read_bytes()[:100])
    assert _made_anew_or_named(llama, file)


def test_a_damaged_checkpoint_is_named_or_made_anew(llama: LanguageModel, cache: Path):
    _interrupted(llama, [1], Blocks(mixed_blocks(llama), 2), 120)
    (file,) = kept(cache)
    file.write_bytes(file.read_bytes()[:100])
    assert _made_anew_or_named(llama, file)


def _made_anew_or_named(llama: LanguageModel, file: Path) -> bool:
    try:
        return collect_moments(llama, [1], Blocks(mixed_blocks(llama)), n_tokens=120).n_tokens == 120
    except StatisticsError as error:
        return str(file) in str(error)  # the user knows what to delete
