import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from models.palindromes import palindromes
from models.recurrent import CELLS, INPUT_ENCODINGS, build
from models.recurrent_training import evaluate, lr_multiplier, predict, should_stop, train_epoch
from models.rng import make_rng
from models.tasks import TASKS

TASK = TASKS["palindrome"]


@pytest.mark.parametrize(("length", "batch_size"), [(1, 1), (2, 128), (7, 1), (35, 128)])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-5)])
@pytest.mark.parametrize(
    ("input_encoding", "num_layers"), [*((name, 1) for name in INPUT_ENCODINGS), ("raw", 3)]
)
@pytest.mark.parametrize("cell", CELLS)
def test_equations_and_native_kernel_match_torch_modules(
    cell, input_encoding, num_layers, dtype, tolerance, length, batch_size
):
    """Compares the logits and the gradients of all parameters."""
    network = build(cell, 128, "uniform", length, length, input_encoding, num_layers).to(dtype)
    digits = torch.randint(10, (batch_size, length), generator=make_rng("digits"))
    targets = torch.randint(10, (batch_size,), generator=make_rng("targets"))
    x = network.encode(digits)  # (length, batch_size, d_in)
    twin = nn.ModuleDict(
        {"rnn": CELLS[cell].rnn_class(x.shape[2], 128, num_layers), "head": nn.Linear(128, 10)}
    )
    twin.to(dtype).load_state_dict(network.state_dict())

    def logits_and_gradients(module, logits):
        gradients = torch.autograd.grad(F.cross_entropy(logits, targets), list(module.parameters()))
        names = [name for name, _ in module.named_parameters()]
        return {"logits": logits.detach(), **dict(zip(names, gradients, strict=True))}

    outputs, _ = twin["rnn"](x)
    expected = logits_and_gradients(twin, twin["head"](outputs[-1]))
    for reference in (True, False):
        actual = logits_and_gradients(network, network(digits, reference=reference))
        torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)


def test_input_encodings():
    digits = torch.arange(20, dtype=torch.uint8).view(2, 10) % 10  # (batch, length)
    encoded = {
        name: build("rnn", 4, "uniform", 0, 5, name).double().encode(digits)
        for name in INPUT_ENCODINGS
    }
    assert {name: tuple(x.shape) for name, x in encoded.items()} == {
        "raw": (10, 2, 1),
        "standardized": (10, 2, 1),
        "one-hot": (10, 2, 10),
    }
    for sequence in range(2):
        x = {name: x[:, sequence] for name, x in encoded.items()}  # each (length, d_in)
        assert x["raw"].flatten().tolist() == list(range(10))
        assert x["standardized"].mean().item() == pytest.approx(0, abs=1e-12)
        assert x["standardized"].square().mean().item() == pytest.approx(1)
        assert torch.equal(x["one-hot"], torch.eye(10, dtype=torch.float64))


@pytest.mark.parametrize("cell", CELLS)
def test_uniform_init_has_torchs_default_bound(cell):
    network = build(cell, hidden_size=64, init="uniform", seed=0, length=5)
    bound = 1 / math.sqrt(64)
    for parameter in network.parameters():
        assert 0.7 * bound < parameter.abs().max() <= bound


@pytest.mark.parametrize("cell", CELLS)
def test_orthogonal_init_makes_each_recurrent_matrix_orthogonal(cell):
    network = build(cell, hidden_size=32, init="orthogonal", seed=0, length=5)
    for matrix in network.cells[0].weight_hh.split(32):  # one for each gate
        torch.testing.assert_close(matrix @ matrix.T, torch.eye(32), rtol=0, atol=1e-5)


@pytest.mark.parametrize("cell", CELLS)
def test_keras_init_has_the_default_bounds_of_keras(cell):
    """GlorotUniform, Orthogonal (of all gates together) and zeros; an LSTM's forget bias is 1."""
    network = build(cell, 32, "keras", 0, 5, num_layers=2, num_outputs=1)
    gates = network.cells[0].weight_hh.shape[0]  # gates * hidden_size
    bounds = [math.sqrt(6 / (d_in + gates)) for d_in in (1, 32)]
    for layer, bound in zip(network.cells, bounds, strict=True):
        assert 0.9 * bound < layer.weight_ih.abs().max() <= bound
        gram = layer.weight_hh.T @ layer.weight_hh
        torch.testing.assert_close(gram, torch.eye(32), rtol=0, atol=1e-5)
        bias = layer.bias_ih + layer.bias_hh
        expected = torch.zeros_like(bias)
        if cell == "lstm":
            expected[32:64] = 1
        assert torch.equal(bias, expected)
    assert 0.8 * math.sqrt(6 / 33) < network.head.weight.abs().max() <= math.sqrt(6 / 33)
    assert not network.head.bias.any()


