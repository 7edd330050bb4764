"""The GAN's event files, read by TensorBoard's own reader."""

import io
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from pyarrow import fs
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

from analysis.gan_figures import grid_latents
from analysis.results import read_trials
from jobs import storage
from jobs.gan import GANConfig
from jobs.tensorboard import EventFile
from models import gan

CONFIG = GANConfig(epochs=6, eval_every=2, batch_size=64)
LATENTS = gan.make_latents(0, "grid", count=64, latent_dim=100)


@pytest.fixture(scope="module")
def generator() -> gan.Generator:
    return gan.GAN(100, 0, CONFIG.lr, CONFIG.betas).generator


def make_row(epoch: int) -> dict[str, float]:
    """Returns the row of an epoch whose loss differs from one start of the workers to the next."""
    row = {"epoch": epoch, "training_iteration": epoch, "epoch_end_time": 1.7e9 + 60 * epoch}
    row |= {"loss_d": 1 / epoch, "loss_g": 2.5, "d_real": 0.75, "train_seconds": 3.5}
    return row | ({"frechet_distance": 50.0 - epoch} if epoch % 2 == 0 else {})


def write_epochs(
    folder: storage.StorageDir, generator: gan.Generator, epochs: range, number: int
) -> None:
    """Writes what one start of the workers writes; `number` orders the files by time."""
    events = EventFile(folder, asdict(CONFIG), epochs[0] - 1)
    for epoch in epochs:
        events.write_epoch(make_row(epoch) | {"d_real": number}, generator)
    # All tests run within a second.
    path = f"{folder.path}/{events.name}"
    folder.filesystem.move(path, path.replace("tfevents.", f"tfevents.{number}"))


def read_events(folder: Path) -> EventAccumulator:
    return EventAccumulator(str(folder), size_guidance={"scalars": 0, "images": 0}).Reload()


def test_scalars_have_the_values_steps_and_times_of_the_rows(tmp_path, generator):
    write_epochs(storage.open_dir(str(tmp_path)), generator, range(1, 7), number=1)
    events, rows = read_events(tmp_path), [make_row(epoch) for epoch in range(1, 7)]
    tags = {*rows[1]} - {"epoch", "training_iteration", "epoch_end_time"}
    assert {*events.Tags()["scalars"]} == tags
    for tag in tags - {"d_real"}:
        expected = [
            (row["epoch_end_time"], row["epoch"], pytest.approx(row[tag]))
            for row in rows
            if tag in row
        ]
        found = [(event.wall_time, event.step, event.value) for event in events.Scalars(tag)]
        assert found == expected


def test_samples_are_those_of_the_figures(tmp_path, generator, gan_run):
    write_epochs(storage.open_dir(str(tmp_path)), generator, range(1, 7), number=1)
    images = read_events(tmp_path).Images("samples")
    assert [image.step for image in images] == [2, 4, 6]
    found = np.asarray(Image.open(io.BytesIO(images[-1].encoded_image_string)))
    assert torch.equal(LATENTS, grid_latents(read_trials(str(gan_run))[0]))
    tiles = gan.generate(generator, LATENTS).view(8, 8, 28, 28).permute(0, 2, 1, 3)
    pixels = ((tiles.reshape(224, 224) + 1) * 127.5).round().numpy()
    assert found.shape == (224, 224, 3)
    assert all((found[..., channel] == pixels).all() for channel in range(3))


def test_hyperparameters_are_recorded(tmp_path, generator):
    write_epochs(storage.open_dir(str(tmp_path)), generator, range(1, 7), number=1)
    content = read_events(tmp_path).summary_metadata["_hparams_/session_start_info"]
    hparams = HParamsPluginData.FromString(content.plugin_data.content).session_start_info.hparams
    numbers = {"epochs", "batch_size", "latent_dim", "lr", "seed", "keep_every", "eval_every"}
    assert {n: hparams[n].number_value for n in numbers} == {n: getattr(CONFIG, n) for n in numbers}
    assert hparams["betas"].string_value == "0.5,0.999"
    assert {*hparams} == {*asdict(CONFIG)}


def test_each_epoch_is_there_once_after_a_restart(tmp_path, generator):
    folder = storage.open_dir(str(tmp_path))
    write_epochs(folder, generator, range(1, 6), number=1)
    write_epochs(folder, generator, range(3, 5), number=2)
    write_epochs(folder, generator, range(4, 7), number=3)
    events = read_events(tmp_path)
    assert [event.step for event in events.Scalars("loss_d")] == [1, 2, 3, 4, 5, 6]
    assert [event.value for event in events.Scalars("d_real")] == [1, 1, 2, 3, 3, 3]
    assert [event.step for event in events.Images("samples")] == [2, 4, 6]


def test_each_epoch_is_visible_as_soon_as_it_is_written(tmp_path, generator):
    folder = storage.open_dir(str(tmp_path))
    events = EventFile(folder, asdict(CONFIG), epochs_done=0)
    for epoch in (1, 2):
        events.write_epoch(make_row(epoch), generator)
        assert len(read_events(tmp_path).Scalars("loss_d")) == epoch


def test_storage_behind_a_uri_gets_the_same_file(tmp_path, generator):
    """Such a filesystem replaces files as a whole, also in this test, which needs no server."""
    behind_uri = fs.SubTreeFileSystem(str(tmp_path), fs.LocalFileSystem())
    (tmp_path / "run").mkdir()
    folder = storage.StorageDir("s3://bucket/run", behind_uri, "run")
    events = EventFile(folder, asdict(CONFIG), epochs_done=0)
    for epoch in (1, 2):
        events.write_epoch(make_row(epoch), generator)
        assert len(read_events(tmp_path / "run").Scalars("loss_d")) == epoch
    assert [path.name for path in (tmp_path / "run").iterdir()] == [events.name]


def test_event_files_change_no_result(tmp_path, gan_run):
    """Training with an event file ends with the weights of training without it."""

    def weights(with_events: bool) -> dict:
        torch.set_num_threads(1)
        model = gan.GAN(100, 0, CONFIG.lr, CONFIG.betas)
        images = torch.randint(0, 256, (128, 28, 28), generator=torch.Generator().manual_seed(1))
        events = EventFile(storage.open_dir(str(tmp_path)), asdict(CONFIG), epochs_done=0)
        for epoch in (1, 2, 3):
            gan.train_epoch(model, images.byte(), 0, epoch, 64)
            if with_events:
                events.write_epoch(make_row(epoch) | {"frechet_distance": 1.0}, model.generator)
        return model.state_dict()

    torch.testing.assert_close(weights(True), weights(False), rtol=0, atol=0)
