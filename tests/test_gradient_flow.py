"""models/gradient_flow.py, compared with other ways to compute the same numbers."""

import pytest
import torch
from torch.nn import functional as F

from models.gradient_flow import (
    UpdateTracker,
    forget_gate_quantiles,
    gradient_norms,
    probe,
    spectral_radii,
)
from models.palindromes import palindromes
from models.recurrent import CELLS, build
from models.tasks import TASKS

TASK = TASKS["palindrome"]
LENGTH = 9
DATA = palindromes(0, LENGTH, 200).validation


@pytest.mark.parametrize("num_layers", [1, 3])
@pytest.mark.parametrize("cell", CELLS)
def test_gradient_at_initial_state_matches_native_kernel(cell, num_layers):
    network = build(cell, 16, "uniform", 0, LENGTH, num_layers=num_layers).double()
    x = network.encode(DATA.inputs)
    state = [
        torch.zeros(num_layers, len(DATA), 16, dtype=torch.float64, requires_grad=True)
        for _ in network.state_names
    ]
    outputs, _ = network.rnn(x, tuple(state) if len(state) > 1 else state[0])
    loss = F.cross_entropy(network.head(outputs[-1]), DATA.targets, reduction="sum")
    norms = gradient_norms(network, TASK, DATA)
    for name, gradient in zip(norms, torch.autograd.grad(loss, state), strict=True):
        assert norms[name].shape == (LENGTH + 1,)
        expected = gradient.norm(dim=(0, 2)).mean()
        torch.testing.assert_close(norms[name][-1], expected, rtol=1e-10, atol=0)


def test_rnn_gradient_at_each_step_is_a_product_of_jacobians():
    """dL/dh_(t-1) = W^T diag(1 - h_t^2) dL/dh_t (Pascanu et al. 2013)."""
    network = build("rnn", 16, "uniform", 0, LENGTH).double()
    with torch.no_grad():
        states = [state["h"] for (state,) in network.unroll(network.encode(DATA.inputs))]
        probabilities = network.head(states[-1]).softmax(1)
        gradient = (probabilities - F.one_hot(DATA.targets, 10)) @ network.head.weight
        expected = [gradient.norm(dim=1).mean()]
        for h in reversed(states[1:]):
            gradient = (gradient * (1 - h.square())) @ network.cells[0].weight_hh
            expected.append(gradient.norm(dim=1).mean())
    torch.testing.assert_close(gradient_norms(network, TASK, DATA)["h"], torch.stack(expected))


def test_gradients_vanish_with_uniform_init_but_not_with_orthogonal_init():
    data = palindromes(0, 50, 200).validation
    ratios = {}
    for init in ("uniform", "orthogonal"):
        network = build("rnn", 128, init, 0, 50, "standardized")
        norms = gradient_norms(network, TASK, data)["h"]
        ratios[init] = (norms[-1] / norms[0]).item()
    # Uniform: the spectral radius is near sqrt(128 / (3 * 128)) = 0.58, and 0.58^50 = 1e-12.
    assert ratios["uniform"] < 1e-8
    assert ratios["orthogonal"] > 0.01


@pytest.mark.parametrize("cell", CELLS)
def test_spectral_radius_of_each_recurrent_matrix(cell):
    radii = spectral_radii(build(cell, 128, "orthogonal", 0, 5, num_layers=2))
    gates = CELLS[cell].rnn_class(1, 128).weight_hh_l0.shape[0] // 128
    assert radii == pytest.approx([1] * gates * 2, abs=1e-4)
    # Circular law: sqrt(hidden_size) times the standard deviation of U(-1/sqrt(h), 1/sqrt(h)).
    radii = spectral_radii(build(cell, 128, "uniform", 0, 5))
    assert radii == pytest.approx([3**-0.5] * gates, abs=0.1)


def test_forget_gates_are_more_open_with_chrono_init():
    uniform = forget_gate_quantiles(build("lstm", 64, "uniform", 0, 50), DATA)
    chrono = forget_gate_quantiles(build("lstm", 64, "chrono", 0, 50), DATA)
    assert 0 < uniform[0] < uniform[4] < 1
    assert (uniform.diff() >= 0).all()
    assert uniform[2] < 0.9 < chrono[2]  # medians


@pytest.mark.parametrize("cell", CELLS)
def test_probe_returns_plain_numbers_and_leaves_the_network_unchanged(cell):
    network = build(cell, 16, "uniform", 0, LENGTH)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    with torch.no_grad():  # an evaluation may call it so
        metrics = probe(network, TASK, DATA)
        *_, (last,) = network.unroll(network.encode(DATA.inputs))
    expected = {"spectral_radii", *(f"grad_norm_{name}" for name in network.state_names)}
    expected |= {"forget_gate_quantiles"} if "f" in last else set()
    assert metrics.keys() == expected
    assert all(isinstance(number, float) for numbers in metrics.values() for number in numbers)
    assert all(parameter.grad is None for parameter in network.parameters())
    torch.testing.assert_close(dict(network.state_dict()), before, rtol=0, atol=0)


def test_update_of_sgd_is_proportional_to_the_gradient():
    network = build("rnn", 16, "uniform", 0, LENGTH).double()
    tracker, grad_norms, update_rms = UpdateTracker(network), [], []
    for lr in (0.5, 0.1, 0.001):
        optimizer = torch.optim.SGD(network.parameters(), lr=lr)
        optimizer.zero_grad()
        F.cross_entropy(network(DATA.inputs), DATA.targets).backward()
        optimizer.step()
        tracker.record(lr)
        grad_norms.append(torch.cat([p.grad.flatten() for p in network.parameters()]).norm())
        update_rms.append(network.cells[0].weight_hh.grad.norm() / 16)  # of 16 x 16 weights
    means = tracker.pop_means()
    assert means["grad_norm"] == pytest.approx(sum(grad_norms).item() / 3, rel=1e-10)
    assert means["update_rms_over_lr"] == pytest.approx(sum(update_rms).item() / 3, rel=1e-10)


def test_update_of_adam_is_the_learning_rate_while_gradients_are_constant():
    network = build("rnn", 16, "uniform", 0, LENGTH)
    optimizer = torch.optim.Adam(network.parameters(), lr=0.01)
    tracker = UpdateTracker(network)
    for _ in range(2):  # the second time without the records of the first
        for _ in range(3):
            for parameter in network.parameters():
                parameter.grad = torch.ones_like(parameter)
            optimizer.step()
            tracker.record(0.01)
        assert len(tracker.records) == 3
        assert tracker.pop_means()["update_rms_over_lr"] == pytest.approx(1, rel=1e-4)
