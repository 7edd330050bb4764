import copy
import math
import os
from contextlib import suppress
from functools import cache, partial
from pathlib import Path

import pytest
import torch
from processes import wait_for
from torch import distributed as dist
from torch import multiprocessing, nn

from models import distributed, gan, image_data
from models.gan import GAN, Discriminator, Generator
from models.rng import make_rng

BATCH_SIZE, STEPS, RESUME_STEP = 128, 50, 45

# Rounding may move the input of a LeakyReLU across the kink at zero. From there two trainings
# diverge as they do in float64 after a tiny perturbation. Momentum 0.9 damps this; with 0.5, a mere
# permutation of the batch changes the losses by 1e-2 within 50 steps of float32.
BETAS = {torch.float32: (0.9, 0.999), torch.float64: (0.5, 0.999)}


def test_networks_have_the_layers_of_the_report():
    def widths(network):
        return [(n.in_features, n.out_features) for n in network if isinstance(n, nn.Linear)]

    assert widths(Generator(100)) == [(100, 128), (128, 256), (256, 512), (512, 1024), (1024, 784)]
    assert widths(Discriminator()) == [(784, 512), (512, 256), (256, 1)]
    layers = [*Generator(100), *Discriminator()]
    assert [n.num_features for n in layers if isinstance(n, nn.BatchNorm1d)] == [256, 512, 1024]
    assert [n.negative_slope for n in layers if isinstance(n, nn.LeakyReLU)] == [0.2] * 6
    assert isinstance(Generator(100)[-1], nn.Tanh)


def test_losses_match_the_formulas_of_the_report():
    real, fake = torch.randn(2, 64, 1, generator=make_rng("logits"), dtype=torch.float64) * 5
    d_x, d_g_z = torch.sigmoid(real), torch.sigmoid(fake)
    l_d = -d_x.log().mean() - (1 - d_g_z).log().mean()
    l_g = -d_g_z.log().mean()
    assert gan.discriminator_loss(real, fake, 64).item() == pytest.approx(l_d.item(), rel=1e-12)
    assert gan.generator_loss(fake, 64).item() == pytest.approx(l_g.item(), rel=1e-12)


def test_losses_do_not_overflow():
    logits = torch.full((4, 1), 1000.0)
    assert gan.discriminator_loss(-logits, logits, 4).item() == 2000
    assert gan.generator_loss(-logits, 4).item() == 1000
    assert math.isinf(-torch.sigmoid(-logits).log().mean())  # as the formulas do


@cache
def mnist_test_images() -> torch.Tensor:
    return image_data.load().test.images


def batch_images(step: int) -> torch.Tensor:
    """Returns the images of one batch, and 13 more, which an epoch of one batch drops."""
    return mnist_test_images()[step * BATCH_SIZE : (step + 1) * BATCH_SIZE + 13]


def with_torch_batch_norm(layer: nn.Module) -> nn.Module:
    if isinstance(layer, nn.BatchNorm1d):
        return nn.BatchNorm1d(layer.num_features, dtype=torch.float64)
    return layer


def test_step_matches_a_plain_training_loop():
    """The plain loop uses two passes of D, all gradients, torch's own batch norm and Adam."""
    model, plain = (GAN(16, 1, 0.01, (0.5, 0.999), dtype=torch.float64) for _ in range(2))
    generator, discriminator = (
        nn.Sequential(*map(with_torch_batch_norm, plain.generator)),
        plain.discriminator,
    )
    optimizer_g, optimizer_d = (
        torch.optim.Adam(network.parameters(), lr=0.01, betas=(0.5, 0.999))
        for network in (generator, discriminator)
    )
    for step in range(3):
        real = image_data.normalize(batch_images(step)[:BATCH_SIZE]).double()
        z = gan.make_latents("test", step, count=BATCH_SIZE, latent_dim=16).double()
        means = model.step(real, z, BATCH_SIZE)

        fake = generator(z)
        d_x, d_g_z = discriminator(real), discriminator(fake.detach())
        loss_d = gan.discriminator_loss(d_x, d_g_z, BATCH_SIZE)
        optimizer_d.zero_grad()
        loss_d.backward()
        optimizer_d.step()
        loss_g = gan.generator_loss(discriminator(fake), BATCH_SIZE)
        optimizer_g.zero_grad()
        loss_g.backward()
        optimizer_g.step()
        expected = [loss_d, loss_g, d_x.sigmoid().mean(), d_g_z.sigmoid().mean()]
        torch.testing.assert_close(means, torch.stack(expected).detach(), rtol=1e-9, atol=0)
    for network, other in ((model.generator, generator), (model.discriminator, discriminator)):
        torch.testing.assert_close(network.state_dict(), other.state_dict(), rtol=1e-9, atol=1e-10)


def train_step(model: GAN, number: int) -> torch.Tensor:
    return gan.train_epoch(model, batch_images(number), 0, number, BATCH_SIZE)


