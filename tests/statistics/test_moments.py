from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from betaedit.errors import StatisticsError
from betaedit.statistics import Moments
from betaedit.statistics.origin import read_origin, same_statistics, statistics_label

ORIGIN = {"model": "tiny-llama", "weights": "sha256:00", "corpus": "the files a.txt, ü.txt", "skip_first_token": "True"}
Save = Callable[..., Path]


def moment(width: int = 6, seed: int = 0) -> Tensor:
    keys = torch.randn(40, width, generator=torch.Generator().manual_seed(seed))
    return keys.T @ keys / len(keys)


@pytest.fixture
def save(tmp_path: Path) -> Save:
    """Writes tensors as somebody else would."""

    def to_file(tensors: dict[str, Tensor], metadata: dict[str, str] | None = None) -> Path:
        path = tmp_path / "foreign.safetensors"
        save_file(tensors, path, metadata=metadata)
        return path

    return to_file


def refusal(path: Path) -> StatisticsError:
    with pytest.raises(StatisticsError) as caught:
        Moments.load(path)
    assert str(path) in str(caught.value)
    assert caught.value.hint
    return caught.value


# Round trip


def test_saved_moments_come_back_exactly(tmp_path: Path):
    kept = Moments({4: moment(seed=1), 11: moment(8, seed=2)}, 12345, ORIGIN)
    found = Moments.load(kept.save(tmp_path / "moments.safetensors"))
    assert found.layers == (4, 11)
    assert all(torch.equal(found.matrices[layer], kept.matrices[layer]) for layer in (4, 11))
    assert found.matrices[4].dtype == torch.float32
    assert found.n_tokens == 12345
    assert found.origin == ORIGIN


def test_saving_makes_the_folder_and_takes_text_for_a_path(tmp_path: Path):
    path = tmp_path / "new" / "folder" / "moments.safetensors"
    assert Moments({0: moment()}, 100).save(str(path)) == path
    assert Moments.load(str(path)).origin == {}


def test_saving_replaces_a_file_and_leaves_no_other(tmp_path: Path):
    path = tmp_path / "moments.safetensors"
    Moments({0: moment(seed=1)}, 100).save(path)
    Moments({0: moment(seed=2)}, 200).save(path)
    assert Moments.load(path).n_tokens == 200
    assert list(tmp_path.iterdir()) == [path]


def test_moments_that_lie_otherwise_in_memory_can_be_saved(tmp_path: Path):
    matrix = moment()
    found = Moments.load(Moments({0: matrix.T}, 100).save(tmp_path / "moments.safetensors"))
    assert torch.equal(found.matrices[0], matrix.T)


def test_the_file_can_be_read_without_this_package(tmp_path: Path):
    path = Moments({4: moment()}, 100, ORIGIN).save(tmp_path / "moments.safetensors")
    with safe_open(path, framework="pt") as file:
        assert list(file.keys()) == ["layer.4.second_moment"]
        assert torch.equal(file.get_tensor("layer.4.second_moment"), moment())
        assert file.metadata()["n_tokens"] == "100"
        assert file.metadata()["model"] == "tiny-llama"


def test_layers_are_sorted_whatever_the_order_they_came_in():
    assert Moments({9: moment(), 0: moment(), 10: moment()}, 1).layers == (0, 9, 10)


def test_a_report_has_layers_tokens_and_origin():
    moments = Moments({4: moment(), 2: moment()}, 100, ORIGIN)
    hashes = {"fingerprint": moments.fingerprint, "text_sha256": "not recorded"}
    assert moments.to_dict() == {"layers": [2, 4], "tokens": 100, **hashes, **ORIGIN}


# Files made by others


def test_a_foreign_file_with_the_right_names_is_taken(save: Save):
    found = Moments.load(save({"layer.3.second_moment": moment(), "layer.12.second_moment": moment(8)}))
    assert found.layers == (3, 12)
    assert torch.equal(found.matrices[3], moment())
    assert found.n_tokens == 0
    assert found.origin == {}


