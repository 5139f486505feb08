"""Sources of tokens: text sampled from the model itself, text files, or a Hugging Face dataset.

A corpus yields blocks of token rows in a fixed order, so that collection can continue at any block.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import random
import re
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Protocol

import torch

from betaedit.errors import OutputError, StatisticsError
from betaedit.extras import import_extra
from betaedit.files import atomic_write, file_errors
from betaedit.models.generate import sample
from betaedit.models.load import LanguageModel
from betaedit.models.lookup import document_start, tokenize
from betaedit.paths import cache_folder

Rows = list[list[int]]

_OPENINGS = """
The In A It When After There This For As At On One During While He She They We I You If Many Some Most New From Since
Before Although Because With According By Under Over Between Two First Early Later Today People Each Every
"""
_BLANK_LINES = re.compile(r"\n(?:[^\S\n]*\n)+")
_SAMPLE_ROWS = 128
_SAMPLE_WIDTH = 64
_SAMPLE_TOP_K = 50
_ROWS_PER_BLOCK = 32


class Corpus(Protocol):
    """Text as blocks of token rows."""

    @property
    def label(self) -> str:
        """Its name in reports."""

    def fingerprint(self, model: LanguageModel) -> str:
        """A hash of everything that determines the tokens."""

    def blocks(self, model: LanguageModel, first: int) -> Iterator[Rows]:
        """Blocks in order, from block ``first`` on."""


@dataclass(frozen=True)
class SampledText:
    """Text drawn from the model itself, top-k 50 at temperature 1, opened by common English words.

    Needs no file and no network. Blocks are seeded one by one and kept in the cache, so an interrupted run loses at
    most the block in flight.

    Args:
        seed: Seed of the text.
    """

    seed: int = 0

    @property
    def label(self) -> str:
        """Its name in reports."""
        return f"text sampled from the model itself (seed {self.seed})"

    def fingerprint(self, model: LanguageModel) -> str:
        """A hash of the whole model and the sampling settings."""
        settings = [
            self.seed,
            _SAMPLE_ROWS,
            _SAMPLE_WIDTH,
            _SAMPLE_TOP_K,
            _OPENINGS,
            model.fingerprint(),
            _tokenizer_hash(model),
        ]
        return _hash_text(json.dumps(settings))

    def blocks(self, model: LanguageModel, first: int) -> Iterator[Rows]:
        """Endless blocks of ``_SAMPLE_ROWS`` rows of ``_SAMPLE_WIDTH`` tokens."""
        folder = cache_folder("samples", self.fingerprint(model)[:16])
        index = first
        while True:
            file = folder / f"{index:05d}.json"
            if not file.exists():
                text = json.dumps(self._draw(model, index))
                with file_errors(file, OutputError), atomic_write(file) as scratch:
                    scratch.write_text(text, encoding="utf-8")
            yield json.loads(file.read_text(encoding="utf-8"))
            index += 1

    def _draw(self, model: LanguageModel, index: int) -> Rows:
        generator = torch.Generator().manual_seed(_seed_of(self.seed, index))
        words = random.Random(_seed_of(self.seed, index)).choices(_OPENINGS.split(), k=_SAMPLE_ROWS)
        opened = [tokenize(model.tokenizer, word) for word in words]
        width = min(len(row) for row in opened)
        lead = document_start(model.tokenizer)
        start = torch.tensor([lead + row[:width] for row in opened])
        ids = sample(model, start, _SAMPLE_WIDTH - width, top_k=_SAMPLE_TOP_K, generator=generator)
        rows: Rows = ids[:, len(lead) :].tolist()
        return rows


@dataclass(frozen=True)
class TextFiles:
    """Plain text (documents separated by blank lines) or JSONL with a ``text`` field, gzip too.

    Args:
        paths: The files, read in order.
        max_length: Longest row in tokens; longer documents are cut into several rows.
    """

    paths: tuple[Path, ...]
    max_length: int = 512

    @property
    def label(self) -> str:
        """Its name in reports."""
        return ", ".join(path.name for path in self.paths)

    def fingerprint(self, model: LanguageModel) -> str:
        """A hash of the files' bytes and the row length."""
        digest = hashlib.sha256(f"text {self.max_length} {_tokenizer_hash(model)}".encode())
        for path in self.paths:
            with _opened(path):  # a missing file is named here, before any work
                digest.update(path.read_bytes())
        return digest.hexdigest()

    def blocks(self, model: LanguageModel, first: int) -> Iterator[Rows]:
        """Blocks of rows, longest first inside each so that little is padded."""
        return _skip(_blocked(_cut_rows(model, self.texts(), self.max_length)), first)

    def texts(self) -> Iterator[str]:
        """The documents, one by one.

        Raises:
            StatisticsError: A file cannot be read, or a line is not a record with a text.
        """
        return (text for path in self.paths for text in _texts(path))


