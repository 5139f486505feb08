"""``C0``: from text to second moments of keys, cached by content hash, importable and exportable as safetensors."""

from betaedit.statistics.collect import collect_moments
from betaedit.statistics.corpus import Corpus, DatasetText, SampledText, TextFiles, corpus_from
from betaedit.statistics.moments import Moments

__all__ = ["Corpus", "DatasetText", "Moments", "SampledText", "TextFiles", "collect_moments", "corpus_from"]
