"""Fluency and consistency of sampled text (metrics.md G.3)."""

from __future__ import annotations

import hashlib
import math
import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from betaedit.errors import ConfigError
from betaedit.evaluation.continuing import BATCH_SIZE, in_batches
from betaedit.extras import import_extra
from betaedit.models.generate import continue_rows, draw_top_k
from betaedit.models.load import LanguageModel
from betaedit.progress import Progress

_WORD = re.compile(r"\w+(?:[-'\u2019]\w+)*|[^\w\s]")
_WEIGHTS = {2: 2 / 3, 3: 4 / 3}


@dataclass(frozen=True, slots=True)
class Fluency:
    """How varied texts are.

    Args:
        bits: Mean over texts of the weighted n-gram entropy, in bits.
        n_texts: How many texts.
    """

    bits: float
    n_texts: int

    @property
    def printed(self) -> float:
        """The figure as the papers print it: a hundred times the bits."""
        return 100 * self.bits


def sample_texts(
    model: LanguageModel,
    prompts: Sequence[str],
    *,
    n_tokens: int = 100,
    top_k: int = 5,
    seed: int = 0,
    batch_size: int = BATCH_SIZE,
    progress: Progress | None = None,
) -> list[str]:
    """Each prompt with its continuation by top-k sampling, in order.

    Every text has its own random stream, made of the seed, the prompt and how often the prompt came before: what else
    is asked, in which order or batch, changes no text. End tokens do not end a text, as in the published code; like
    other special tokens they are left out of it.

    Args:
        model: The model as it is now.
        prompts: One sample for each; a prompt that comes twice gets two.
        n_tokens: Length of the whole text, the prompt included.
        top_k: How many tokens are drawn from.
        seed: Decides the texts.
        batch_size: How many are sampled together.
        progress: Hears of every prompt.
    """
    rows = model.encode(prompts)
    seeds = _seeds(prompts, seed)

    def work(batch: list[int]) -> list[str]:
        starts = [rows[index] for index in batch]
        generators = [torch.Generator().manual_seed(seeds[index]) for index in batch]
        new = continue_rows(model, starts, [n_tokens - len(row) for row in starts], draw_top_k(top_k, generators))
        return [_text(model, [*row, *more]) for row, more in zip(starts, new, strict=True)]

    return in_batches([len(row) for row in rows], batch_size, work, progress=progress, label="sampling")


def _seeds(prompts: Sequence[str], seed: int) -> list[int]:
    seen: Counter[str] = Counter()
    seeds = []
    for prompt in prompts:
        digest = hashlib.sha256(f"{seed}/{seen[prompt]}/{prompt}".encode()).digest()
        seeds.append(int.from_bytes(digest[:7], "big"))
        seen[prompt] += 1
    return seeds


def _text(model: LanguageModel, ids: list[int]) -> str:
    text = str(model.tokenizer.decode(ids, skip_special_tokens=True))
    return unicodedata.normalize("NFKD", text).replace("\n\n", " ")


def n_gram_entropy(text: str) -> float:
    """``(1/2) (2/3 H_2 + 4/3 H_3)`` in bits, ``H_n`` being the entropy of the text's n-grams of words.

    A word is a run of letters and digits, with hyphens and apostrophes inside; every other visible character is a word
    of its own. NLTK's tokenizer, which the published code uses, also parts contractions (``don't``) and joins some
    signs: figures differ a little.
    """
    words = _WORD.findall(text)
    return sum(
        weight * _entropy(list(zip(*(words[at:] for at in range(n)), strict=False))) for n, weight in _WEIGHTS.items()
    ) / len(_WEIGHTS)


def _entropy(items: Sequence[tuple[str, ...]]) -> float:
    return -math.fsum(count / len(items) * math.log2(count / len(items)) for count in Counter(items).values()) + 0.0


def measure_fluency(texts: Sequence[str]) -> Fluency:
    """The mean ``n_gram_entropy`` of texts: low where a model repeats itself.

    Raises:
        ConfigError: There is no text.
    """
    if not texts:
        raise ConfigError("there is no text to measure the fluency of.", hint="Give at least one.")
    return Fluency(math.fsum(map(n_gram_entropy, texts)) / len(texts), len(texts))


class TextSimilarity:
    """Cosine of TF-IDF vectors, with vocabulary and document frequencies fitted on texts that the caller gives.

    The published figures use frequencies of Wikipedia snippets that are not part of this package, so consistency
    compares only between runs with the same ``corpus``.

    Args:
        corpus: Texts to fit on, one document each, such as all reference texts of a dataset.

    Raises:
        MissingExtraError: scikit-learn is not installed.
        ConfigError: The corpus has no words.
    """

    def __init__(self, corpus: Sequence[str]) -> None:
        text = import_extra("sklearn.feature_extraction.text", "evaluation", "consistency")
        self._vectorizer = text.TfidfVectorizer()
        try:
            self._vectorizer.fit(corpus)
        except ValueError as error:
            raise ConfigError(f"there are no words to fit on: {error}.", hint="Give texts with words.") from error

    def consistency(self, texts: Sequence[str], references: Sequence[str]) -> float:
        """Similarity from 0 to 1 of all ``texts`` joined to all ``references`` joined; 0 without a common word."""
        first, second = self._vectorizer.transform([" ".join(texts), " ".join(references)])  # unit length each, or 0
        return float((first @ second.T).sum())
