"""models/memory.py: gradients against what is computed in another way."""

import pytest
import torch
from torch.nn import functional as F

from models.memory import forget_gates, gradient_norms, probe, spectral_radii
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
