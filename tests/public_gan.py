"""Trains the GAN of the usual public scripts; measures it with our metrics.

  python tests/public_gan.py --out public_script.csv --epochs 50 --seeds 0-2

The settings are those of the scripts that most people copy, for one of the
collection PyTorch-GAN: batch norm with eps 0.8, the generator's step first,
batch size 64, PyTorch's initialization. Every evaluation adds a row. Each seed
resumes from its last evaluation.
"""

import argparse
import os
import time
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor, nn

from jobs.cli import parse_int_ranges
from models import gan, gan_metrics, image_data
from models.classifier import load_classifier

BATCH_SIZE = 64
LATENT_DIM = 100
EVAL_EVERY = 10  # epochs


class PublicGAN:
    """Networks, losses and optimizers of the usual public script."""

    def __init__(self) -> None:
        def block(inputs: int, outputs: int) -> list[nn.Module]:
            # The scripts pass 0.8, meant as a momentum, in the place of eps.
            norm = nn.BatchNorm1d(outputs, 0.8)
            return [nn.Linear(inputs, outputs), norm, nn.LeakyReLU(0.2)]

        self.generator = nn.Sequential(
            nn.Linear(LATENT_DIM, 128), nn.LeakyReLU(0.2),
            *block(128, 256), *block(256, 512), *block(512, 1024),
            nn.Linear(1024, image_data.PIXELS), nn.Tanh(),
        )  # fmt: skip
        self.discriminator = nn.Sequential(
            nn.Linear(image_data.PIXELS, 512), nn.LeakyReLU(0.2),
            nn.Linear(512, 256), nn.LeakyReLU(0.2),
            nn.Linear(256, 1), nn.Sigmoid(),
        )  # fmt: skip
        self.optimizer_g, self.optimizer_d = (
            torch.optim.Adam(network.parameters(), lr=0.0002, betas=(0.5, 0.999))
            for network in (self.generator, self.discriminator)
        )
        self.loss = nn.BCELoss()

    def step(self, real: Tensor) -> None:
        """Trains G once, then D once, on images (batch, 784), pixels from -1 to 1."""
        ones, zeros = torch.ones(len(real), 1), torch.zeros(len(real), 1)
        self.optimizer_g.zero_grad()
        fake = self.generator(torch.randn(len(real), LATENT_DIM))
        self.loss(self.discriminator(fake), ones).backward()
        self.optimizer_g.step()

        self.optimizer_d.zero_grad()
        loss_real = self.loss(self.discriminator(real), ones)
        loss_fake = self.loss(self.discriminator(fake.detach()), zeros)
        ((loss_real + loss_fake) / 2).backward()
        self.optimizer_d.step()

    def state_dict(self) -> dict[str, object]:
        modules = {k: v.state_dict() for k, v in vars(self).items() if k != "loss"}
        return modules | {"rng": torch.get_rng_state()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        torch.set_rng_state(state.pop("rng"))
        for name, module_state in state.items():
            getattr(self, name).load_state_dict(module_state)


def train(seed: int, epochs: int, out: Path) -> None:
    data, classifier = image_data.load(), load_classifier()
    reference = gan_metrics.ReferenceStats.from_images(
        image_data.normalize(data.test.images), classifier
    )
    images = image_data.normalize(data.train.images)
    torch.manual_seed(seed)
    model, done = PublicGAN(), 0
    checkpoint = out.with_suffix(f".seed{seed}.pt")
    if checkpoint.exists():
        done, state = torch.load(checkpoint, weights_only=True)
        model.load_state_dict(state)
    start, first = time.perf_counter(), done
    for epoch in range(done + 1, epochs + 1):
        for batch in torch.randperm(len(images)).split(BATCH_SIZE):
            model.step(images[batch])
        seconds = (time.perf_counter() - start) / (epoch - first)
        print(f"seed {seed}, epoch {epoch}/{epochs}, {seconds:.1f} s each", flush=True)
        if epoch % EVAL_EVERY and epoch != epochs:
            continue
        model.generator.eval()
        with torch.no_grad():
            samples = model.generator(gan.eval_latents(seed, LATENT_DIM))
        model.generator.train()
        metrics = gan_metrics.measure(gan_metrics.classify(samples, classifier), reference)
        row = pd.DataFrame([{"seed": seed, "epoch": epoch, **metrics}])
        row.to_csv(out, mode="a", header=not out.exists(), index=False)
        torch.save((epoch, model.state_dict()), f"{checkpoint}.tmp")
        os.replace(f"{checkpoint}.tmp", checkpoint)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="CSV of the metrics")
    parser.add_argument("--epochs", type=int, default=50, help="epochs of each seed (50)")
    parser.add_argument("--seeds", type=parse_int_ranges, default=(0,), help="seeds (0)")
    args = parser.parse_args()
    args.out.parent.mkdir(parents=True, exist_ok=True)
    for seed in args.seeds:
        train(seed, args.epochs, args.out)


if __name__ == "__main__":
    main()
