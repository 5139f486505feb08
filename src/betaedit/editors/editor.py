"""The facade: a model, a method, and the facts written so far."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from betaedit.editors.method import (
    EditingMethod,
    EditResult,
    EditsMatrices,
    EditsWeights,
    Forgets,
    Method,
    MethodConfig,
    PlannedEdit,
    SavesFiles,
    WrittenBatch,
    require,
)
from betaedit.editors.methods import find_method
from betaedit.editors.named import find_results
from betaedit.editors.names import check_names
from betaedit.editors.preset_file import choose_preset, warn_untuned
from betaedit.editors.presets import Preset, find_preset
from betaedit.editors.resources import Resources
from betaedit.editors.saved import EDITS_FILE, STATISTICS_FILE, find_saved, hash_weights
from betaedit.editors.shared_config import StatisticsConfig
from betaedit.errors import ConfigError, FactError, ModelError, OutputError, StatisticsError
from betaedit.facts.fact import EvaluationCase, Fact
from betaedit.files import atomic_folder, file_errors
from betaedit.models.generate import complete
from betaedit.models.load import DtypeName, LanguageModel, load_language_model
from betaedit.models.runners import RunnerName
from betaedit.models.save import check_can_be_saved, save_language_model
from betaedit.progress import Progress, SilentProgress
from betaedit.statistics.moments import Moments

if TYPE_CHECKING:
    from betaedit.editors.closed_form.value_cache import ValueCache
    from betaedit.editors.matrix import EditedMatrix


class Editor:
    """Writes facts into a language model, by any method.

    ``editing`` is what the method built: ask it for what only some methods can do (``EditsMatrices``, ``Forgets``).
    Statistics, contexts and the like are made from the unedited model on first use, or by ``prepare``.

    Args:
        model: The model to change.
        method: A method's name; ``betaedit methods`` lists them.
        config: Hyper-parameters, of the method's own type; those of the preset when not given.
        preset: A preset, the name of one, or a file that ``betaedit calibrate`` wrote; the model's own when not given.
        statistics: Second moments, or a file of them; collected when not given.
        progress: Shows the progress of long work.
        value_cache: Values found under the same unedited model, shared with other editors of it.

    Raises:
        MethodError: The method is unknown.
        ModelError: The model's layers cannot be run on a subset of the positions, or it holds edits of another living
            editor.
        AnatomyError: A layer to be edited does not exist.
        UnsupportedMatrixError: A matrix to be edited is quantized or one of several experts.
        StatisticsError: The statistics do not fit the model.
        ConfigError: There is no such preset, its file is broken, or ``config`` is that of another family.
    """

    def __init__(
        self,
        model: LanguageModel,
        *,
        method: str = "betaedit",
        config: MethodConfig | None = None,
        preset: Preset | str | Path | None = None,
        statistics: Moments | str | Path | None = None,
        progress: Progress | None = None,
        value_cache: ValueCache | None = None,
    ) -> None:
        self.method: Method = find_method(method)
        self.preset = choose_preset(preset, model.place, model.anatomy.n_layers)
        if preset is None and config is None:
            warn_untuned(self.preset, self.method, model.name)
        self.config = self.method.resolve_config(_as_config(config) or self.preset.config(self.method))
        self.progress: Progress = progress or SilentProgress()
        self.resources = Resources(
            model,
            saved=find_saved(model.place),
            moments=_as_moments(statistics),
            value_cache=value_cache,
            progress=self.progress,
        )
        if statistics is not None and not isinstance(self.config, StatisticsConfig):
            raise ConfigError(f"{self.method.name} uses no statistics.", hint="Leave statistics out.")
        self.method.check(self.config)
        self.editing: EditingMethod = self.method.build(model, self.config, self.resources)

    @classmethod
    def from_pretrained(
        cls,
        name: str | Path | PreTrainedModel,
        *,
        tokenizer: PreTrainedTokenizerBase | None = None,
        method: str = "betaedit",
        config: MethodConfig | None = None,
        preset: Preset | str | Path | None = None,
        statistics: Moments | str | Path | None = None,
        dtype: DtypeName = "float32",
        device: str | None = None,
        device_map: str | dict[str, Any] | None = None,
        runner: RunnerName = "auto",
        progress: Progress | None = None,
        own_facts: bool = False,
        **overrides: Any,
    ) -> Editor:
        """An editor for a model by name or folder, or for a loaded model with its tokenizer.

        ``overrides`` are hyper-parameters by name, on top of ``config`` or the preset. With ``own_facts`` and without
        ``preset``, the model's preset for user facts is used, if it has one (``docs/user-facts.md``).
        ``runner`` chooses how the model's layers are computed: ``auto``, ``modules``, ``fused`` or ``kernels``.

        Raises:
            MethodError: The method is unknown; no model is loaded then.
            ConfigError: An override is unknown or impossible, there is no such preset, or ``config`` is not one;
                no model is loaded then. Or the runner cannot be used for this model.
            StatisticsError: The file of statistics cannot be read; no model is loaded then.
            ModelError: The model cannot be loaded (see ``load_language_model``).
        """
        check_names(method, preset, overrides)
        config = _as_config(config)
        moments = _as_moments(statistics)
        if isinstance(name, str | Path):
            model = load_language_model(str(name), dtype=dtype, device=device, device_map=device_map, runner=runner)
        elif tokenizer is None:
            raise ConfigError("a loaded model needs its tokenizer.", hint="Pass tokenizer=...")
        elif device is not None or device_map is not None:
            raise ConfigError(
                "device and device_map are not for a loaded model.", hint="Move the model yourself, and leave them out."
            )
        else:
            model = LanguageModel.wrap(name, tokenizer, runner=runner)
        chosen = choose_preset(preset, model.place, model.anatomy.n_layers)
        if own_facts and preset is None:
            chosen = find_preset(chosen.for_own_facts) or chosen
        if preset is None and config is None:
            warn_untuned(chosen, find_method(method), model.name)
        base = (config or chosen.config(find_method(method))).replace(**overrides)
        return cls(model, method=method, config=base, preset=chosen, statistics=moments, progress=progress)

    @property
    def language_model(self) -> LanguageModel:
        """The model as served, with all edits."""
        return self.editing.model

    @property
    def model(self) -> PreTrainedModel:
        """The transformers model; unedited if the method changes no weights."""
        return self.language_model.model

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """Its tokenizer."""
        return self.language_model.tokenizer

    @property
    def results(self) -> list[EditResult]:
        """One per fact that the model holds, in the order in which they were written."""
        return list(self.editing.results)

    def unedited(self) -> AbstractContextManager[None]:
        """A context in which the model is unedited."""
        return self.editing.unedited()

    def prepare(self) -> None:
        """Make statistics, projectors and the like now, so that the first edit does not wait for them."""
        self.editing.prepare()

    def plan(self, facts: Fact | EvaluationCase | Iterable[Fact | EvaluationCase]) -> list[PlannedEdit]:
        """What ``edit`` would write, with lookup and target tokens; changes nothing.

        Raises:
            FactError: An item is not a fact, two facts share an id, or one is longer than the model's positions.
            LookupTokenError: A subject or target has no tokens.
            ModelError: The model has no embedding for a token.
        """
        return [self.editing.plan(fact) for fact in _as_facts(facts)]

    def edit(
        self,
        facts: Fact | EvaluationCase | Iterable[Fact | EvaluationCase],
        *,
        batch_size: int = 1,
        on_edit: Callable[[EditResult], None] | None = None,
    ) -> list[EditResult]:
        """Write facts into the model, ``batch_size`` at a time, in order; ``on_edit`` is called with each result.

        All facts are checked before the first weight changes.

        Raises:
            FactError: An item is not a fact, two facts share an id, or one is longer than the model's positions.
            LookupTokenError: A subject or target has no tokens.
            ModelError: The model has no embedding for a token, or is in training mode.
            WeightsChangedError: It does not have the weights written last.
            NumericalError: An update is not finite or too long; its batch is undone, earlier batches stay.
        """
        written: list[EditResult] = []
        chosen = self._checked(facts, batch_size)
        with self.progress.task("editing", len(chosen), "facts") as task:
            for batch in self.editing.write(chosen, batch_size=batch_size):
                task.advance(len(batch.results))
                for result in batch.results:
                    written.append(result)
                    if on_edit is not None:
                        on_edit(result)
        return written

    def write(
        self, facts: Fact | EvaluationCase | Iterable[Fact | EvaluationCase], *, batch_size: int = 1
    ) -> Iterator[WrittenBatch]:
        """``edit`` as an iterator: each batch is written when the iterator reaches it.

        Facts that ``edit`` refuses are refused before the first batch.
        """
        return self.editing.write(self._checked(facts, batch_size), batch_size=batch_size)

    def replay(self, batch: WrittenBatch) -> None:
        """Write a batch of an earlier ``write`` of the same sequence again: the same weights, bit for bit."""
        self.editing.replay(batch)

    def forget(self, name: str | Fact, *, all_matching: bool = False) -> list[EditResult]:
        """Forget a fact, given as itself, by its id, or by its subject; returns its results.

        The weights become those with only the other facts written, with their keys and values. The values of later
        facts about the same subject depend on it and are searched again. Values of other facts stay: the result is not
        exactly the model without the fact (``docs/forgetting.md`` has figures).

        Args:
            name: A fact, an id, or a subject.
            all_matching: Forget all facts of a subject or id that several facts have.

        Raises:
            FactError: There is none, and the nearest names are suggested; or several, and ``all_matching`` is not set.
            WeightsChangedError: The model does not have the weights written last.
            NumericalError: The other facts cannot be written again; nothing has changed.
        """
        can_forget = require(
            self.editing,
            Forgets,  # type: ignore[type-abstract]
            self.method,
            "forget: its edits cannot be separated into single facts",
            "Edit with memit-h, alphaedit or betaedit.",
        )
        chosen = find_results(self.results, name, all_matching=all_matching)
        can_forget.forget(chosen)
        return chosen

    def reset(self) -> None:
        """Restore the unedited model, bit for bit, and forget all facts.

        Raises:
            WeightsChangedError: The model has neither the original weights nor those written last.
        """
        self.editing.reset()

    def complete(self, prompt: str, n_tokens: int = 8) -> str:
        """The model's greedy continuation of ``prompt``."""
        return complete(self.language_model, prompt, n_tokens)

    def save_pretrained(self, folder: str | Path) -> Path:
        """The edited model as a Hugging Face folder, with ``betaedit.json`` saying what was written and how.

        The folder appears complete or not at all, after its edited weights were compared with those in memory. Files of
        other names in an existing folder stay.

        Raises:
            ModelError: An adapter is attached to the model, or lies in the folder: a reload would give another model.
            WeightsChangedError: The model does not have the weights written last.
            OutputError: The folder cannot be written.
        """
        folder = Path(folder)
        with self.saved_into(folder):
            return folder

    @contextmanager
    def saved_into(self, folder: Path) -> Iterator[Path]:
        """``save_pretrained`` as a context, for adding files to the folder before it appears."""
        self.check_can_be_saved(folder)
        weights = self._saved_weights()
        for matrix in weights.values():
            matrix.check()
        with file_errors(folder, OutputError), atomic_folder(folder) as scratch:
            save_language_model(self.language_model, scratch, tuple(weights))
            if isinstance(self.editing, SavesFiles):
                self.editing.save_files(scratch)
            if self.resources.moments is not None:
                (scratch / STATISTICS_FILE).parent.mkdir(exist_ok=True)
                self.resources.moments.save(scratch / STATISTICS_FILE)
            plain = json.dumps({**self.to_dict(), **self._record(scratch)}, indent=2, ensure_ascii=False)
            (scratch / EDITS_FILE).write_text(f"{plain}\n", encoding="utf-8")
            yield scratch

    def check_can_be_saved(self, folder: str | Path) -> None:
        """Refuse what ``save_pretrained`` would refuse, before facts are written.

        Raises:
            MethodError: The method changes no weights and saves no files.
            ModelError: Something is attached to the model, it frames its prompts, or an adapter lies in ``folder``.
        """
        if not isinstance(self.editing, EditsWeights | SavesFiles):
            self._editing_matrices("be saved as a model: it changes no weights")
        check_can_be_saved(self.language_model, Path(folder))

    def matrices(self, what: str = "give edited matrices") -> Mapping[int, EditedMatrix]:
        """The edited matrices by layer; ``what`` completes the error message "METHOD cannot ...".

        Raises:
            MethodError: The method edits none.
        """
        return self._editing_matrices(what).matrices

    def weights(self, what: str = "say which matrices it edits") -> Mapping[str, EditedMatrix]:
        """The edited matrices by the paths of their modules; ``what`` as for ``matrices``.

        Raises:
            MethodError: The method edits none.
        """
        if isinstance(self.editing, EditsWeights):
            return self.editing.weights
        return {matrix.path: matrix for matrix in self.matrices(what).values()}

    def to_dict(self) -> dict[str, Any]:
        """Model, method, hyper-parameters, statistics and every edit as plain data."""
        return {
            "model": self.language_model.name,
            "method": self.method.name,
            "preset": self.preset.name,
            "config": self.config.model_dump(mode="json"),
            **self.editing.describe(),
            "edits": [result.to_dict() for result in self.results],
        }

    def _editing_matrices(self, what: str) -> EditsMatrices:
        hint = "Store its run with --out, or use a method that edits MLP output matrices."
        return require(self.editing, EditsMatrices, self.method, what, hint)  # type: ignore[type-abstract]

    def _saved_weights(self) -> Mapping[str, EditedMatrix]:
        """``weights``; none for a method that saves files instead."""
        return {} if isinstance(self.editing, SavesFiles) else self.weights()

    def _record(self, folder: Path) -> dict[str, Any]:
        """What a saved folder records in addition to ``to_dict``, so that it can be used as a model again."""
        anatomy, saved = self.language_model.anatomy, self.resources.saved
        tails = tuple(f"{path.removeprefix(anatomy.layers_path)}.weight" for path in self._saved_weights())
        return {
            "base": self.language_model.place if saved is None else saved.base,
            "preset_settings": self.preset.to_dict(),
            "earlier_edits": [] if saved is None else saved.edits,
            "weights": hash_weights(folder, lambda name: name.endswith(tails)),
        }

    def _checked(self, facts: Fact | EvaluationCase | Iterable[Fact | EvaluationCase], batch_size: int) -> list[Fact]:
        if batch_size < 1:
            raise ConfigError(f"batch_size is {batch_size}.", hint="Give 1 or more.")
        if self.model.training:
            raise ModelError(
                "the model is in training mode, where dropout makes its answers random.",
                hint="Call model.eval() first.",
            )
        self.method.check(self.config, batch_size)
        chosen = [planned.fact for planned in self.plan(facts)]
        self.editing.check(chosen, batch_size)
        return chosen


