"""The GAN (the report, section 2) and one epoch of its data-parallel training.

    gan = GAN(latent_dim=100, seed=0, lr=0.0002, betas=(0.5, 0.999))
    train_epoch(gan, image_data.load().train.images, seed=0, epoch=1, batch_size=64)
    generate(gan.generator, make_latents(0, "grid", count=64, latent_dim=100))   # (64, 784)

Where torch.distributed is initialized, each worker takes a shard of each batch. Every sum over the
batch (losses, gradients, batch norm) is then taken over all workers, and all random numbers come
from the seed and the epoch: training with N workers equals training with one.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models import distributed, image_data
from models.rng import make_rng

NEGATIVE_SLOPE = 0.2  # of LeakyReLU
NUM_EVAL_SAMPLES = 10_000  # as many as MNIST has test images


class SyncBatchNorm1d(nn.BatchNorm1d):
    """Batch norm (Ioffe & Szegedy 2015) with the statistics of the global batch, on any device.

    torch.nn.SyncBatchNorm computes the same, but needs a GPU.
    """

    def forward(self, x: Tensor) -> Tensor:  # (local_batch, features)
        if not self.training or distributed.world_size() == 1:
            return super().forward(x)
        y, mean, variance, count = _Normalize.apply(x, self.weight, self.bias, self.eps)
        unbiased = variance * count / (count - 1)
        for buffer, value in ((self.running_mean, mean), (self.running_var, unbiased)):
            assert buffer is not None  # for mypy: PyTorch's default is to track statistics
            buffer.lerp_(value, self.momentum or 0.0)
        assert self.num_batches_tracked is not None
        self.num_batches_tracked.add_(1)
        return y


class _Normalize(torch.autograd.Function):
    """Normalizes each shard (local_batch, features) by mean and variance of the global batch."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, eps: float
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        mean = x.mean(0)
        # Sums of squared deviations, merged as in Chan, Golub & LeVeque (1983): mean square minus
        # squared mean would lose the variance of numbers that are far from zero.
        deviations = (x - mean).square_().sum(0)
        count = x.new_full((1,), len(x))  # shards may be uneven
        gathered = distributed.all_gather(torch.cat([mean, deviations, count]))
        # each (workers, …)
        means, deviations, counts = gathered.split([len(mean), len(mean), 1], dim=1)
        count = counts.sum()
        mean = (counts * means).sum(0) / count
        variance = (deviations + counts * (means - mean).square()).sum(0) / count
        scale = torch.rsqrt(variance + eps)
        normal = (x - mean).mul_(scale)
        ctx.save_for_backward(normal, weight * scale, count)
        ctx.mark_non_differentiable(mean, variance, count)
        return torch.addcmul(bias, normal, weight), mean, variance, count

    @staticmethod
    def backward(ctx: Any, grad_y: Tensor, *_: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        normal, scale, count = ctx.saved_tensors
        grad_bias, grad_weight = grad_y.sum(0), (grad_y * normal).sum(0)
        sums = distributed.all_gather(torch.cat([grad_bias, grad_weight])).sum(0)
        mean_grad, mean_grad_normal = (sums / count).chunk(2)
        grad_x = (grad_y - mean_grad).addcmul_(normal, mean_grad_normal, value=-1).mul_(scale)
        return grad_x, grad_weight, grad_bias, None


class Generator(nn.Sequential):
    """G: latent vectors (batch, latent_dim) to flat images (batch, 784), pixels from -1 to 1.

    A Linear before a batch norm has no bias: the norm would subtract it.
    """

    def __init__(self, latent_dim: int = 100):
        super().__init__(
            nn.Linear(latent_dim, 128),
            nn.LeakyReLU(NEGATIVE_SLOPE),
            nn.Linear(128, 256, bias=False),
            SyncBatchNorm1d(256),
            nn.LeakyReLU(NEGATIVE_SLOPE),
            nn.Linear(256, 512, bias=False),
            SyncBatchNorm1d(512),
            nn.LeakyReLU(NEGATIVE_SLOPE),
            nn.Linear(512, 1024, bias=False),
            SyncBatchNorm1d(1024),
            nn.LeakyReLU(NEGATIVE_SLOPE),
            nn.Linear(1024, image_data.PIXELS),
            nn.Tanh(),
        )
        self.latent_dim = latent_dim


class Discriminator(nn.Sequential):
    """D: flat images (batch, 784) to logits (batch, 1); their sigmoid is a probability."""

    def __init__(self):
        super().__init__(
            nn.Linear(image_data.PIXELS, 512),
            nn.LeakyReLU(NEGATIVE_SLOPE),
            nn.Linear(512, 256),
            nn.LeakyReLU(NEGATIVE_SLOPE),
            nn.Linear(256, 1),
        )


def discriminator_loss(real: Tensor, fake: Tensor, batch_size: int) -> Tensor:
    """Returns L_D = -E[log D(x)] - E[log(1 - D(G(z)))] from logits (the report, section 2.2).

    The sum over the given logits, divided by `batch_size`: the losses of all workers add up to
    that of the global batch. -log sigmoid(a) is softplus(-a), and -log(1 - sigmoid(a)) is
    softplus(a), which do not overflow.
    """
    return (F.softplus(-real).sum() + F.softplus(fake).sum()) / batch_size


def generator_loss(fake: Tensor, batch_size: int) -> Tensor:
    """Returns L_G = -E[log D(G(z))] from logits, summed as in `discriminator_loss`."""
    return F.softplus(-fake).sum() / batch_size


class GAN:
    """Both networks with their optimizers, initialized with a seed."""

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
        rng = make_rng(seed, "start")
        for network in (self.generator, self.discriminator):
            for layer in network:
                if isinstance(layer, nn.Linear):  # PyTorch's default, sampled with the seed
                    bound = layer.in_features**-0.5
                    for parameter in layer.parameters():
                        nn.init.uniform_(parameter, -bound, bound, generator=rng)
            network.to(device, dtype)
        self.optimizer_g, self.optimizer_d = (
            torch.optim.Adam(network.parameters(), lr=lr, betas=betas, fused=True)
            for network in (self.generator, self.discriminator)
        )

    def state_dict(self) -> dict[str, Any]:
        return {name: module.state_dict() for name, module in vars(self).items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Loads both networks and both optimizers.

        Raises:
            RuntimeError: the shapes of the networks differ.
        """
        for name, module in vars(self).items():
            module.load_state_dict(state[name])

    def step(self, real: Tensor, z: Tensor, batch_size: int) -> Tensor:
        """Trains D once and then G once.

        Args:
            real: (local_batch, 784) this worker's shard of the batch, pixels from -1 to 1.
            z: (local_batch, latent_dim) latent vectors.
            batch_size: size of the global batch, over all workers.

        Returns:
            (4,) this worker's contribution to the batch means of L_D, L_G, D(x), D(G(z)).
        """
        fake = self.generator(z)  # (local_batch, 784)
        logits = self.discriminator(torch.cat([real, fake.detach()]))  # (2 local_batch, 1)
        real_logits, fake_logits = logits.chunk(2)
        loss_d = discriminator_loss(real_logits, fake_logits, batch_size)
        _optimizer_step(loss_d, self.discriminator, self.optimizer_d)

        self.discriminator.requires_grad_(False)  # G's step does not use D's gradients
        loss_g = generator_loss(self.discriminator(fake), batch_size)
        _optimizer_step(loss_g, self.generator, self.optimizer_g)
        self.discriminator.requires_grad_(True)

        losses = torch.stack([loss_d, loss_g]).detach()
        probabilities = torch.sigmoid(logits.detach()).view(2, -1)  # rows: D(x), D(G(z))
        return torch.cat([losses, probabilities.sum(1) / batch_size])


def train_epoch(gan: GAN, images: Tensor, seed: int, epoch: int, batch_size: int) -> Tensor:
    """Trains for one epoch; an incomplete last batch is dropped.

    Args:
        images: (count, 28, 28) uint8 on the networks' device, the same on every worker.
        batch_size: size of the global batch.

    Returns:
        (4,) means over the epoch of L_D, L_G, D(x), D(G(z)), the same on every worker.
    """
    steps = len(images) // batch_size
    weight = next(gan.generator.parameters())
    latent_dim = gan.generator.latent_dim
    perm = torch.randperm(len(images), generator=make_rng(seed, "order", epoch))
    z = make_latents(seed, "z", epoch, count=steps * batch_size, latent_dim=latent_dim)
    perm, z = perm.to(weight.device), z.to(weight)
    shard = distributed.shard_slice(batch_size)
    total = weight.new_zeros(4)
    for step in range(0, steps * batch_size, batch_size):
        local = slice(step + shard.start, step + shard.stop)
        real = image_data.normalize(images.index_select(0, perm[local])).to(weight)
        total += gan.step(real, z[local], batch_size)
    distributed.all_reduce_sum_([total])
    return total / steps


def make_latents(*key: int | str, count: int, latent_dim: int) -> Tensor:
    """Returns (count, latent_dim) latent vectors from N(0, 1), the same for the same key."""
    return torch.randn(count, latent_dim, generator=make_rng(*key))


def eval_latents(seed: int, latent_dim: int) -> Tensor:
    """Returns the latent vectors, (10000, latent_dim), of the samples that are evaluated."""
    return make_latents(seed, "quality", count=NUM_EVAL_SAMPLES, latent_dim=latent_dim)


@torch.no_grad()
def generate(generator: Generator, z: Tensor, batch_size: int = 1000) -> Tensor:
    """Generates images (batch, 784) from latent vectors (batch, latent_dim), in eval mode."""
    was_training = generator.training
    generator.eval()
    weight = next(generator.parameters())
    images = [generator(chunk.to(weight)) for chunk in z.split(batch_size)]
    generator.train(was_training)
    return torch.cat(images)


def _optimizer_step(loss: Tensor, network: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Takes one step with the gradient of the sum of all workers' losses."""
    network.zero_grad()
    with distributed.all_reduce_gradients(network):
        loss.backward()
    optimizer.step()
