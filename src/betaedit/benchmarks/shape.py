"""Times an edit in a random model with the shape of a large one, which needs no download."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, cast

import psutil
import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from betaedit.benchmarks.measure import synthetic_moment
from betaedit.benchmarks.rows import Row, bandwidth, seconds
from betaedit.editors.closed_form.config import EditConfig
from betaedit.editors.closed_form.editor import closed_form
from betaedit.editors.editor import Editor
from betaedit.editors.method import EditResult
from betaedit.editors.presets import untuned
from betaedit.errors import ConfigError
from betaedit.facts.fact import SLOT, Fact
from betaedit.models.load import LanguageModel
from betaedit.paths import cache_at
from betaedit.progress import Progress
from betaedit.statistics.moments import Moments

_LLAMA_3 = {"vocab_size": 128_256, "num_attention_heads": 32, "num_key_value_heads": 8, "rope_theta": 500_000.0}
SHAPES: dict[str, dict[str, Any]] = {
    "llama-1b": {
        **_LLAMA_3,
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 16,
        "tie_word_embeddings": True,
    },
    "llama-8b": {**_LLAMA_3, "hidden_size": 4096, "intermediate_size": 14_336, "num_hidden_layers": 32},
}
"""Of Llama 3.2 1B and Llama 3.1 8B."""

STORED_AS = torch.bfloat16
"""The type of their checkpoints."""


def find_shape(name: str, depth: int | None = None) -> LlamaConfig:
    """The shape of that name, with ``depth`` of its layers if that is given.

    Raises:
        ConfigError: There is none of that name.
    """
    if name not in SHAPES:
        raise ConfigError(f"there is no shape {name!r}.", hint=f"Choose {' or '.join(SHAPES)}.")
    return LlamaConfig(**SHAPES[name] | ({"num_hidden_layers": depth} if depth else {}))


# A random model samples no sentences; these are as long as those that contexts have.
_CONTEXTS = (
    SLOT,
    "The weather was fine for most of the week. {}",
    "Therefore the committee decided to meet again in June. {}",
    "Because the road was closed they took the train. {}",
    "I have never been to the north of the country. {}",
    "You can find the answer at the end of the book. {}",
)


def shape(
    like: LlamaConfig,
    tokenizer: Any,
    facts: Sequence[Fact],
    *,
    dtype: torch.dtype = STORED_AS,
    device: torch.device | str = "cpu",
    progress: Progress | None = None,
    **overrides: Any,
) -> Row:
    """Seconds of one edit at batch size 1, the first one left out: mean over the others.

    No weights were trained, so nothing an edit stops at is reached and every search takes all of ``value_steps``
    evaluations. The second moments are synthetic, of the spectrum of real ones, and all edited layers have the same, so
    that ``prepare_seconds`` is one eigendecomposition. The floor is the bytes that must be read, over the bandwidth
    measured: per evaluation the layers above the edited ones and the head, forward and back; once per edit every layer
    for the prompts and the edited ones again for the walk; every solver's root, twice if it is float32.

    Args:
        like: The model's shape.
        tokenizer: Any whose ids the model has.
        facts: At least two.
        dtype: Of the weights.
        device: Where.
        progress: Shows the progress of long work.
        overrides: Hyper-parameters, on top of those of a model without a preset.

    Raises:
        ConfigError: There are fewer than two facts, or the model does not fit into the memory there is.
    """
    if len(facts) < 2:  # noqa: PLR2004
        raise ConfigError(
            "the first edit is not counted, so at least two facts are needed.", hint="Give --limit 2 or more."
        )
    model = LanguageModel.wrap(random_model(like, dtype, device), tokenizer, "random")
    depth = int(like.num_hidden_layers or 0)
    config = EditConfig.of({**untuned(depth).values, "context_templates": _CONTEXTS, **overrides})
    moment = synthetic_moment(int(like.intermediate_size or 0), config.nullspace_threshold, device)
    moments = Moments(dict.fromkeys(config.layers, moment), n_tokens=0)
    editor = Editor(model, config=config, statistics=moments, progress=progress)
    with TemporaryDirectory() as scratch, cache_at(Path(scratch)):  # what is made up here is of no use to anyone
        prepared = seconds(editor.prepare, device=device)
    first = seconds(lambda: editor.edit(facts[0]), device=device)
    results: list[EditResult] = []
    taken = seconds(lambda: results.extend(editor.edit(facts[1:])), device=device) / (len(facts) - 1)
    evaluations = sum(result.figures["evaluations"] for result in results) / len(results)
    details = {
        "parameters": sum(weight.numel() for weight in model.model.parameters()),
        "dtype": str(dtype).removeprefix("torch."),
        "layers": list(config.layers),
        "decoder_layers": depth,
        "evaluations": evaluations,
        "prepare_seconds": prepared,
        "first_edit_seconds": first,
    }
    floor = _bytes_read(editor, evaluations) / bandwidth(device)
    name = f"edit of {evaluations:g} evaluations, random {details['dtype']} model of {depth} layers"
    return Row(name, taken, floor_seconds=floor, details=details)


def random_model(like: LlamaConfig, dtype: torch.dtype, device: torch.device | str) -> PreTrainedModel:
    """A model of that shape, its weights random, the same each time.

    Raises:
        ConfigError: It does not fit into the memory there is.
    """
    with torch.device("meta"):
        needed = sum(p.numel() for p in LlamaForCausalLM(like).parameters()) * dtype.itemsize
    on_gpu = torch.device(device).type == "cuda"
    free = torch.cuda.mem_get_info(device)[0] if on_gpu else psutil.virtual_memory().available
    if needed > free:
        raise ConfigError(
            f"the weights alone take {needed / 2**30:.1f} GiB, and {free / 2**30:.1f} are free.",
            hint="Use --dtype bfloat16, fewer layers (--depth) or a smaller --shape.",
        )
    torch.manual_seed(0)
    with torch.device(device):
        model: PreTrainedModel = cast(Any, LlamaForCausalLM)._from_config(like, dtype=dtype)
    return model


def _bytes_read(editor: Editor, evaluations: float) -> float:
    """Of one edit, at the least."""
    editing = closed_form(editor)
    anatomy, layers = editing.model.anatomy, editing.config.layers
    sizes = [sum(weight.nbytes for weight in layer.parameters()) for layer in anatomy.layers]
    above, edited = sum(sizes[layers[-1] + 1 :]), sum(sizes[layers[0] : layers[-1] + 1])
    head = sum(weight.nbytes for weight in anatomy.head.parameters())
    matrices = [memory.root.matrix for memory in editing.engine.memories.values()]
    roots = sum(matrix.nbytes * (1 if matrix.dtype == torch.float64 else 2) for matrix in matrices)
    return 2 * evaluations * (above + head) + sum(sizes) + edited + roots
