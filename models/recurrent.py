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
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.palindromes import Sequences
from models.randomness import generator

DIGITS = 10  # d_out of the report
MEAN, DEVIATION = 4.5, math.sqrt(8.25)  # of a digit that is any of the ten, equally often
HELD = 0.999  # validation accuracy of the epochs that `hold` counts

# How a network reads a digit: as the number that it is (d_in = 1, the report's), as that number
# less its mean, over its standard deviation, or as ten numbers of which one is 1.
INPUTS = ("digit", "standard", "one-hot")


class RecurrentNetwork(nn.Module):
    """A cell that reads one digit a step, and a prediction layer on its last hidden state.

    A subclass sets `recurrent`, torch's native cell, and writes the same cell out in `equations`.
    """

    starts: tuple[str, ...] = ("uniform", "orthogonal")
    native: type[nn.RNNBase]  # torch's class of the cell

    def __init__(self, hidden: int = 128, inputs: str = "digit"):
        super().__init__()
        self.inputs = inputs
        self.prediction = nn.Linear(hidden, DIGITS)  # W_ph, b_p
        self.recurrent = self.native(DIGITS if inputs == "one-hot" else 1, hidden)

    def forward(self, digits: Tensor, written_out: bool = False) -> Tensor:
        """Returns p, the logits of the last digit; y~ = softmax(p) are its probabilities.

        Args:
            digits: (batch, length)
            written_out: compute by the equations, one step at a time, not by the native kernel.

        Returns:
            (batch, 10)
        """
        x = self.read(digits)
        if written_out:
            *_, last = self.equations(x)
            return self.prediction(last["h"])
        outputs, _ = self.recurrent(x)  # (length, batch, hidden)
        return self.prediction(outputs[-1])

    def read(self, digits: Tensor) -> Tensor:
        """Returns digits (batch, length) as the cell reads them, (length, batch, d_in)."""
        dtype = self.prediction.weight.dtype
        if self.inputs == "one-hot":
            return F.one_hot(digits.T.long(), DIGITS).to(dtype)
        x = digits.T.unsqueeze(2).to(dtype)
        return (x - MEAN) / DEVIATION if self.inputs == "standard" else x

    def equations(self, x: Tensor) -> Iterator[dict[str, Tensor]]:
        """Yields the cell's state, by the report's symbols, at the start and after each step.

        Args:
            x: (length, batch, d_in)
        """
        raise NotImplementedError


class LSTM(RecurrentNetwork):
    """Long short-term memory (Hochreiter & Schmidhuber 1997, with the forget gate of Gers 2000)."""

    starts = ("uniform", "orthogonal", "forget", "chrono")
    native = nn.LSTM

    def equations(self, x: Tensor) -> Iterator[dict[str, Tensor]]:
        cell = self.recurrent
        # torch keeps the four gates' parameters one below the other, in the order i, f, g, o.
        W_ix, W_fx, W_gx, W_ox = cell.weight_ih_l0.chunk(4)  # each (hidden, d_in)
        W_ih, W_fh, W_gh, W_oh = cell.weight_hh_l0.chunk(4)  # each (hidden, hidden)
        b_i, b_f, b_g, b_o = (cell.bias_ih_l0 + cell.bias_hh_l0).chunk(4)  # each (hidden,)

        h, c = (x.new_zeros(x.shape[1], cell.hidden_size) for _ in range(2))  # (batch, hidden)
        yield {"h": h, "c": c}
        for x_t in x:  # (batch, d_in)
            g = torch.tanh(x_t @ W_gx.T + h @ W_gh.T + b_g)
            i = torch.sigmoid(x_t @ W_ix.T + h @ W_ih.T + b_i)
            f = torch.sigmoid(x_t @ W_fx.T + h @ W_fh.T + b_f)
            o = torch.sigmoid(x_t @ W_ox.T + h @ W_oh.T + b_o)
            c = g * i + c * f
            h = torch.tanh(c) * o
            yield {"h": h, "c": c, "f": f}


class RNN(RecurrentNetwork):
    """The vanilla recurrent network (Elman 1990)."""

    starts = ("uniform", "orthogonal", "identity")
    native = nn.RNN

    def equations(self, x: Tensor) -> Iterator[dict[str, Tensor]]:
        cell = self.recurrent
        W_hx, W_hh = cell.weight_ih_l0, cell.weight_hh_l0  # (hidden, d_in), (hidden, hidden)
        b_h = cell.bias_ih_l0 + cell.bias_hh_l0  # (hidden,)

        h = x.new_zeros(x.shape[1], cell.hidden_size)  # (batch, hidden)
        yield {"h": h}
        for x_t in x:  # (batch, d_in)
            h = torch.tanh(x_t @ W_hx.T + h @ W_hh.T + b_h)
            yield {"h": h}


CELLS: dict[str, type[RecurrentNetwork]] = {"lstm": LSTM, "rnn": RNN}