def test_what_a_foreign_file_says_of_itself_is_kept(save: Save):
    found = Moments.load(save({"layer.3.second_moment": moment()}, {"made_by": "somebody", "n_tokens": "77"}))
    assert found.n_tokens == 77
    assert found.origin == {"made_by": "somebody"}


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_other_number_types_become_float32(save: Save, dtype: torch.dtype):
    found = Moments.load(save({"layer.3.second_moment": moment().to(dtype)}))
    assert found.matrices[3].dtype == torch.float32
    assert torch.equal(found.matrices[3], moment().to(dtype).float())


def test_other_tensors_in_the_file_are_ignored(save: Save):
    others = {"layer.3.mean": torch.ones(6), "layer.x.second_moment": torch.ones(2), "second_moment": torch.ones(2)}
    assert Moments.load(save({"layer.3.second_moment": moment(), **others})).layers == (3,)


def test_rounding_errors_of_symmetry_are_forgiven(save: Save):
    matrix = moment()
    matrix[0, 1] += 1e-6
    assert Moments.load(save({"layer.3.second_moment": matrix})).layers == (3,)


def test_directions_that_never_occur_are_allowed(save: Save):
    matrix = moment()
    matrix[2] = matrix[:, 2] = 0
    assert Moments.load(save({"layer.3.second_moment": matrix})).layers == (3,)


# Refusals


def test_a_missing_file_is_refused(tmp_path: Path):
    refusal(tmp_path / "absent.safetensors")


def test_a_folder_is_refused(tmp_path: Path):
    refusal(tmp_path)


@pytest.mark.parametrize("length", [0, 4, 50, -20])
def test_a_truncated_file_is_refused(tmp_path: Path, length: int):
    path = Moments({0: moment()}, 100, ORIGIN).save(tmp_path / "moments.safetensors")
    path.write_bytes(path.read_bytes()[:length])
    refusal(path)


def test_a_file_of_another_kind_is_refused(tmp_path: Path):
    path = tmp_path / "moments.safetensors"
    path.write_text("not a safetensors file, but long enough to have a header in it")
    refusal(path)


def test_a_file_without_such_tensors_is_refused_with_the_name_they_must_have(save: Save):
    path = save({"model.layers.3.mlp.down_proj.weight": moment()})
    assert "layer.N.second_moment" in refusal(path).hint


@pytest.mark.parametrize("shape", [(6, 5), (6,), (2, 6, 6), (1, 36)])
def test_a_tensor_that_is_not_square_is_refused(save: Save, shape: tuple[int, ...]):
    assert "layer 3" in refusal(save({"layer.3.second_moment": torch.ones(shape)})).message


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("place", [(0, 1), (2, 2)])
def test_a_matrix_that_is_not_finite_is_refused(save: Save, value: float, place: tuple[int, int]):
    matrix = moment()
    matrix[place] = matrix[place[::-1]] = value
    assert "layer 3" in refusal(save({"layer.3.second_moment": matrix})).message


def test_a_matrix_that_is_not_symmetric_is_refused(save: Save):
    matrix = moment()
    matrix[0, 1] += 0.1
    assert "symmetric" in refusal(save({"layer.3.second_moment": matrix})).hint


def test_a_matrix_with_a_negative_diagonal_is_refused(save: Save):
    matrix = moment()
    matrix[4, 4] = -0.5
    assert "layer 3" in refusal(save({"layer.3.second_moment": matrix})).message


def test_one_bad_layer_among_good_ones_is_named(save: Save):
    refused = refusal(save({"layer.3.second_moment": moment(), "layer.4.second_moment": torch.ones(2, 3)}))
    assert "layer 4" in refused.message


def test_an_empty_matrix_is_refused(save: Save):
    refusal(save({"layer.3.second_moment": torch.ones(0, 0)}))


def test_a_token_count_that_is_no_number_is_refused(save: Save):
    refusal(save({"layer.3.second_moment": moment()}, {"n_tokens": "many"}))


# What an editor requires


def test_moments_that_fit_pass():
    Moments({2: moment(6), 3: moment(8)}, 8).require({2: 6, 3: 8})


def test_more_layers_than_required_pass():
    Moments({2: moment(6), 3: moment(8)}, 100).require({3: 8})


