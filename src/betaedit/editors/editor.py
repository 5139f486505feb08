"""The facade: a model, a method, and the facts written so far."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from betaedit.editors.config import EditConfig
from betaedit.editors.contexts import context_templates
from betaedit.editors.engine import EditResult, Engine, WrittenBatch
from betaedit.editors.known_values import KnownValues
from betaedit.editors.live import find, sharing_a_key, sharing_an_id
from betaedit.editors.matrix import check_unedited
from betaedit.editors.names import check_names
from betaedit.editors.preset_file import choose_preset, warn_untuned
from betaedit.editors.presets import Preset, find_preset
from betaedit.editors.readable import check_readable
from betaedit.editors.recipes import Recipe, find_recipe
from betaedit.editors.saved import BEFORE_EDITS, EDITS_FILE, STATISTICS_FILE, find_saved, hash_weights
from betaedit.errors import ConfigError, FactError, ModelError, OutputError, StatisticsError
from betaedit.facts.fact import EvaluationCase, Fact
from betaedit.files import file_errors, folder_written_whole
from betaedit.models.anatomy import projection_shape
from betaedit.models.chat import has_chat, typed_specials
from betaedit.models.generate import complete
from betaedit.models.load import DtypeName, LanguageModel, load_language_model
from betaedit.models.lookup import Prompt, encode_target, find_lookup_token, tokenize
from betaedit.models.runners import RunnerName
from betaedit.models.save import check_can_be_saved, save_language_model
from betaedit.models.support_check import check_replay
from betaedit.progress import Progress, SilentProgress
from betaedit.statistics.collect import collect_moments
from betaedit.statistics.corpus import corpus_from
from betaedit.statistics.moments import Moments

logger = logging.getLogger(__name__)

_TOKENS_PER_DIMENSION = 10


@dataclass(frozen=True)
class PlannedEdit:
    """What an edit would do, before anything is done.

    Args:
        fact: The fact.
        tokens: The prompt's tokens as text.
        lookup: Index of the lookup token among them.
        target_tokens: The new target's tokens as text.
    """

    fact: Fact
    tokens: tuple[str, ...]
    lookup: int
    target_tokens: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """The plan as plain data."""
        return {
            "id": self.fact.id,
            "prompt": self.fact.text,
            "subject": self.fact.subject,
            "tokens": list(self.tokens),
            "lookup": self.lookup,
            "target_tokens": list(self.target_tokens),
        }


class Editor:
    """Writes facts into a language model.

    ``edit`` always changes the model it holds. Statistics and contexts are made from the unedited model when they are
    first needed; ``prepare`` does that ahead of time.

    Args:
        model: The model to change.
        method: A recipe's name; ``betaedit methods`` lists them.
        config: Hyper-parameters; those of the preset when not given.
        preset: A preset, the name of one, or a file that ``betaedit calibrate`` wrote; the model's own when not given.
        statistics: Second moments, or a file of them; collected when not given.
        progress: Where long work draws itself.
        known_values: What editors of this same unedited model share, so that a search is not repeated.

    Raises:
        MethodError: The method is unknown.
        ModelError: The model's layers cannot be run on a part of the positions.
        AnatomyError: A layer to be edited does not exist.
        UnsupportedMatrixError: A matrix to be edited is quantized or one of several experts.
        ModelError: It holds edits of another editor that is still there.
        StatisticsError: The statistics do not fit the model.
        ConfigError: There is no such preset, or its file is broken.
    """

    def __init__(
        self,
        model: LanguageModel,
        *,
        method: str = "betaedit",
        config: EditConfig | None = None,
        preset: Preset | str | Path | None = None,
        statistics: Moments | str | Path | None = None,
        progress: Progress | None = None,
        known_values: KnownValues | None = None,
    ) -> None:
        self.language_model = model
        self.recipe: Recipe = find_recipe(method)
        self.preset = choose_preset(preset, model.place, model.anatomy.n_layers)
        if preset is None and config is None:
            warn_untuned(self.preset, model.name)
        self._saved = find_saved(model.place)
        self.config = self.recipe.settings(_as_config(config) or self.preset.config(self.recipe))
        self.progress: Progress = progress or SilentProgress()
        self._known_values = known_values
        self._engine: Engine | None = None
        self._check_layers()
        self.recipe.check(self.config)
        check_unedited(model.anatomy, self.config.layers)
        self._moments = _as_moments(statistics)
        if self._moments is not None:
            self._check_moments(self._moments)
        check_replay(model.anatomy)

    @classmethod
    def from_pretrained(
        cls,
        name: str | Path | PreTrainedModel,
        *,
        tokenizer: PreTrainedTokenizerBase | None = None,
        method: str = "betaedit",
        config: EditConfig | None = None,
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
        """An editor for a model by name or folder, or for a live model with its tokenizer.

        ``overrides`` are hyper-parameters by name, on top of ``config`` or the preset. With ``own_facts`` and without
        ``preset``, the model's preset for facts of people's own is taken, where it has one (``docs/user-facts.md``).
        ``runner`` chooses what runs the model's layers: ``auto``, ``modules``, ``fused`` or ``kernels``.

        Raises:
            MethodError: The method is unknown; no model is loaded then.
            ConfigError: An override is unknown or impossible, there is no such preset, or ``config`` is none; no model
                is loaded then. Or the runner cannot be used for this model.
            StatisticsError: The file of statistics cannot be read, or is none; no model is loaded then.
            ModelError: The model cannot be loaded (see ``load_language_model``).
        """
        check_names(method, preset, overrides)
        config = _as_config(config)
        moments = _as_moments(statistics)
        if isinstance(name, str | Path):
            model = load_language_model(str(name), dtype=dtype, device=device, device_map=device_map, runner=runner)
        elif tokenizer is None:
            raise ConfigError("a live model needs its tokenizer.", hint="Pass tokenizer=...")
        elif device is not None or device_map is not None:
            raise ConfigError("a live model stays where it is.", hint="Move it before, without device or device_map.")
        else:
            model = LanguageModel.wrap(name, tokenizer, runner=runner)
        chosen = choose_preset(preset, model.place, model.anatomy.n_layers)
        if own_facts and preset is None:
            chosen = find_preset(chosen.for_own_facts) or chosen
        if preset is None and config is None:
            warn_untuned(chosen, model.name)
        base = (config or chosen.config(find_recipe(method))).replace(**overrides)
        return cls(model, method=method, config=base, preset=chosen, statistics=moments, progress=progress)

    @property
    def model(self) -> PreTrainedModel:
        """The model, with all edits in its weights."""
        return self.language_model.model

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """Its tokenizer."""
        return self.language_model.tokenizer

    @property
    def engine(self) -> Engine:
        """The engine, made ready on first use."""
        if self._engine is None:
            check_unedited(self.language_model.anatomy, self.config.layers)
            contexts = None if self._saved is None else self._saved.contexts(self.config)
            self._engine = self._new_engine(contexts or context_templates(self.language_model, self.config))
            self._say_what_was_saved()
        return self._engine

    @property
    def results(self) -> list[EditResult]:
        """One per fact that the model holds, in the order in which they were written."""
        return [] if self._engine is None else [held.result for held in self._engine.live]

    @property
    def statistics(self) -> Moments:
        """``C0`` of the edited layers, collected on first use."""
        if self._moments is None:
            self._moments = self._kept_statistics()
        if self._moments is None:
            corpus = corpus_from(self.config.statistics_corpus, seed=self.config.seed)
            self._moments = collect_moments(
                self.language_model,
                self.config.layers,
                corpus,
                n_tokens=self.config.statistics_tokens or _TOKENS_PER_DIMENSION * max(self._widths().values()),
                skip_first_token=self.config.statistics_skip_first_token,
                progress=self.progress,
            )
        return self._moments

    def _kept_statistics(self) -> Moments | None:
        """Those beside a model that holds edits, which are of the unedited one; ``None`` where none fit.

        Raises:
            StatisticsError: The file is not the one that was saved.
        """
        file = None if self._saved is None else self._saved.statistics(self.config)
        if self._saved is None or file is None:
            return None
        moments = Moments.load(file)
        if moments.fingerprint != self._saved.record["statistics"]["fingerprint"]:
            raise StatisticsError(f"{file} is not what was saved there.", hint="Save or export the model again.")
        moments = replace(moments, origin={**moments.origin, BEFORE_EDITS: str(len(self._saved.edits))})
        self._check_moments(moments)
        return moments

    def _say_what_was_saved(self) -> None:
        """Say, once the engine is there, what it means to edit on where others have edited."""
        if self._saved is None or not (count := len(self._saved.edits)):
            return
        are_kept = BEFORE_EDITS in self.statistics.origin
        logger.warning(
            "%s holds %d edit%s already, which further ones do not protect (those of a workspace, `betaedit init`, are "
            "protected). The statistics are those of %s.",
            self._saved.folder,
            count,
            "" if count == 1 else "s",
            "the model without them, which differ a little from its own now" if are_kept else "the model with them",
        )

    def prepare(self) -> None:
        """Make statistics, contexts and projectors now, so that the first edit does not wait for them."""
        _ = self.engine

    def plan(self, facts: Fact | EvaluationCase | Iterable[Fact | EvaluationCase]) -> list[PlannedEdit]:
        """What ``edit`` would write, with lookup and target tokens; changes nothing.

        Raises:
            FactError: Something is no fact, two facts share an id, or one is longer than the model's positions.
            LookupTokenError: A subject or target has no tokens.
            ModelError: The model has no embedding for a token.
        """
        return [self._plan_one(fact) for fact in _as_facts(facts)]

    def edit(
        self,
        facts: Fact | EvaluationCase | Iterable[Fact | EvaluationCase],
        *,
        batch_size: int = 1,
        on_edit: Callable[[EditResult], None] | None = None,
    ) -> list[EditResult]:
        """Write facts into the model, ``batch_size`` at a time, in order; ``on_edit`` hears of each.

        All facts are checked before the first weight changes.

        Raises:
            FactError: Something is no fact, two facts share an id, or one is longer than the model's positions.
            LookupTokenError: A subject or target has no tokens.
            ModelError: The model has no embedding for a token, or is in training mode.
            WeightsChangedError: It has not the weights that were written last.
            NumericalError: An update is not finite or too long; facts before it stay written, its batch is undone.
        """
        written: list[EditResult] = []
        chosen = self._checked(facts, batch_size)
        with self.progress.task("editing", len(chosen), "facts") as task:
            for batch in self._write(chosen, batch_size):
                task.advance(len(batch.results))
                for result in batch.results:
                    written.append(result)
                    if on_edit is not None:
                        on_edit(result)
        return written

    def write(
        self, facts: Fact | EvaluationCase | Iterable[Fact | EvaluationCase], *, batch_size: int = 1
    ) -> Iterator[WrittenBatch]:
        """``edit``, one batch at a time: each is written when it is asked for. Refuses what ``edit`` does, at once."""
        return self._write(self._checked(facts, batch_size), batch_size)

    def replay(self, batch: WrittenBatch) -> None:
        """Write a batch of an earlier ``write`` of the same sequence again: the same weights, bit for bit."""
        self.engine.replay(batch)

    def forget(self, name: str | Fact, *, all_matching: bool = False) -> list[EditResult]:
        """Take back a fact: itself, by its id, or by its subject; returns what it was.

        The weights become what the other facts, with their keys and values, make of the original ones. Later facts
        about the same subject, whose values hold a trace of it, get new ones by a search each. Values of other facts
        stay as they were sought: it is not the model that was never told the fact (``docs/forgetting.md`` has figures).

        Args:
            name: A fact, an id, or a subject.
            all_matching: Take all facts of a subject, or of an id, that several have.

        Raises:
            FactError: There is none, and the nearest names are suggested; or several, and ``all_matching`` is not set.
            WeightsChangedError: The model has not the weights that were written last.
            NumericalError: The other facts cannot be written again; nothing has changed then.
        """
        chosen = find([] if self._engine is None else self._engine.live, name, all_matching=all_matching)
        self.engine.forget(chosen)
        return [held.result for held in chosen]

    def reset(self) -> None:
        """The model as it was before the first edit, bit for bit, with nothing remembered.

        Raises:
            WeightsChangedError: The model has neither the weights of then nor those that were written last.
        """
        if self._engine is not None:
            contexts = self._engine.contexts
            self._engine.restore()
            self._engine = self._new_engine(contexts)

    def complete(self, prompt: str, n_tokens: int = 8) -> str:
        """What the model says next, greedily."""
        return complete(self.language_model, prompt, n_tokens)

    def save_pretrained(self, folder: str | Path) -> Path:
        """The edited model as a Hugging Face folder, with ``betaedit.json`` saying what was written and how.

        The folder appears whole or not at all, once the edited weights in its files are those in memory. Files of other
        names in a folder that is there already stay.

        Raises:
            ModelError: An adapter or the like is attached to the model, or lies in the folder: a reload would give
                another model.
            WeightsChangedError: The model has not the weights that were written last.
            OutputError: The folder cannot be written.
        """
        folder = Path(folder)
        with self.saved_into(folder):
            return folder

    @contextmanager
    def saved_into(self, folder: Path) -> Iterator[Path]:
        """``save_pretrained`` with other files: a context for putting them beside the model's before all appear."""
        check_can_be_saved(self.language_model, folder)
        for matrix in [] if self._engine is None else self._engine.matrices.values():
            matrix.check()
        with file_errors(folder, OutputError), folder_written_whole(folder) as scratch:
            save_language_model(self.language_model, scratch, self.config.layers)
            if self._moments is not None:
                (scratch / STATISTICS_FILE).parent.mkdir()
                self._moments.save(scratch / STATISTICS_FILE)
            plain = json.dumps({**self.to_dict(), **self._record(scratch)}, indent=2, ensure_ascii=False)
            (scratch / EDITS_FILE).write_text(f"{plain}\n", encoding="utf-8")
            yield scratch

    def to_dict(self) -> dict[str, Any]:
        """Model, method, hyper-parameters, statistics and every edit as plain data."""
        return {
            "model": self.language_model.name,
            "method": self.recipe.name,
            "preset": self.preset.name,
            "config": self.config.model_dump(mode="json"),
            "contexts": None if self._engine is None else list(self._engine.contexts),
            "statistics": None if self._moments is None else self._moments.to_dict(),
            "edits": [result.to_dict() for result in self.results],
        }

    def _record(self, folder: Path) -> dict[str, Any]:
        """What a saved folder tells beside ``to_dict``, so that it can be used as a model again."""
        anatomy, saved = self.language_model.anatomy, self._saved
        tails = tuple(
            f"{anatomy.projection_path(layer).removeprefix(anatomy.layers_path)}.weight" for layer in self.config.layers
        )
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
        self.recipe.check(self.config, batch_size)
        chosen = [planned.fact for planned in self.plan(facts)]
        if sharing := sharing_a_key((result.fact for result in self.results), chosen, self.config):
            logger.warning(
                "%d of %d facts share their subject with another fact (%s): written apart, each weakens those before "
                "it. shared_subjects=together seeks one value for all of them.",
                len(sharing),
                len(chosen),
                sharing[0].subject,
            )
        if typed := [fact for fact in chosen if typed_specials(self.tokenizer, fact.text)]:
            logger.warning(
                "special tokens are typed in %d of %d prompts (%s): each is taken as a chat template's text and "
                "written as it stands. Without them, form=chat or both puts a prompt into the template.",
                len(typed),
                len(chosen),
                typed[0].text,
            )
        held = [result.fact for result in self.results]
        if named := sharing_an_id(held, chosen, self.config):
            logger.warning(
                "%d of %d facts have an id that another fact of the model has (%s): by that id, forget and replace ask "
                "which one is meant.",
                len(named),
                len(chosen),
                named[0],
            )
        return chosen

    def _write(self, facts: Sequence[Fact], batch_size: int) -> Iterator[WrittenBatch]:
        ahead = batch_size * self.config.value_look_ahead
        for at in range(0, len(facts), ahead):
            yield from self.engine.write(facts[at : at + ahead], batch_size=batch_size)

    def _new_engine(self, contexts: tuple[str, ...]) -> Engine:
        model, known = self.language_model, self._known_values
        return Engine(model, self.recipe, self.config, self.statistics, contexts, known, self.progress)

    def _plan_one(self, fact: Fact) -> PlannedEdit:
        prompt = Prompt.fill("{}", fact.prompt, fact.subject)
        lookup = find_lookup_token(self.tokenizer, prompt, self.config.lookup)
        target = encode_target(self.tokenizer, fact.text, fact.target_new, fact.joint)
        contexts = None if self._engine is None else self._engine.contexts
        check_readable(self.language_model, fact, self.config, contexts)
        tokens = tokenize(self.tokenizer, prompt.text)
        return PlannedEdit(fact, self._texts(tokens), lookup, self._texts(target))

    def _texts(self, ids: Sequence[int]) -> tuple[str, ...]:
        return tuple(str(self.tokenizer.decode([token])) for token in ids)

    def _widths(self) -> dict[int, int]:
        """``d_in`` of every edited layer."""
        anatomy = self.language_model.anatomy
        return {layer: projection_shape(anatomy.projection(layer))[1] for layer in self.config.layers}

    def _check_layers(self) -> None:
        for layer in self.config.layers:
            self.language_model.anatomy.projection(layer)
        if self.config.form == "chat" and not has_chat(self.tokenizer):
            raise ConfigError("the model has no chat template.", hint="Leave out form=chat, or use its chat version.")
        loss_layer, n_layers = self.config.value_loss_layer, self.language_model.anatomy.n_layers
        if loss_layer is not None and not 0 <= loss_layer < n_layers:
            raise ConfigError(
                f"value_loss_layer is {loss_layer}: the model has layers 0 to {n_layers - 1}.",
                hint="Leave it out to use the last layer.",
            )

    def _check_moments(self, moments: Moments) -> None:
        moments.require(self._widths())
        told = moments.origin
        weights = None if BEFORE_EDITS in told else told.get("weights")  # that is said where the edits are told of
        if weights and weights != self.language_model.fingerprint(moments.layers[-1]):
            logger.warning("the statistics were collected on other weights (%s).", told.get("model"))


def _as_moments(statistics: Moments | str | Path | None) -> Moments | None:
    if isinstance(statistics, str | Path):
        return Moments.load(statistics)
    if statistics is not None and not isinstance(statistics, Moments):
        raise StatisticsError(
            f"statistics is of the type {type(statistics).__name__}.",
            hint="Give Moments, or the file that `betaedit statistics --save` wrote.",
        )
    return statistics


def _as_config(config: EditConfig | None) -> EditConfig | None:
    if config is not None and not isinstance(config, EditConfig):
        raise ConfigError(
            f"config is of the type {type(config).__name__}.",
            hint="Give an EditConfig; single settings go beside it by name, as in "
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
                f"{fact!r} is no fact.",
                hint='Write Fact("The mother tongue of {} is", "Danielle Darrieux", "English").',
            )
        if fact.id is not None and fact.id in seen:
            raise FactError(f"two facts share the id {fact.id!r}.", hint="Give every fact its own id.", field="id")
        if fact.id is not None:
            seen.add(fact.id)
    return chosen
