"""A trained hypernetwork as a file: one safetensors file, its architecture and origin in the metadata."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from betaedit.editors.hypernet.config import training_command
from betaedit.editors.hypernet.network import Architecture, Hypernetwork
from betaedit.errors import ConfigError, OutputError
from betaedit.files import atomic_write, file_errors
from betaedit.models.anatomy import projection_shape
from betaedit.models.load import LanguageModel, fingerprint_weights

logger = logging.getLogger(__name__)

FILE = "editor.safetensors"
_FORMAT = "betaedit-hypernetwork-1"


@dataclass(frozen=True)
class TrainedEditor:
    """A hypernetwork with what it was trained for.

    Args:
        method: Name of the method.
        network: Its weights and running statistics.
        origin: Plain data: model and its fingerprint, data, settings, figures of the validations.
    """

    method: str
    network: Hypernetwork
    origin: Mapping[str, Any] = field(default_factory=dict)

    @property
    def fingerprint(self) -> str:
        """A hash of weights and statistics."""
        return fingerprint_weights(self.network.state_dict().items())

    def save(self, folder: Path) -> Path:
        """Write the file into ``folder``; it appears whole or not at all.

        Raises:
            OutputError: It cannot be written.
        """
        file = folder / FILE
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in self.network.state_dict().items()}
        metadata = {
            "format": _FORMAT,
            "method": self.method,
            "architecture": json.dumps(self.network.architecture.to_dict()),
            "origin": json.dumps(self.origin, ensure_ascii=False),
        }
        with file_errors(file, OutputError), atomic_write(file) as scratch:
            save_file(tensors, scratch, metadata=metadata)
        return file

    @classmethod
    def load(cls, place: str | Path, method: str) -> TrainedEditor:
        """What ``save`` wrote, given as its folder or the file itself.

        Raises:
            ConfigError: There is none, it is damaged, or it was trained for another method.
        """
        file = Path(place) / FILE if Path(place).is_dir() else Path(place)
        hint = f"Name a folder of `betaedit train-editor --method {method} --out FOLDER`."
        try:
            with safe_open(file, framework="pt") as opened:
                metadata = dict(opened.metadata() or {})
                tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 - no mapping
            if metadata.get("format") != _FORMAT:
                raise ConfigError(f"{file} is no trained editor of this version.", hint=hint)
            network = Hypernetwork(Architecture.of(json.loads(metadata["architecture"])))
            network.load_state_dict(tensors)
            trained = cls(metadata["method"], network, json.loads(metadata["origin"]))
        except (OSError, SafetensorError, KeyError, TypeError, ValueError, RuntimeError) as error:
            raise ConfigError(f"no trained editor can be read at {place}: {error}.", hint=hint) from error
        if trained.method != method:
            raise ConfigError(f"{file} was trained for {trained.method}, not for {method}.", hint=hint)
        network.requires_grad_(False).train(False)
        return trained

    def check_fits(self, model: LanguageModel) -> None:
        """Refuse a model whose matrices have other sizes; warn where its weights are not those of the training.

        Raises:
            ConfigError: A layer is not there, or has another size.
        """
        shapes = self.network.architecture.shapes
        own = {
            layer: projection_shape(model.anatomy.projection(layer))
            for layer in shapes
            if layer < model.anatomy.n_layers
        }
        if own != dict(shapes):
            raise ConfigError(
                f"the editor was trained for {self.origin.get('model')} (layers {', '.join(map(str, shapes))}), whose "
                f"matrices have other sizes than those of {model.name}.",
                hint=f"Train one: {training_command(self.method, model.name)}",
            )
        if self.origin.get("weights") not in (None, model.fingerprint()):
            logger.warning(
                "the editor was trained on other weights than these, or in another type (%s, %s).",
                self.origin.get("model"),
                self.origin.get("dtype"),
            )