@pytest.mark.parametrize(
    ("cell", "init"), [(name, init) for name, cell in CELLS.items() for init in cell.initializers]
)
def test_init_treats_all_layers_alike(cell, init):
    """A matrix of constants, a bias: in every layer or in none."""
    first, second = build(cell, 16, init, 0, 50, num_layers=2).cells
    for name in ("weight_hh", "bias_ih", "bias_hh"):
        gates = [getattr(layer, name).split(16) for layer in (first, second)]
        for one, other in zip(*gates, strict=True):
            assert (one.unique().numel() == 1) == (other.unique().numel() == 1), name
    norms = [layer.weight_hh.norm().item() for layer in (first, second)]
    assert norms[0] == pytest.approx(norms[1], rel=0.15)


def test_identity_init_copies_hidden_state():
    cell = build("rnn", 32, "identity", 0, 5).cells[0]
    assert torch.equal(cell.weight_hh, torch.eye(32))
    assert not (cell.bias_ih + cell.bias_hh).any()


def lstm_gate_biases(init: str, hidden_size: int, length: int) -> tuple[torch.Tensor, ...]:
    """Returns the biases of the gates i, f, g, o, each (hidden_size,)."""
    cell = build("lstm", hidden_size, init, 0, length).cells[0]
    return (cell.bias_ih + cell.bias_hh).chunk(4)


def test_forget_bias_init_sets_only_the_forget_gate():
    uniform = lstm_gate_biases("uniform", 32, 5)
    for gate, bias, default in zip(
        "ifgo", lstm_gate_biases("forget_bias", 32, 5), uniform, strict=True
    ):
        assert torch.equal(bias, torch.ones(32) if gate == "f" else default)


def test_chrono_init_spreads_time_scales_up_to_length():
    b_i, b_f, b_g, b_o = lstm_gate_biases("chrono", 512, 50)
    assert torch.equal(b_i, -b_f)
    time_scales = b_f.exp()
    assert time_scales.min() >= 1
    assert time_scales.max() <= 49
    assert abs(time_scales.mean() - 25) < 3  # of U(1, 49); its standard error here is 0.6
    *_, default_g, default_o = lstm_gate_biases("uniform", 512, 50)
    assert torch.equal(b_g, default_g)
    assert torch.equal(b_o, default_o)


def test_chrono_init_of_the_gru_keeps_its_state_for_up_to_length():
    """Without weights, a unit keeps a fraction of T / (1 + T) per step; T is its time scale."""
    network, default = (build("gru", 512, init, 3, 50) for init in ("chrono", "uniform"))
    bias = network.cells[0].bias_ih + network.cells[0].bias_hh
    time_scales = bias[512:1024].exp()
    assert time_scales.min() >= 1
    assert time_scales.max() <= 49
    assert abs(time_scales.mean() - 25) < 3  # of U(1, 49); its standard error here is 0.6
    others = torch.cat([torch.arange(512), torch.arange(1024, 1536)])
    for bias, default_bias in zip(network.cells[0][2:], default.cells[0][2:], strict=True):
        assert torch.equal(bias[others], default_bias[others])

    for parameter in (network.cells[0].weight_ih, network.cells[0].weight_hh):
        nn.init.zeros_(parameter)
    h = torch.ones(1, 1, 512)
    _, after = network.rnn(torch.zeros(1, 1, 1), h)
    reset = torch.sigmoid(network.cells[0].bias_ih[:512] + network.cells[0].bias_hh[:512])
    n = torch.tanh(network.cells[0].bias_ih[1024:] + reset * network.cells[0].bias_hh[1024:])
    kept = ((after - n) / (h - n)).flatten()
    torch.testing.assert_close(kept, time_scales / (1 + time_scales))


@pytest.mark.parametrize(
    ("cell", "init"), [(name, init) for name, cell in CELLS.items() for init in cell.initializers]
)
def test_seed_determines_every_parameter(cell, init):
    first, again, other = (build(cell, 16, init, seed, 9).state_dict() for seed in (1, 1, 2))
    torch.testing.assert_close(again, first, rtol=0, atol=0)
    # An initialization may set the recurrent matrix and the biases to constants, uniform none.
    sampled = first if init == "uniform" else ["head.weight", "rnn.weight_ih_l0"]
    if init not in ("uniform", "keras"):
        sampled.append("head.bias")
    for name in sampled:
        assert not torch.equal(first[name], other[name]), name


