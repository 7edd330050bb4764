"""The LSTM and the vanilla RNN of the report (section 1.1), their starts, an epoch of training.

    network = build("lstm", hidden=128, start="uniform", seed=0, length=20)
    optimizer = torch.optim.Adam(network.parameters(), lr=0.001, fused=True)
    loss = train_epoch(network, optimizer, data.train, order, batch_size=128)
    loss, accuracy = evaluate(network, data.validation)

Each cell stands here twice, over the same parameters: written out as its equations, to read and to
test against, and as torch's native kernel (oneDNN on a CPU, cuDNN on a GPU), to train with.
A new cell is a class like the two below, and a line in CELLS.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.palindromes import Sequences
from models.randomness import generator

DIGITS = 10  # d_out of the report


class RecurrentNetwork(nn.Module):
    """A cell that reads one digit a step, and a prediction layer on its last hidden state.

    A subclass sets `recurrent`, torch's native cell, and writes the same cell out in `equations`.
    """

    starts: tuple[str, ...] = ("uniform", "orthogonal")
    recurrent: nn.RNNBase

    def __init__(self, hidden: int):
        super().__init__()
        self.prediction = nn.Linear(hidden, DIGITS)  # W_ph, b_p

    def forward(self, digits: Tensor, written_out: bool = False) -> Tensor:
        """Returns p, the logits of the last digit; y~ = softmax(p) are its probabilities.

        Args:
            digits: (batch, length), read as scalars (d_in = 1).
            written_out: compute by the equations, one step at a time, not by the native kernel.

        Returns:
            (batch, 10)
        """
        x = digits.T.unsqueeze(2).to(self.prediction.weight.dtype)  # (length, batch, 1)
        h = self.equations(x) if written_out else self.native(x)  # (batch, hidden)
        return self.prediction(h)

    def native(self, x: Tensor) -> Tensor:
        outputs, _ = self.recurrent(x)  # (length, batch, hidden)
        return outputs[-1]

    def equations(self, x: Tensor) -> Tensor:
        raise NotImplementedError


class LSTM(RecurrentNetwork):
    """Long short-term memory (Hochreiter & Schmidhuber 1997, with the forget gate of Gers 2000)."""

    starts = ("uniform", "orthogonal", "chrono")

    def __init__(self, hidden: int = 128):
        super().__init__(hidden)
        self.recurrent = nn.LSTM(1, hidden)

    def equations(self, x: Tensor) -> Tensor:
        cell = self.recurrent
        # torch keeps the four gates' parameters one below the other, in the order i, f, g, o.
        W_ix, W_fx, W_gx, W_ox = cell.weight_ih_l0.chunk(4)  # each (hidden, 1)
        W_ih, W_fh, W_gh, W_oh = cell.weight_hh_l0.chunk(4)  # each (hidden, hidden)
        b_i, b_f, b_g, b_o = (cell.bias_ih_l0 + cell.bias_hh_l0).chunk(4)  # each (hidden,)

        h = c = x.new_zeros(x.shape[1], cell.hidden_size)  # (batch, hidden)
        for x_t in x:  # (batch, 1)
            g = torch.tanh(x_t @ W_gx.T + h @ W_gh.T + b_g)
            i = torch.sigmoid(x_t @ W_ix.T + h @ W_ih.T + b_i)
            f = torch.sigmoid(x_t @ W_fx.T + h @ W_fh.T + b_f)
            o = torch.sigmoid(x_t @ W_ox.T + h @ W_oh.T + b_o)
            c = g * i + c * f
            h = torch.tanh(c) * o
        return h


class RNN(RecurrentNetwork):
    """The vanilla recurrent network (Elman 1990)."""

    def __init__(self, hidden: int = 128):
        super().__init__(hidden)
        self.recurrent = nn.RNN(1, hidden)

    def equations(self, x: Tensor) -> Tensor:
        cell = self.recurrent
        W_hx, W_hh = cell.weight_ih_l0, cell.weight_hh_l0  # (hidden, 1), (hidden, hidden)
        b_h = cell.bias_ih_l0 + cell.bias_hh_l0  # (hidden,)

        h = x.new_zeros(x.shape[1], cell.hidden_size)  # (batch, hidden)
        for x_t in x:  # (batch, 1)
            h = torch.tanh(x_t @ W_hx.T + h @ W_hh.T + b_h)
        return h


CELLS: dict[str, type[RecurrentNetwork]] = {"lstm": LSTM, "rnn": RNN}


def build(cell: str, hidden: int, start: str, seed: int, length: int) -> RecurrentNetwork:
    """Returns a network whose parameters are drawn from `seed`.

    Starts:
        uniform: every parameter from U(-1/sqrt(hidden), 1/sqrt(hidden)), PyTorch's default.
        orthogonal: as uniform, but each recurrent matrix is orthogonal, so that at first neither
            the hidden state nor its gradient grows or dies (Saxe et al. 2014, Le et al. 2015).
        chrono: as uniform, but b_f ~ log U(1, length - 1) and b_i = -b_f, so that the memory cells
            start with time scales up to `length` (Tallec & Ollivier 2018, equation 16). LSTM only.

    Raises:
        ValueError: the cell is unknown or does not have that start.
    """
    if cell not in CELLS:
        raise ValueError(f"cell {cell!r} is unknown: it is one of {', '.join(CELLS)}")
    if start not in CELLS[cell].starts:
        raise ValueError(f"the {cell} has no start {start!r}: {', '.join(CELLS[cell].starts)}")
    network = CELLS[cell](hidden)
    random = generator(seed, "start", cell)
    bound = 1 / math.sqrt(hidden)
    for parameter in network.parameters():
        nn.init.uniform_(parameter, -bound, bound, generator=random)
    with torch.no_grad():
        if start == "orthogonal":
            for matrix in network.recurrent.weight_hh_l0.split(hidden):  # one for each gate
                matrix.copy_(nn.init.orthogonal_(torch.empty(hidden, hidden), generator=random))
        if start == "chrono":
            time_scales = torch.empty(hidden).uniform_(1, max(length - 1, 1), generator=random)
            # torch adds up two biases: the one holds the value, the other's part is zero.
            b_i, b_f, *_ = network.recurrent.bias_ih_l0.chunk(4)
            b_f.copy_(time_scales.log())
            b_i.copy_(-b_f)
            network.recurrent.bias_hh_l0[: 2 * hidden] = 0
    return network


def train_epoch(
    network: RecurrentNetwork,
    optimizer: torch.optim.Optimizer,
    data: Sequences,
    order: Tensor,
    batch_size: int,
    clip: float | None = None,
) -> float:
    """Trains on `data` once, in `order`, and returns the mean cross entropy (nats) over the epoch.

    Args:
        order: (samples,) the order of the sequences; those that fill no batch are left out.
        clip: the gradient's largest norm, or None for any.
    """
    network.train()
    steps = len(order) // batch_size
    total = torch.zeros((), device=order.device)
    for batch in order[: steps * batch_size].view(steps, batch_size):
        loss = F.cross_entropy(network(data.digits[batch]), data.targets[batch])
        optimizer.zero_grad()
        loss.backward()
        if clip is not None:
            nn.utils.clip_grad_norm_(network.parameters(), clip)
        optimizer.step()
        total += loss.detach()  # read once an epoch: reading a GPU's number waits for the GPU
    return (total / steps).item()


@torch.inference_mode()
def predict(network: RecurrentNetwork, data: Sequences, batch_size: int = 500) -> Tensor:
    """Returns the logits of every sequence of `data`, (samples, 10)."""
    network.eval()
    return torch.cat([network(digits) for digits in data.digits.split(batch_size)])


def evaluate(network: RecurrentNetwork, data: Sequences) -> tuple[float, float]:
    """Returns the mean cross entropy (nats) and the accuracy (0 to 1) on `data`."""
    p = predict(network, data)
    accuracy = (p.argmax(1) == data.targets).double().mean()
    return F.cross_entropy(p, data.targets).item(), accuracy.item()
