"""``C0``: from text to second moments of keys, cached by content hash, importable and exportable as safetensors."""

from typing import TYPE_CHECKING

from betaedit.lazy import imported_when_asked

if TYPE_CHECKING:
    from betaedit.statistics.collect import collect_moments
    from betaedit.statistics.corpus import Corpus, DatasetText, SampledText, TextFiles, corpus_from
    from betaedit.statistics.moments import Moments

__all__ = ["Corpus", "DatasetText", "Moments", "SampledText", "TextFiles", "collect_moments", "corpus_from"]

__getattr__ = imported_when_asked(
    __name__,
    {
        "collect": ("collect_moments",),
        "corpus": ("Corpus", "DatasetText", "SampledText", "TextFiles", "corpus_from"),
        "moments": ("Moments",),
    },
)
