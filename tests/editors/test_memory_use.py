"""How many bytes answering and editing take beside the model, counted by hand for each kind of editor."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from betaedit.editors.method import memory_use
from betaedit.editors.retrieval.prompts import sentence
from betaedit.models.encoder import load_encoder
from support.edits import FACTS
from support.encoder import save_tiny_encoder
from support.families import HIDDEN, MLP, language_model
from support.methods import small_editor, untrained_editor

FLOAT = 4


def use_of(method: str, **settings: object):
    editor = small_editor(method, language_model("llama"), **settings)
    editor.edit(FACTS[:3])
    return memory_use(editor.editing), editor


def test_a_codebook_is_a_key_a_value_and_a_radius_per_entry() -> None:
    use, editor = use_of("grace")
    assert use.answering == {"codebook": len(editor.editing.codebook) * (MLP + HIDDEN + 1) * FLOAT}


def test_a_gated_memory_is_its_keys_and_residuals() -> None:
    use, editor = use_of("gated")
    memory = editor.editing.memory
    per_key = (MLP + 1) * FLOAT + 8  # a key, its threshold, and the number of its residual
    assert use.answering == {"gated memory": len(memory.keys) * per_key + 3 * HIDDEN * FLOAT}


def test_a_side_memory_is_a_whole_matrix_and_earlier_ones_are_kept_for_forgetting() -> None:
    use, _ = use_of("wise", shard_size=2, merge_every=2)
    # One merged from the first shard, one of the shard being filled. The second shard began with the first of them.
    assert use.answering == {"side memories": 2 * MLP * HIDDEN * FLOAT}
    assert use.editing == {"side memories of earlier shards": 0}
    use, _ = use_of("wise", shard_size=1, merge_every=2)
    # The second shard began with the memory of the first, which the merged one has replaced since.
    assert use.editing == {"side memories of earlier shards": MLP * HIDDEN * FLOAT}


def test_facts_kept_as_text_are_their_text_and_the_index() -> None:
    use, _ = use_of("scr")
    texts = [sentence(fact) for fact in FACTS[:3]]
    words = [set(re.findall(r"\w+", text.lower())) for text in texts]
    assert use.answering["facts"] == sum(len(text.encode()) for text in texts)
    # A place and a count of each word of each text, one length of each text, and every different word.
    numbers = 2 * sum(map(len, words)) + 3
    assert use.answering["words"] == numbers * 4 + sum(len(word.encode()) for word in set.union(*words))
    assert use.editing == {}


def test_a_dense_index_counts_the_encoder_that_every_query_needs(tmp_path: Path) -> None:
    encoder = load_encoder(str(save_tiny_encoder(tmp_path)))
    own = sum(weight.nbytes for weight in encoder.model.state_dict().values())
    for method in ("scr", "ike"):
        use, _ = use_of(method, retriever="dense", encoder=str(tmp_path))
        assert use.answering["encoder"] == encoder.nbytes == pytest.approx(own, rel=0.01)
        assert use.answering["vectors"] >= 3 * encoder.width * FLOAT
    assert use.answering["demonstrations"] > 0
    assert use.answering["vectors of demonstrations"] > 0


def test_an_editor_that_writes_under_a_memory_answers_with_the_memory_alone() -> None:
    both, _ = use_of("memit-h+scr")
    scr, _ = use_of("scr")
    memit, _ = use_of("memit-h")
    assert both.answering == scr.answering
    assert both.editing == memit.editing


def test_edits_in_the_weights_keep_the_original_and_the_change_for_editing() -> None:
    use, _ = use_of("ft")
    assert use.answering == {}
    assert use.editing == {"originals and changes of the edited matrices": 2 * MLP * HIDDEN * FLOAT}
    use, editor = use_of("betaedit")
    assert use.editing["originals and changes of the edited matrices"] == 2 * 2 * MLP * HIDDEN * FLOAT
    assert use.editing["solvers"] == sum(memory.nbytes for memory in editor.editing.engine.memories.values())


def test_a_hypernetwork_is_needed_for_editing_alone() -> None:
    use, editor = use_of("mend", editor=untrained_editor("mend"))
    network = editor.editing._trained.network
    assert use.answering == {}
    assert use.editing["hypernetwork"] == sum(each.nbytes for each in network.state_dict().values())


def test_an_adapter_is_merged_and_kept_for_further_training() -> None:
    pytest.importorskip("peft")
    use, editor = use_of("lora")
    assert use.answering == {}
    shapes = [matrix.shape for matrix in editor.editing.weights.values()]
    assert use.editing["adapter"] == editor.config.rank * sum(map(sum, shapes)) * FLOAT
