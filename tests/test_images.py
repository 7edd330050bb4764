import pandas as pd
import torch
from torch.nn import functional as F

from analysis.images import describe_predictions, image_grid, prediction_table
from models import image_data
from models.classifier import load_classifier


def test_image_grid_tiles_images_with_a_black_border_of_one_pixel():
    images = torch.rand(6, image_data.PIXELS, generator=torch.Generator().manual_seed(0)) * 2 - 1
    rows = images.view(2, 3, 28, 28)
    padded = F.pad(rows, (1, 1, 1, 1), value=-1)  # (2, 3, 30, 30)
    expected = padded.transpose(1, 2).flatten(2).flatten(0, 1)
    grid = image_grid(images, columns=3)
    assert grid.shape == (60, 90)
    assert torch.equal(grid, expected)


def test_predictions_of_real_digits_are_their_labels():
    test = image_data.load().test
    table = prediction_table(image_data.normalize(test.images[:200]), load_classifier())
    assert table["image"].tolist() == list(range(200))
    assert (torch.tensor(table["digit"].to_numpy()) == test.labels[:200]).double().mean() > 0.97
    assert table["confidence"].between(0.1, 1).all()


def test_description_counts_predicted_digits():
    table = pd.DataFrame({"digit": [7, 1, 7], "confidence": [0.5, 0.75, 1.0]})
    assert describe_predictions(table) == (
        "3 generated images. Predicted digits and their counts: 1: 1, 7: 2; "
        "median confidence of the classifier 75%."
    )
