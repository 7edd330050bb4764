"""A small convolutional digit classifier, whose features the GAN's metrics are computed on.

    python -m models.classifier    retrains it and writes classifier.pt beside this file

It comes trained: load_classifier() needs no training and no download. It is to gan_metrics.py what
Inception is to metrics of photographs; Inception itself has never seen a digit.
"""

import math
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models import image_data
from models.image_data import IMAGE_SIZE, LabeledImages
from models.rng import make_rng

WEIGHTS = Path(__file__).with_name("classifier.pt")
NUM_FEATURES = 64
NUM_CLASSES = 10

SEED = 0
EPOCHS = 8
BATCH_SIZE = 128
MAX_LR = 0.004  # of Adam, reached after a fifth of the steps


class Classifier(nn.Module):
    """Three blocks of convolution, batch norm (Ioffe & Szegedy 2015) and pooling; linear layers."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(
            nn.Unflatten(1, (1, IMAGE_SIZE, IMAGE_SIZE)),  # (batch, 1, 28, 28)
            *_block(1, 16),  # (batch, 16, 14, 14)
            *_block(16, 32),  # (batch, 32, 7, 7)
            *_block(32, 64),  # (batch, 64, 3, 3)
            nn.Flatten(),
            nn.Linear(64 * 3 * 3, NUM_FEATURES),
            nn.ReLU(),
        )
        self.head = nn.Linear(NUM_FEATURES, NUM_CLASSES)

    def features(self, images: Tensor) -> Tensor:
        """Returns the inputs of the last layer: (batch, 64), non-negative.

        Args:
            images: (batch, 784), pixels from -1 to 1.
        """
        return self.body(images)

    def forward(self, images: Tensor) -> Tensor:
        """Returns the logits of the ten digits: (batch, 784) -> (batch, 10)."""
        return self.head(self.features(images))


def _block(in_channels: int, out_channels: int) -> list[nn.Module]:
    convolution = nn.Conv2d(
        in_channels, out_channels, 3, padding=1, bias=False
    )  # batch norm has one
    return [convolution, nn.BatchNorm2d(out_channels), nn.ReLU(), nn.MaxPool2d(2)]


def load_classifier(device: torch.device | str = "cpu") -> Classifier:
    """Returns the pretrained classifier in eval mode, without gradients."""
    with torch.device("meta"):  # allocates nothing, leaves torch's global generator alone
        classifier = Classifier()
    state = torch.load(WEIGHTS, map_location=device, weights_only=True)
    classifier.load_state_dict(state, assign=True)
    return classifier.eval().requires_grad_(False)


def train_classifier(data: LabeledImages, seed: int = SEED, epochs: int = EPOCHS) -> Classifier:
    """Returns a classifier trained on `data` in batches of 128, in eval mode."""
    classifier = Classifier()
    rng = make_rng(seed, "start", "classifier")
    for parameter in classifier.parameters():
        if parameter.dim() > 1:
            nn.init.kaiming_uniform_(parameter, nonlinearity="relu", generator=rng)
    nn.init.zeros_(classifier.body[-2].bias)
    nn.init.zeros_(classifier.head.bias)

    images = image_data.normalize(data.images)  # (count, 784)
    steps = len(data) // BATCH_SIZE
    optimizer = torch.optim.Adam(classifier.parameters(), fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, MAX_LR, epochs * steps, pct_start=0.2)
    for epoch in range(epochs):
        classifier.train()
        rng = make_rng(seed, "classifier", epoch)
        perm = torch.randperm(len(data), generator=rng)
        total = 0.0
        for batch in perm[: steps * BATCH_SIZE].view(steps, BATCH_SIZE):
            logits = classifier(augment(images[batch], rng))
            loss = F.cross_entropy(logits, data.labels[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            total += loss.item()
        print(f"epoch {epoch + 1}/{epochs}: loss {total / steps:.4f}", flush=True)
    return classifier.eval()


def augment(images: Tensor, rng: torch.Generator) -> Tensor:
    """Rotates (up to 10 degrees), scales and shifts (up to 10 %) each image; pads with black.

    No contrast or noise augmentation: a classifier invariant to those would accept noise as digits.

    Args:
        images: (batch, 784), pixels from -1 to 1.
    """
    angle, scale, right, down = torch.empty(4, len(images)).uniform_(-1, 1, generator=rng)
    angle, scale = angle * math.radians(10), 1 + 0.1 * scale
    cos, sin = scale * angle.cos(), scale * angle.sin()
    rows = [torch.stack([cos, -sin, 0.2 * right], 1), torch.stack([sin, cos, 0.2 * down], 1)]
    square = images.view(-1, 1, IMAGE_SIZE, IMAGE_SIZE)
    grid = F.affine_grid(torch.stack(rows, 1), list(square.shape), align_corners=False)
    # grid_sample pads with 0, so black is shifted to 0 for it.
    return F.grid_sample(square + 1, grid, align_corners=False).flatten(1) - 1


@torch.inference_mode()
def accuracy(classifier: Classifier, data: LabeledImages) -> float:
    """Returns the fraction of `data` that the classifier classifies correctly."""
    batches = image_data.normalize(data.images).split(1000)
    predictions = torch.cat([classifier(images).argmax(1) for images in batches])
    return (predictions == data.labels).double().mean().item()


if __name__ == "__main__":
    torch.set_num_threads(1)  # the order of sums depends on threads: one gives the same weights
    mnist = image_data.load()
    classifier = train_classifier(mnist.train)
    torch.save(classifier.state_dict(), WEIGHTS)
    print(f"test accuracy {accuracy(classifier, mnist.test):.2%}: {WEIGHTS}")
