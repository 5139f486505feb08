"""Contexts of a prompt during the search for its value, so that the edit holds after other text, too."""

from __future__ import annotations

import re
import unicodedata

import torch

from betaedit.editors.shared_config import ContextConfig
from betaedit.facts.fact import SLOT
from betaedit.models.generate import sample
from betaedit.models.gradients import usual_gradients
from betaedit.models.load import LanguageModel
from betaedit.models.lookup import document_start, tokenize


@usual_gradients
def context_templates(model: LanguageModel, config: ContextConfig) -> tuple[str, ...]:
    """The bare ``{}`` and one sampled opening sentence each per ``context_openings``, or those given explicitly.

    Sampled from the model as it is now, so call it before the first edit. Special tokens are stripped and braces become
    spaces (methods.md A.3; the official code keeps a BOS text, which is not reproduced).
    """
    if config.context_templates is not None:
        return config.context_templates
    generator = torch.Generator().manual_seed(config.seed)
    texts = []
    for opening in config.context_openings:
        opened = tokenize(model.tokenizer, opening)
        start = torch.tensor([document_start(model.tokenizer) + opened])
        n_new = max(config.context_length - len(opened), 0)
        ids = sample(model, start, n_new, top_k=config.context_top_k, generator=generator)
        texts.append(_clean(str(model.tokenizer.decode(ids[0], skip_special_tokens=True))))
    return (SLOT, *(f"{text}. {SLOT}" for text in texts))


def _clean(text: str) -> str:
    plain = unicodedata.normalize("NFKD", text).replace("{", " ").replace("}", " ")
    return re.sub(r"\s+", " ", plain).strip()
