"""A model of random weights tells what an edit of that shape costs."""

from __future__ import annotations

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from betaedit.benchmarks import shape as benchmark
from betaedit.editors.closed_form import spectra
from betaedit.errors import ConfigError
from betaedit.facts import Fact
from support.tiny_tokenizers import VOCABULARY, tiny_tokenizer

TINY = LlamaConfig(
    vocab_size=VOCABULARY,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=4,
    num_attention_heads=4,
    num_key_value_heads=2,
)
FACTS = [Fact("The mother tongue of {} is", "Danielle Darrieux", "English"), Fact("{} plays", "Toko", "chess")]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_search_of_random_weights_takes_every_evaluation_and_the_floor_counts_what_they_read(
    dtype, monkeypatch
) -> None:
    monkeypatch.setattr(benchmark, "bandwidth", lambda device: 1.0)
    row = benchmark.shape(TINY, tiny_tokenizer(), FACTS, dtype=dtype, value_steps=3)
    size = dtype.itemsize
    layer = 2 * 32 * 32 + 2 * 32 * 16 + 3 * 32 * 48 + 2 * 32
    assert row.details["layers"] == [0, 1]
    assert row.details["evaluations"] == 3
    assert row.details["parameters"] == 4 * layer + 2 * VOCABULARY * 32 + 32
    kept = round(0.82 * 48)
    weights = 2 * 3 * (2 * layer + VOCABULARY * 32) + 4 * layer + 2 * layer
    assert row.floor_seconds == weights * size + 2 * 48 * kept * 8
    assert row.ours_seconds > 0
    assert row.ratio is None


def test_the_shape_of_8b_has_eight_billion_parameters() -> None:
    with torch.device("meta"):
        model = LlamaForCausalLM(benchmark.find_shape("llama-8b"))
    assert sum(weight.numel() for weight in model.parameters()) == 8_030_261_248


def test_depth_is_how_many_of_its_layers_a_shape_has() -> None:
    assert benchmark.find_shape("llama-1b").num_hidden_layers == 16
    assert benchmark.find_shape("llama-1b", depth=3).num_hidden_layers == 3


def test_an_unknown_shape_is_refused_with_the_nearest_one() -> None:
    with pytest.raises(ConfigError, match="no shape 'llama-8'") as refused:
        benchmark.find_shape("llama-8")
    assert "llama-8b" in refused.value.hint


def test_one_fact_is_too_few() -> None:
    with pytest.raises(ConfigError, match="at least two facts are needed"):
        benchmark.shape(TINY, tiny_tokenizer(), FACTS[:1])


def test_a_model_larger_than_the_free_memory_is_refused_before_it_is_made(monkeypatch) -> None:
    class Little:
        available = 1000

    monkeypatch.setattr(benchmark.psutil, "virtual_memory", Little)
    with pytest.raises(ConfigError, match="weights alone take") as refused:
        benchmark.random_model(TINY, torch.float32, "cpu")
    assert "--depth" in refused.value.hint


def test_the_users_cache_gets_nothing_of_a_random_model(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("BETAEDIT_CACHE", str(tmp_path))
    monkeypatch.setattr(spectra, "_LEAST_WIDTH", 1)
    benchmark.shape(TINY, tiny_tokenizer(), FACTS, value_steps=1)
    assert not any(tmp_path.iterdir())
