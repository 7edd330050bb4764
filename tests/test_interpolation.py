import math

import pandas as pd
import pytest
import torch

from analysis import interpolation
from models import gan
from models.classifier import load_classifier
from models.gan_metrics import classify


def test_paths_join_their_ends_and_slerp_keeps_the_norm():
    start, end = torch.tensor([3.0, 0.0]), torch.tensor([0.0, 3.0])
    t = torch.linspace(0, 1, 5)
    for path in (interpolation.lerp, interpolation.slerp):
        torch.testing.assert_close(path(start, end, t)[[0, -1]], torch.stack([start, end]))
    arc = interpolation.slerp(start, end, t)
    torch.testing.assert_close(arc.norm(dim=1), torch.full((5,), 3.0))
    quarter = torch.tensor([3 * math.cos(math.pi / 8), 3 * math.sin(math.pi / 8)])
    torch.testing.assert_close(arc[1], quarter)
    torch.testing.assert_close(interpolation.lerp(start, end, t)[2], torch.tensor([1.5, 1.5]))


def test_smoothness_is_1_for_even_steps_and_larger_for_a_jump():
    even = torch.arange(9.0)[:, None].expand(9, 3)
    assert interpolation.smoothness(even) == pytest.approx(1)
    jump = torch.tensor([[0.0], [0.0], [0.0], [4.0], [4.0]])
    assert interpolation.smoothness(jump) == pytest.approx(4)


def test_smoothness_is_measured_between_confident_images_of_different_digits(monkeypatch):
    monkeypatch.setattr(gan, "NUM_EVAL_SAMPLES", 9)
    generator, classifier = gan.Generator(4), load_classifier()
    digits, confident = [1, 2, 3, 3, 4, 5, 6, 7, 8], [0, 1, 2, 3, 6, 7]
    confidence = [0.995 if i in confident else 0.5 for i in range(9)]
    table = pd.DataFrame({"image": range(9), "digit": digits, "confidence": confidence})
    monkeypatch.setattr(interpolation, "prediction_table", lambda *_: table)
    found = interpolation.smoothness_table(generator, 0, classifier)
    pairs = found[["from", "to"]][::3].to_numpy().tolist()
    assert pairs == [[1, 2], [6, 7]]  # 3 and 3 are the same
    assert [*found["path"]] == ["linear", "spherical", "pixels"] * 2

    z = gan.make_latents(0, "pairs", count=9, latent_dim=4)
    t = torch.linspace(0, 1, 9)
    images = gan.generate(generator, torch.lerp(z[6], z[7], t[:, None]))
    for path, expected in (
        ("linear", images),
        ("pixels", torch.lerp(images[0], images[-1], t[:, None])),
    ):
        features = classify(expected, classifier).features
        row = found[(found["from"] == 6) & (found["path"] == path)]
        ratio = interpolation.smoothness(features)
        assert row["largest/mean step"].item() == pytest.approx(ratio)


def test_ends_are_the_first_confident_or_else_the_most_confident_images(monkeypatch):
    digits, confidences = [3, 3, 3, 8, 8], [0.5, 0.992, 0.999, 0.6, 0.4]
    table = pd.DataFrame({"image": range(5), "digit": digits, "confidence": confidences})
    monkeypatch.setattr(gan, "NUM_EVAL_SAMPLES", 5)
    monkeypatch.setattr(interpolation, "prediction_table", lambda images, classifier: table)
    generator = gan.Generator(4)
    ends = interpolation.find_latents(generator, seed=0, classifier=None)
    z = gan.make_latents(0, "ends", count=5, latent_dim=4)
    assert ends.keys() == {3, 8}
    assert torch.equal(ends[3], z[1])
    assert torch.equal(ends[8], z[3])
