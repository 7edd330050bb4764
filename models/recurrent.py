"""Recurrent cells (LSTM, RNN, GRU) and their initializations.

    network = build("lstm", hidden_size=128, init="uniform", seed=0, length=20)
    logits = network(digits)  # (batch, 20) -> (batch, 10)

Each cell is here twice, over the same parameters: as its equations, to read and to test against,
and as torch's native cell (cuDNN on a GPU; on a CPU, oneDNN for an LSTM), to train with.

A new cell is one class like those below: decorated with @register("name"), with torch's class in
`rnn_class`, its initializations in `initializers`, and its equations in `step`.
"""

import math
from collections.abc import Callable, Iterator
from typing import ClassVar, Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.rng import make_rng

NUM_CLASSES = 10  # d_out of the report
DIGIT_MEAN, DIGIT_STD = 4.5, math.sqrt(8.25)  # of a digit that is uniform on 0 ... 9

# raw: the digit as one number (d_in = 1, as in the report). standardized: that number minus
# DIGIT_MEAN, divided by DIGIT_STD. one-hot: ten numbers, one of which is 1.
InputEncoding = Literal["raw", "standardized", "one-hot"]
INPUT_ENCODINGS = get_args(InputEncoding)


class CellParameters(NamedTuple):
    """The parameters of a layer's cell as torch has them: those of its gates are stacked."""

    weight_ih: Tensor  # (gates * hidden_size, d_in)
    weight_hh: Tensor  # (gates * hidden_size, hidden_size)
    bias_ih: Tensor  # (gates * hidden_size,)
    bias_hh: Tensor  # (gates * hidden_size,), which torch adds to bias_ih

    @property
    def hidden_size(self) -> int:
        return self.weight_hh.shape[1]


# Modifies a network whose parameters are already sampled uniformly: (network, length, rng).
Initializer = Callable[["RecurrentNetwork", int, torch.Generator], None]


def uniform(network: "RecurrentNetwork", length: int, rng: torch.Generator) -> None:
    """Every parameter from U(-1/sqrt(hidden_size), 1/sqrt(hidden_size)), PyTorch's default."""


def orthogonal(network: "RecurrentNetwork", length: int, rng: torch.Generator) -> None:
    """As uniform, with orthogonal recurrent matrices (Saxe et al. 2014, Le et al. 2015).

    Initially neither the hidden state nor its gradient grows or vanishes in the linear regime.
    """
    for cell in network.cells:
        for matrix in cell.weight_hh.split(cell.hidden_size):  # one for each gate
            matrix.copy_(nn.init.orthogonal_(torch.empty(matrix.shape), generator=rng))


def identity(network: "RecurrentNetwork", length: int, rng: torch.Generator) -> None:
    """As uniform, with an identity recurrent matrix and b_h = 0 (Le et al. 2015, with ReLU)."""
    for cell in network.cells:
        nn.init.eye_(cell.weight_hh)
        nn.init.zeros_(cell.bias_ih)
        nn.init.zeros_(cell.bias_hh)


def keras(network: "RecurrentNetwork", length: int, rng: torch.Generator) -> None:
    """Keras's default: Glorot-uniform input weights, orthogonal recurrent weights, zero biases.

    As in Keras, both apply to the stacked matrix of all gates: the columns of the recurrent one are
    orthonormal, the matrix of a single gate is not orthogonal.
    """
    for cell in network.cells:
        nn.init.xavier_uniform_(cell.weight_ih, generator=rng)
        nn.init.orthogonal_(cell.weight_hh, generator=rng)
        nn.init.zeros_(cell.bias_ih)
        nn.init.zeros_(cell.bias_hh)
    nn.init.xavier_uniform_(network.head.weight, generator=rng)
    nn.init.zeros_(network.head.bias)


def lstm_keras(network: "RecurrentNetwork", length: int, rng: torch.Generator) -> None:
    """As keras, with b_f = 1."""
    keras(network, length, rng)
    lstm_forget_bias(network, length, rng)


def lstm_forget_bias(network: "RecurrentNetwork", length: int, rng: torch.Generator) -> None:
    """As uniform, with b_f = 1 (Gers et al. 2000, Jozefowicz et al. 2015)."""
    for cell in network.cells:
        forget_gate = slice(cell.hidden_size, 2 * cell.hidden_size)
        cell.bias_ih[forget_gate] = 1
        cell.bias_hh[forget_gate] = 0


def lstm_chrono(network: "RecurrentNetwork", length: int, rng: torch.Generator) -> None:
    """As uniform, with b_f ~ log U(1, length - 1), b_i = -b_f (Tallec & Ollivier 2018, eq. 16).

    The time scales of the memory cells are then spread up to `length`.
    """
    for cell in network.cells:
        b_i, b_f, *_ = cell.bias_ih.chunk(4)
        b_f.copy_(_chrono_bias(cell.hidden_size, length, rng))
        b_i.copy_(-b_f)
        cell.bias_hh[: 2 * cell.hidden_size] = 0


