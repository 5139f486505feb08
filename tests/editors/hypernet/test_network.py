"""The hypernetwork against plain float64 formulas, written from the papers (methods.md E.5, E.6)."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from betaedit.editors.hypernet.network import Architecture, Block, Hypernetwork, Rule, RunningStatistics

D_OUT, D_IN, TOKENS = 5, 7, 6


def network(rule: Rule, *, normalize: bool = True, identity: bool = True) -> Hypernetwork:
    """One over two layers whose every parameter and statistic matters."""
    shapes = dict.fromkeys((1, 3), (D_OUT, D_IN))
    made = Hypernetwork(Architecture(rule, shapes, 3, 2, normalize, identity, edit_rate=0.3)).double()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64), alpha=0.3)
    u, v = tokens(20, seed=2)
    made.observe(1, u, v)
    return made


def tokens(n: int, seed: int = 3) -> tuple[Tensor, Tensor]:
    """Inputs and gradients whose scales differ."""
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(n, D_IN + D_OUT, generator=generator, dtype=torch.float64)
    return 2 + 3 * rows[:, :D_IN], 0.01 * rows[:, D_IN:]


def welford(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation, one row after another."""
    mean, squares = torch.zeros_like(rows[0]), torch.zeros_like(rows[0])
    for count, row in enumerate(rows, start=1):
        ahead = row - mean
        mean = mean + ahead / count
        squares = squares + ahead * (row - mean)
    return mean, (squares / (len(rows) - 1)).sqrt()


