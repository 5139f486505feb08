"""From the settings of a row to its memory."""

from __future__ import annotations

from functools import cache, partial
from typing import TYPE_CHECKING

from betaedit.editors.retrieval.config import RetrievalConfig
from betaedit.editors.retrieval.framing import Framing
from betaedit.editors.retrieval.ike import InContext
from betaedit.editors.retrieval.index import make_index
from betaedit.editors.retrieval.memory import FactMemory
from betaedit.facts.readers import demo_path, read_cases
from betaedit.models.encoder import load_encoder
from betaedit.models.load import LanguageModel

if TYPE_CHECKING:
    from betaedit.editors.retrieval.methods import Form


def make_memory(form: Form, model: LanguageModel, config: RetrievalConfig) -> FactMemory:
    """An empty memory that frames prompts in that form.

    Args:
        form: See ``Retrieval``.
        model: Confirms facts, and bounds the length of what is put before a prompt.
        config: Hyper-parameters.

    Raises:
        FactError: The file of demonstrations cannot be read.
    """
    encoder = cache(partial(load_encoder, config.encoder))  # one, also where there are two indices
    memory = FactMemory(make_index(config.retriever, encoder))
    framing = Framing(model, config, memory)
    if form == "in context":
        cases = read_cases(config.demonstrations or demo_path()).cases if config.n_demonstrations else ()
        shown = make_index(config.retriever, encoder)
        in_context = InContext(framing, shown, cases, config.n_demonstrations)
        memory.put_before = in_context.put_before
        memory.demonstrated = lambda: in_context.sizes
    else:
        memory.put_before = framing.confirmed if form == "confirmed" else framing.retrieved
    return memory