def _as_moments(statistics: Moments | str | Path | None) -> Moments | None:
    if isinstance(statistics, str | Path):
        return Moments.load(statistics)
    if statistics is not None and not isinstance(statistics, Moments):
        raise StatisticsError(
            f"statistics is of the type {type(statistics).__name__}.",
            hint="Give Moments, or the file that `betaedit statistics --save` wrote.",
        )
    return statistics


def _as_config(config: MethodConfig | None) -> MethodConfig | None:
    if config is not None and not isinstance(config, MethodConfig):
        raise ConfigError(
            f"config is of the type {type(config).__name__}.",
            hint="Give an EditConfig; pass single settings by name, as in "
            "Editor.from_pretrained(..., value_clamp=1.0).",
        )
    return config


def _as_facts(facts: Fact | EvaluationCase | Iterable[Fact | EvaluationCase]) -> list[Fact]:
    items = [facts] if isinstance(facts, Fact | EvaluationCase) else list(facts)
    chosen = [item.fact if isinstance(item, EvaluationCase) else item for item in items]
    seen: set[str] = set()
    for fact in chosen:
        if not isinstance(fact, Fact):
            raise FactError(
                f"{fact!r} is not a Fact.",
                hint='Write Fact("The mother tongue of {} is", "Danielle Darrieux", "English").',
            )
        if fact.id is not None and fact.id in seen:
            raise FactError(f"two facts share the id {fact.id!r}.", hint="Give every fact its own id.", field="id")
        if fact.id is not None:
            seen.add(fact.id)
    return chosen
