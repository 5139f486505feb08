"""A folder in which the snippets of the documentation run as they stand, with a tiny model in the place of smollm2."""

from __future__ import annotations

import gzip
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from betaedit.facts import demo_path
from betaedit.models import LanguageModel
from betaedit.models.bundled import BUNDLES, Bundle
from support.chat import with_chat
from support.families import language_model

N_FACTS = 10


@dataclass(frozen=True)
class LocalBundle(Bundle):
    """A bundle whose model lies in a folder already."""

    place: Path = Path()

    def folder(self) -> Path:
        return self.place


def tiny_smollm2() -> LanguageModel:
    """A random model with smollm2's preset layers, a chat template, and room for the package's prose."""
    return with_chat(language_model("llama", num_hidden_layers=10, max_position_embeddings=1024))


@pytest.fixture(scope="session")
def tiny_place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bundled") / "smollm2"
    save(tiny_smollm2(), folder)
    return folder


def save(model: LanguageModel, folder: Path) -> None:
    model.model.save_pretrained(folder)
    model.tokenizer.save_pretrained(folder)


def as_counterfact(record: dict[str, Any]) -> dict[str, Any]:
    """A record in a published format: what the model misses, as a random one does, stays written."""
    targets = {name: {"str": record[name]} for name in ("target_new", "target_true")}
    return {
        "requested_rewrite": {"prompt": record["prompt"], "subject": record["subject"], **targets},
        "paraphrase_prompts": [text.format(record["subject"]) for text in record["paraphrases"]],
        "neighborhood_prompts": record["neighbors"],
    }


@pytest.fixture
def desk(tiny_place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder: the files that the snippets name are there, and ``smollm2`` is the tiny model."""
    monkeypatch.setitem(BUNDLES, "smollm2", LocalBundle("smollm2", (), "", tiny_place))
    monkeypatch.chdir(tmp_path)
    records = [json.loads(line) for line in demo_path().read_text(encoding="utf-8").splitlines()]
    lines = [json.dumps(as_counterfact(record)) + "\n" for record in records[:N_FACTS]]
    Path("facts.jsonl").write_text("".join(lines), encoding="utf-8")
    for place in ("my-llama", "some/folder"):
        save(tiny_smollm2(), Path(place))
    prose = "\n\n".join(record["prompt"].format("It") for record in records) + "\n\n"
    Path("a.txt").write_text(prose * 10, encoding="utf-8")
    with gzip.open("b.jsonl.gz", "wt", encoding="utf-8") as file:
        file.write(json.dumps({"text": prose}) + "\n")
    return tmp_path