def test_a_missing_layer_is_named_with_those_present():
    with pytest.raises(StatisticsError, match=r"layers \[2, 3\], not layer 5") as caught:
        Moments({3: moment(), 2: moment()}, 100).require({2: 6, 5: 6})
    assert caught.value.hint


def test_another_width_is_named_with_the_models():
    with pytest.raises(StatisticsError, match="layer 2 are 6 wide, the model 8") as caught:
        Moments({2: moment(6)}, 100).require({2: 8})
    assert "another model" in caught.value.hint


def test_fewer_tokens_than_directions_are_refused_with_a_number_to_collect():
    with pytest.raises(StatisticsError, match="5 tokens cannot describe 6 directions") as caught:
        Moments({2: moment(6)}, 5).require({2: 6})
    assert "60" in caught.value.hint


def test_an_unknown_number_of_tokens_passes():
    Moments({2: moment(6)}, 0).require({2: 6})


# Which ones they are


def told(text: str | None = None, seed: int = 0, **origin: str) -> dict[str, object]:
    """What statistics of some text, or of a text that was not recorded, tell of themselves."""
    known = {} if text is None else {"text_sha256": text}
    return Moments({4: moment(seed=seed)}, 100, {**ORIGIN, **known, **origin}).to_dict()


def of_an_older_version(report: dict[str, object]) -> dict[str, object]:
    return {key: value for key, value in report.items() if key not in ("fingerprint", "text_sha256")}


def test_another_entry_or_layer_is_another_fingerprint(tmp_path: Path):
    moments = Moments({4: moment()}, 100)
    changed = moment()
    changed[0, 0] += 1e-3
    assert Moments.load(moments.save(tmp_path / "moments.safetensors")).fingerprint == moments.fingerprint
    assert len({moments.fingerprint, *(Moments(m, 100).fingerprint for m in ({4: changed}, {5: moment()}))}) == 3


@pytest.mark.parametrize(
    ("kept", "found", "same"),
    [
        (told("sha256:a"), told("sha256:a"), True),
        (told("sha256:a"), told("sha256:a", seed=1), True),  # rounding of the same text
        (told("sha256:a"), told("sha256:b", seed=1), False),
        (told("sha256:a"), told(), True),  # the same matrices, whose text an older version did not record
        (told("sha256:a"), told(seed=1), False),
        (told(), told(seed=1), False),
        (told(), told(model="/where/it/is/now"), True),
        (told("sha256:a"), told("sha256:a", seed=1, corpus="the file under another name"), True),
        (told("sha256:a"), told("sha256:a", seed=1, weights="sha256:01"), False),
        (of_an_older_version(told()), told("sha256:a"), True),
        (of_an_older_version(told()), told("sha256:a", skip_first_token="False"), False),
    ],
)
def test_statistics_are_the_same_by_their_matrices_or_the_text_on_the_same_weights(kept, found, same: bool):
    assert same_statistics(kept, found) == same
    assert same_statistics(found, kept) == same


def test_a_file_tells_its_text_and_matrices_without_being_read_whole(tmp_path: Path):
    moments = Moments({4: moment()}, 12_345, {**ORIGIN, "text_sha256": "sha256:" + "ab" * 32})
    label = statistics_label(read_origin(moments.save(tmp_path / "moments.safetensors")))
    assert label == statistics_label(moments.to_dict())
    assert label.startswith("12,345 tokens of the files a.txt, ü.txt; text abababababab, matrices ")
    assert moments.fingerprint.removeprefix("sha256:").startswith(label.rpartition(" ")[2])


@pytest.mark.parametrize("metadata", [None, {"n_tokens": "50", "corpus": "wikipedia"}, {"n_tokens": "many"}])
def test_a_file_of_somebody_else_says_that_its_text_is_not_recorded(save: Save, metadata):
    label = statistics_label(read_origin(save({"layer.1.second_moment": moment()}, metadata)))
    assert label.endswith("text not recorded, matrices not recorded")


def test_a_damaged_file_is_refused_when_asked_what_it_is(tmp_path: Path):
    (tmp_path / "broken.safetensors").write_bytes(b"no safetensors")
    with pytest.raises(StatisticsError, match="cannot be read"):
        read_origin(tmp_path / "broken.safetensors")
