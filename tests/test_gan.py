import math
import os
from contextlib import suppress
from functools import cache
from pathlib import Path

import pytest
import torch
from scripts import wait_for
from torch import distributed as dist
from torch import multiprocessing, nn

from models import digits, gan, parallel
from models.gan import GAN, Discriminator, Generator
from models.randomness import generator

BATCH, STEPS = 128, 50

# Where float32 rounds another way, a LeakyReLU's input near zero may fall on the other side of the
# kink, and from there on two trainings part as they do in float64 from a tiny push. A momentum of
# 0.9 holds that back; with 0.5, merely permuting a batch moves the losses by 1e-2 in 50 steps.
BETAS = {torch.float32: (0.9, 0.999), torch.float64: (0.5, 0.999)}


def test_the_networks_are_the_reports():
    def widths(network):
        return [(n.in_features, n.out_features) for n in network if isinstance(n, nn.Linear)]

    assert widths(Generator(100)) == [(100, 128), (128, 256), (256, 512), (512, 1024), (1024, 784)]
    assert widths(Discriminator()) == [(784, 512), (512, 256), (256, 1)]
    layers = [*Generator(100), *Discriminator()]
    assert [n.num_features for n in layers if isinstance(n, nn.BatchNorm1d)] == [256, 512, 1024]
    assert [n.negative_slope for n in layers if isinstance(n, nn.LeakyReLU)] == [0.2] * 6
    assert isinstance(Generator(100)[-1], nn.Tanh)


def test_the_losses_are_the_reports_formulas():
    real, fake = torch.randn(2, 64, 1, generator=generator("logits"), dtype=torch.float64) * 5
    d_x, d_g_z = torch.sigmoid(real), torch.sigmoid(fake)
    l_d = -d_x.log().mean() - (1 - d_g_z).log().mean()
    l_g = -d_g_z.log().mean()
    assert gan.discriminator_loss(real, fake, 64).item() == pytest.approx(l_d.item(), rel=1e-12)
    assert gan.generator_loss(fake, 64).item() == pytest.approx(l_g.item(), rel=1e-12)


def test_the_losses_do_not_overflow_where_the_formulas_do():
    sure = torch.full((4, 1), 1000.0)
    assert gan.discriminator_loss(-sure, sure, 4).item() == 2000
    assert gan.generator_loss(-sure, 4).item() == 1000
    assert math.isinf(-torch.sigmoid(-sure).log().mean())


def images_of(step: int) -> torch.Tensor:
    """Returns the images of one batch, and 13 more, for which the batch has no room."""
    return every_image()[step * BATCH : (step + 1) * BATCH + 13]


@cache
def every_image() -> torch.Tensor:
    return digits.load().test.images


def pytorchs_own(layer: nn.Module) -> nn.Module:
    if isinstance(layer, nn.BatchNorm1d):
        return nn.BatchNorm1d(layer.num_features, dtype=torch.float64)
    return layer


def test_a_step_is_what_the_usual_two_passes_are():
    """D on real and on fake apart, all gradients taken, and PyTorch's own batch norm and Adam."""
    ours, usual = (GAN(16, 1, 0.01, (0.5, 0.999), dtype=torch.float64) for _ in range(2))
    usual.generator = nn.Sequential(*map(pytorchs_own, usual.generator))
    networks = usual.discriminator, usual.generator
    optimizers = [torch.optim.Adam(n.parameters(), lr=0.01, betas=(0.5, 0.999)) for n in networks]
    for step in range(3):
        real = digits.scaled(images_of(step)[:BATCH]).double()
        z = gan.latents("test", step, count=BATCH, latent_dim=16).double()
        means = ours.step(real, z, BATCH)

        fake = usual.generator(z)
        d_x, d_g_z = usual.discriminator(real), usual.discriminator(fake.detach())
        loss_d = gan.discriminator_loss(d_x, d_g_z, BATCH)
        usual.discriminator.zero_grad()
        loss_d.backward()
        optimizers[0].step()
        loss_g = gan.generator_loss(usual.discriminator(fake), BATCH)
        usual.generator.zero_grad()
        loss_g.backward()
        optimizers[1].step()
        expected = [loss_d, loss_g, d_x.sigmoid().mean(), d_g_z.sigmoid().mean()]
        torch.testing.assert_close(means, torch.stack(expected).detach(), rtol=1e-9, atol=0)
    for network, other in ((ours.generator, usual.generator), (ours.discriminator, networks[0])):
        torch.testing.assert_close(network.state_dict(), other.state_dict(), rtol=1e-9, atol=1e-10)


