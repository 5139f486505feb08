"""Statistics, contexts and shared values of a model, made on first use."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import TYPE_CHECKING

from betaedit.editors.contexts import context_templates
from betaedit.editors.saved import BEFORE_EDITS, SavedModel
from betaedit.editors.shared_config import ContextConfig, StatisticsConfig
from betaedit.errors import StatisticsError
from betaedit.models.anatomy import projection_shape
from betaedit.models.load import LanguageModel
from betaedit.progress import Progress, SilentProgress
from betaedit.statistics.collect import collect_moments
from betaedit.statistics.corpus import corpus_from
from betaedit.statistics.moments import Moments

if TYPE_CHECKING:
    from betaedit.editors.closed_form.value_cache import ValueCache

logger = logging.getLogger(__name__)

_TOKENS_PER_DIMENSION = 10


class Resources:
    """Statistics, contexts and shared values of one unedited model.

    Args:
        model: The model, before the first edit.
        saved: Its record, if it was saved with edits.
        moments: Given statistics; otherwise read or collected.
        value_cache: Values that several editors of this model share.
        progress: Shows the progress of long work.

    ``moments`` is ``None`` until statistics are given or needed.
    """

    def __init__(
        self,
        model: LanguageModel,
        *,
        saved: SavedModel | None = None,
        moments: Moments | None = None,
        value_cache: ValueCache | None = None,
        progress: Progress | None = None,
    ) -> None:
        self.model, self.saved, self.moments, self.value_cache = model, saved, moments, value_cache
        self.progress: Progress = progress or SilentProgress()

    def check(self, config: StatisticsConfig) -> None:
        """Refuse given statistics that do not fit; warn if they are of other weights.

        Raises:
            StatisticsError: They lack a layer or have another width.
        """
        if self.moments is not None:
            self._check(self.moments, config)

    def statistics(self, config: StatisticsConfig) -> Moments:
        """``C0`` of the layers of ``config``: as given, as saved beside the model, or collected.

        Raises:
            StatisticsError: The file beside the model is not the one that was saved.
        """
        if self.moments is None:
            self.moments = self._saved_statistics(config)
        if self.moments is None:
            self.moments = collect_moments(
                self.model,
                config.layers,
                corpus_from(config.statistics_corpus, seed=config.seed),
                n_tokens=config.statistics_tokens or _TOKENS_PER_DIMENSION * max(self._widths(config).values()),
                skip_first_token=config.statistics_skip_first_token,
                progress=self.progress,
            )
        return self.moments

    def contexts(self, config: ContextConfig) -> tuple[str, ...]:
        """Context templates, the bare one first: as saved beside the model, or sampled."""
        kept = None if self.saved is None else self.saved.contexts(config)
        return kept or context_templates(self.model, config)

    def warn_of_earlier_edits(self, config: StatisticsConfig) -> None:
        """Warn about editing a model that already holds edits."""
        if self.saved is None or not (count := len(self.saved.edits)):
            return
        are_kept = BEFORE_EDITS in self.statistics(config).origin
        logger.warning(
            "%s already holds %d edit%s, which new edits do not protect (edits in a workspace, `betaedit init`, are "
            "protected). The statistics are those of %s.",
            self.saved.folder,
            count,
            "" if count == 1 else "s",
            "the model without them, which differ slightly from those of the edited model"
            if are_kept
            else "the model with them",
        )

    def _saved_statistics(self, config: StatisticsConfig) -> Moments | None:
        """The statistics saved with a model that holds edits, taken from the unedited one; ``None`` if none fit."""
        file = None if self.saved is None else self.saved.statistics(config)
        if self.saved is None or file is None:
            return None
        moments = Moments.load(file)
        if moments.fingerprint != self.saved.record["statistics"]["fingerprint"]:
            raise StatisticsError(f"{file} has changed since it was saved.", hint="Save or export the model again.")
        moments = replace(moments, origin={**moments.origin, BEFORE_EDITS: str(len(self.saved.edits))})
        self._check(moments, config)
        return moments

    def _check(self, moments: Moments, config: StatisticsConfig) -> None:
        moments.require(self._widths(config))
        origin = moments.origin
        weights = None if BEFORE_EDITS in origin else origin.get("weights")
        if weights and weights != self.model.fingerprint(moments.layers[-1]):
            logger.warning("the statistics were collected on other weights (%s).", origin.get("model"))

    def _widths(self, config: StatisticsConfig) -> dict[int, int]:
        """``d_in`` of every layer."""
        anatomy = self.model.anatomy
        return {layer: projection_shape(anatomy.projection(layer))[1] for layer in config.layers}
