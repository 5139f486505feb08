"""Facts, settings and statistics with which tiny models are edited."""

from __future__ import annotations

import torch

from betaedit import Editor, Fact
from betaedit.editors import EditConfig
from betaedit.models import LanguageModel
from betaedit.statistics import Moments
from support.procedure import Settings

CONTEXTS = ("{}", "A long day. {}", "I know this. {}")
FACTS = [
    Fact("The mother tongue of {} is", "Danielle Darrieux", "English words", "French"),
    Fact("{} is in the city of", "The long bridge", "Rome", "Paris"),
    Fact("People know that {} was born in", "Ana", "Lima", "Oslo"),
    Fact("The mother tongue of {} is", "Another Name", "Dutch", "French"),
    Fact("In the end {} lives in", "Zoë", "a small town", "Cairo"),
]
NEAR = [
    Fact("We saw {}", "Ana Lima", "artist"),
    Fact("The mother tongue of {}", "Danielle Darrieux", "French"),
    Fact("{}", "The friend", "likes art"),
    Fact("Who is {}", "Zoë", "the"),
    Fact("People know {}", "Ana", "Lisbon and Paris"),
]
"""Facts whose prompts end with their subjects: a change there moves the probability of their first target token far."""
MANY = [Fact(f"{{}} is number {number}", "Bob", "Rome") for number in range(50)]
"""Facts whose updates together take more room than the matrices of a tiny model."""
SETTINGS = {
    "layers": (1, 2),
    "context_templates": CONTEXTS,
    "value_steps": 6,
    "value_learning_rate": 0.05,
    "leakage_weight": 3.0,
    "ridge": 0.05,
    "nullspace_threshold": 0.3,
    "refresh_every": 2,
}


def settings_of(model: LanguageModel, config: EditConfig) -> Settings:
    """The same settings for the plain procedure."""
    path = model.anatomy.projection_path(0).replace(
        f"{model.anatomy.layers_path}.0", f"{model.anatomy.layers_path}.{{}}"
    )
    return Settings(
        layers=config.layers,
        contexts=CONTEXTS,
        block=f"{model.anatomy.layers_path}.{{}}",
        projection=path,
        transposed=type(model.anatomy.projection(0)).__name__ == "Conv1D",
        steps=config.value_steps,
        learning_rate=config.value_learning_rate,
        clamp=config.value_clamp,
        decay=config.value_decay,
        kl_weight=config.kl_weight,
        lambda1=config.leakage_weight,
        lambda2=config.ridge,
        threshold=config.nullspace_threshold,
        at_last_token=config.lookup == "last",
    )


def moments_for(model: LanguageModel, layers: tuple[int, ...] = (1, 2)) -> Moments:
    """Second moments of random keys, some directions nearly unused."""
    generator = torch.Generator().manual_seed(1)
    matrices = {}
    for layer in layers:
        d_in = model.anatomy.projection(layer).weight.numel() // model.anatomy.hidden_size
        keys = torch.randn(d_in, 4 * d_in, generator=generator) * torch.linspace(0.1, 1.2, d_in)[:, None]
        matrices[layer] = keys @ keys.T / (4 * d_in)
    return Moments(matrices, 1000)


def editor_for(model: LanguageModel, method: str = "betaedit", **changes: object) -> Editor:
    """An editor with ``SETTINGS``, some of them changed."""
    config = EditConfig(**{**SETTINGS, **changes})  # type: ignore[arg-type]
    return Editor(model, method=method, config=config, statistics=moments_for(model, config.layers))


def weights(model: LanguageModel) -> dict[str, torch.Tensor]:
    """A copy of every weight."""
    return {name: weight.clone() for name, weight in model.model.state_dict().items()}


def unchanged(before: dict[str, torch.Tensor], after: dict[str, torch.Tensor]) -> bool:
    """Whether all weights are the same, bit for bit."""
    return all(torch.equal(before[name], weight) for name, weight in after.items())


def relative(ours: torch.Tensor, reference: torch.Tensor) -> float:
    """Distance in norms of the reference."""
    return float((ours - reference).norm() / reference.norm())
