"""Training of hypernetworks on tiny models."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from betaedit import Editor, Fact
from betaedit.editors.hypernet import passes
from betaedit.editors.hypernet.config import TrainingConfig
from betaedit.editors.hypernet.examples import encode_examples, shuffled
from betaedit.editors.hypernet.methods import Hypernet
from betaedit.editors.hypernet.passes import EditedLayers, Texts, read_tokens
from betaedit.editors.hypernet.trained import TrainedEditor
from betaedit.editors.hypernet.training import CHECKPOINT, Training, Validation
from betaedit.editors.methods import METHODS
from betaedit.errors import ConfigError, FactError
from betaedit.evaluation.scoring import Continuation
from betaedit.facts.fact import EvaluationCase, Probe
from betaedit.models import LanguageModel
from support.families import HIDDEN, language_model
from support.methods import untrained_editor

CASES = [
    EvaluationCase(
        Fact("{} is in", f"Town {n}", ["Rome", "Oslo", "Lima"][n % 3], id=f"town-{n}"),
        paraphrases=(f"Where is Town {n}? In",),
        neighbors=(Probe(f"River {n} flows to", "the sea"),),
    )
    for n in range(10)
]
SETTINGS = {"layers": (2, 3), "rank": 4, "batch": 2, "steps": 4, "validate_every": 2, "validation_facts": 2}


def training(
    method: str,
    folder: Path,
    *,
    model: LanguageModel | None = None,
    cases: Sequence[EvaluationCase] = CASES,
    **changes: object,
) -> Training:
    """One of a tiny model."""
    row = METHODS[method]
    assert isinstance(row, Hypernet)
    own = {"sequence": 2} if method == "rledit" else {}
    config = row.configure_training({**SETTINGS, **own, **changes})
    assert isinstance(config, TrainingConfig)
    model = model or language_model("llama")
    return Training(method, row.rule, model, encode_examples(model, cases), config, folder)


class KilledError(Exception):
    """The process ends here."""


def kill(_: Validation) -> None:
    """What a kill right after a checkpoint leaves is what stands on disk."""
    raise KilledError


@pytest.mark.parametrize("method", ["mend", "malmen", "rledit"])
class TestEveryTraining:
    """All three methods."""

    def test_an_interrupted_training_goes_on_to_the_same_weights_bit_for_bit(self, method: str, tmp_path: Path) -> None:
        whole, parts = tmp_path / "whole", tmp_path / "parts"
        expected = training(method, whole)
        expected.run()
        with pytest.raises(KilledError):
            training(method, parts).run(kill)
        again = training(method, parts)
        assert again.step == SETTINGS["validate_every"]
        again.run()
        state = again.network.state_dict()
        assert all(torch.equal(value, state[name]) for name, value in expected.network.state_dict().items())
        assert [replace(each, seconds=0) for each in again.history] == [
            replace(each, seconds=0) for each in expected.history
        ]

    def test_the_model_is_as_it_was_and_the_network_has_learned(self, method: str, tmp_path: Path) -> None:
        model = language_model("llama")
        before = model.fingerprint()
        made = training(method, tmp_path, model=model)
        first = {name: value.clone() for name, value in made.network.named_parameters()}
        made.run()
        assert model.fingerprint() == before
        unused = {"log_ridges"} if method == "mend" else set()
        assert {n for n, value in made.network.named_parameters() if torch.equal(value, first[n])} <= unused

    def test_the_trained_editor_edits(self, method: str, tmp_path: Path) -> None:
        model = language_model("llama")
        training(method, tmp_path, model=model).run()
        editor = Editor(model, method=method, config=METHODS[method].configure({"editor": str(tmp_path)}))
        (result,) = editor.edit(CASES[0].fact)
        assert all(norm > 0 for norm in result.figures["update_norms"].values())


def test_training_lowers_the_loss_on_the_facts_it_sees(tmp_path: Path) -> None:
    made = training("mend", tmp_path, steps=30, validate_every=10, learning_rate=1e-3, edit_weight=1.0)
    made.run()
    losses = [each.train_loss for each in made.history]
    assert losses[-1] is not None
    assert losses[0] is not None
    assert losses[-1] < losses[0]


def test_it_ends_early_when_validation_no_longer_improves_and_keeps_the_best(tmp_path: Path) -> None:
    made = training("mend", tmp_path, steps=200, validate_every=1, patience=2, edit_rate_learning_rate=1.0)
    made.run()
    assert made.step < 200
    assert made.best is not None
    assert TrainedEditor.load(tmp_path, "mend").origin["validations"][-1]["step"] == made.best.step


@pytest.mark.parametrize("average", [0.0, 0.15])
def test_the_editor_is_the_running_mean_of_the_weights_with_the_newest_statistics(
    average: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = training("mend", tmp_path, average=average, steps=3, validate_every=3)
    weights = []
    take = made._optimize

    def taken() -> float:
        loss = take()
        weights.append({name: value.detach().clone() for name, value in made.network.named_parameters()})
        return loss

    monkeypatch.setattr(made, "_optimize", taken)
    network = made.run().network
    second, third = min(average, 2 / 11), min(average, 3 / 12)
    for name, value in network.named_parameters():
        mean = second * weights[0][name] + (1 - second) * weights[1][name]
        assert torch.allclose(value, third * mean + (1 - third) * weights[2][name], atol=1e-7)
    newest = dict(made.network.named_buffers())
    assert all(torch.equal(value, newest[name]) for name, value in network.named_buffers())


def test_another_training_in_the_folder_is_refused(tmp_path: Path) -> None:
    training("mend", tmp_path).run()
    with pytest.raises(ConfigError, match="another setting rank"):
        training("mend", tmp_path, rank=5)
    with pytest.raises(ConfigError, match="another file of records"):
        training("mend", tmp_path, cases=CASES[::-1])
    with pytest.raises(ConfigError, match="another model"):
        training("mend", tmp_path, model=language_model("llama", seed=1))
    assert training("mend", tmp_path, steps=6).step == 4


def test_a_damaged_checkpoint_is_refused(tmp_path: Path) -> None:
    (tmp_path / CHECKPOINT).write_bytes(b"no checkpoint")
    with pytest.raises(ConfigError, match="cannot be read"):
        training("mend", tmp_path)


def test_records_without_a_rephrase_or_an_unrelated_prompt_are_refused_with_what_is_missing() -> None:
    lacking = [CASES[0], replace(CASES[1], paraphrases=()), replace(CASES[2], neighbors=(Probe("River flows to"),))]
    row = METHODS["mend"]
    assert isinstance(row, Hypernet)
    with pytest.raises(FactError) as error:
        row.check_training(lacking)
    assert "1 of 3 records lack a rephrase of their prompt (paraphrases), the first of them town-1" in str(error.value)
    assert "1 of 3 records lack an unrelated prompt with its answer (neighbors)" in str(error.value)


def test_too_few_records_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="3 records are too few"):
        training("mend", tmp_path, cases=CASES[:3])


def test_edits_in_a_row_are_for_methods_that_write_facts_together(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="each fact by itself"):
        training("mend", tmp_path, sequence=2)


def test_every_round_has_all_examples_in_an_order_of_its_own() -> None:
    first, second = shuffled(50, 0, seed=1), shuffled(50, 1, seed=1)
    assert sorted(first) == sorted(second) == list(range(50))
    assert first != second
    assert first == shuffled(50, 0, seed=1)


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2", "opt", "gpt-neox"])
def test_captured_inputs_and_gradients_make_the_gradient_of_the_weight(family: str) -> None:
    model = language_model(family)
    texts = Texts.of(
        model, Continuation.encode(model, [("Ana is in", "Rome"), ("Bob was born in the town of", "Oslo")])
    )
    found, loss = EditedLayers(model, (2, 3)).gradients(texts, {})
    projections = [model.anatomy.projection(layer) for layer in (2, 3)]
    weights = [projection.get_parameter("weight").requires_grad_() for projection in projections]
    output = model.model(input_ids=texts.prompts.input_ids, attention_mask=texts.prompts.attention_mask)
    losses = texts.losses(output.logits[texts.row, texts.place].log_softmax(dim=-1))
    assert loss == pytest.approx(losses.mean().item(), abs=1e-5)
    for each, slope in zip(found.values(), torch.autograd.grad(losses.sum(), weights), strict=True):
        gradient = torch.einsum("nto,nti->oi", each.v, each.u)
        expected = slope if slope.shape[0] == HIDDEN else slope.T
        assert torch.allclose(gradient, expected, atol=1e-5)
        assert not each.v[~each.real].any()


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2", "opt", "gpt-neox"])
def test_texts_that_come_again_are_read_as_they_are_alone_and_to_the_same_bits_in_any_order(
    family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(passes, "_WINDOW", 4)
    monkeypatch.setattr(passes, "_TOGETHER", 2)
    model = language_model(family)
    asked = Continuation.encode(model, [(f"Ana {'of Rome ' * n}is in", "Oslo") for n in (3, 0, 5, 1, 4, 2)])
    rows = [read_tokens(one) for one in asked]
    forth, back = EditedLayers(model, (2, 3), again=rows), EditedLayers(model, (2, 3), again=rows)
    backwards = {one: back.log_probabilities(Texts.of(model, [one]), {}, {}) for one in reversed(asked)}
    for one in asked:
        texts = Texts.of(model, [one])
        found = forth.log_probabilities(texts, {}, {})
        assert torch.equal(found, backwards[one])
        assert torch.allclose(found, EditedLayers(model, (2, 3)).log_probabilities(texts, {}, {}), atol=1e-5)


def test_the_loss_weighs_edits_before_by_the_discount_and_divergence_by_its_own_weight(tmp_path: Path) -> None:
    model = language_model("llama")
    made = training("rledit", tmp_path, model=model, discount=0.5, norm_weight=0.0, edit_weight=2.0)
    groups = [made._group(0), made._group(1)]
    gradients, _ = made._layers.gradients(groups[1].edits, {})
    changes = made._changes(made.network, gradients, groups[1])
    expected = 0.0
    for group, weight in ((groups[1], 1.0), (groups[0], 0.5)):
        for one, other in zip(group.rephrased, group.unrelated, strict=True):
            edit, unrelated = Texts.of(model, [one]), Texts.of(model, [other])
            was = made._layers.log_probabilities(unrelated, {}, {})
            loss = edit.losses(made._layers.log_probabilities(edit, {}, changes))
            moved = unrelated.divergences(was, made._layers.log_probabilities(unrelated, {}, changes))
            expected += weight * (2.0 * loss + made.config.unrelated_weight * moved).item() / len(group.rephrased)
    assert made._loss([groups[1], groups[0]], {}, changes).item() == pytest.approx(expected, rel=1e-4)


def test_an_editor_without_training_is_refused_with_the_command_that_trains_it() -> None:
    with pytest.raises(ConfigError, match=r"betaedit train-editor --method mend --model smollm2 --from .* --out"):
        Editor(language_model("llama"), method="mend")


def test_an_editor_of_another_method_or_model_is_refused(tmp_path: Path) -> None:
    config = METHODS["malmen"].configure({"editor": untrained_editor("mend")})
    with pytest.raises(ConfigError, match="trained for mend, not for malmen"):
        Editor(language_model("llama"), method="malmen", config=config)
    config = METHODS["mend"].configure({"editor": untrained_editor("mend")})
    with pytest.raises(ConfigError, match="other sizes"):
        Editor(language_model("llama", intermediate_size=40), method="mend", config=config)
    with pytest.raises(ConfigError, match="no trained editor can be read"):
        Editor(language_model("llama"), method="mend", config=METHODS["mend"].configure({"editor": str(tmp_path)}))
