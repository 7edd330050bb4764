import math

import pytest
import torch
from torch import nn

from models.palindromes import palindromes
from models.randomness import generator
from models.recurrent import (
    CELLS,
    INPUTS,
    build,
    evaluate,
    has_ended,
    learning_rate,
    predict,
    train_epoch,
)

PYTORCH = {"lstm": nn.LSTM, "rnn": nn.RNN}


def pytorch_twin(network, cell):
    """The same function made of PyTorch's own modules alone, with the same parameters."""
    recurrent = PYTORCH[cell](1, network.prediction.in_features, batch_first=True)
    prediction = nn.Linear(network.prediction.in_features, 10)
    twin = nn.ModuleDict({"recurrent": recurrent, "prediction": prediction})
    twin.to(network.prediction.weight.dtype).load_state_dict(network.state_dict())
    return twin


@pytest.mark.parametrize("batch", [1, 128])
@pytest.mark.parametrize("length", [1, 2, 7, 35])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-5)])
@pytest.mark.parametrize("cell", CELLS)
def test_the_equations_are_what_pytorch_computes(cell, dtype, tolerance, length, batch):
    network = build(cell, hidden=128, start="uniform", seed=length, length=max(length, 2)).to(dtype)
    twin = pytorch_twin(network, cell)
    digits = torch.randint(10, (batch, length), generator=generator("digits"), dtype=torch.uint8)
    targets = torch.randint(10, (batch,), generator=generator("targets"))

    def logits_and_gradients(module, p):
        gradients = torch.autograd.grad(
            nn.functional.cross_entropy(p, targets), list(module.parameters())
        )
        names = [name for name, _ in module.named_parameters()]
        return {"p": p.detach(), **dict(zip(names, gradients, strict=True))}

    outputs, _ = twin["recurrent"](digits.to(dtype).unsqueeze(2))
    expected = logits_and_gradients(twin, twin["prediction"](outputs[:, -1]))
    for written_out in (True, False):
        found = logits_and_gradients(network, network(digits, written_out=written_out))
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            torch.testing.assert_close(found[name], value, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("inputs", INPUTS)
@pytest.mark.parametrize("cell", CELLS)
def test_the_equations_are_the_native_kernel_whatever_is_read(cell, inputs):
    network = build(cell, 16, "uniform", 0, 7, inputs).double()
    digits = palindromes(0, 7, 100).train.digits
    torch.testing.assert_close(network(digits), network(digits, written_out=True))


def test_what_is_read_of_a_digit():
    digits = torch.arange(10, dtype=torch.uint8).view(10, 1)  # (batch, length)
    read = {i: build("rnn", 4, "uniform", 0, 5, i).double().read(digits)[0] for i in INPUTS}
    assert read["digit"].flatten().tolist() == list(range(10))
    assert read["standard"].mean().item() == pytest.approx(0, abs=1e-12)
    assert read["standard"].square().mean().item() == pytest.approx(1)
    assert torch.equal(read["one-hot"], torch.eye(10, dtype=torch.float64))
    with pytest.raises(ValueError, match="two-hot"):
        build("rnn", 4, "uniform", 0, 5, "two-hot")


def test_the_uniform_start_is_pytorchs_own_distribution():
    for cell in CELLS:
        network = build(cell, hidden=64, start="uniform", seed=0, length=5)
        bound = 1 / math.sqrt(64)
        for parameter in network.parameters():
            assert parameter.abs().max() <= bound
            assert parameter.abs().max() > 0.7 * bound


@pytest.mark.parametrize("cell", CELLS)
def test_the_orthogonal_start_makes_each_recurrent_matrix_orthogonal(cell):
    network = build(cell, hidden=32, start="orthogonal", seed=0, length=5)
    matrices = network.recurrent.weight_hh_l0.split(32)
    assert len(matrices) == {"lstm": 4, "rnn": 1}[cell]
    for matrix in matrices:
        torch.testing.assert_close(matrix @ matrix.T, torch.eye(32), rtol=0, atol=1e-5)


def test_the_chrono_start_spreads_the_forget_gates_time_scales_up_to_the_length():
    network = build("lstm", hidden=512, start="chrono", seed=0, length=50)
    biases = network.recurrent.bias_ih_l0 + network.recurrent.bias_hh_l0
    b_i, b_f, _, _ = biases.chunk(4)
    assert torch.equal(b_i, -b_f)
    scales = b_f.exp()
    assert scales.min() >= 1
    assert scales.max() <= 49
    assert abs(scales.mean() - 25) < 3  # of U(1, 49); its standard error here is 0.6


def test_the_identity_start_copies_the_hidden_state():
    network = build("rnn", 32, "identity", 0, 5)
    assert torch.equal(network.recurrent.weight_hh_l0, torch.eye(32))
    assert not (network.recurrent.bias_ih_l0 + network.recurrent.bias_hh_l0).any()


def test_the_forget_start_opens_the_forget_gates_and_no_other():
    biases = [
        (network.recurrent.bias_ih_l0 + network.recurrent.bias_hh_l0).chunk(4)
        for network in (build("lstm", 32, start, 0, 5) for start in ("forget", "uniform"))
    ]
    for gate, ours, usual in zip("ifgo", *biases, strict=True):
        assert torch.equal(ours, torch.ones(32) if gate == "f" else usual)


def test_the_learning_rate_rises_in_the_warmup_and_falls_by_half_a_cosine():
    assert [learning_rate(step, 100, 4, "none") for step in (0, 1, 3, 4, 99)] == [
        0.25, 0.5, 1, 1, 1,
    ]  # fmt: skip
    assert learning_rate(0, 100, 0, "cosine") == 1
    assert learning_rate(25, 100, 0, "cosine") == pytest.approx((1 + math.sqrt(0.5)) / 2)
    assert learning_rate(50, 100, 0, "cosine") == pytest.approx(0.5)
    assert learning_rate(100, 100, 0, "cosine") == pytest.approx(0)
    assert learning_rate(1, 100, 10, "cosine") == pytest.approx(
        0.2 * learning_rate(1, 100, 0, "cosine")
    )


@pytest.mark.parametrize(
    ("accuracies", "hold", "ended"),
    [
        ([], 1, False),
        ([0.1] * 4, None, False),
        ([0.1] * 5, None, True),
        ([0.999, 0.999], 3, False),
        ([0.1, 0.999, 1.0, 0.9991], 3, True),
        ([0.999, 1.0, 0.9989], 3, False),
        ([1.0, 1.0, 0.5, 1.0], 3, False),
    ],
)
def test_a_training_ends_after_its_epochs_or_when_it_has_held_its_accuracy(accuracies, hold, ended):
    assert has_ended([{"val_accuracy": a} for a in accuracies], 5, hold) is ended


def test_the_seed_decides_the_start():
    first, again, other = (build("lstm", 16, "chrono", seed, 9).state_dict() for seed in (1, 1, 2))
    for name in first:
        assert torch.equal(first[name], again[name])
        if name != "recurrent.bias_hh_l0":  # where chrono holds the gates' part at zero
            assert not torch.equal(first[name], other[name])


@pytest.mark.parametrize(("cell", "start"), [("gru", "uniform"), ("rnn", "chrono"), ("lstm", "he")])
def test_unknown_cells_and_starts_are_refused(cell, start):
    with pytest.raises(ValueError, match=f"{cell}.*|{start}"):
        build(cell, 8, start, 0, 5)


def test_an_epoch_is_what_the_same_steps_written_by_hand_are():
    data = palindromes(0, 6, 400).train
    order = torch.randperm(len(data), generator=generator("order"))
    network, by_hand = (build("lstm", 16, "uniform", 0, 6) for _ in range(2))
    optimizer = torch.optim.SGD(network.parameters(), lr=0.5)
    told = []
    mean = train_epoch(network, optimizer, data, order, 100, clip=0.1, after_step=told.append)
    assert told == [1, 2, 3]

    optimizer, losses = torch.optim.SGD(by_hand.parameters(), lr=0.5), []
    for step in range(3):  # 320 sequences: three whole batches
        batch = order[100 * step : 100 * (step + 1)]
        loss = nn.functional.cross_entropy(by_hand(data.digits[batch]), data.targets[batch])
        optimizer.zero_grad()
        loss.backward()
        norm = nn.utils.clip_grad_norm_(by_hand.parameters(), 0.1)
        assert norm > 0.1
        optimizer.step()
        losses.append(loss.item())
    assert mean == pytest.approx(sum(losses) / 3, rel=1e-6)
    for parameter, expected in zip(network.parameters(), by_hand.parameters(), strict=True):
        assert torch.equal(parameter, expected)


def test_evaluation_is_over_every_sequence_whatever_the_batch():
    data = palindromes(0, 5, 1000).validation
    network = build("rnn", 16, "uniform", 0, 5)
    torch.testing.assert_close(predict(network, data, 7), predict(network, data, 1000))
    loss, accuracy = evaluate(network, data)
    p = network(data.digits)
    assert loss == pytest.approx(nn.functional.cross_entropy(p, data.targets).item(), rel=1e-5)
    assert accuracy == (p.argmax(1) == data.targets).sum().item() / 200


def test_a_look_at_the_accuracy_in_the_middle_of_an_epoch_leaves_the_network_in_training():
    """A GPU's kernel, cuDNN's, takes no gradient of a network in evaluation mode."""
    data = palindromes(0, 5, 1000)
    network = build("lstm", 16, "uniform", 0, 5)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    modes = []

    def look(step: int) -> None:
        evaluate(network, data.validation)
        modes.append(network.training)

    train_epoch(network, optimizer, data.train, torch.arange(800), 400, after_step=look)
    assert modes == [True, True]


@pytest.mark.parametrize("cell", CELLS)
def test_a_network_learns_to_remember_the_first_digit(cell):
    data = palindromes(0, 3, 5000)
    network = build(cell, 64, "uniform", 0, 3)
    optimizer = torch.optim.Adam(network.parameters(), lr=0.005)
    for epoch in range(8):
        order = torch.randperm(len(data.train), generator=generator("order", epoch))
        train_epoch(network, optimizer, data.train, order, batch_size=64)
    _, accuracy = evaluate(network, data.validation)
    assert accuracy > 0.99
