from __future__ import annotations

import dataclasses
import json
import math
import random
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext

import pytest
import torch

from betaedit.errors import ConfigError
from betaedit.evaluation import UneditedStates, compare, drift, held_out_prose, leakage, leakage_on, perplexity
from betaedit.facts.readers import demo_path
from betaedit.models import LanguageModel
from support.tiny import FAMILIES, WORDS, RecordedProgress, count_calls, plain_logs, tiny_gpt2, tiny_llama

# Leakage


def random_layer(seed: int = 0, n_tokens: int = 50) -> tuple[torch.Tensor, torch.Tensor]:
    """A change ``(d_out, d_in)`` and keys ``(d_in, n_tokens)``."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(5, 8, generator=generator), torch.randn(8, n_tokens, generator=generator)


def test_leakage_is_the_root_mean_square_change_of_the_output_over_tokens():
    change, keys = random_layer()
    changes = [(change.double() @ key.double()).norm() ** 2 for key in keys.T]
    expected = math.sqrt(sum(changes) / len(changes))
    assert leakage(change, keys @ keys.T / keys.shape[1]) == pytest.approx(expected, rel=1e-6)


def test_leakage_times_the_root_of_the_number_of_tokens_is_what_the_papers_plot():
    change, keys = random_layer(1)
    moment = keys @ keys.T / keys.shape[1]
    assert leakage(change, moment) * math.sqrt(keys.shape[1]) == pytest.approx(float((change @ keys).norm()), rel=1e-5)


def test_no_change_leaks_nothing():
    _, keys = random_layer()
    assert leakage(torch.zeros(5, 8), keys @ keys.T) == 0


def test_a_change_in_directions_that_no_token_has_leaks_nothing():
    keys = torch.zeros(8, 10)
    keys[:4] = torch.randn(4, 10, generator=torch.Generator().manual_seed(0))
    change = torch.zeros(5, 8)
    change[:, 4:] = 3
    assert leakage(change, keys @ keys.T / 10) == 0


def test_twice_the_change_leaks_twice_as_much():
    change, keys = random_layer(2)
    moment = keys @ keys.T
    assert leakage(-2 * change, moment) == pytest.approx(2 * leakage(change, moment))


def test_rounding_errors_below_zero_are_no_leakage():
    change = torch.tensor([[1.0, 0.0]])
    assert leakage(change, torch.tensor([[-1e-12, 0.0], [0.0, 1.0]])) == 0


def test_low_precision_arguments_are_measured_in_float64():
    change, keys = random_layer(3)
    moment = keys @ keys.T / keys.shape[1]
    exact = leakage(change.bfloat16().double(), moment.double())
    assert leakage(change.bfloat16(), moment) == pytest.approx(exact, rel=1e-12)


@dataclasses.dataclass
class GivenMatrix:
    """A matrix that is given, and its change."""

    first: torch.Tensor
    difference: torch.Tensor

    def change(self) -> torch.Tensor:
        return self.difference

    def original(self) -> torch.Tensor:
        return self.first


def given_matrices(width: int, layers: Sequence[int] = (0, 2)) -> dict[int, GivenMatrix]:
    draw = torch.Generator().manual_seed(5)
    return {layer: GivenMatrix(*torch.randn(2, 7, width, generator=draw)) for layer in layers}


@torch.no_grad()
def plain_keys(model: LanguageModel, layer: int, given: Sequence[str]) -> torch.Tensor:
    """Keys ``(n, d_in)`` of every text's tokens but its first, one text a pass."""
    found: list[torch.Tensor] = []
    handle = model.anatomy.projection(layer).register_forward_pre_hook(
        lambda _, args: found.append(args[0].reshape(-1, args[0].shape[-1])[1:].double())
    )
    for text in given:
        model.model(input_ids=torch.tensor([model.tokenizer(text)["input_ids"][:512]]))
    handle.remove()
    return torch.cat(found)


@pytest.mark.parametrize("lengths", [(30, 2, 11, 7), (5,), (600, 3, 3)])
@pytest.mark.parametrize("family", FAMILIES)
def test_leakage_on_texts_is_that_of_the_second_moments_of_their_keys(family: str, lengths: tuple[int, ...]):
    model, given = FAMILIES[family](), texts(*lengths)
    given = [text for text in given if len(model.tokenizer(text)["input_ids"]) <= model.max_length]
    width = plain_keys(model, 0, given).shape[1]
    matrices = given_matrices(width)
    found = leakage_on(model, given, matrices, nullcontext)
    for layer, matrix in matrices.items():
        keys = plain_keys(model, layer, given)
        moment = keys.T @ keys / len(keys)
        assert found[layer].change == pytest.approx(leakage(matrix.difference, moment), rel=1e-4)
        expected = leakage(matrix.difference, moment) / leakage(matrix.first, moment)
        assert found[layer].relative == pytest.approx(expected, rel=1e-4)


