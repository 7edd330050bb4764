"""The precision of GPUs, which can be set without one, and the columns of the machine."""

from dataclasses import fields

import pytest
import torch

from jobs import machine
from jobs.gan import GANConfig
from jobs.grid import GridConfig, trial_configs
from jobs.learner import Learner, run_epoch
from models import gan_metrics
from models.classifier import load_classifier
from models.palindromes import palindromes


@pytest.mark.parametrize("tf32", [False, True])
def test_all_kernels_have_the_same_precision(tf32):
    machine.set_gpu_precision(tf32)
    assert torch.backends.cuda.matmul.fp32_precision == ("tf32" if tf32 else "ieee")
    assert (torch.backends.cudnn.rnn.fp32_precision == "tf32") == tf32
    assert (torch.backends.cudnn.conv.fp32_precision == "tf32") == tf32
    assert machine.hardware_info(torch.device("cpu"))["numeric_precision"] == "float32"


def test_columns_of_the_machine_replace_no_metric_and_no_setting():
    columns = {*machine.hardware_info(torch.device("cpu"))}
    noise = torch.rand(60, 784) * 2 - 1
    classifier = load_classifier()
    reference = gan_metrics.ReferenceStats.from_images(noise[:30], classifier)
    metrics = gan_metrics.measure(gan_metrics.classify(noise[30:], classifier), reference)
    (config,) = trial_configs(GridConfig(cells=("rnn",), lengths=(3,), seeds=(0,), probe=True))
    data = palindromes(0, 3, num_sequences=1000)
    learner = Learner(config, len(data.train) // config["batch_size"], torch.device("cpu"))
    row = run_epoch(learner, 1, data.train, data.validation)
    gan_settings = {field.name for field in fields(GANConfig)}
    assert not columns & (metrics.keys() | row.keys() | config.keys() | gan_settings)
