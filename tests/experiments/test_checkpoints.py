"""What a checkpoint compares with the unedited model."""

from __future__ import annotations

import pytest
import torch

from betaedit.experiments.evaluate import Evaluator, layer_states
from betaedit.experiments.figures import Measures
from betaedit.facts import EvaluationCase, Fact, Probe
from support.edits import FACTS, editor_for
from support.families import language_model

MEASURES = Measures(held_out=("A held-out text of some length.",))
CASES = [EvaluationCase(fact, (), (Probe("Zoe was born in", "Oslo"),)) for fact in FACTS]


@pytest.fixture
def edited():
    editor = editor_for(language_model("llama"))
    evaluator = Evaluator(editor, CASES, MEASURES)
    first, before = evaluator.checkpoint(0, [], 0.0)
    editor.edit(FACTS)
    return editor, evaluator, first, before


def test_measuring_leaves_the_edits_in_the_model(edited) -> None:
    editor, evaluator, _, before = edited
    changes = {layer: matrix.change() for layer, matrix in editor.engine.matrices.items()}
    evaluator.checkpoint(5, before, 0.0)
    assert all(torch.equal(changes[layer], matrix.change()) for layer, matrix in editor.engine.matrices.items())


def test_the_worst_prompts_are_those_whose_margin_fell_most(edited) -> None:
    _, evaluator, _, before = edited
    checkpoint, now = evaluator.checkpoint(5, before, 0.0)
    old = {(o.record, o.prompt): o.other_nll - o.wanted_nll for o in before}
    falls = sorted(
        (new - old[o.record, o.prompt], o.prompt) for o in now if (new := o.other_nll - o.wanted_nll) is not None
    )
    worst = [w.prompt for w in checkpoint.worst]
    assert worst == [prompt for fall, prompt in falls if fall < 0][: len(worst)]
    assert all(w.margin_after < w.margin_before for w in checkpoint.worst)


def test_hidden_states_are_the_output_of_the_last_edited_layer_at_the_lookup_token(edited) -> None:
    editor, evaluator, _, before = edited
    view = evaluator.checkpoint(5, before, 0.0)[0].hidden
    assert view.layer == 2
    assert {name: len(points) for name, points in view.after.items()} == {"edited facts": 5, "neighbors": 5}
    model = editor.language_model

    def plain(fact: Fact) -> torch.Tensor:
        start = fact.prompt.index("{}") + len(fact.subject)
        encoded = model.tokenizer(fact.text, return_offsets_mapping=True, return_tensors="pt")
        offsets = encoded.pop("offset_mapping")[0].tolist()
        lookup = max(i for i, (begin, end) in enumerate(offsets) if begin < start and end > begin)
        with torch.no_grad():
            return model.model(**encoded, output_hidden_states=True).hidden_states[3][0, lookup]

    after = torch.stack([plain(fact) for fact in FACTS])
    points = torch.tensor(view.after["edited facts"])
    # A projection on orthonormal axes: distances between points are at most those between states.
    assert (torch.pdist(points) <= torch.pdist(after) + 1e-4).all()
    with editor.engine.unedited():
        original = torch.stack([plain(fact) for fact in FACTS])
    moved = (after - original).norm(dim=1)
    shown = (points - torch.tensor(view.before["edited facts"])).norm(dim=1)
    assert (shown <= moved + 1e-4).all()
    assert float(shown.max()) > 0


def test_layer_states_are_relative_to_the_original_matrix(edited) -> None:
    editor = edited[0]
    for layer, state in layer_states(editor, MEASURES.texts).items():
        matrix = editor.engine.matrices[layer]
        assert state.weight_change == pytest.approx(float(matrix.change().norm()))
        assert state.relative_weight_change == pytest.approx(float(matrix.change().norm() / matrix.original().norm()))


def test_the_unedited_context_gives_the_original_weights_and_takes_them_back(edited) -> None:
    editor = edited[0]
    engine = editor.engine
    change = engine.matrices[1].change()
    with engine.unedited():
        assert float(engine.matrices[1].change().abs().max()) == 0
    assert torch.equal(engine.matrices[1].change(), change)
