"""A LoRA or AdaLoRA adapter, trained by peft on a twin of the model and merged into its weights (methods.md E.1, E.4).

The model itself never holds peft's modules: it is served, measured and saved as any edited model is, and after each
batch its weights are ``W_0`` plus the change that the adapter stands for.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from betaedit.editors.asked import with_status
from betaedit.editors.batches import BatchEditor
from betaedit.editors.gradient.config import AdaptiveRankConfig, LowRankConfig
from betaedit.editors.gradient.targets import TargetBatch, encode_targets
from betaedit.editors.matrix import EditedMatrix, check_modules_unedited, held_bytes, set_aside, undone_by_failure
from betaedit.editors.method import EditResult, MemoryUse, WrittenBatch
from betaedit.errors import ConfigError, NumericalError
from betaedit.extras import import_extra
from betaedit.facts.fact import Fact
from betaedit.models.anatomy import is_transposed
from betaedit.models.load import LanguageModel

_NAME = "default"
"""Of the one adapter, as peft names it."""


class AdapterTuning(BatchEditor):
    """One model under an adapter: an ``EditingMethod`` that ``EditsWeights`` and ``HasAdapter``.

    Every batch goes on training the adapter of the batches before it, with an optimizer of its own.

    Args:
        model: Unedited.
        config: Hyper-parameters; those of AdaLoRA make the adapter one.

    Raises:
        MissingExtraError: peft is not installed.
        ConfigError: The model has no modules of the names given, or peft knows none for its family.
        ModelError: The modules hold edits of another editor that is still there.
    """

    def __init__(self, model: LanguageModel, config: LowRankConfig) -> None:
        super().__init__(model)
        self.config = config
        self._peft = import_extra("peft", "peft", "an adapter")
        self._names = _target_modules(model, config)
        self._paths = [path for path, module in model.model.named_modules() if self._is_target(path, module)]
        if not self._paths:
            raise ConfigError(
                f"the model has no linear modules named {', '.join(self._names)}.",
                hint="`betaedit models NAME` shows the model's modules; give others with target_modules.",
            )
        self._check_unedited()
        self._weights: dict[str, EditedMatrix] = {}
        self._adapter: dict[str, Tensor] = {}

    @property
    def weights(self) -> Mapping[str, EditedMatrix]:
        """The adapted matrices by the paths of their modules."""
        if not self._weights:
            self._check_unedited()
            self._weights = {path: EditedMatrix(self.model.model, path) for path in self._paths}
        return self._weights

    @property
    def memory_use(self) -> MemoryUse:
        """See ``HoldsMemory``: the adapter is merged into the weights, and goes on being trained beside them."""
        adapter = sum(tensor.nbytes for tensor in self._adapter.values())
        return MemoryUse(editing={**held_bytes(self._weights), "adapter": adapter})

    def prepare(self) -> None:
        """Take up the matrices."""
        _ = self.weights

    def replay(self, batch: WrittenBatch) -> None:
        """Take the adapter of after the batch."""
        self._adapter = {name: tensor.to(self.model.device) for name, tensor in batch.tensors.items()}
        self._merge(self._adapted())
        self._keep(batch.results)

    def unedited(self) -> AbstractContextManager[None]:
        """The original matrices."""
        return set_aside(self.weights)

    def reset(self) -> None:
        """The original matrices for good, and no adapter.

        Raises:
            WeightsChangedError: The model has neither them nor those that were written.
        """
        for matrix in self._weights.values():
            matrix.restore()
        self._weights, self._adapter, self._results = {}, {}, []

    def describe(self) -> dict[str, Any]:
        """The modules, which follow from the model's family where they are not given."""
        return {"target_modules": list(self._names)}

    def save_adapter(self, folder: Path) -> int:
        """See ``HasAdapter``; a new adapter, which changes nothing, where nothing was written yet."""
        adapted = self._adapted()
        adapted.peft_config[_NAME].base_model_name_or_path = self.model.address
        adapted.save_pretrained(folder, save_embedding_layers=False)
        return self.config.rank

    def _is_target(self, path: str, module: nn.Module) -> bool:
        is_named = any(path == name or path.endswith(f".{name}") for name in self._names)
        return is_named and (isinstance(module, nn.Linear) or is_transposed(module))

    def _check_unedited(self) -> None:
        check_modules_unedited(self.model.model.get_submodule(path) for path in self._paths)

    def _write(self, facts: Sequence[Fact]) -> WrittenBatch:
        started, adapter = time.perf_counter(), self._adapter
        try:
            with undone_by_failure(self.weights):
                loss = self._train(encode_targets(self.model, facts))
                share = (time.perf_counter() - started) / len(facts)
                figures = {"loss": loss, "steps": self.config.steps}
                results = with_status(self.model, [EditResult(fact, share, figures=figures) for fact in facts])
        except BaseException:
            self._adapter = adapter
            raise
        return WrittenBatch(results, self._adapter)

    def _train(self, batch: TargetBatch) -> float:
        """Train the adapter and merge it; returns the loss before the last step."""
        with _seeded(self.config.seed + len(self._results), self.model.device):
            adapted = self._adapted()
            trained = [weight for weight in adapted.parameters() if weight.requires_grad]
            rate, decay = self.config.learning_rate, self.config.weight_decay
            optimizer = torch.optim.Adam(trained, lr=rate, weight_decay=decay)
            for _ in range(self.config.steps):
                optimizer.zero_grad()
                loss = batch.mean_over_facts(adapted(**batch.inputs).logits)
                (loss + self._penalty(adapted)).backward()  # type: ignore[no-untyped-call]
                optimizer.step()
        if not all(weight.isfinite().all() for weight in trained):
            raise NumericalError("the adapter did not stay finite.", hint="Lower learning_rate; the batch is undone.")
        found = self._peft.get_peft_model_state_dict(adapted, save_embedding_layers=False)
        self._adapter = {name: tensor.detach().clone().contiguous() for name, tensor in found.items()}
        self._merge(adapted)
        return loss.item()

    def _penalty(self, adapted: Any) -> Tensor | float:
        """AdaLoRA's: the mean over factors ``P`` of ``|P P^T - I|``, ``P`` with the rank first; none of LoRA."""
        if not isinstance(self.config, AdaptiveRankConfig):
            return 0.0
        factors = [layer.lora_A[_NAME] for layer in self._adapted_layers(adapted).values()]
        factors += [layer.lora_B[_NAME].T for layer in self._adapted_layers(adapted).values()]
        apart = [(each @ each.T - torch.eye(len(each)).to(each)).norm() for each in factors]
        return self.config.orthogonality * torch.stack(apart).mean()

    @torch.no_grad()
    def _merge(self, adapted: Any) -> None:
        """Make the model's weights the original ones and the adapter's change."""
        for path, layer in self._adapted_layers(adapted).items():
            change, matrix = layer.get_delta_weight(_NAME), self.weights[path]
            matrix.restore()
            matrix.add_dense(change.T if is_transposed(layer.get_base_layer()) else change)

    def _adapted_layers(self, adapted: Any) -> dict[str, Any]:
        return {path: adapted.base_model.model.get_submodule(path) for path in self._paths}

    def _adapted(self) -> Any:
        """A twin of the unedited model with the adapter, a new one at first; dropout is on in the adapter only."""
        twin = _twin(self.model.model, self.weights)
        adapted = self._peft.get_peft_model(twin, self._peft_config())
        if self._adapter:
            self._peft.set_peft_model_state_dict(adapted, self._adapter)
        adapted.eval()
        for layer in self._adapted_layers(adapted).values():
            layer.lora_dropout.train()
        return adapted

    def _peft_config(self) -> Any:
        config = self.config
        common = {
            "task_type": "CAUSAL_LM",
            "target_modules": list(self._paths),
            "lora_alpha": config.alpha,
            "lora_dropout": config.dropout,
            "fan_in_fan_out": is_transposed(self.model.model.get_submodule(self._paths[0])),
        }
        if isinstance(config, AdaptiveRankConfig):
            ranks = {"init_r": config.rank, "target_r": config.rank, "total_step": config.steps}
            return self._peft.AdaLoraConfig(**common, **ranks, orth_reg_weight=config.orthogonality)
        return self._peft.LoraConfig(**common, r=config.rank)