def test_leakage_is_measured_with_the_keys_of_the_unedited_model_which_are_kept():
    llama, given, states = tiny_llama(), texts(30, 2, 11), UneditedStates()
    matrices = given_matrices(plain_keys(llama, 0, given).shape[1])
    expected = leakage_on(llama, given, matrices, nullcontext)
    weight = llama.anatomy.projection(0).weight
    first = weight.detach().clone()

    @contextmanager
    def unedited() -> Iterator[None]:
        edited = weight.detach().clone()
        weight.data.copy_(first)
        yield
        weight.data.copy_(edited)

    weight.data.add_(1.0)
    assert leakage_on(llama, given, matrices, nullcontext)[2] != expected[2]
    assert leakage_on(llama, given, matrices, unedited, keys=states) == expected
    with count_calls(llama.anatomy.layers[0]) as calls:
        assert leakage_on(llama, given, matrices, unedited, keys=states) == expected
    assert len(calls) == 0


def test_a_matrix_that_did_not_change_leaks_nothing_on_any_text():
    llama, given = tiny_llama(), texts(30, 2, 11)
    matrices = given_matrices(plain_keys(llama, 0, given).shape[1], (1,))
    matrices[1].difference.zero_()
    assert dataclasses.astuple(leakage_on(llama, given, matrices, nullcontext)[1]) == (0, 0)


# Perplexity


@pytest.fixture(scope="module", params=FAMILIES)
def model(request: pytest.FixtureRequest) -> LanguageModel:
    return FAMILIES[request.param]()


def texts(*lengths: int) -> list[str]:
    return [" ".join(["the", *random.Random(index).choices(WORDS, k=n)]) for index, n in enumerate(lengths)]


def plain_losses(model: LanguageModel, text: str, longest: int = 512) -> list[float]:
    """The negative log-likelihood of each token of a text but the first."""
    ids = model.tokenizer(text)["input_ids"][:longest]
    logs = plain_logs(model, ids)
    return [-float(logs[at - 1, ids[at]]) for at in range(1, len(ids))]


def plain_perplexity(model: LanguageModel, given: Sequence[str]) -> float:
    losses = [loss for text in given for loss in plain_losses(model, text)]
    return math.exp(sum(losses) / len(losses))


def test_perplexity_is_exp_of_the_mean_loss_per_token_over_all_texts(model: LanguageModel):
    given = texts(30, 2, 11, 7, 19, 1, 4)
    assert perplexity(model, given) == pytest.approx(plain_perplexity(model, given), rel=1e-5)


def test_long_texts_weigh_more_than_short_ones(model: LanguageModel):
    short, long = texts(2, 60)
    per_text = [plain_perplexity(model, [text]) for text in (short, long)]
    n_tokens = [len(plain_losses(model, text)) for text in (short, long)]
    weighted = sum(n * math.log(value) for n, value in zip(n_tokens, per_text, strict=True)) / sum(n_tokens)
    assert perplexity(model, [short, long]) == pytest.approx(math.exp(weighted), rel=1e-5)


def test_the_order_of_texts_and_their_company_in_a_batch_do_not_matter(model: LanguageModel):
    given = texts(30, 2, 11, 7, 19, 1, 4)
    assert perplexity(model, given[::-1]) == pytest.approx(perplexity(model, given), rel=1e-6)
    assert perplexity(model, [given[1]]) == pytest.approx(plain_perplexity(model, [given[1]]), rel=1e-5)


@pytest.mark.parametrize("side", ["left", "right"])
def test_the_padding_side_of_the_tokenizer_does_not_matter_to_perplexity(side: str):
    llama = tiny_llama()
    llama.tokenizer.padding_side = side
    assert perplexity(llama, texts(9, 3, 5)) == pytest.approx(plain_perplexity(llama, texts(9, 3, 5)), rel=1e-5)


def test_the_first_token_is_not_predicted():
    gpt2 = tiny_gpt2()
    ids = gpt2.tokenizer("ab")["input_ids"]
    assert len(ids) == 2
    assert perplexity(gpt2, ["ab"]) == pytest.approx(math.exp(-float(plain_logs(gpt2, ids)[0, ids[1]])), rel=1e-5)


def test_texts_of_one_token_say_nothing():
    gpt2 = tiny_gpt2()
    assert perplexity(gpt2, ["a", *texts(5), ""]) == perplexity(gpt2, texts(5))


def test_texts_are_cut_at_512_tokens(model: LanguageModel):
    (text,) = texts(590)
    assert len(model.tokenizer(text)["input_ids"]) > 550
    assert perplexity(model, [text]) == pytest.approx(plain_perplexity(model, [text]), rel=1e-5)


