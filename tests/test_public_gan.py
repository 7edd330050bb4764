"""The public script that the GAN is compared with resumes as if it had not stopped."""

import pandas as pd
import public_gan
import pytest
from mnist_files import mnist_subset

from models import gan, image_data


def test_resumed_training_equals_uninterrupted_training(tmp_path, monkeypatch):
    data = image_data.load(mnist_subset(tmp_path / "dataset", 640, 200))
    monkeypatch.setattr(image_data, "load", lambda: data)
    monkeypatch.setattr(gan, "NUM_EVAL_SAMPLES", 200)
    for name, calls in {"whole": [3], "resumed": [1, 1, 3]}.items():
        for epochs in calls:
            public_gan.train(5, epochs, tmp_path / f"{name}.csv")
    whole, resumed = (pd.read_csv(tmp_path / f"{name}.csv") for name in ("whole", "resumed"))
    assert [*resumed["epoch"]] == [1, 3]
    assert resumed.iloc[-1].to_dict() == pytest.approx(whole.iloc[-1].to_dict(), rel=0, abs=0)
