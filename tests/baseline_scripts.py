"""What others would write instead of this suite's sweep, to compare its speed with.

competent: torch's own cell on tensors in memory, default Adam, default threads: what somebody who
           knows PyTorch writes in ten minutes
template:  the template of a course: a Dataset of one palindrome at a time, the LSTM as equations
"""

import time
from collections.abc import Iterator

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

BATCH_SIZE, HIDDEN_SIZE, NUM_SEQUENCES = 128, 128, 80_000
WARMUP_STEPS = 5

RNN_CLASSES = {"lstm": nn.LSTM, "rnn": nn.RNN, "gru": nn.GRU}


class CompetentNetwork(nn.Module):
    def __init__(self, cell: str):
        super().__init__()
        self.rnn = RNN_CLASSES[cell](1, HIDDEN_SIZE, batch_first=True)
        self.head = nn.Linear(HIDDEN_SIZE, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # (batch, length, 1)
        outputs, _ = self.rnn(x)
        return self.head(outputs[:, -1])


def competent_batches(length: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    half = torch.randint(10, (NUM_SEQUENCES, (length + 2) // 2))
    digits = torch.cat([half, half[:, : (length + 1) // 2].flip(1)], dim=1)
    x, y = digits[:, :-1, None].float(), digits[:, -1]
    while True:
        for batch in torch.randperm(NUM_SEQUENCES).split(BATCH_SIZE):
            yield x[batch], y[batch]


class TemplateDataset(Dataset):
    """Samples one palindrome at a time, when a DataLoader asks for it."""

    def __init__(self, length: int):
        self.num_digits = length + 1

    def __len__(self) -> int:
        return NUM_SEQUENCES

    def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
        half = np.random.randint(0, 10, size=(self.num_digits + 1) // 2)
        palindrome = np.concatenate([half, half[: self.num_digits // 2][::-1]])
        return palindrome[:-1].astype(np.float32), int(palindrome[-1])


class TemplateLSTM(nn.Module):
    """The report's equations, written in the usual way: eight Linears, a loop over time steps."""

    def __init__(self):
        super().__init__()
        self.gx, self.ix, self.fx, self.ox = (nn.Linear(1, HIDDEN_SIZE) for _ in range(4))
        self.gh, self.ih, self.fh, self.oh = (nn.Linear(HIDDEN_SIZE, HIDDEN_SIZE) for _ in range(4))
        self.ph = nn.Linear(HIDDEN_SIZE, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # (batch, length)
        h = torch.zeros(x.size(0), HIDDEN_SIZE)
        c = torch.zeros(x.size(0), HIDDEN_SIZE)
        for t in range(x.size(1)):
            x_t = x[:, t : t + 1]
            g = torch.tanh(self.gx(x_t) + self.gh(h))
            i = torch.sigmoid(self.ix(x_t) + self.ih(h))
            f = torch.sigmoid(self.fx(x_t) + self.fh(h))
            o = torch.sigmoid(self.ox(x_t) + self.oh(h))
            c = g * i + c * f
            h = torch.tanh(c) * o
        return self.ph(h)


def template_batches(length: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    while True:
        yield from DataLoader(TemplateDataset(length), batch_size=BATCH_SIZE, shuffle=True)


def sequences_per_second(script: str, cell: str, length: int, seconds: float = 1) -> float:
    """Trains as a script does for a second or more, with torch's default threads."""
    if script == "competent":
        model, batches = CompetentNetwork(cell), competent_batches(length)
    else:
        model, batches = TemplateLSTM(), template_batches(length)
    criterion, optimizer = nn.CrossEntropyLoss(), torch.optim.Adam(model.parameters(), lr=0.001)
    sequences, start, total = 0, 0.0, 0.0
    for step, (x, y) in enumerate(batches):
        if step == WARMUP_STEPS:
            start = time.perf_counter()
        optimizer.zero_grad()
        loss = criterion(model(x), y)
        loss.backward()
        optimizer.step()
        total += loss.item()
        if step >= WARMUP_STEPS:
            sequences += len(y)
            elapsed = time.perf_counter() - start
            if elapsed > seconds:
                return sequences / elapsed
    raise AssertionError("the batches have no end")