def reference(made: Hypernetwork, layer: int, u: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """``(u~, v~)``."""
    architecture = made.architecture
    state = {name.partition("5x7.")[2]: value for name, value in made.networks.state_dict().items()}
    index = [1, 3].index(layer)
    x = torch.cat([u, v], dim=1)
    if architecture.normalize:
        mean, deviation = welford(torch.cat(tokens(20, seed=2), dim=1))
        x = (x - mean) / (deviation + 1e-7)
    for at in range(2):
        name = f"blocks.{at}."
        linear = x @ (state[name + "up"] @ state[name + "down"]).T + state[name + "bias"]
        scale, shift = state[name + "scale"][index], state[name + "shift"][index]
        if architecture.rule == "sum":
            y = torch.maximum(linear * scale + shift, torch.tensor(0.0))
        else:
            y = torch.maximum(linear, torch.tensor(0.0)) * scale + shift
        x = x + y if architecture.identity_init else y
    return x[:, :D_IN], x[:, D_IN:]


def test_statistics_merged_by_batches_are_those_of_one_row_after_another() -> None:
    rows = 100 + torch.randn(23, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    statistics = RunningStatistics(4)
    for part in (rows[:1], rows[1:2], rows[2:15], rows[15:15], rows[15:]):
        statistics.update(part)
    mean, deviation = welford(rows)
    assert torch.allclose(statistics(rows), (rows - mean) / (deviation + 1e-7), atol=1e-10)


@pytest.mark.parametrize("layer", [1, 3])
@pytest.mark.parametrize("rule", ["sum", "least squares"])
@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("identity", [True, False])
def test_the_network_is_the_papers_formula(rule: Rule, layer: int, normalize: bool, identity: bool) -> None:
    made = network(rule, normalize=normalize, identity=identity)
    u, v = tokens(TOKENS)
    for found, expected in zip(made.transform(layer, u, v), reference(made, layer, u, v), strict=True):
        assert torch.allclose(found, expected, atol=1e-10)


def test_mend_subtracts_the_sum_of_the_transformed_gradients_of_real_tokens() -> None:
    made = network("sum")
    u, v = tokens(TOKENS)
    real = torch.tensor([True, True, False, True, True, False])
    left, right = made.sum_factors(3, u, v, real)
    new_u, new_v = reference(made, 3, u, v)
    expected = sum(-made.rates[1] * torch.outer(new_v[t], new_u[t]) for t in range(TOKENS) if real[t])
    assert torch.allclose(left @ right.T, expected, atol=1e-10)


@pytest.mark.parametrize("n", [1, 4, 20])
def test_malmen_solves_the_dense_least_squares(n: int) -> None:
    made = network("least squares")
    u, v = tokens(n)
    left, right = made.least_squares_factors(3, u, v)
    new_u, new_v = reference(made, 3, u, v)
    wanted = torch.stack([-made.rates[1] * (u[i] @ new_u[i]) * new_v[i] for i in range(n)])
    system = u.T @ u + made.log_ridges[1].exp() * torch.eye(D_IN, dtype=torch.float64)
    expected = (torch.linalg.inv(system) @ u.T @ wanted).T
    assert torch.allclose(left @ right.T, expected, atol=1e-9)


@pytest.mark.parametrize("clamp_first", [True, False])
def test_a_block_begins_as_the_identity_and_can_learn_from_there(clamp_first: bool) -> None:
    block = Block(6, 2, 1, clamp_first=clamp_first, identity=True)
    rows = torch.randn(3, 6)
    found = block(rows, 0)
    assert torch.equal(found, rows)
    found.sum().backward()
    assert block.up.grad is not None
    assert bool(block.up.grad.any())


def waves(shape: tuple[int, ...], phase: float) -> Tensor:
    """Numbers that need no generator: ``sin(0.7 n + phase)``."""
    count = torch.arange(1, torch.Size(shape).numel() + 1, dtype=torch.float64)
    return torch.sin(0.7 * count + phase).reshape(shape)


def wavy(rule: Rule, *, identity: bool = True) -> Hypernetwork:
    """Two layers, without statistics, with every weight a wave."""
    made = Hypernetwork(Architecture(rule, dict.fromkeys((0, 1), (2, 3)), 2, 2, True, identity, edit_rate=0.5)).double()
    with torch.no_grad():
        for name, parameter in made.networks["2x3"].named_parameters():
            _, block, part = name.split(".")
            phase = ["down", "up", "bias", "scale", "shift"].index(part) + 10 * int(block)
            parameter.copy_(waves(tuple(parameter.shape), phase))
    return made


# Of the authors' code, on the same weights and tokens, in float64: ``IDMLP`` of eric-mitchell/mend (nn.py), and
# ``MALMENNet`` of ChenmienTan/malmen (nets.py) with the solution of its editor/malmen.py.
IDENTITY = [
    [2.875962236750532, 2.234943284167937, 1.8342311412418806, 1.551298856960662, 3.6436499318138194],
    [1.23471134946074, -0.44252044329485246, -0.4770141797593699, 1.6525453055666153, 0.7403752438118711],
    [-0.0969528641242271, -0.5506855425976384, 0.5432513633008577, 0.30961796221969196, -0.1981651356684465],
]
XAVIER = [
    [0.0, 0.0, 0.8083734554873037, 0.5688953530026258, 1.857966351112288],
    [0.0, 0.0, 0.5356933347732278, 1.0784091164928058, 1.213193015987258],
    [0.0, 0.0, 0.5222119700229007, 1.1129443320587455, 1.187976493006822],
]
SHIFT = [
    [-0.38619182776068844, -0.1457225849784577, 0.1632822664973416],
    [-0.6473065223205188, -0.4176392872834911, 0.008450230356838676],
]


@pytest.mark.parametrize(("identity", "official"), [(True, IDENTITY), (False, XAVIER)])
def test_mends_network_agrees_with_the_authors_code(identity: bool, official: list[list[float]]) -> None:
    found = torch.cat(wavy("sum", identity=identity).transform(1, waves((3, 3), 0.1), waves((3, 2), 0.5)), dim=1)
    assert torch.allclose(found, torch.tensor(official, dtype=torch.float64), atol=1e-12)


def test_malmens_change_agrees_with_the_authors_code() -> None:
    left, right = wavy("least squares").least_squares_factors(1, waves((3, 3), 0.1), waves((3, 2), 0.5))
    assert torch.allclose(left @ right.T, torch.tensor(SHIFT, dtype=torch.float64), atol=1e-12)
