"""The record of a folder of ``Editor.save_pretrained``, read when it is used as a model again; needs no torch."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from betaedit.editors.method import MethodConfig
from betaedit.editors.presets import UNTUNED, Preset, find_preset, preset_for, untuned
from betaedit.editors.shared_config import ContextConfig, StatisticsConfig
from betaedit.errors import ModelError

logger = logging.getLogger(__name__)

EDITS_FILE = "betaedit.json"
STATISTICS_FILE = Path("betaedit", "statistics.safetensors")
"""In its own folder: servers read every safetensors file beside those of a model as part of it."""

BEFORE_EDITS = "before_edits"
"""Key of the number of edits written after the statistics of such a folder were collected."""

_STATISTICS_SETTINGS = ("statistics_corpus", "statistics_tokens", "statistics_skip_first_token", "seed")
_CONTEXT_SETTINGS = ("context_templates", "context_openings", "context_length", "context_top_k", "seed")


@dataclass(frozen=True)
class SavedModel:
    """A folder with edits in its weights, and the record beside them.

    Args:
        folder: Where it is.
        record: What ``EDITS_FILE`` holds.
    """

    folder: Path
    record: dict[str, Any]

    @property
    def edits(self) -> list[dict[str, Any]]:
        """Every edit in the weights as plain data, in order."""
        return [*self.record.get("earlier_edits", []), *self.record.get("edits", [])]

    @property
    def base(self) -> str:
        """The model before the first of them."""
        return str(self.record.get("base") or self.record.get("model"))

    def preset(self, n_layers: int) -> Preset:
        """The preset the edits were made with: by its name, or, where it came from a file, as the record has it."""
        name = self.record.get("preset")
        if name == UNTUNED:
            return untuned(n_layers)
        if known := find_preset(str(name)):
            return known
        if settings := self.record.get("preset_settings"):
            return Preset(**{**settings, "models": ()}, parameters=0.0, mlp_size=0, hidden_size=0)
        return preset_for(self.base, n_layers)  # a folder of an older version

    def contexts(self, config: ContextConfig) -> tuple[str, ...] | None:
        """Contexts sampled from the unedited model, if ``config`` asks for the same."""
        kept = self.record.get("contexts")
        return tuple(kept) if kept and self._has_settings(config, _CONTEXT_SETTINGS) else None

    def statistics(self, config: StatisticsConfig) -> Path | None:
        """The file of the unedited model's statistics, if ``config`` asks for the same, or for some of its layers."""
        recorded, file = self.record.get("statistics") or {}, self.folder / STATISTICS_FILE
        fits = set(config.layers) <= set(recorded.get("layers", [])) and self._has_settings(
            config, _STATISTICS_SETTINGS
        )
        return file if fits and file.is_file() else None

    def _has_settings(self, config: MethodConfig, names: tuple[str, ...]) -> bool:
        was, now = self.record.get("config", {}), config.model_dump(mode="json")
        return all(name in was and was[name] == now[name] for name in names)


def find_saved(place: str) -> SavedModel | None:
    """The saved model at ``LanguageModel.place``; ``None`` where there is none.

    A record is not used, with a warning, if the weights beside it have changed, as after training.

    Raises:
        ModelError: The record is damaged.
    """
    folder = Path(place)
    if not (folder.is_absolute() and (folder / EDITS_FILE).is_file()):  # other places are names, not paths
        return None
    files = sorted(file for file in folder.iterdir() if file.is_file())
    return _read(folder, tuple((file.name, file.stat().st_mtime_ns, file.stat().st_size) for file in files))


@lru_cache(maxsize=8)
def _read(folder: Path, _: tuple[tuple[str, int, int], ...]) -> SavedModel | None:
    """The saved model, read once as long as its files do not change."""
    file = folder / EDITS_FILE
    try:
        record = json.loads(file.read_text(encoding="utf-8"))
        known = record.get("weights", {})
        found = hash_weights(folder, known.__contains__)
    except (OSError, ValueError, AttributeError, KeyError) as error:
        raise ModelError(
            f"{file} is damaged: {error}", hint="Save or export the edited model again, or delete this file."
        ) from error
    if found != known:
        logger.warning(
            "the weights in %s are not those recorded in its %s, so its preset, statistics and contexts are not used.",
            folder,
            EDITS_FILE,
        )
        return None
    return SavedModel(folder, record)


def hash_weights(folder: Path, wanted: Callable[[str], bool]) -> dict[str, str]:
    """``sha256:...`` of the tensors of ``wanted`` names in a model's files, by name, as stored."""
    return {
        name: f"sha256:{hashlib.sha256(held).hexdigest()}"
        for file in sorted(folder.glob("model*.safetensors"))
        for name, held in _tensors(file, wanted)
    }


def _tensors(file: Path, wanted: Callable[[str], bool]) -> Iterator[tuple[str, bytes]]:
    """Names and bytes; the file begins with the length of a header that has the offsets of each tensor."""
    with file.open("rb") as opened:
        length = int.from_bytes(opened.read(8), "little")
        header = json.loads(opened.read(length))
        for name in sorted(filter(wanted, header)):
            begin, end = header[name]["data_offsets"]
            opened.seek(8 + length + begin)
            yield name, opened.read(end - begin)