def test_a_model_that_knows_nothing_has_the_perplexity_of_its_vocabulary():
    llama = tiny_llama()
    with torch.no_grad():
        llama.model.get_output_embeddings().weight.zero_()
    assert perplexity(llama, texts(6, 3)) == pytest.approx(len(llama.tokenizer), rel=1e-5)


def test_progress_is_told_the_number_of_texts_and_each_of_them():
    progress = RecordedProgress()
    llama = tiny_llama()
    with count_calls(llama.model.base_model) as calls:
        perplexity(llama, texts(3, 4, 5, 6, 7, 8), progress=progress)
    (task,) = progress.tasks
    assert (task.total, sum(task.steps), task.finished) == (6, 6, True)
    assert sum(n_rows for n_rows, _ in calls.rows) == 6


def test_a_model_that_finds_the_text_all_but_impossible_has_an_infinite_perplexity_and_no_error():
    llama = tiny_llama()
    with torch.no_grad():
        llama.model.get_output_embeddings().weight.mul_(1e4)
    assert perplexity(llama, texts(6, 3)) == math.inf


def test_texts_without_a_token_to_predict_are_refused():
    gpt2 = tiny_gpt2()
    with pytest.raises(ConfigError, match="no text"):
        perplexity(gpt2, ["a", ""])
    with pytest.raises(ConfigError, match="no text"):
        compare(gpt2, ["a"], nullcontext)


# Drift from the unedited model


def edit_by_hand(model: LanguageModel, scale: float = 0.5) -> Callable[[], AbstractContextManager[None]]:
    """Changes a projection of ``model``; returns the context in which it is as it was."""
    weight = model.anatomy.projection(1).get_parameter("weight")
    original = weight.clone()
    with torch.no_grad():
        weight += scale * torch.randn(weight.shape, generator=torch.Generator().manual_seed(7))
    edited = weight.clone()

    @contextmanager
    def unedited() -> Iterator[None]:
        assert not torch.is_inference_mode_enabled()  # weights put back in inference mode could not be edited again
        with torch.no_grad():
            weight.copy_(original)
        yield
        with torch.no_grad():
            weight.copy_(edited)

    return unedited


@pytest.mark.parametrize("family", FAMILIES)
def test_drift_is_what_a_plain_loop_over_tokens_finds(family: str):
    model, reference = FAMILIES[family](), FAMILIES[family]()
    given = texts(30, 2, 11, 7, 19, 1, 4)
    unedited = edit_by_hand(model)
    same, divergences = [], []
    for text in given:
        ids = model.tokenizer(text)["input_ids"]
        for after, before in zip(plain_logs(model, ids)[:-1], plain_logs(reference, ids)[:-1], strict=True):
            same.append(int(after.argmax()) == int(before.argmax()))
            divergences.append(float((before.exp() * (before - after)).sum()))
    found = compare(model, given, unedited)
    assert 0 < sum(same) < len(same)
    assert (found.agreement.mean, found.agreement.count) == (sum(same) / len(same), len(same))
    assert found.agreement.low < found.agreement.mean < found.agreement.high
    assert found.kl == pytest.approx(sum(divergences) / len(divergences), rel=1e-4)
    assert found.perplexity == pytest.approx(plain_perplexity(model, given), rel=1e-5)
    assert found.unedited_perplexity == pytest.approx(plain_perplexity(reference, given), rel=1e-5)


def test_a_model_that_nothing_changed_agrees_everywhere_and_diverges_by_nothing(model: LanguageModel):
    given = texts(30, 2, 11, 7)
    found = compare(model, given, nullcontext)
    assert (found.agreement.mean, found.kl) == (1, 0)
    assert found.perplexity == found.unedited_perplexity == perplexity(model, given)


def test_the_divergence_is_that_of_the_edited_from_the_unedited_model():
    """Logits that are flat against some that prefer token 0 by ``log 3``: uniform p, and q = 3 or 1 over V + 2."""
    gpt2 = tiny_gpt2()
    size = len(gpt2.tokenizer)
    norm = gpt2.model.base_model.ln_f

    class First(torch.nn.Module):
        def forward(self, hidden: torch.Tensor) -> torch.Tensor:
            return torch.nn.functional.pad(hidden[..., :1], (0, size - 1))

    gpt2.model.set_output_embeddings(First())
    with torch.no_grad():
        norm.weight.zero_()
        norm.bias[0] = math.log(3)

    @contextmanager
    def unedited() -> Iterator[None]:
        with torch.no_grad():
            norm.bias[0] = 0
        yield
        with torch.no_grad():
            norm.bias[0] = math.log(3)

    expected = math.log(size + 2) - math.log(size) - math.log(3) / size
    assert compare(gpt2, texts(5), unedited).kl == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("first", ["perplexity", "drift"])