def build(
    cell: str, hidden: int, start: str, seed: int, length: int, inputs: str = "digit"
) -> RecurrentNetwork:
    """Returns a network whose parameters are drawn from `seed`.

    Starts:
        uniform: every parameter from U(-1/sqrt(hidden), 1/sqrt(hidden)), PyTorch's default.
        orthogonal: as uniform, but each recurrent matrix is orthogonal, so that at first neither
            the hidden state nor its gradient grows or dies (Saxe et al. 2014, Le et al. 2015).
        identity: as uniform, but the recurrent matrix is the identity and b_h is zero, after Le et
            al. (2015), who have it with rectified linear units. RNN only.
        forget: as uniform, but b_f = 1, the forget gates are open (Gers et al. 2000, Jozefowicz et
            al. 2015). LSTM only.
        chrono: as uniform, but b_f ~ log U(1, length - 1) and b_i = -b_f, so that the memory cells
            start with time scales up to `length` (Tallec & Ollivier 2018, equation 16). LSTM only.

    Raises:
        ValueError: the cell is unknown or does not have that start, or the inputs are unknown.
    """
    if cell not in CELLS:
        raise ValueError(f"cell {cell!r} is unknown: it is one of {', '.join(CELLS)}")
    if start not in CELLS[cell].starts:
        raise ValueError(f"the {cell} has no start {start!r}: {', '.join(CELLS[cell].starts)}")
    if inputs not in INPUTS:
        raise ValueError(f"inputs {inputs!r} are unknown: {', '.join(INPUTS)}")
    network = CELLS[cell](hidden, inputs)
    random = generator(seed, "start", cell)
    bound = 1 / math.sqrt(hidden)
    for parameter in network.parameters():
        nn.init.uniform_(parameter, -bound, bound, generator=random)
    with torch.no_grad():
        if start == "orthogonal":
            for matrix in network.recurrent.weight_hh_l0.split(hidden):  # one for each gate
                matrix.copy_(nn.init.orthogonal_(torch.empty(hidden, hidden), generator=random))
        # torch adds up two biases: the one holds the value, the other's part is zero.
        biases, others = network.recurrent.bias_ih_l0, network.recurrent.bias_hh_l0
        if start == "identity":
            nn.init.eye_(network.recurrent.weight_hh_l0)
            biases.zero_()
            others.zero_()
        if start == "forget":
            biases[hidden : 2 * hidden] = 1
            others[hidden : 2 * hidden] = 0
        if start == "chrono":
            time_scales = torch.empty(hidden).uniform_(1, max(length - 1, 1), generator=random)
            b_i, b_f, *_ = biases.chunk(4)
            b_f.copy_(time_scales.log())
            b_i.copy_(-b_f)
            others[: 2 * hidden] = 0
    return network


def learning_rate(step: int, steps: int, warmup: int, decay: str) -> float:
    """Returns the share of the learning rate at a step, from 0 on, of a training of `steps`.

    Args:
        warmup: steps in which it rises evenly from nothing.
        decay: cosine, half of its wave from 1 to 0 (Loshchilov & Hutter 2017), or none.
    """
    rising = min(1.0, (step + 1) / warmup) if warmup else 1.0
    return rising * (0.5 * (1 + math.cos(math.pi * step / steps)) if decay == "cosine" else 1.0)


def has_ended(history: list[dict[str, Any]], epochs: int, hold: int | None) -> bool:
    """Returns whether a training is over: after `epochs`, or after `hold` of them at 99.9 %.

    Args:
        history: a row for each epoch that is done, with its val_accuracy.
    """
    held = hold is not None and len(history) >= hold
    solved = held and all(row["val_accuracy"] >= HELD for row in history[-hold:])
    return len(history) >= epochs or solved


def train_epoch(
    network: RecurrentNetwork,
    optimizer: torch.optim.Optimizer,
    data: Sequences,
    order: Tensor,
    batch_size: int,
    clip: float | None = None,
    after_step: Callable[[int], None] = lambda step: None,
) -> float:
    """Trains on `data` once, in `order`, and returns the mean cross entropy (nats) over the epoch.

    Args:
        order: (samples,) the order of the sequences; those that fill no batch are left out.
        clip: the gradient's largest norm, or None for any.
        after_step: called with the number of steps done in this epoch, after each.
    """
    network.train()
    steps = len(order) // batch_size
    total = torch.zeros((), device=order.device)
    for step, batch in enumerate(order[: steps * batch_size].view(steps, batch_size), start=1):
        loss = F.cross_entropy(network(data.digits[batch]), data.targets[batch])
        optimizer.zero_grad()
        loss.backward()
        if clip is not None:
            nn.utils.clip_grad_norm_(network.parameters(), clip)
        optimizer.step()
        total += loss.detach()  # read once an epoch: reading a GPU's number waits for the GPU
        after_step(step)
    return (total / steps).item()


@torch.inference_mode()
def predict(network: RecurrentNetwork, data: Sequences, batch_size: int = 500) -> Tensor:
    """Returns the logits of every sequence of `data`, (samples, 10).

    The network is left in the mode that it was in: in evaluation mode, cuDNN takes no gradient, and
    this may be called in the middle of an epoch.
    """
    training = network.training
    network.eval()
    p = torch.cat([network(digits) for digits in data.digits.split(batch_size)])
    network.train(training)
    return p


def evaluate(network: RecurrentNetwork, data: Sequences) -> tuple[float, float]:
    """Returns the mean cross entropy (nats) and the accuracy (0 to 1) on `data`."""
    p = predict(network, data)
    accuracy = (p.argmax(1) == data.targets).double().mean()
    return F.cross_entropy(p, data.targets).item(), accuracy.item()