def train_worker(rank: int, num_workers: int, folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/{num_workers}", rank=rank, world_size=num_workers
    )
    cores = sorted(os.sched_getaffinity(0))
    distributed.pin_threads_to_cores(rank, num_workers, threads=1)
    if num_workers == len(cores) > 1:
        for thread in os.listdir("/proc/self/task"):
            with suppress(ProcessLookupError):  # it has ended
                assert os.sched_getaffinity(int(thread)) == {cores[rank]}
    results = {}
    for dtype, betas in BETAS.items():
        model = GAN(100, 0, 0.0002, betas, dtype=dtype)
        # Each epoch has a single step here.
        means = [train_step(model, i) for i in range(RESUME_STEP)]
        resumed = GAN(100, 1, 0.0002, betas, dtype=dtype)
        resumed.load_state_dict(copy.deepcopy(model.state_dict()))
        means += [train_step(model, i) for i in range(RESUME_STEP, STEPS)]
        for i in range(RESUME_STEP, STEPS):
            train_step(resumed, i)
        z = gan.make_latents("z", count=64, latent_dim=100)
        results[str(dtype)] = {
            "means": torch.stack(means),  # (steps, 4)
            "generator": model.generator.state_dict(),
            "discriminator": model.discriminator.state_dict(),
            "images": gan.generate(model.generator, z),
            "resumed": resumed.generator.state_dict(),
        }
    if rank == 0:
        torch.save(results, folder / f"{num_workers}.pt")
    dist.barrier()
    dist.destroy_process_group()
    # gloo's threads must end before the interpreter does: else it aborts. A thread that has been
    # joined may be listed for a moment longer.
    wait_for(lambda: not any("gloo" in name for name in thread_names()), minutes=1)


def thread_names() -> list[str]:
    names = []
    for name in Path("/proc/self/task").glob("*/comm"):
        with suppress(OSError):  # the thread has ended
            names.append(name.read_text())
    return names


@pytest.fixture(scope="module")
def results(tmp_path_factory) -> dict[int, dict]:
    """Results of 1, 2 and 3 workers after 50 steps; each of three has 42 or 43 images per step."""
    folder = tmp_path_factory.mktemp("workers")
    for num_workers in (1, 2, 3):
        multiprocessing.spawn(train_worker, (num_workers, folder), nprocs=num_workers)
    return {n: torch.load(folder / f"{n}.pt", weights_only=True) for n in (1, 2, 3)}


@pytest.mark.parametrize("num_workers", [2, 3])
def test_multi_worker_matches_single_worker(results, num_workers):
    actual, expected = (results[n]["torch.float64"] for n in (num_workers, 1))
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-8)


@pytest.mark.parametrize("num_workers", [2, 3])
def test_multi_worker_matches_single_worker_in_float32(results, num_workers):
    """Images are compared by mean difference: single pixels may be beyond a kink."""
    actual, expected = (results[n]["torch.float32"] for n in (num_workers, 1))
    assert (actual["means"] - expected["means"]).abs().max() < 1e-2
    assert (actual["images"] - expected["images"]).abs().mean() < 1e-2


@pytest.mark.parametrize("num_workers", [1, 2, 3])
def test_resume_with_several_workers_is_bit_identical(results, num_workers):
    """Their sums must not depend on how many steps the process has done."""
    for result in results[num_workers].values():
        torch.testing.assert_close(result["resumed"], result["generator"], rtol=0, atol=0)


@pytest.mark.parametrize(("count", "num_workers"), [(64, 1), (50, 3), (512, 7), (5, 5)])
def test_shards_are_disjoint_complete_and_balanced(monkeypatch, count, num_workers):
    monkeypatch.setattr(distributed, "world_size", lambda: num_workers)
    shards = []
    for rank in range(num_workers):
        monkeypatch.setattr(dist, "get_rank", partial(int, rank))
        shards.append(range(count)[distributed.shard_slice(count)])
    assert [i for shard in shards for i in shard] == list(range(count))
    assert max(map(len, shards)) - min(map(len, shards)) <= 1


def test_seed_and_epoch_determine_the_weights():
    def weights_after_epoch(seed: int, epoch: int) -> torch.Tensor:
        model = GAN(8, seed, 0.1, (0.9, 0.999))
        gan.train_epoch(model, batch_images(0), seed, epoch, BATCH_SIZE)
        return model.generator[0].weight

    assert torch.equal(weights_after_epoch(1, 1), weights_after_epoch(1, 1))
    assert not torch.equal(weights_after_epoch(1, 1), weights_after_epoch(2, 1))
    assert not torch.equal(weights_after_epoch(1, 1), weights_after_epoch(1, 2))


def test_resume_is_bit_identical(tmp_path):
    """Through a file, as with a checkpoint, into networks that have another initialization."""
    model = GAN(8, 0, 0.001, (0.5, 0.999))
    gan.train_epoch(model, batch_images(0), 0, 1, BATCH_SIZE)
    torch.save(model.state_dict(), tmp_path / "state.pt")
    resumed = GAN(8, 5, 0.001, (0.5, 0.999))
    resumed.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    for each in (model, resumed):
        gan.train_epoch(each, batch_images(1), 0, 2, BATCH_SIZE)
    torch.testing.assert_close(resumed.state_dict(), model.state_dict(), rtol=0, atol=0)


def test_generated_image_is_independent_of_its_batch_and_training_mode_is_kept():
    generator = Generator(8)
    z = gan.make_latents("z", count=5, latent_dim=8)
    images = gan.generate(generator, z, batch_size=2)
    assert images.shape == (5, 784)
    torch.testing.assert_close(images[3:4], gan.generate(generator, z[3:4]))
    assert generator.training