def test_an_unedited_model_that_was_measured_once_does_not_run_again_and_nothing_is_another_figure(first: str):
    llama, states, given = tiny_llama(), UneditedStates(), texts(500, 500, 30, 11, 2)
    if first == "perplexity":
        assert perplexity(llama, given, states=states) == perplexity(llama, given)
    unedited = edit_by_hand(llama)
    plain = compare(llama, given, unedited)
    if first == "drift":
        assert compare(llama, given, unedited, states=states) == plain
    with count_calls(llama.model.base_model) as calls:
        assert compare(llama, given, never, states=states) == plain
    assert len(calls.rows) == 2  # the edited model, at two batches


def test_states_of_the_unedited_model_beyond_the_room_for_them_are_computed_again(monkeypatch: pytest.MonkeyPatch):
    llama, states, given = tiny_llama(), UneditedStates(), texts(500, 500, 500, 500)
    unedited = edit_by_hand(llama)
    plain = compare(llama, given, unedited)
    monkeypatch.setattr(drift, "_KEPT_BYTES", 1100 * 4 * llama.anatomy.hidden_size)  # one batch of the two
    compare(llama, given, unedited, states=states)
    with count_calls(llama.model.base_model) as calls:
        assert compare(llama, given, unedited, states=states) == plain
    assert len(calls.rows) == 3


def never() -> AbstractContextManager[None]:
    raise AssertionError("the original weights are not needed")


def test_how_many_texts_share_a_pass_changes_neither_drift_nor_perplexity(monkeypatch: pytest.MonkeyPatch):
    llama = tiny_llama()
    unedited = edit_by_hand(llama)
    given = texts(30, 2, 11, 7, 19)
    together = compare(llama, given, unedited)
    monkeypatch.setattr(drift, "_TOKENS_PER_FORWARD", 1)
    with count_calls(llama.model.base_model) as calls:
        alone = compare(llama, given, unedited)
    assert [n_rows for n_rows, _ in calls.rows] == [1] * 10
    assert alone.agreement == together.agreement
    assert (alone.kl, alone.perplexity) == pytest.approx((together.kl, together.perplexity), rel=1e-5)


def test_how_many_tokens_are_looked_at_together_changes_neither_drift_nor_perplexity(monkeypatch: pytest.MonkeyPatch):
    llama = tiny_llama()
    unedited = edit_by_hand(llama)
    given = texts(30, 2, 11, 7, 19)
    together = compare(llama, given, unedited)
    monkeypatch.setattr(drift, "_LOGS_AT_ONCE", 7 * len(llama.tokenizer))
    apart = compare(llama, given, unedited)
    assert apart.agreement == together.agreement
    assert (apart.kl, apart.perplexity) == pytest.approx((together.kl, together.perplexity), rel=1e-5)
    assert perplexity(llama, given) == pytest.approx(together.perplexity, rel=1e-5)


def test_passes_hold_a_bounded_number_of_tokens():
    llama = tiny_llama()
    with count_calls(llama.model.base_model) as calls:
        compare(llama, texts(500, 500, 500, 30, 30, 2), nullcontext)
    assert max(n_rows * width for n_rows, width in calls.rows) <= 1024
    assert [n_rows for n_rows, _ in calls.rows] == [2] * 6  # three batches, each on both models


def test_the_original_weights_are_asked_for_once_a_batch_and_the_edited_ones_are_left_in_place():
    llama = tiny_llama()
    unedited = edit_by_hand(llama)
    before, entered = llama.fingerprint(), []

    @contextmanager
    def counted() -> Iterator[None]:
        with unedited():
            entered.append(1)
            yield

    progress = RecordedProgress()
    compare(llama, texts(5, 6, 7), counted, progress=progress)
    (task,) = progress.tasks
    assert (len(entered), task.description, task.total, sum(task.steps)) == (1, "drift", 3, 3)
    assert llama.fingerprint() == before


def test_drift_is_plain_data():
    data = compare(tiny_llama(), texts(5), nullcontext).to_dict()
    assert json.loads(json.dumps(data)) == data
    assert set(data) == {"perplexity", "unedited_perplexity", "agreement", "kl"}


# Held-out prose


def test_there_are_twenty_passages_of_prose_or_more():
    passages = held_out_prose()
    assert len(passages) >= 20
    assert len(set(passages)) == len(passages)
    assert all(len(passage.split()) > 50 for passage in passages)


def test_held_out_prose_mentions_no_subject_of_the_demo():
    prose = "\n".join(held_out_prose())
    subjects = [json.loads(line)["subject"] for line in demo_path().read_text(encoding="utf-8").splitlines() if line]
    assert len(subjects) > 100
    found = [subject for subject in subjects if re.search(rf"\b{re.escape(subject)}\b", prose, re.IGNORECASE)]
    assert found == []
