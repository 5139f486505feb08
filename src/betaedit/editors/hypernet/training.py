"""Training of a hypernetwork, with validation, early stop, and checkpoints from which it goes on bit for bit."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from betaedit.editors.hypernet.config import TrainingConfig
from betaedit.editors.hypernet.examples import Example, fingerprint_examples, shuffled
from betaedit.editors.hypernet.network import Architecture, Hypernetwork, Rule
from betaedit.editors.hypernet.passes import (
    Dense,
    EditedLayers,
    Factors,
    Row,
    Texts,
    TokenGradients,
    read_tokens,
)
from betaedit.editors.hypernet.trained import TrainedEditor
from betaedit.errors import AnatomyError, ConfigError, NumericalError, OutputError
from betaedit.evaluation.scoring import Continuation
from betaedit.files import atomic_write, file_errors
from betaedit.models.anatomy import projection_shape
from betaedit.models.gradients import usual_gradients
from betaedit.models.load import LanguageModel
from betaedit.progress import Progress, SilentProgress

CHECKPOINT = "checkpoint.pt"
_FREE_TO_CHANGE = ("steps", "patience")
"""Settings that a training may go on with in other values."""


@dataclass(frozen=True)
class Validation:
    """Figures of one validation.

    Args:
        step: Optimizer steps before it.
        train_loss: Mean loss of the steps since the last one; ``None`` before the first step.
        loss: The training's loss on the validation facts.
        reliability: Share of facts whose own prompt is answered with all tokens of the new target.
        generality: The same of the other wordings.
        locality: Share of unrelated prompts at which every answer token's choice is what it was.
        seconds: Time of the training so far.
    """

    step: int
    train_loss: float | None
    loss: float
    reliability: float
    generality: float
    locality: float
    seconds: float


_Hits = tuple[list[bool], list[bool], list[bool]]
"""For each fact of a group: whether its own prompt says it, whether the other does, whether the unrelated stayed."""


@dataclass(frozen=True)
class _Group:
    """Facts that are edited together, and what the loss asks for each of them."""

    edits: Texts
    rephrased: tuple[Continuation, ...]
    unrelated: tuple[Continuation, ...]

    @classmethod
    def of(cls, model: LanguageModel, examples: Sequence[Example], round_: int) -> _Group:
        """Which of several rephrases and unrelated prompts is asked, the round says."""
        edits = Texts.of(model, [example.edit for example in examples])
        rephrased, unrelated = zip(*(example.asked(round_) for example in examples), strict=True)
        return cls(edits, rephrased, unrelated)


class Training:
    """One training in one folder.

    Args:
        method: Name of the method that the editor is for.
        rule: How it makes changes.
        model: The unedited model.
        examples: What to train on, the last ``validation_facts`` of them left out.
        config: Settings.
        folder: Where the editor and the checkpoint stand; a training that was begun there goes on.
        progress: Where the steps show.
        source: What the file of examples is called.

    Raises:
        ConfigError: There are too few examples; the folder holds a training of other data or settings; or facts that
            are each edited by themselves (mend) are asked for in a row.
        AnatomyError: The model has no such layer.
    """

    def __init__(
        self,
        method: str,
        rule: Rule,
        model: LanguageModel,
        examples: Sequence[Example],
        config: TrainingConfig,
        folder: Path,
        progress: Progress | None = None,
        source: str = "",
    ) -> None:
        self.method, self.model, self.config, self.folder = method, model, config, folder
        self._progress: Progress = progress or SilentProgress()
        self._split(examples)
        if rule == "sum" and config.sequence > 1:
            raise ConfigError(f"{method} edits each fact by itself.", hint="Leave sequence at 1, or train rledit.")
        layers = edited_layers(model, config)
        shapes = {layer: projection_shape(model.anatomy.projection(layer)) for layer in layers}
        self.network = Hypernetwork(
            Architecture(
                rule,
                shapes,
                config.rank,
                config.blocks,
                config.normalize,
                config.identity_init,
                config.edit_rate,
                config.seed,
            )
        ).to(model.device)
        self._averaged = AveragedModel(self.network, avg_fn=self._mean)
        own = [self.network.rates, self.network.log_ridges]
        self._optimizer = torch.optim.Adam(
            [
                {"params": list(self.network.networks.parameters()), "lr": config.learning_rate},
                {"params": own, "lr": config.edit_rate_learning_rate},
            ]
        )
        self._layers = EditedLayers(model, layers, again=self._rows())
        self.history: list[Validation] = []
        self.step, self._seconds = 0, 0.0
        self._losses: list[float] = []
        self._origin = {
            "model": model.name,
            "weights": model.fingerprint(),
            "dtype": str(model.model.dtype).removeprefix("torch."),
            "source": source,
            "data": fingerprint_examples(examples),
            "settings": config.model_dump(mode="json"),
        }
        self._resume()

    @property
    def _validated(self) -> Hypernetwork:
        """The running mean of the weights, with the newest statistics."""
        network = self._averaged.module
        assert isinstance(network, Hypernetwork)
        return network

    @property
    def best(self) -> Validation | None:
        """The validation with the lowest loss, whose weights the editor has."""
        return min(self.history, key=lambda each: each.loss, default=None)

    @property
    def is_over(self) -> bool:
        """Whether all steps are done, or the loss has not fallen for ``patience`` validations."""
        since = 0 if self.best is None else len(self.history) - 1 - self.history.index(self.best)
        return self.step >= self.config.steps or since >= self.config.patience

    @usual_gradients
    def run(self, on_validation: Callable[[Validation], None] | None = None) -> TrainedEditor:
        """Train until it is over; each validation is on disk before ``on_validation`` hears of it.

        Raises:
            NumericalError: The loss is not finite.
            OutputError: The folder cannot be written.
        """
        with self._progress.task("training", self.config.steps, "steps", done=self.step) as task:
            while not self.is_over:
                started = time.perf_counter()
                self._losses.append(self._optimize())
                self.step += 1
                self._seconds += time.perf_counter() - started
                task.advance()
                if self.step % self.config.validate_every == 0 or self.step == self.config.steps:
                    self._validate(on_validation)
        return TrainedEditor.load(self.folder, self.method)

    def _split(self, examples: Sequence[Example]) -> None:
        held, needed = self.config.validation_facts, self.config.batch * self.config.sequence
        if len(examples) < held + needed:
            raise ConfigError(
                f"{len(examples)} records are too few: {held} are validated on, and a step takes {needed}.",
                hint="Give more records, or lower validation_facts, batch or sequence.",
            )
        self._examples, self._held_out = list(examples[:-held]), list(examples[-held:])

    def _rows(self) -> Iterator[Row]:
        """All texts, in the order in which they come first: those of later rounds after all of the first round."""
        order = [self._examples[at] for at in shuffled(len(self._examples), 0, self.config.seed)] + self._held_out
        rounds = max(max(len(each.rephrased), len(each.unrelated)) for each in order)
        for round_ in range(rounds):
            for each in order:
                yield from (read_tokens(one) for one in (each.edit, *each.asked(round_)))

    def _optimize(self) -> float:
        """One optimizer step; the mean loss of its edits."""
        self._optimizer.zero_grad()
        size, sequence = self.config.batch, self.config.sequence
        groups = [self._group(number) for number in range(self.step * sequence, (self.step + 1) * sequence)]
        losses = self._edit(groups)
        self._optimizer.step()
        self._averaged.update_parameters(self.network)
        if not all(bool(torch.isfinite(each).all()) for each in self.network.parameters()):
            raise NumericalError(
                f"the training did not stay finite (step {self.step}, {size} facts).",
                hint="Lower learning_rate or edit_rate_learning_rate; the last validated editor is kept.",
            )
        return sum(losses) / len(losses)

    def _mean(self, mean: Tensor, value: Tensor, n_averaged: Tensor | int) -> Tensor:
        """The running mean with one more value; the first steps weigh it less, so that the first weights soon go."""
        steps = int(n_averaged)
        decay = min(self.config.average, (1 + steps) / (10 + steps))
        return decay * mean + (1 - decay) * value

    def _group(self, number: int) -> _Group:
        """The examples of the edit of that number: round after round through all of them, each in its own order."""
        size, n = self.config.batch, len(self._examples)
        per_round = n // size
        round_, at = divmod(number, per_round)
        order = shuffled(n, round_, self.config.seed)[at * size : (at + 1) * size]
        return _Group.of(self.model, [self._examples[index] for index in order], round_)

    def _edit(self, groups: Sequence[_Group]) -> list[float]:
        """Edit group after group, each on the weights that those before it left, and gather gradients; the losses."""
        base: dict[int, Tensor] = {}
        losses = []
        for at, group in enumerate(groups):
            gradients, _ = self._layers.gradients(group.edits, base)
            for layer, found in gradients.items():
                self.network.observe(layer, *counted_tokens(self.network, found, group.edits))
            changes = self._changes(self.network, gradients, group)
            loss = self._loss(self._past(groups, at), base, changes)
            loss.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(self.network.parameters(), self.config.clip)
            losses.append(loss.item())
            if at + 1 < len(groups):
                base = _summed(base, changes)
        return losses

    def _past(self, groups: Sequence[_Group], at: int) -> list[_Group]:
        """The group number ``at`` and those before it that the loss looks back at, the latest first."""
        return list(reversed(groups[max(0, at - self.config.look_back + 1) : at + 1]))

    def _changes(
        self, network: Hypernetwork, gradients: Mapping[int, TokenGradients], group: _Group
    ) -> dict[int, Factors]:
        """The group's change of every layer, with the graph of the hypernetwork behind it."""
        return {
            layer: Factors(*edit_factors(network, layer, found, group.edits, apart=True))
            for layer, found in gradients.items()
        }

    def _loss(self, past: Sequence[_Group], base: Dense, changes: Mapping[int, Factors]) -> Tensor:
        """The loss on the group that ``changes`` write on top of ``base``, and on those before it in ``past``."""
        config = self.config
        rephrased = Texts.of(self.model, [one for group in past for one in group.rephrased])
        unrelated = Texts.of(self.model, [one for group in past for one in group.unrelated])
        weights = torch.tensor(
            [config.discount**back / len(group.rephrased) for back, group in enumerate(past) for _ in group.rephrased],
            device=self.model.device,
        )
        with torch.no_grad():
            was = self._layers.log_probabilities(unrelated, base, {})
        edit = rephrased.losses(self._layers.log_probabilities(rephrased, base, changes))
        moved = unrelated.divergences(was, self._layers.log_probabilities(unrelated, base, changes))
        loss = weights @ (config.edit_weight * edit + config.unrelated_weight * moved)
        if config.norm_weight:
            for change in changes.values():
                loss = loss + config.norm_weight * change.squared_norm()
        return loss

    def _validate(self, on_validation: Callable[[Validation], None] | None) -> None:
        """Measure, keep the editor where it is the best so far, and the checkpoint; in this order."""
        started = time.perf_counter()
        size = self.config.batch
        groups = [
            _Group.of(self.model, self._held_out[at : at + size], 0) for at in range(0, len(self._held_out), size)
        ]
        losses: list[float] = []
        hits: list[_Hits] = []
        for at in range(0, len(groups), self.config.sequence):
            found, figures = self._measure(groups[at : at + self.config.sequence])
            losses += found
            hits += figures
        self._seconds += time.perf_counter() - started
        loss = sum(losses) / len(losses)
        if not torch.isfinite(torch.tensor(loss)):
            raise NumericalError(
                f"the loss is not finite at step {self.step}.", hint="Lower edit_rate or the learning rates."
            )
        own, others, unrelated = (_share([hit for each in hits for hit in each[which]]) for which in range(3))
        mean = sum(self._losses) / len(self._losses) if self._losses else None
        validation = Validation(self.step, mean, loss, own, others, unrelated, self._seconds)
        self._losses = []
        self.history.append(validation)
        if self.best is validation:
            origin = {**self._origin, "validations": [asdict(each) for each in self.history]}
            TrainedEditor(self.method, self._validated, origin).save(self.folder)
        self._keep()
        if on_validation is not None:
            on_validation(validation)

    def _measure(self, row: Sequence[_Group]) -> tuple[list[float], list[_Hits]]:
        """Losses of the edits of a row, and what is answered after its last one."""
        base: dict[int, Tensor] = {}
        losses = []
        changes: dict[int, Factors] = {}
        for at, group in enumerate(row):
            base = _summed(base, changes)
            gradients, _ = self._layers.gradients(group.edits, base)
            with torch.no_grad():
                changes = self._changes(self._validated, gradients, group)
                losses.append(self._loss(self._past(row, at), base, changes).item())
        with torch.no_grad():
            return losses, [self._hits(group, base, changes) for group in row]

    def _hits(self, group: _Group, base: Dense, changes: Mapping[int, Factors]) -> _Hits:
        rephrased, unrelated = Texts.of(self.model, group.rephrased), Texts.of(self.model, group.unrelated)
        was = self._layers.log_probabilities(unrelated, {}, {}).argmax(dim=1)
        own, other, now = (
            self._layers.log_probabilities(texts, base, changes).argmax(dim=1)
            for texts in (group.edits, rephrased, unrelated)
        )
        return (
            group.edits.are_all(own == group.edits.target),
            rephrased.are_all(other == rephrased.target),
            unrelated.are_all(now == was),
        )

    def _keep(self) -> None:
        state = {
            "origin": self._origin,
            "step": self.step,
            "seconds": self._seconds,
            "history": [asdict(each) for each in self.history],
            "network": self.network.state_dict(),
            "averaged": self._averaged.state_dict(),
            "optimizer": self._optimizer.state_dict(),
        }
        file = self.folder / CHECKPOINT
        with file_errors(file, OutputError), atomic_write(file) as scratch:
            torch.save(state, scratch)

    def _resume(self) -> None:
        """Go on where the checkpoint of the folder is."""
        file = self.folder / CHECKPOINT
        if not file.exists():
            return
        try:
            state: dict[str, Any] = torch.load(file, map_location=self.model.device, weights_only=True)
            differs = _difference(state["origin"], self._origin)
        except Exception as error:
            raise ConfigError(
                f"{file} cannot be read: {error}.", hint="Delete it, or train in a new folder."
            ) from error
        if differs:
            raise ConfigError(
                f"{self.folder} holds a training with another {differs}.",
                hint="Repeat its command to go on with it, or name a new folder with --out.",
            )
        self.step, self._seconds = state["step"], state["seconds"]
        self.history = [Validation(**each) for each in state["history"]]
        self.network.load_state_dict(state["network"])
        self._averaged.load_state_dict(state["averaged"])
        self._optimizer.load_state_dict(state["optimizer"])


