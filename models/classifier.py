"""The eye that judges generated digits: a small convolutional network that names them.

    python -m models.classifier    trains it anew and writes classifier.pt beside this file

It comes trained: load() needs no training and no download. To the measures of models/quality.py it
is what Inception is to photographs: a network of another data set's objects would see in digits
little of what makes them digits.
"""

import math
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models import digits
from models.randomness import generator

WEIGHTS = Path(__file__).with_name("classifier.pt")
FEATURES = 64
DIGITS = 10

SEED = 0
EPOCHS = 8
BATCH_SIZE = 128
LEARNING_RATE = 0.004  # Adam's highest, reached after a fifth of the steps


class Classifier(nn.Module):
    """Three convolutions, each normalised (Ioffe & Szegedy 2015) and pooled, and two layers."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(
            nn.Unflatten(1, (1, digits.SIDE, digits.SIDE)),  # (batch, 1, 28, 28)
            *_block(1, 16),  # (batch, 16, 14, 14)
            *_block(16, 32),  # (batch, 32, 7, 7)
            *_block(32, 64),  # (batch, 64, 3, 3)
            nn.Flatten(),
            nn.Linear(64 * 3 * 3, FEATURES),
            nn.ReLU(),
        )
        self.head = nn.Linear(FEATURES, DIGITS)

    def features(self, images: Tensor) -> Tensor:
        """Returns what the last layer sees: (batch, 64), none below 0.

        Args:
            images: (batch, 784), pixels from -1 to 1.
        """
        return self.body(images)

    def forward(self, images: Tensor) -> Tensor:
        """Returns the logits of the ten digits: (batch, 784) -> (batch, 10)."""
        return self.head(self.features(images))


def _block(inputs: int, outputs: int) -> list[nn.Module]:
    convolution = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)  # the norm has a bias
    return [convolution, nn.BatchNorm2d(outputs), nn.ReLU(), nn.MaxPool2d(2)]


def load(device: torch.device | str = "cpu") -> Classifier:
    """Returns the classifier as it comes with the package, in eval mode, not to be trained on."""
    with torch.device("meta"):  # no memory, and above all no draw from torch's own generator
        classifier = Classifier()
    state = torch.load(WEIGHTS, map_location=device, weights_only=True)
    classifier.load_state_dict(state, assign=True)
    return classifier.eval().requires_grad_(False)


def train(data: digits.Images, seed: int = SEED, epochs: int = EPOCHS) -> Classifier:
    """Returns a classifier trained on `data` in batches of 128, in eval mode; all from `seed`."""
    classifier = Classifier()
    random = generator(seed, "start", "classifier")
    for parameter in classifier.parameters():
        if parameter.dim() > 1:
            nn.init.kaiming_uniform_(parameter, nonlinearity="relu", generator=random)
    nn.init.zeros_(classifier.body[-2].bias)
    nn.init.zeros_(classifier.head.bias)

    images = digits.scaled(data.images)  # (count, 784)
    steps = len(data) // BATCH_SIZE
    optimizer = torch.optim.Adam(classifier.parameters(), fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, LEARNING_RATE, epochs * steps, pct_start=0.2
    )
    for epoch in range(epochs):
        classifier.train()
        random = generator(seed, "classifier", epoch)
        order = torch.randperm(len(data), generator=random)
        total = 0.0
        for batch in order[: steps * BATCH_SIZE].view(steps, BATCH_SIZE):
            logits = classifier(moved(images[batch], random))
            loss = F.cross_entropy(logits, data.labels[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            total += loss.item()
        print(f"epoch {epoch + 1} of {epochs}: loss {total / steps:.4f}", flush=True)
    return classifier.eval()


def moved(images: Tensor, random: torch.Generator) -> Tensor:
    """Returns each image turned (up to 10 degrees), scaled and shifted (10 %), with black around.

    Neither faded nor noisy: an eye that overlooks such faults takes noise for digits.

    Args:
        images: (batch, 784), pixels from -1 to 1.
    """
    turn, scale, right, down = torch.empty(4, len(images)).uniform_(-1, 1, generator=random)
    turn, scale = turn * math.radians(10), 1 + 0.1 * scale
    cos, sin = scale * turn.cos(), scale * turn.sin()
    rows = [torch.stack([cos, -sin, 0.2 * right], 1), torch.stack([sin, cos, 0.2 * down], 1)]
    square = images.view(-1, 1, digits.SIDE, digits.SIDE)
    grid = F.affine_grid(torch.stack(rows, 1), square.shape, align_corners=False)
    # grid_sample puts 0 outside of the image, so black has to be 0 while it works.
    return F.grid_sample(square + 1, grid, align_corners=False).flatten(1) - 1


@torch.inference_mode()
def accuracy(classifier: Classifier, data: digits.Images) -> float:
    """Returns the share of `data` that the classifier names rightly, 0 to 1."""
    batches = digits.scaled(data.images).split(1000)
    named = torch.cat([classifier(images).argmax(1) for images in batches])
    return (named == data.labels).double().mean().item()


if __name__ == "__main__":
    torch.set_num_threads(1)  # threads add up in their own order: one gives the same weights again
    mnist = digits.load()
    trained = train(mnist.train)
    torch.save(trained.state_dict(), WEIGHTS)
    print(f"{accuracy(trained, mnist.test):.2%} of the test set named rightly: see {WEIGHTS}")
