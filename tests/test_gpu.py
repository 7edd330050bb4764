"""Each job on a GPU: it chooses the GPU, its optimizers are fused, resume is bit-identical."""

from pathlib import Path

import pytest
import torch
from mnist_files import mnist_subset
from processes import run_script

from analysis.results import Trial, read_trials
from models import recurrent

pytestmark = [
    pytest.mark.ray,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"),
]

DEVICE = "cuda"  # type of the device that computes
EPOCHS = 3


def run_job(script: str, storage: Path, flags: list[object]) -> Trial:
    """Runs a job with one trial to its end; returns the trial."""
    done = run_script(script, *flags, "--epochs", EPOCHS, "--storage", storage, "--name", "run")
    assert done.returncode == 0, done.stdout + done.stderr
    (trial,) = read_trials(str(storage / "run"))
    assert [row["epoch"] for row in trial.rows] == list(range(1, EPOCHS + 1))
    assert {torch.device(row["device"]).type for row in trial.rows} == {DEVICE}
    return trial


def check_job(
    script: str, storage: Path, flags: list[object], optimizers: list[str], columns: list[str]
) -> None:
    """Runs a job, removes its last checkpoint, and runs it again.

    Args:
        optimizers: their names in a checkpoint; each must be fused, with its state on the device.
        columns: must be identical after the resume.
    """
    expected = run_job(script, storage, flags).latest_checkpoint()
    (last,) = storage.glob(f"run/**/{expected.name}/state.pt")
    state = torch.load(last, weights_only=True)  # each tensor on the device where it was saved
    for name in optimizers:
        assert all(group["fused"] for group in state[name]["param_groups"])
        moments = [moment["exp_avg"] for moment in state[name]["state"].values()]
        assert {moment.device.type for moment in moments} == {DEVICE}

    last.unlink()
    found = run_job(script, storage, flags).latest_checkpoint()
    assert found.history[-1]["resumed_from_epoch"] == EPOCHS - 1
    for row, same in zip(found.history, expected.history, strict=True):
        assert [row[name] for name in columns] == [same[name] for name in columns]
    torch.testing.assert_close(found.state, expected.state, rtol=0, atol=0)


@pytest.mark.parametrize("cell", sorted(recurrent.CELLS))
def test_sweep_uses_the_gpu_and_resumes_bit_identically(tmp_path, cell):
    flags = ["--cells", cell, "--lengths", 20, "--seeds", 0, "--num-sequences", 4000, "--probe"]
    columns = ["train_loss", "val_loss", "val_accuracy", "grad_norm_h", "update_rms_over_lr"]
    check_job("jobs/sweep.py", tmp_path, flags, ["optimizer"], columns)


def test_gan_uses_the_gpu_and_resumes_bit_identically(tmp_path):
    data = mnist_subset(tmp_path / "dataset", 1280, 200)
    flags = ["--data", data, "--batch-size", 128, "--workers", 1]
    flags += ["--keep-every", 1, "--eval-every", 1]
    columns = ["loss_d", "loss_g", "d_real", "d_fake", "frechet_distance", "recall"]
    check_job("jobs/gan.py", tmp_path, flags, ["optimizer_g", "optimizer_d"], columns)