def gru_chrono(network: "RecurrentNetwork", length: int, rng: torch.Generator) -> None:
    """As uniform, with b_z ~ log U(1, length - 1): PyTorch's update gate z keeps the old state.

    After Tallec & Ollivier 2018, whose gate lets the new state in: it is 1 - z.
    """
    for cell in network.cells:
        update_gate = slice(cell.hidden_size, 2 * cell.hidden_size)
        cell.bias_ih[update_gate] = _chrono_bias(cell.hidden_size, length, rng)
        cell.bias_hh[update_gate] = 0


def _chrono_bias(hidden_size: int, length: int, rng: torch.Generator) -> Tensor:
    return torch.empty(hidden_size).uniform_(1, max(length - 1, 1), generator=rng).log()


class RecurrentNetwork(nn.Module):
    """Layers of a cell that read one input per step, and a linear head on the last hidden state.

    A subclass names torch's native cell in `rnn_class` and its initializations in `initializers`,
    and writes the same cell as equations in `step`.
    """

    rnn_class: ClassVar[type[nn.LSTM | nn.RNN | nn.GRU]]
    initializers: ClassVar[dict[str, Initializer]] = {
        "uniform": uniform,
        "orthogonal": orthogonal,
        "keras": keras,
    }
    state_names: ClassVar[tuple[str, ...]] = ("h",)  # what a step hands to the next one

    def __init__(
        self,
        hidden_size: int = 128,
        input_encoding: str = "raw",
        num_layers: int = 1,
        num_outputs: int = NUM_CLASSES,
    ):
        super().__init__()
        self.input_encoding = input_encoding
        # Parameters are sampled in the order of registration: the head comes first.
        self.head = nn.Linear(hidden_size, num_outputs)  # W_ph, b_p
        input_size = NUM_CLASSES if input_encoding == "one-hot" else 1
        self.rnn = self.rnn_class(input_size, hidden_size, num_layers)

    @property
    def cells(self) -> list[CellParameters]:
        """Returns the parameters of each layer, the one that reads the input first."""
        return [CellParameters(*parameters) for parameters in self.rnn.all_weights]

    def forward(self, inputs: Tensor, reference: bool = False) -> Tensor:
        """Returns the prediction after the last step.

        Of palindromes, it is the logits of the last digit (p in the report; y~ = softmax(p)).

        Args:
            inputs: (batch, length)
            reference: compute by the equations, one step at a time, not by the native kernel.

        Returns:
            (batch, num_outputs)
        """
        x = self.encode(inputs)  # (length, batch, d_in)
        if reference:
            *_, last = self.unroll(x)
            return self.head(last[-1]["h"])
        outputs, _ = self.rnn(x)  # (length, batch, hidden_size)
        return self.head(outputs[-1])

    def encode(self, inputs: Tensor) -> Tensor:
        """Encodes inputs for the first layer: (batch, length) -> (length, batch, d_in)."""
        dtype = self.head.weight.dtype
        if self.input_encoding == "one-hot":
            return F.one_hot(inputs.T.long(), NUM_CLASSES).to(dtype)
        x = inputs.T.unsqueeze(2).to(dtype)
        return (x - DIGIT_MEAN) / DIGIT_STD if self.input_encoding == "standardized" else x

    def unroll(self, x: Tensor) -> Iterator[list[dict[str, Tensor]]]:
        """Yields the state of each layer: the initial one, then after each step.

        A state has the report's symbols as keys; each value is (batch, hidden_size).

        Args:
            x: (length, batch, d_in)
        """
        layers = [
            {name: x.new_zeros(x.shape[1], cell.hidden_size) for name in self.state_names}
            for cell in self.cells
        ]
        yield layers
        for inputs in x:
            after: list[dict[str, Tensor]] = []
            for cell, state in zip(self.cells, layers, strict=True):
                after.append(self.step(cell, after[-1]["h"] if after else inputs, state))
            layers = after
            yield layers

    def step(self, cell: CellParameters, x: Tensor, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Returns the state of a layer after a step, by the report's symbols.

        Args:
            cell: the parameters of the layer.
            x: (batch, d_in), the input; of a higher layer, h of the layer below.
            state: of the layer before the step; each (batch, hidden_size).
        """
        raise NotImplementedError


CELLS: dict[str, type[RecurrentNetwork]] = {}


def register(name: str) -> Callable[[type[RecurrentNetwork]], type[RecurrentNetwork]]:
    """Adds a cell to CELLS: to the flag --cells, the tests and the figures."""

    def add(cell: type[RecurrentNetwork]) -> type[RecurrentNetwork]:
        CELLS[name] = cell
        return cell

    return add


@register("lstm")
class LSTM(RecurrentNetwork):
    """Long short-term memory (Hochreiter & Schmidhuber 1997; forget gate: Gers et al. 2000)."""

    rnn_class = nn.LSTM
    initializers: ClassVar = {
        **RecurrentNetwork.initializers,
        "forget_bias": lstm_forget_bias,
        "chrono": lstm_chrono,
        "keras": lstm_keras,
    }
    state_names = ("h", "c")

    def step(self, cell: CellParameters, x: Tensor, state: dict[str, Tensor]) -> dict[str, Tensor]:
        # Torch's order of the gates is i, f, g, o.
        W_ix, W_fx, W_gx, W_ox = cell.weight_ih.chunk(4)  # each (hidden_size, d_in)
        W_ih, W_fh, W_gh, W_oh = cell.weight_hh.chunk(4)  # each (hidden_size, hidden_size)
        b_i, b_f, b_g, b_o = (cell.bias_ih + cell.bias_hh).chunk(4)  # each (hidden_size,)
        h, c = state["h"], state["c"]
        g = torch.tanh(x @ W_gx.T + h @ W_gh.T + b_g)
        i = torch.sigmoid(x @ W_ix.T + h @ W_ih.T + b_i)
        f = torch.sigmoid(x @ W_fx.T + h @ W_fh.T + b_f)
        o = torch.sigmoid(x @ W_ox.T + h @ W_oh.T + b_o)
        c = g * i + c * f
        h = torch.tanh(c) * o
        return {"h": h, "c": c, "f": f}


@register("rnn")
class RNN(RecurrentNetwork):
    """The vanilla recurrent network (Elman 1990)."""

    rnn_class = nn.RNN
    initializers: ClassVar = {**RecurrentNetwork.initializers, "identity": identity}

    def step(self, cell: CellParameters, x: Tensor, state: dict[str, Tensor]) -> dict[str, Tensor]:
        W_hx, W_hh = cell.weight_ih, cell.weight_hh  # (hidden_size, d_in), (…, hidden_size)
        b_h = cell.bias_ih + cell.bias_hh  # (hidden_size,)
        return {"h": torch.tanh(x @ W_hx.T + state["h"] @ W_hh.T + b_h)}


@register("gru")
class GRU(RecurrentNetwork):
    """Gated recurrent unit (Cho et al. 2014).

    In PyTorch's variant, which applies the reset gate after the recurrent product.
    """

    rnn_class = nn.GRU
    initializers: ClassVar = {**RecurrentNetwork.initializers, "chrono": gru_chrono}

    def step(self, cell: CellParameters, x: Tensor, state: dict[str, Tensor]) -> dict[str, Tensor]:
        # Torch's order of the gates is r, z, n.
        W_rx, W_zx, W_nx = cell.weight_ih.chunk(3)  # each (hidden_size, d_in)
        W_rh, W_zh, W_nh = cell.weight_hh.chunk(3)  # each (hidden_size, hidden_size)
        b_rx, b_zx, b_nx = cell.bias_ih.chunk(3)  # each (hidden_size,)
        b_rh, b_zh, b_nh = cell.bias_hh.chunk(3)
        h = state["h"]
        r = torch.sigmoid(x @ W_rx.T + b_rx + h @ W_rh.T + b_rh)
        z = torch.sigmoid(x @ W_zx.T + b_zx + h @ W_zh.T + b_zh)
        n = torch.tanh(x @ W_nx.T + b_nx + r * (h @ W_nh.T + b_nh))
        return {"h": (1 - z) * n + z * h}


INIT_NAMES = tuple(dict.fromkeys(name for cell in CELLS.values() for name in cell.initializers))


def check_init(cell: str, init: str) -> None:
    """Raises ValueError if the cell is unknown or does not have that initialization."""
    if cell not in CELLS:
        raise ValueError(f"unknown cell {cell!r}: choose from {', '.join(CELLS)}")
    names = CELLS[cell].initializers
    if init not in names:
        raise ValueError(f"unknown init {init!r} of the {cell}: choose from {', '.join(names)}")


def build(
    cell: str,
    hidden_size: int,
    init: str,
    seed: int,
    length: int,
    input_encoding: str = "raw",
    num_layers: int = 1,
    num_outputs: int = NUM_CLASSES,
) -> RecurrentNetwork:
    """Returns a network whose parameters are sampled with `seed`.

    Args:
        cell: a key of CELLS.
        init: a key of the cell's `initializers`, whose docstrings say what each one is.
        length: sequence length, which chrono initialization depends on.
        input_encoding: one of INPUT_ENCODINGS.
        num_outputs: size of a prediction.

    Raises:
        ValueError: the cell, the initialization or the input encoding is unknown.
    """
    check_init(cell, init)
    if input_encoding not in INPUT_ENCODINGS:
        choices = ", ".join(INPUT_ENCODINGS)
        raise ValueError(f"unknown input encoding {input_encoding!r}: choose from {choices}")
    network = CELLS[cell](hidden_size, input_encoding, num_layers, num_outputs)
    rng = make_rng(seed, "start", cell)
    bound = 1 / math.sqrt(hidden_size)
    for parameter in network.parameters():
        nn.init.uniform_(parameter, -bound, bound, generator=rng)
    with torch.no_grad():
        network.initializers[init](network, length, rng)
    return network
