"""The language model: loading, anatomy per family, prompts and lookup tokens, running only what is needed.

This room knows transformers; it knows neither facts, nor statistics, nor editors.
"""

from typing import TYPE_CHECKING

from betaedit.lazy import imported_when_asked

if TYPE_CHECKING:
    from betaedit.models.anatomy import Anatomy, find_anatomy
    from betaedit.models.load import LanguageModel, load_language_model
    from betaedit.models.lookup import EncodedPrompts, Prompt, encode_prompts, encode_target, find_lookup_token

__all__ = [
    "Anatomy",
    "EncodedPrompts",
    "LanguageModel",
    "Prompt",
    "encode_prompts",
    "encode_target",
    "find_anatomy",
    "find_lookup_token",
    "load_language_model",
]

__getattr__ = imported_when_asked(
    __name__,
    {
        "anatomy": ("Anatomy", "find_anatomy"),
        "load": ("LanguageModel", "load_language_model"),
        "lookup": ("EncodedPrompts", "Prompt", "encode_prompts", "encode_target", "find_lookup_token"),
    },
)
