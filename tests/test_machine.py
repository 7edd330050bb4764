"""The precision of GPUs, which can be set without one."""

import pytest
import torch

from jobs import machine


@pytest.mark.parametrize("tf32", [False, True])
def test_all_kernels_have_the_same_precision(tf32):
    machine.set_gpu_precision(tf32)
    assert torch.backends.cuda.matmul.fp32_precision == ("tf32" if tf32 else "ieee")
    assert (torch.backends.cudnn.rnn.fp32_precision == "tf32") == tf32
    assert (torch.backends.cudnn.conv.fp32_precision == "tf32") == tf32
    assert machine.hardware_info(torch.device("cpu"))["numeric_precision"] == "float32"