def train_as_one_of(rank: int, workers: int, folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/{workers}", rank=rank, world_size=workers
    )
    cores = sorted(os.sched_getaffinity(0))
    parallel.settle_on_cores(rank, workers, threads=1)
    if workers == len(cores) > 1:
        for thread in os.listdir("/proc/self/task"):
            with suppress(ProcessLookupError):  # it has ended
                assert os.sched_getaffinity(int(thread)) == {cores[rank]}
    found = {}
    for dtype, betas in BETAS.items():
        trained = GAN(100, 0, 0.0002, betas, dtype=dtype)
        means = [gan.train_epoch(trained, images_of(step), 0, step, BATCH) for step in range(STEPS)]
        found[str(dtype)] = {
            "means": torch.stack(means),  # (steps, 4): an epoch has one step here
            "generator": trained.generator.state_dict(),
            "discriminator": trained.discriminator.state_dict(),
            "images": gan.draw(trained.generator, gan.latents("z", count=64, latent_dim=100)),
        }
    if rank == 0:
        torch.save(found, folder / f"{workers}.pt")
    dist.barrier()
    dist.destroy_process_group()
    # Threads of gloo that outlive the group would meet the end of the interpreter, and abort. Those
    # that were waited for may be listed for a moment more.
    wait_for(lambda: not any("gloo" in name for name in thread_names()), minutes=1)


def thread_names() -> list[str]:
    names = []
    for name in Path("/proc/self/task").glob("*/comm"):
        with suppress(OSError):  # the thread has ended
            names.append(name.read_text())
    return names


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> dict[int, dict]:
    """What one, two and three workers have after 50 steps; of three, each takes 42 or 43 images."""
    folder = tmp_path_factory.mktemp("trained")
    for workers in (1, 2, 3):
        multiprocessing.spawn(train_as_one_of, (workers, folder), nprocs=workers)
    return {n: torch.load(folder / f"{n}.pt", weights_only=True) for n in (1, 2, 3)}


@pytest.mark.parametrize("workers", [2, 3])
def test_any_number_of_workers_trains_what_one_does(trained, workers):
    found, one = (trained[n]["torch.float64"] for n in (workers, 1))
    torch.testing.assert_close(found, one, rtol=0, atol=1e-8)


@pytest.mark.parametrize("workers", [2, 3])
def test_in_float32_too_but_for_rounding(trained, workers):
    """Of the images the mean difference: single pixels may be on the other side of a kink."""
    found, one = (trained[n]["torch.float32"] for n in (workers, 1))
    assert (found["means"] - one["means"]).abs().max() < 1e-2
    assert (found["images"] - one["images"]).abs().mean() < 1e-2


@pytest.mark.parametrize(("count", "workers"), [(64, 1), (50, 3), (512, 7), (5, 5)])
def test_shares_cover_the_batch_once_and_are_even_but_for_one(monkeypatch, count, workers):
    monkeypatch.setattr(parallel, "world_size", lambda: workers)
    parts = []
    for rank in range(workers):
        monkeypatch.setattr(dist, "get_rank", lambda rank=rank: rank)
        parts.append(range(count)[parallel.share(count)])
    assert [i for part in parts for i in part] == list(range(count))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_the_seed_decides_the_start_and_the_epoch_the_draws():
    def after(seed: int, epoch: int) -> dict[str, torch.Tensor]:
        made = GAN(8, seed, 0.1, (0.9, 0.999))
        gan.train_epoch(made, images_of(0), seed, epoch, BATCH)
        return made.generator.state_dict()["0.weight"]

    assert torch.equal(after(1, 1), after(1, 1))
    assert not torch.equal(after(1, 1), after(2, 1))
    assert not torch.equal(after(1, 1), after(1, 2))


def test_going_on_from_a_state_is_going_on(tmp_path):
    """As a checkpoint does it: through a file, into networks that were started otherwise."""
    undisturbed = GAN(8, 0, 0.001, (0.5, 0.999))
    gan.train_epoch(undisturbed, images_of(0), 0, 1, BATCH)
    torch.save(undisturbed.state_dict(), tmp_path / "state.pt")
    other = GAN(8, 5, 0.001, (0.5, 0.999))
    other.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    for trained in (undisturbed, other):
        gan.train_epoch(trained, images_of(1), 0, 2, BATCH)
    expected = undisturbed.state_dict()
    torch.testing.assert_close(other.state_dict(), expected, rtol=0, atol=0)


def test_images_are_drawn_one_by_one_whatever_else_is_drawn():
    """In eval mode an image does not depend on its batch; and the training mode is kept."""
    network = Generator(8)
    z = gan.latents("z", count=5, latent_dim=8)
    together = gan.draw(network, z, batch_size=2)
    assert together.shape == (5, 784)
    torch.testing.assert_close(together[3:4], gan.draw(network, z[3:4]))
    assert network.training
