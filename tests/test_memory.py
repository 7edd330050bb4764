"""models/memory.py: gradients against what is computed in another way."""

import pytest
import torch
from torch.nn import functional as F

from models.memory import OptimizerSteps, forget_gates, gradient_norms, probe, spectral_radii
from models.palindromes import palindromes
from models.recurrent import CELLS, build

LENGTH = 9
DATA = palindromes(0, LENGTH, 200).validation


@pytest.mark.parametrize("cell", CELLS)
def test_the_gradient_at_the_start_is_what_torchs_kernel_gives_for_its_first_state(cell):
    network = build(cell, 16, "uniform", 0, LENGTH).double()
    x = network.read(DATA.digits)
    first = [torch.zeros(1, len(DATA), 16, dtype=torch.float64, requires_grad=True)]
    if cell == "lstm":
        first.append(first[0].detach().clone().requires_grad_())
    outputs, _ = network.recurrent(x, tuple(first) if cell == "lstm" else first[0])
    loss = F.cross_entropy(network.prediction(outputs[-1]), DATA.targets, reduction="sum")
    found = gradient_norms(network, DATA)
    for name, gradient in zip(found, torch.autograd.grad(loss, first), strict=True):
        assert found[name].shape == (LENGTH + 1,)
        expected = gradient[0].norm(dim=1).mean()
        torch.testing.assert_close(found[name][-1], expected, rtol=1e-10, atol=0)


def test_the_gradient_at_each_step_is_the_product_of_the_steps_jacobians():
    """Of the RNN: dL/dh_(t-1) = W^T diag(1 - h_t^2) dL/dh_t (Pascanu et al. 2013)."""
    network = build("rnn", 16, "uniform", 0, LENGTH).double()
    with torch.no_grad():
        states = [state["h"] for state in network.equations(network.read(DATA.digits))]
        p = network.prediction(states[-1])
        wrong = p.softmax(1) - F.one_hot(DATA.targets, 10)
        gradient = wrong @ network.prediction.weight
        expected = [gradient.norm(dim=1).mean()]
        for h in reversed(states[1:]):
            gradient = (gradient * (1 - h.square())) @ network.recurrent.weight_hh_l0
            expected.append(gradient.norm(dim=1).mean())
    torch.testing.assert_close(gradient_norms(network, DATA)["h"], torch.stack(expected))


def test_gradients_vanish_from_the_uniform_start_and_not_from_the_orthogonal_one():
    data = palindromes(0, 50, 200).validation
    kept = {}
    for start in ("uniform", "orthogonal"):
        norms = gradient_norms(build("rnn", 128, start, 0, 50, "standard"), data)["h"]
        kept[start] = (norms[-1] / norms[0]).item()
    # The uniform start's spectral radius is near sqrt(128 / (3 * 128)) = 0.58, and 0.58^50 = 1e-12.
    assert kept["uniform"] < 1e-8
    assert kept["orthogonal"] > 0.01


def test_the_spectral_radius_of_each_recurrent_matrix():
    (radius,) = spectral_radii(build("rnn", 64, "orthogonal", 0, 5))
    assert radius == pytest.approx(1, abs=1e-4)
    (radius,) = spectral_radii(build("rnn", 128, "uniform", 0, 5))
    assert radius == pytest.approx(3**-0.5, abs=0.1)  # the circular law: sqrt(hidden) x deviation
    assert spectral_radii(build("lstm", 64, "orthogonal", 0, 5)) == pytest.approx([1] * 4, abs=1e-4)


def test_the_forget_gates_of_the_chrono_start_keep_more():
    least, *_, most = usual = forget_gates(build("lstm", 64, "uniform", 0, 50), DATA)
    assert 0 < least < most < 1
    assert (usual.diff() >= 0).all()
    assert forget_gates(build("lstm", 64, "chrono", 0, 50), DATA)[2] > 0.9 > usual[2]


@pytest.mark.parametrize("cell", CELLS)
def test_a_probe_is_plain_numbers_and_changes_nothing(cell):
    network = build(cell, 16, "uniform", 0, LENGTH)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    with torch.no_grad():  # as an evaluation may call it
        seen = probe(network, DATA)
    assert all(isinstance(number, float) for numbers in seen.values() for number in numbers)
    assert ("gradient_c" in seen) == ("forget_gates" in seen) == (cell == "lstm")
    assert all(parameter.grad is None for parameter in network.parameters())
    for name, value in network.state_dict().items():
        assert torch.equal(value, before[name])


def test_plain_gradient_descent_steps_as_far_as_the_gradient_is_long():
    network = build("rnn", 16, "uniform", 0, LENGTH).double()
    steps, norms, sizes = OptimizerSteps(network), [], []
    for rate in (0.5, 0.1, 0.001):
        optimizer = torch.optim.SGD(network.parameters(), lr=rate)
        optimizer.zero_grad()
        F.cross_entropy(network(DATA.digits), DATA.targets).backward()
        optimizer.step()
        steps.see(rate)
        norms.append(torch.cat([p.grad.flatten() for p in network.parameters()]).norm())
        sizes.append(network.recurrent.weight_hh_l0.grad.norm() / 16)  # of 16 x 16 weights
    means = steps.means_since_last()
    assert means["gradient_norm"] == pytest.approx(sum(norms).item() / 3, rel=1e-10)
    assert means["step_size"] == pytest.approx(sum(sizes).item() / 3, rel=1e-10)


def test_adams_step_is_its_rate_while_gradients_stay_the_same():
    network = build("rnn", 16, "uniform", 0, LENGTH)
    optimizer = torch.optim.Adam(network.parameters(), lr=0.01)
    steps = OptimizerSteps(network)
    for _ in range(3):
        for parameter in network.parameters():
            parameter.grad = torch.ones_like(parameter)
        optimizer.step()
        steps.see(0.01)
    assert steps.means_since_last()["step_size"] == pytest.approx(1, rel=1e-4)