def _target_modules(model: LanguageModel, config: LowRankConfig) -> tuple[str, ...]:
    """The names of the modules to adapt, as given or as peft has them for the family.

    Raises:
        ConfigError: peft has none.
    """
    if config.target_modules is not None:
        return config.target_modules
    known = import_extra("peft.utils", "peft", "an adapter").TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING
    found = known.get(model.anatomy.family)
    if not isinstance(found, list):
        raise ConfigError(
            f"peft names no modules to adapt in models of the type {model.anatomy.family}.",
            hint='Give them: target_modules=["q_proj", "v_proj"].',
        )
    return tuple(found)


def _twin(model: PreTrainedModel, weights: Mapping[str, EditedMatrix]) -> PreTrainedModel:
    """A model of modules of its own with the tensors of ``model``; where that is edited, with the original ones."""
    shared = {id(weight): nn.Parameter(weight.detach(), requires_grad=False) for weight in model.parameters()}
    twin = copy.deepcopy(model, {**shared, **{id(buffer): buffer for buffer in model.buffers()}})
    for path, matrix in weights.items():
        module = twin.get_submodule(path)
        original = matrix.original().T if is_transposed(module) else matrix.original()
        module.weight = nn.Parameter(original.to(module.get_parameter("weight")), requires_grad=False)
    return twin


@contextmanager
def _seeded(seed: int, device: torch.device) -> Iterator[None]:
    """A context with random numbers of its own."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield
