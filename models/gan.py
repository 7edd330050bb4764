"""The GAN of the report (section 2) and an epoch of its training, which workers may share.

    gan = GAN(latent_dim=100, seed=0, lr=0.0002, betas=(0.5, 0.999))
    train_epoch(gan, digits.load().train.images, seed=0, epoch=1, batch_size=64)
    draw(gan.generator, latents(0, "grid", count=64, latent_dim=100))   # (64, 784)

Where torch.distributed is initialised, the workers share each batch. Every sum that one worker
takes over the batch, in losses, gradients and batch norm, is taken over all of them then, and all
draws come from the seed and the epoch: so N workers train what one does.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models import digits, parallel
from models.randomness import generator as random_generator

SLOPE = 0.2  # of LeakyReLU, on the negative side
SAMPLES = 10_000  # as many as MNIST has test images


class GlobalBatchNorm1d(nn.BatchNorm1d):
    """Batch norm (Ioffe & Szegedy 2015) by the statistics of the global batch, on any device.

    torch's own SyncBatchNorm computes the same, but only on GPUs.
    """

    def forward(self, x: Tensor) -> Tensor:  # (share, features)
        if not self.training or parallel.world_size() == 1:
            return super().forward(x)
        y, mean, variance, count = _Normalize.apply(x, self.weight, self.bias, self.eps)
        self.running_mean.lerp_(mean, self.momentum)
        self.running_var.lerp_(variance * count / (count - 1), self.momentum)
        self.num_batches_tracked += 1
        return y


class _Normalize(torch.autograd.Function):
    """Normalises each worker's share (share, features) by the mean and variance of them all."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, eps: float
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        mean = x.mean(0)
        # Sums of squared deviations, merged as by Chan, Golub & LeVeque (1983): the difference of
        # the mean square and the squared mean would lose the variance of what is far from zero.
        deviations = (x - mean).square_().sum(0)
        count = x.new_full((1,), len(x))  # shares may be uneven
        each = parallel.gather(torch.cat([mean, deviations, count]))
        means, deviations, counts = each.split([len(mean), len(mean), 1], dim=1)  # (workers, …)
        count = counts.sum()
        mean = (counts * means).sum(0) / count
        variance = (deviations + counts * (means - mean).square()).sum(0) / count
        scale = torch.rsqrt(variance + eps)
        normal = (x - mean).mul_(scale)
        ctx.save_for_backward(normal, weight * scale, count)
        ctx.mark_non_differentiable(mean, variance, count)
        return torch.addcmul(bias, normal, weight), mean, variance, count

    @staticmethod
    def backward(ctx: Any, gradient: Tensor, *_: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        normal, scale, count = ctx.saved_tensors
        of_bias, of_weight = gradient.sum(0), (gradient * normal).sum(0)
        sums = parallel.gather(torch.cat([of_bias, of_weight])).sum(0)
        mean, slope = (sums / count).chunk(2)
        of_x = (gradient - mean).addcmul_(normal, slope, value=-1).mul_(scale)
        return of_x, of_weight, of_bias, None


class Generator(nn.Sequential):
    """G: latent vectors (batch, latent_dim) to flat images (batch, 784), pixels from -1 to 1.

    A Linear before a batch norm has no bias: the norm takes it away again.
    """

    def __init__(self, latent_dim: int = 100):
        super().__init__(
            nn.Linear(latent_dim, 128),
            nn.LeakyReLU(SLOPE),
            nn.Linear(128, 256, bias=False),
            GlobalBatchNorm1d(256),
            nn.LeakyReLU(SLOPE),
            nn.Linear(256, 512, bias=False),
            GlobalBatchNorm1d(512),
            nn.LeakyReLU(SLOPE),
            nn.Linear(512, 1024, bias=False),
            GlobalBatchNorm1d(1024),
            nn.LeakyReLU(SLOPE),
            nn.Linear(1024, digits.PIXELS),
            nn.Tanh(),
        )
        self.latent_dim = latent_dim


class Discriminator(nn.Sequential):
    """D: flat images (batch, 784) to logits (batch, 1); a sigmoid makes them probabilities."""

    def __init__(self):
        super().__init__(
            nn.Linear(digits.PIXELS, 512),
            nn.LeakyReLU(SLOPE),
            nn.Linear(512, 256),
            nn.LeakyReLU(SLOPE),
            nn.Linear(256, 1),
        )


def discriminator_loss(real: Tensor, fake: Tensor, batch_size: int) -> Tensor:
    """Returns L_D = -E[log D(x)] - E[log(1 - D(G(z)))] from logits (the report, section 2.2).

    The sum over the logits given, divided by `batch_size`: workers' losses add up to the whole.
    -log sigmoid(a) is softplus(-a), and -log(1 - sigmoid(a)) softplus(a), which do not overflow.
    """
    return (F.softplus(-real).sum() + F.softplus(fake).sum()) / batch_size


def generator_loss(fake: Tensor, batch_size: int) -> Tensor:
    """Returns L_G = -E[log D(G(z))] from logits, summed as in `discriminator_loss`."""
    return F.softplus(-fake).sum() / batch_size


class GAN:
    """Both networks with their optimisers, started from a seed."""

    def __init__(
        self,
        latent_dim: int,
        seed: int,
        lr: float,
        betas: tuple[float, float],
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ):
        self.generator, self.discriminator = Generator(latent_dim), Discriminator()
        random = random_generator(seed, "start")
        for network in (self.generator, self.discriminator):
            for layer in network:
                if isinstance(layer, nn.Linear):  # PyTorch's default start, drawn from the seed
                    bound = layer.in_features**-0.5
                    for parameter in layer.parameters():
                        nn.init.uniform_(parameter, -bound, bound, generator=random)
            network.to(device, dtype)
        self.optimizer_g, self.optimizer_d = (
            torch.optim.Adam(network.parameters(), lr=lr, betas=betas, fused=True)
            for network in (self.generator, self.discriminator)
        )

    def state_dict(self) -> dict[str, Any]:
        return {name: part.state_dict() for name, part in vars(self).items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes over both networks and both optimisers.

        Raises:
            RuntimeError: the state is of networks of other shapes.
        """
        for name, part in vars(self).items():
            part.load_state_dict(state[name])

    def step(self, real: Tensor, z: Tensor, batch_size: int) -> Tensor:
        """Trains D once and then G once.

        Args:
            real: (share, 784) this worker's share of the batch, pixels from -1 to 1.
            z: (share, latent_dim) latent vectors, as many.
            batch_size: of the global batch, all workers' shares together.

        Returns:
            (4,) this worker's part of the means over the batch: L_D, L_G, D(x), D(G(z)). The parts
            of all workers add up to them.
        """
        fake = self.generator(z)  # (share, 784)
        logits = self.discriminator(torch.cat([real, fake.detach()]))  # (2 share, 1)
        real_logits, fake_logits = logits.chunk(2)
        loss_d = discriminator_loss(real_logits, fake_logits, batch_size)
        _descend(loss_d, self.discriminator, self.optimizer_d)

        self.discriminator.requires_grad_(False)  # G's step has no use for D's gradients
        loss_g = generator_loss(self.discriminator(fake), batch_size)
        _descend(loss_g, self.generator, self.optimizer_g)
        self.discriminator.requires_grad_(True)

        losses = torch.stack([loss_d, loss_g]).detach()
        probabilities = torch.sigmoid(logits.detach()).view(2, -1)  # of real images, of fake ones
        return torch.cat([losses, probabilities.sum(1) / batch_size])


def train_epoch(gan: GAN, images: Tensor, seed: int, epoch: int, batch_size: int) -> Tensor:
    """Trains on every image once, in whole batches: what is left over at the end is dropped.

    Args:
        images: (count, 28, 28) uint8 on the networks' device, the same ones on every worker.
        batch_size: of the global batch.

    Returns:
        (4,) means over the epoch, the same on every worker: L_D, L_G, D(x), D(G(z)).
    """
    steps = len(images) // batch_size
    weight = gan.generator[0].weight
    latent_dim = gan.generator.latent_dim
    order = torch.randperm(len(images), generator=random_generator(seed, "order", epoch))
    z = latents(seed, "z", epoch, count=steps * batch_size, latent_dim=latent_dim)
    order, z = order.to(weight.device), z.to(weight)
    mine = parallel.share(batch_size)
    total = weight.new_zeros(4)
    for step in range(0, steps * batch_size, batch_size):
        part = slice(step + mine.start, step + mine.stop)
        real = digits.scaled(images.index_select(0, order[part])).to(weight)
        total += gan.step(real, z[part], batch_size)
    parallel.add_up([total])
    return total / steps


def latents(*name: int | str, count: int, latent_dim: int) -> Tensor:
    """Returns (count, latent_dim) latent vectors from N(0, 1), the same for the same name."""
    return torch.randn(count, latent_dim, generator=random_generator(*name))


def sample_latents(seed: int, latent_dim: int) -> Tensor:
    """Returns the latent vectors, (10000, latent_dim), of the samples whose quality is measured."""
    return latents(seed, "quality", count=SAMPLES, latent_dim=latent_dim)


@torch.no_grad()
def draw(generator: Generator, z: Tensor, batch_size: int = 1000) -> Tensor:
    """Returns (batch, 784) images of latent vectors (batch, latent_dim), drawn in eval mode."""
    was_training = generator.training
    generator.eval()
    drawn = torch.cat([generator(part.to(generator[0].weight)) for part in z.split(batch_size)])
    generator.train(was_training)
    return drawn


def _descend(loss: Tensor, network: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Takes one step of a network down the gradient of all workers' losses together."""
    network.zero_grad()
    with parallel.gradients_added_up(network):
        loss.backward()
    optimizer.step()
