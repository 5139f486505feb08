"""What a checkpoint compares with the unedited model."""

from __future__ import annotations

import pytest
import torch

from betaedit.experiments.costs import cost_figures
from betaedit.experiments.evaluate import Evaluator, layer_states
from betaedit.experiments.figures import Measures, extra_figures, free_answers, measure_model, neighbor_tokens
from betaedit.experiments.tables import figure_tables
from betaedit.facts import EvaluationCase, Fact, Probe, Question
from betaedit.progress import SilentProgress
from support.chain import chain_model
from support.edits import FACTS, editor_for
from support.families import language_model
from support.methods import small_editor

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
    changes = {layer: matrix.change() for layer, matrix in editor.editing.engine.matrices.items()}
    evaluator.checkpoint(5, before, 0.0)
    assert all(torch.equal(changes[layer], matrix.change()) for layer, matrix in editor.editing.engine.matrices.items())


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
    with editor.editing.engine.unedited():
        original = torch.stack([plain(fact) for fact in FACTS])
    moved = (after - original).norm(dim=1)
    shown = (points - torch.tensor(view.before["edited facts"])).norm(dim=1)
    assert (shown <= moved + 1e-4).all()
    assert float(shown.max()) > 0


def test_layer_states_are_relative_to_the_original_matrix(edited) -> None:
    editor = edited[0]
    for layer, state in layer_states(editor, MEASURES.texts).items():
        matrix = editor.editing.engine.matrices[layer]
        assert state.weight_change == pytest.approx(float(matrix.change().norm()))
        assert state.relative_weight_change == pytest.approx(float(matrix.change().norm() / matrix.original().norm()))


def test_the_unedited_context_gives_the_original_weights_and_takes_them_back(edited) -> None:
    editor = edited[0]
    engine = editor.editing.engine
    change = engine.matrices[1].change()
    with engine.unedited():
        assert float(engine.matrices[1].change().abs().max()) == 0
    assert torch.equal(engine.matrices[1].change(), change)


# Neighbors, and facts that a later one corrects


def test_neighbors_with_and_without_an_answer_are_compared_with_what_the_model_said_before() -> None:
    editor = editor_for(language_model("llama"))
    probes = (Probe("Zoe was born in", "Oslo"), Probe("Nobody knows this"), Probe("The mother tongue of Ana is"))
    cases = [EvaluationCase(fact, (), probes[:count]) for count, fact in enumerate(FACTS[:4])]
    evaluator = Evaluator(editor, cases, MEASURES)
    first, before = evaluator.checkpoint(0, [], 0.0)
    assert (first.neighbors_kept.mean, first.neighbors_kept.count) == (1.0, 3)
    known = {outcome.prompt: outcome for outcome in before if outcome.kind == "neighbor"}
    assert all(len(outcome.tokens) > 0 and outcome.kept for outcome in known.values())
    assert known["Nobody knows this"].wanted is known["Nobody knows this"].wanted_nll is None
    said = {prompt: editor.complete(prompt, n_tokens=8) for prompt in known}
    editor.edit(FACTS[:4])
    later, now = evaluator.checkpoint(4, before, 0.0)
    kept = {outcome.prompt: outcome.kept for outcome in now if outcome.kind == "neighbor"}
    assert kept == {prompt: editor.complete(prompt, n_tokens=8) == text for prompt, text in said.items()}
    shares = [[kept[probe.prompt] for probe in case.neighbors] for case in cases if case.neighbors]
    assert later.neighbors_kept.mean == pytest.approx(sum(sum(s) / len(s) for s in shares) / len(shares))
    assert later.specificity.argmax.count == 3


def test_without_what_the_model_said_before_nothing_is_said_of_neighbors_kept(edited) -> None:
    _, evaluator, _, before = edited
    older = [outcome.model_copy(update={"tokens": None, "kept": None}) for outcome in before]
    assert evaluator.checkpoint(5, older, 0.0)[0].neighbors_kept is None


def test_a_fact_that_a_later_one_corrects_leaves_the_means_once_that_is_written() -> None:
    editor = editor_for(language_model("llama"))
    facts = [*FACTS[:2], Fact(FACTS[0].prompt, FACTS[0].subject, "Dutch", "French")]
    cases = [EvaluationCase(fact, (f"So {fact.text}",), (Probe("Zoe was born in", "Oslo"),)) for fact in facts]
    evaluator = Evaluator(editor, cases, MEASURES)
    checkpoint, before = evaluator.checkpoint(0, [], 0.0)
    found = {0: (checkpoint, before), **{edits: evaluator.checkpoint(edits, before, 0.0) for edits in (2, 3)}}
    assert {edits: (c.corrected, c.efficacy.argmax.count, c.generality.argmax.count, c.specificity.argmax.count)
            for edits, (c, _) in found.items()} == {0: (0, 3, 3, 3), 2: (0, 2, 2, 2), 3: (1, 2, 2, 3)}  # fmt: skip
    marks = {outcome.record: outcome.corrected for outcome in found[3][1]}
    assert marks == {"1": True, "2": False, "3": False}
    assert len(found[3][1]) == len(before)