@pytest.mark.parametrize(
    ("cell", "init", "input_encoding", "message"),
    [
        ("transformer", "uniform", "raw", "unknown cell 'transformer': choose from .*lstm"),
        ("rnn", "chrono", "raw", "unknown init 'chrono' of the rnn: choose from uniform"),
        ("lstm", "he", "raw", "unknown init 'he' of the lstm: choose from uniform"),
        ("lstm", "uniform", "two-hot", "unknown input encoding 'two-hot': choose from raw"),
    ],
)
def test_build_rejects_unknown_names(cell, init, input_encoding, message):
    with pytest.raises(ValueError, match=message):
        build(cell, 8, init, 0, 5, input_encoding)


def test_lr_multiplier_warms_up_linearly_and_decays_by_half_a_cosine():
    warmup = [lr_multiplier(step, 100, 4, "constant") for step in (0, 1, 3, 4, 99)]
    assert warmup == [0.25, 0.5, 1, 1, 1]
    cosine = [lr_multiplier(step, 100, 0, "cosine") for step in (0, 25, 50, 100)]
    assert cosine == pytest.approx([1, (1 + math.sqrt(0.5)) / 2, 0.5, 0])
    both = lr_multiplier(1, 100, 10, "cosine")
    assert both == pytest.approx(0.2 * lr_multiplier(1, 100, 0, "cosine"))


@pytest.mark.parametrize(
    ("accuracies", "solved_epochs", "expected"),
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
def test_training_stops_after_its_epochs_or_enough_solved_ones(accuracies, solved_epochs, expected):
    history = [{"val_accuracy": accuracy} for accuracy in accuracies]
    assert should_stop(history, 5, solved_epochs, TASK) is expected


@pytest.mark.parametrize("losses", [(math.nan, 1.0), (1.0, math.nan), (math.inf, 1.0)])
def test_training_stops_when_it_has_diverged(losses):
    row = dict(zip(("train_loss", "val_loss"), losses, strict=True)) | {"val_accuracy": 0.1}
    assert should_stop([row], 5, None, TASK)
    assert not should_stop([{**row, "train_loss": 1.0, "val_loss": 1.0}], 5, None, TASK)


def test_train_epoch_matches_a_plain_training_loop():
    data = palindromes(0, 6, 400).train
    perm = torch.randperm(len(data), generator=make_rng("perm"))
    network, expected = (build("lstm", 16, "uniform", 0, 6) for _ in range(2))
    optimizer = torch.optim.SGD(network.parameters(), lr=0.5)
    steps = []
    loss = train_epoch(network, optimizer, TASK, data, perm, 100, 0.1, after_step=steps.append)
    assert steps == [1, 2, 3]  # 320 sequences: three complete batches

    optimizer, losses = torch.optim.SGD(expected.parameters(), lr=0.5), []
    for batch in perm[:300].split(100):
        batch_loss = F.cross_entropy(expected(data.inputs[batch]), data.targets[batch])
        optimizer.zero_grad()
        batch_loss.backward()
        norm = nn.utils.clip_grad_norm_(expected.parameters(), 0.1)
        assert norm > 0.1  # so clipping has an effect
        optimizer.step()
        losses.append(batch_loss.item())
    assert loss == pytest.approx(sum(losses) / 3, rel=1e-6)
    torch.testing.assert_close(network.state_dict(), expected.state_dict(), rtol=0, atol=0)


def test_evaluation_covers_every_sequence_at_any_batch_size():
    data = palindromes(0, 5, 1000).validation
    network = build("rnn", 16, "uniform", 0, 5)
    torch.testing.assert_close(predict(network, data, 7), predict(network, data, 1000))
    metrics = evaluate(network, TASK, data)
    logits = network(data.inputs)
    expected = F.cross_entropy(logits, data.targets).item()
    assert metrics["loss"] == pytest.approx(expected, rel=1e-5)
    assert metrics["accuracy"] == (logits.argmax(1) == data.targets).sum().item() / 200


def test_evaluation_within_an_epoch_keeps_training_mode():
    """cuDNN, the kernel on a GPU, computes no gradient of a network in evaluation mode."""
    data = palindromes(0, 5, 1000)
    network = build("lstm", 16, "uniform", 0, 5)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    modes = []

    def evaluate_after_step(step: int) -> None:
        evaluate(network, TASK, data.validation)
        modes.append(network.training)

    perm = torch.arange(800)
    train_epoch(network, optimizer, TASK, data.train, perm, 400, after_step=evaluate_after_step)
    assert modes == [True, True]


@pytest.mark.parametrize("cell", CELLS)
def test_training_solves_short_palindromes(cell):
    data = palindromes(0, 3, 5000)
    network = build(cell, 64, "uniform", 0, 3)
    optimizer = torch.optim.Adam(network.parameters(), lr=0.005)
    for epoch in range(8):
        perm = torch.randperm(len(data.train), generator=make_rng("perm", epoch))
        train_epoch(network, optimizer, TASK, data.train, perm, batch_size=64)
    assert evaluate(network, TASK, data.validation)["accuracy"] > 0.99
