"""Encoders of sentences, on a tiny random one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import BertModel, BertTokenizerFast

from betaedit.errors import ModelError, ModelNotFoundError
from betaedit.models.bundled import EncoderBundle
from betaedit.models.encoder import load_encoder
from support.encoder import save_tiny_encoder

TEXTS = ["a king", "the old town is near the river", "a king a king a king a king a king a king"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return save_tiny_encoder(tmp_path)


def by_definition(folder: Path, text: str) -> torch.Tensor:
    """The mean of the last layer over a text's own tokens, alone and in float64."""
    model = BertModel.from_pretrained(folder).double().eval()
    tokenizer = BertTokenizerFast.from_pretrained(folder)
    with torch.no_grad():
        return (
            model(**tokenizer(text, truncation=True, max_length=10, return_tensors="pt")).last_hidden_state[0].mean(0)
        )


def test_a_vector_is_the_mean_over_the_tokens_whatever_shares_its_batch(folder: Path):
    found = load_encoder(str(folder)).encode(TEXTS)
    assert found.shape == (3, 16)
    for vector, text in zip(found, TEXTS, strict=True):
        torch.testing.assert_close(vector.double(), by_definition(folder, text), rtol=0, atol=1e-5)


def test_vectors_have_length_one_where_the_encoder_says_so(folder: Path):
    modules = [{"type": "sentence_transformers.models.Transformer"}, {"type": "sentence_transformers.models.Normalize"}]
    (folder / "modules.json").write_text(json.dumps(modules), encoding="utf-8")
    found = load_encoder(str(folder)).encode(TEXTS)
    torch.testing.assert_close(found.norm(dim=1), torch.ones(3))
    own = by_definition(folder, TEXTS[1])
    torch.testing.assert_close(found[1].double(), own / own.norm(), rtol=0, atol=1e-5)


def test_an_encoder_that_pools_otherwise_is_refused(folder: Path):
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text('{"pooling_mode_mean_tokens": false}', encoding="utf-8")
    with pytest.raises(ModelError, match="does not pool by the mean"):
        load_encoder(str(folder))


def test_an_encoder_that_is_not_there_is_refused(tmp_path: Path):
    with pytest.raises(ModelNotFoundError):
        load_encoder(str(tmp_path / "none"))
    with pytest.raises(ModelNotFoundError, match="not installed") as caught:
        EncoderBundle("mine", "no_such_package", "pip install mine").folder()
    assert "pip install mine" in str(caught.value.hint)