def test_free_answers_and_tokens_of_a_corrected_fact_are_left_out_but_what_should_stay_is_asked() -> None:
    fact, later = Fact("{} king", "the", "was old"), Fact("{} king", "the", "is gold")
    questions = (Question("a king", ("was",), "reasoning"), Question("a king", ("is",), "relation_specificity"))
    cases = [EvaluationCase(fact, ("a king",), (Probe("a king", "is"),), questions), EvaluationCase(later)]
    model, measures = chain_model(" king is gold river"), Measures(extras=("tokens", "questions"))
    before = free_answers(model, cases, measures, SilentProgress())
    found = extra_figures(model, cases, measures, SilentProgress(), before, [True, False])
    assert {name: (value.mean, value.count) for name, value in found.items()} == {
        "token accuracy, prompts": (1.0, 1), "token accuracy, neighbors": (1.0, 1), "reliability": (1.0, 1),
        "relation_specificity": (1.0, 1), "locality_gold": (1.0, 1), "locality_agree": (1.0, 1),
    }  # fmt: skip
    both = extra_figures(model, cases, measures, SilentProgress(), before)
    assert both["reliability"].mean == 0.5
    assert measure_model(model, cases, MEASURES, SilentProgress())["corrected"] == 1
    assert measure_model(model, cases, MEASURES, SilentProgress())["efficacy"]["argmax"]["mean"] == 1.0


# Token-level locality, and costs


def test_token_level_locality_compares_the_neighbors_tokens_with_those_before_the_edits() -> None:
    """Before, ``king is gold river`` was said word by word; now ``king is sea``, so ``river`` no longer follows."""
    before, now = chain_model(" king is gold river"), chain_model(" king is sea")
    cases = [
        EvaluationCase(Fact("{} king", "the", "is"), (), (Probe("a king", "is gold"), Probe("a", "king"))),
        EvaluationCase(Fact("{} king", "old", "is"), (), (Probe("the", "gold river"), Probe("unknown"))),
        EvaluationCase(Fact("{} king", "sad", "is")),
    ]
    measures = Measures(extras=("tokens",))
    chosen = neighbor_tokens(before, cases)
    assert [len(record) for record in chosen] == [2, 1, 0]
    found = extra_figures(now, cases, measures, SilentProgress(), tokens_before=chosen)
    # By the words said after (king, is), (a), (the, gold), before and now.
    after = neighbor_tokens(now, cases)
    shares = [
        [sum(a == b for a, b in zip(x, y, strict=True)) / len(x) for x, y in zip(old, new, strict=True)]
        for old, new in zip(chosen, after, strict=True)
    ]
    assert shares[0][0] == 0.5
    means = [sum(record) / len(record) for record in shares if record]
    assert (found["match ratio, neighbors"].mean, found["match ratio, neighbors"].count) == (sum(means) / 2, 2)
    exact = [sum(share == 1 for share in record) / len(record) for record in shares if record]
    assert found["exact match, neighbors"].mean == sum(exact) / 2
    same = extra_figures(before, cases, measures, SilentProgress(), tokens_before=chosen)
    assert same["match ratio, neighbors"].mean == same["exact match, neighbors"].mean == 1.0
    assert "match ratio, neighbors" not in extra_figures(now, cases, measures, SilentProgress())


def test_a_run_compares_tokens_with_the_unedited_model_and_times_both_in_turn() -> None:
    editor = small_editor("grace", language_model("llama", max_position_embeddings=256))
    cases = [EvaluationCase(fact, (), (Probe("Zoe was born in", "Oslo"),)) for fact in FACTS[:3]]
    evaluator = Evaluator(editor, cases, Measures(held_out=MEASURES.held_out, extras=("tokens", "latency")))
    first, before = evaluator.checkpoint(0, [], 0.0)
    assert "relative latency" not in first.measures
    assert first.measures["match ratio, neighbors"].mean == 1.0
    editor.edit(FACTS[:3])
    later, _ = evaluator.checkpoint(3, before, 0.0)
    found = later.measures
    assert found["exact match, neighbors"].mean == 1.0  # a codebook leaves unrelated prompts alone
    ratio = found["relative latency"]
    assert ratio.count == 10
    assert ratio.mean == pytest.approx(found["seconds per 50 tokens"] / found["seconds per 50 tokens, unedited"])
    own = sum(weight.nbytes for weight in editor.model.state_dict().values())
    assert found["memory to answer"] == found["memory to answer, codebook"] > 0
    assert found["relative memory"] == pytest.approx(1 + found["memory to answer"] / own, rel=1e-3)
    assert found["memory to edit"] == found["memory to edit, what the facts came to"]
    tables = figure_tables({"grace": [first, later]})
    assert [table.key for table in tables] == ["tokens", "costs"]  # every figure is known under its name
    assert {"relative latency", "relative memory", "memory to answer"} <= set(tables[1].names)


def test_retrieval_and_confirmation_are_parts_of_the_latency() -> None:
    editor = small_editor("scr", language_model("llama", max_position_embeddings=256), confirm="subject")
    editor.edit(FACTS[:2])
    cases = [EvaluationCase(fact) for fact in FACTS[:2]]
    found = cost_figures(editor, cases)
    parts = [found[f"seconds per 50 tokens, {part}"] for part in ("retrieval", "confirmation", "answer")]
    assert min(parts) > 0
    assert sum(parts) == pytest.approx(found["seconds per 50 tokens"])


def test_prompts_without_room_for_fifty_tokens_are_not_timed_and_the_run_goes_on(caplog) -> None:
    editor = small_editor("grace", language_model("llama"))  # 64 positions
    editor.edit(FACTS[:2])
    found = cost_figures(editor, [EvaluationCase(Fact("so " * 40 + "{} is in", "Ana", "Rome"))])
    assert "latency is not measured" in caplog.text
    assert "relative latency" not in found
    assert found["memory to answer"] > 0
