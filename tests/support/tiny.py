"""Models small enough for any test, and the plain computations that fast ones are compared with."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from torch import nn
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from betaedit.evaluation import Score
from betaedit.models import LanguageModel

HIDDEN, MLP, LAYERS, POSITIONS = 32, 48, 4, 600
START, SEPARATOR = "<s>", "<|endoftext|>"
_COMMON = (
    "a and apple are at bank bird blue boat book bread by city cold day door fish five for four garden gold green "
    "hand he her hill his home horse hot house in is it king lake land light long man moon name near new night of old "
    "on one queen rain red river road sea ship she silver snow song star stone sun ten that the they three town tree "
    "two under was water white wind with woman wood year"
)
WORDS = _COMMON.split()


def tiny_tokenizer(*, bos: bool) -> PreTrainedTokenizerFast:
    """Byte-level BPE in which each of ``WORDS`` after a space is one token and all else is single bytes.

    With ``bos`` every input opens with ``<s>`` as Llama's do; without, it has ``<|endoftext|>`` only, as GPT-2's.
    """
    vocabulary = {symbol: index for index, symbol in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    merges: list[tuple[str, str]] = []
    for word in WORDS:
        left = "Ġ"
        for letter in word:
            if left + letter not in vocabulary:
                vocabulary[left + letter] = len(vocabulary)
                merges.append((left, letter))
            left += letter
    special = START if bos else SEPARATOR
    backend = Tokenizer(models.BPE(vocabulary, merges))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([special])
    if bos:
        opening = processors.TemplateProcessing(single=f"{START} $A", special_tokens=[(START, len(vocabulary))])
        backend.post_processor = processors.Sequence([processors.ByteLevel(trim_offsets=False), opening])
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token=special, eos_token=None if bos else SEPARATOR)


def tiny_llama(seed: int = 0) -> LanguageModel:
    """A random Llama with an untied head that prefers whole words, and a BOS token."""
    tokenizer = tiny_tokenizer(bos=True)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=HIDDEN,
        intermediate_size=MLP,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=POSITIONS,
        initializer_range=0.3,
        tie_word_embeddings=False,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=None,
        pad_token_id=None,
    )
    model = _seeded(lambda: LlamaForCausalLM(config), seed)
    words = tokenizer.convert_tokens_to_ids([f"Ġ{word}" for word in WORDS])
    others = torch.ones(len(tokenizer), dtype=torch.bool)
    others[words] = False
    with torch.no_grad():
        model.get_output_embeddings().weight[others] *= 0.1
    return LanguageModel.wrap(model, tokenizer, "tiny-llama")


def tiny_gpt2(seed: int = 0) -> LanguageModel:
    """A random GPT-2: tied head, transposed projections, no BOS token before an input."""
    tokenizer = tiny_tokenizer(bos=False)
    config = GPT2Config(
        vocab_size=len(tokenizer),
        n_embd=HIDDEN,
        n_inner=MLP,
        n_layer=LAYERS,
        n_head=4,
        n_positions=POSITIONS,
        initializer_range=0.3,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    return LanguageModel.wrap(_seeded(lambda: GPT2LMHeadModel(config), seed), tokenizer, "tiny-gpt2")


FAMILIES = {"llama": tiny_llama, "gpt2": tiny_gpt2}


def _seeded(make: Callable[[], PreTrainedModel], seed: int) -> PreTrainedModel:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return make()


def random_rows(model: LanguageModel, lengths: Sequence[int], seed: int = 0) -> list[list[int]]:
    """Rows of random token ids."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(len(model.tokenizer), (length,), generator=generator).tolist() for length in lengths]


@torch.no_grad()
def plain_logs(model: LanguageModel, ids: Sequence[int]) -> torch.Tensor:
    """Float64 log-probabilities ``(length, vocabulary)`` by the model's own full forward pass on one row."""
    logits = model.model(input_ids=torch.tensor([list(ids)], device=model.device)).logits[0]
    return logits.double().log_softmax(dim=-1).cpu()


def plain_score(model: LanguageModel, prompt: str, target: str) -> Score:
    """What ``score_targets`` must find, one pair at a time and without any of its code."""
    prompt_ids = model.tokenizer(prompt)["input_ids"]
    target_ids = model.tokenizer(f" {target}", add_special_tokens=False)["input_ids"]
    logits = model.model(input_ids=torch.tensor([[*prompt_ids, *target_ids]], device=model.device)).logits[0]
    logs = logits[len(prompt_ids) - 1 : -1].double().log_softmax(dim=-1).cpu()
    nll = -sum(float(row[token]) for row, token in zip(logs, target_ids, strict=True)) / len(target_ids)
    return Score(nll, all(int(row.argmax()) == token for row, token in zip(logs, target_ids, strict=True)))


@dataclass
class Calls:
    """The shapes of the token ids that a model was run on; for other modules one entry a call."""

    rows: list[tuple[int, ...]] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.rows)


@contextmanager
def count_calls(module: nn.Module) -> Iterator[Calls]:
    """Counts how often ``module`` is entered."""
    calls = Calls()

    def hook(_: nn.Module, args: tuple[torch.Tensor, ...], kwargs: dict[str, torch.Tensor]) -> None:
        ids = kwargs.get("input_ids", args[0] if args else None)
        calls.rows.append(() if ids is None else tuple(ids.shape))

    handle = module.register_forward_pre_hook(hook, with_kwargs=True)
    try:
        yield calls
    finally:
        handle.remove()


@dataclass
class RecordedTask:
    """What one task was announced as, and each step it reported."""

    description: str
    total: int
    unit: str
    done: int = 0
    steps: list[int] = field(default_factory=list)
    finished: bool = False

    def advance(self, amount: int = 1) -> None:
        self.steps.append(amount)


@dataclass
class RecordedProgress:
    """A ``Progress`` that remembers."""

    tasks: list[RecordedTask] = field(default_factory=list)

    @contextmanager
    def task(self, description: str, total: int, unit: str, done: int = 0) -> Iterator[RecordedTask]:
        self.tasks.append(RecordedTask(description, total, unit, done))
        yield self.tasks[-1]
        self.tasks[-1].finished = True