def edited_layers(model: LanguageModel, config: TrainingConfig) -> tuple[int, ...]:
    """The layers that ``config`` names, or the last ones.

    Raises:
        AnatomyError: There is no such layer.
    """
    n = model.anatomy.n_layers
    layers = config.layers or tuple(range(max(0, n - config.last_layers), n))
    if layers[-1] >= n:
        raise AnatomyError(f"there is no layer {layers[-1]}.", hint=f"The model has layers 0 to {n - 1}.")
    return layers


def counted_tokens(network: Hypernetwork, found: TokenGradients, texts: Texts) -> tuple[Tensor, Tensor]:
    """``(n, d_in)`` and ``(n, d_out)`` of the tokens that the rule writes: all of them, or those of the answers."""
    chosen = found.real & texts.answer_mask if network.architecture.rule == "least squares" else found.real
    return found.u[chosen], found.v[chosen]


def edit_factors(
    network: Hypernetwork, layer: int, found: TokenGradients, texts: Texts, *, apart: bool = False
) -> tuple[Tensor, Tensor]:
    """The factors of a layer's change: of all texts together; or, of a rule that sums, ``apart`` for each text."""
    if network.architecture.rule == "sum" and apart:
        return network.sum_factors(layer, found.u, found.v, found.real)
    u, v = counted_tokens(network, found, texts)
    if network.architecture.rule == "sum":
        return network.sum_factors(layer, u, v, torch.ones(len(u), dtype=torch.bool, device=u.device))
    return network.least_squares_factors(layer, u, v)


def _summed(base: Dense, changes: Mapping[int, Factors]) -> dict[int, Tensor]:
    """``base`` with ``changes`` added."""
    return {layer: base[layer] + one.dense() if layer in base else one.dense() for layer, one in changes.items()}


def _share(hits: Sequence[bool]) -> float:
    return sum(hits) / len(hits)


def _difference(kept: dict[str, Any], own: dict[str, Any]) -> str:
    """The name of the first thing in which two trainings differ, of those that decide; empty where none does."""
    for name in ("data", "weights", "dtype"):
        if kept[name] != own[name]:
            return "file of records" if name == "data" else "model"
    settings = {**kept["settings"], **own["settings"]}
    return next(
        (
            f"setting {name} ({kept['settings'].get(name)})"
            for name in settings
            if name not in _FREE_TO_CHANGE and kept["settings"].get(name) != own["settings"].get(name)
        ),
        "",
    )
