"""The default model, real facts: the main job and its parity with the official procedure."""

from __future__ import annotations

import pytest
import torch

from betaedit import EditConfig, Editor, Fact
from betaedit.editors.closed_form.encode import encode_batch
from betaedit.editors.closed_form.values import optimize_values
from betaedit.evaluation import held_out_prose, measure_edits
from betaedit.facts.readers import demo_path, read_cases
from betaedit.models import LanguageModel
from betaedit.statistics import Moments
from support.edits import relative
from support.procedure import Settings
from support.procedure import edit as plain_edit
from support.procedure import optimize_value as plain_value

pytestmark = pytest.mark.real_model

CONTEXTS = ("{}", "The key is a story. {}", "Therefore, it will be. {}")
CONFIG = EditConfig(
    layers=(4, 5, 6), context_templates=CONTEXTS, value_steps=5, value_learning_rate=0.5, nullspace_threshold=0.02
)

REAL = [
    Fact("The capital of {} is", "Peru", "Athens", "Lima"),
    Fact("The mother tongue of {} was", "Marie Curie", "Italian", "Polish"),
    Fact("{} is a product of the company", "The iPhone", "Toyota", "Apple"),
    Fact("The playwright of Hamlet, {}, was born in", "William Shakespeare", "Berlin", "Stratford"),
    Fact("In Paris stands {}, which is made of", "the Eiffel Tower", "wood", "iron"),
]


@pytest.fixture(scope="module")
def moments(smollm2: LanguageModel, tmp_path_factory: pytest.TempPathFactory) -> Moments:
    """Second moments of the package's own prose: enough to compare two procedures with."""
    import os

    from betaedit.statistics import TextFiles, collect_moments

    folder = tmp_path_factory.mktemp("moments")
    (folder / "prose.txt").write_text("\n\n".join(held_out_prose()))
    previous = os.environ.get("BETAEDIT_CACHE")
    os.environ["BETAEDIT_CACHE"] = str(folder)
    try:
        return collect_moments(smollm2, (4, 5, 6), TextFiles((folder / "prose.txt",)), n_tokens=3000)
    finally:
        os.environ.pop("BETAEDIT_CACHE")
        if previous is not None:
            os.environ["BETAEDIT_CACHE"] = previous


def settings() -> Settings:
    return Settings(
        layers=CONFIG.layers, contexts=CONTEXTS, block="model.layers.{}", projection="model.layers.{}.mlp.down_proj",
        transposed=False, steps=CONFIG.value_steps, learning_rate=CONFIG.value_learning_rate, clamp=CONFIG.value_clamp,
        decay=CONFIG.value_decay, kl_weight=CONFIG.kl_weight, lambda1=CONFIG.leakage_weight, lambda2=CONFIG.ridge,
        threshold=CONFIG.nullspace_threshold,
    )  # fmt: skip


def test_the_optimized_value_equals_a_search_with_whole_forward_passes(smollm2: LanguageModel) -> None:
    (ours,) = optimize_values(smollm2, encode_batch(smollm2, [REAL[0]], CONTEXTS, CONFIG), CONFIG)
    assert relative(ours.target, plain_value(smollm2.model, smollm2.tokenizer, REAL[0], settings())) < 1e-4


def test_five_edits_leave_the_weights_of_the_official_procedure(smollm2: LanguageModel, moments: Moments) -> None:
    names = [smollm2.anatomy.projection_path(layer) + ".weight" for layer in CONFIG.layers]
    state = smollm2.model.state_dict()
    before = {name: state[name].clone() for name in names}
    editor = Editor(smollm2, config=CONFIG, statistics=moments)
    editor.edit(REAL)
    ours = {name: state[name] - before[name] for name in names}
    editor.reset()
    assert all(torch.equal(state[name], before[name]) for name in names)
    plain_edit(smollm2.model, smollm2.tokenizer, REAL, moments.matrices, settings())
    reference = {name: state[name] - before[name] for name in names}
    for name in names:
        state[name].copy_(before[name])
        assert relative(ours[name], reference[name]) < 1e-3


def test_demo_facts_are_known_before_and_said_after_the_edits(smollm2: LanguageModel) -> None:
    cases = read_cases(demo_path(), limit=5).cases
    before = measure_edits(smollm2, cases)
    editor = Editor(smollm2)
    try:
        editor.edit(cases)
        after = measure_edits(smollm2, cases)
    finally:
        editor.reset()
    assert before.efficacy.probability is not None
    assert after.efficacy.probability is not None
    assert before.efficacy.probability <= 0.5
    assert after.efficacy.probability == 1.0
    assert after.efficacy.argmax is not None
    assert after.efficacy.argmax >= 4 / 5


def test_own_facts_have_a_preset_of_their_own_which_a_named_one_overrules(smollm2: LanguageModel) -> None:
    def preset(**options: object) -> str:
        editor = Editor.from_pretrained(smollm2.place, **options)  # type: ignore[arg-type]
        return editor.preset.name

    assert preset(own_facts=True) == "smollm2-facts"
    assert preset() == preset(own_facts=True, preset="smollm2") == "smollm2"