@dataclass(frozen=True)
class DatasetText:
    """The ``text`` column of a Hugging Face dataset, streamed.

    Args:
        name: ``owner/name`` or ``owner/name:config``.
        split: Which split.
        column: Which column holds the text.
        max_length: Longest row in tokens.
    """

    name: str
    split: str = "train"
    column: str = "text"
    max_length: int = 512

    @property
    def label(self) -> str:
        """Its name in reports."""
        return f"{self.name} ({self.split})"

    def fingerprint(self, model: LanguageModel) -> str:
        """A hash of the dataset's name; the content is not checked."""
        return _hash_text(
            json.dumps(["dataset", self.name, self.split, self.column, self.max_length, _tokenizer_hash(model)])
        )

    def blocks(self, model: LanguageModel, first: int) -> Iterator[Rows]:
        """Blocks of rows in the dataset's order.

        Raises:
            MissingExtraError: The datasets library is absent.
            StatisticsError: The dataset cannot be read or lacks the column.
        """
        return _skip(_blocked(_cut_rows(model, self._texts(), self.max_length)), first)

    def _texts(self) -> Iterator[str]:
        load_dataset = import_extra("datasets", "datasets", "reading a dataset").load_dataset
        path, _, config = self.name.partition(":")
        try:
            for record in load_dataset(path, config or None, split=self.split, streaming=True):
                if record[self.column] is not None:
                    yield str(record[self.column])
        except KeyError as error:
            raise StatisticsError(f"{self.name} has no column {error}.", hint="Name the text column.") from error
        except Exception as error:
            raise StatisticsError(
                f"the dataset {self.name} cannot be read: {error}",
                hint="Check the name and the network, or use text files.",
            ) from error


def _texts(path: Path) -> Iterator[str]:
    try:
        with _opened(path) as file:
            if ".jsonl" in path.name:
                yield from _jsonl_texts(path, file)
            else:
                yield from (text for text in _BLANK_LINES.split(file.read()) if text.strip())
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise StatisticsError(
            f"the text file {path} cannot be read: {error}.", hint="It must be UTF-8 text, compressed if named .gz."
        ) from error


def _jsonl_texts(path: Path, lines: Iterable[str]) -> Iterator[str]:
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            text = json.loads(line)["text"]
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            raise _no_text(path, number, str(error)) from error
        if not isinstance(text, str):
            raise _no_text(path, number, f"it is {type(text).__name__}")
        yield text


def _no_text(path: Path, number: int, reason: str) -> StatisticsError:
    return StatisticsError(
        f"{path}:{number}: not a record with a 'text' field ({reason}).", hint='Lines look like {"text": "..."}.'
    )


def _opened(path: Path) -> IO[str]:
    try:
        return gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(encoding="utf-8")
    except OSError as error:
        raise StatisticsError(
            f"the text file {path} cannot be read: {error.strerror}.", hint="Check the path."
        ) from error


def _cut_rows(model: LanguageModel, texts: Iterable[str], max_length: int) -> Iterator[list[int]]:
    width = min(max_length, model.max_length)
    for text in texts:
        ids = tokenize(model.tokenizer, text)
        yield from (ids[at : at + width] for at in range(0, len(ids), width))


def _blocked(rows: Iterator[list[int]]) -> Iterator[Rows]:
    block: Rows = []
    for row in rows:
        block.append(row)
        if len(block) == _ROWS_PER_BLOCK:
            yield block
            block = []
    if block:
        yield block


def _skip(blocks: Iterator[Rows], first: int) -> Iterator[Rows]:
    return (block for index, block in enumerate(blocks) if index >= first)


def _seed_of(seed: int, index: int) -> int:
    return int.from_bytes(hashlib.sha256(f"{seed}/{index}".encode()).digest()[:7], "big")


def _tokenizer_hash(model: LanguageModel) -> str:
    """A hash of what turns text into ids: the vocabulary, and the special tokens around a sentence."""
    tokenizer = model.tokenizer
    probe = "The 3 cats' naïve café: Ünder  two\nlines."
    return _hash_text(json.dumps([sorted(tokenizer.get_vocab().items()), tokenize(tokenizer, probe)]))


def _hash_text(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def placed_corpus(source: str) -> str:
    """``source`` for ``corpus_from`` from any folder: a file by its absolute path."""
    if source == "self" or source.startswith("dataset:"):
        return source
    return str(Path(source).expanduser().absolute())


def corpus_from(source: str | Path | Sequence[str | Path], *, seed: int = 0) -> Corpus:
    """The corpus a user named: ``self``, one or more text files, or ``dataset:owner/name``."""
    if source == "self":
        return SampledText(seed)
    if isinstance(source, str) and source.startswith("dataset:"):
        return DatasetText(source.removeprefix("dataset:"))
    return TextFiles(
        tuple(Path(path).expanduser() for path in ([source] if isinstance(source, str | Path) else source))
    )
