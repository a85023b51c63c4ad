"""How the benchmark of nuclei parts masks, and averages answers over flips and turns."""

from types import SimpleNamespace

import numpy as np
import pytest

from benchmarks.nuclei import averaged
from benchmarks.nuclei_data import measured, parted, parted_by_pixels
from medae.image import Image


def discs(scale: int, apart: float) -> np.ndarray:
    """(R, W) labels of two nuclei of a radius of 6 times `scale`, their middles `apart` radii from each other."""
    radius = 6 * scale
    row, column = np.mgrid[: 4 * radius, : 6 * radius]
    away = [np.hypot(row - 2 * radius, column - middle * radius) for middle in (3 - apart / 2, 3 + apart / 2)]
    labels = np.where(away[0] <= away[1], 1, 2)
    return np.where(np.minimum(*away) <= radius, labels, 0).astype(np.int32)


@pytest.mark.parametrize("scale", [1, 2, 5])
def test_touching_nuclei_are_parted_whatever_their_size(scale: int) -> None:
    nuclei = discs(scale, apart=1.6)
    found = parted(nuclei > 0)
    assert measured(nuclei > 0, found, nuclei)["AP@.5"] == 1
    np.testing.assert_array_equal(found > 0, nuclei > 0)


@pytest.mark.parametrize("scale", [1, 2, 5])
def test_one_nucleus_stays_one(scale: int) -> None:
    assert parted(discs(scale, apart=0) > 0).max() == 1


def test_specks_and_nothing_are_no_nuclei() -> None:
    mask = np.zeros((40, 40), bool)
    assert parted(mask).max() == parted_by_pixels(mask).max() == 0
    mask[3:7, 3:7] = True
    assert parted(mask).max() == parted_by_pixels(mask).max() == 0


def test_answers_to_flips_and_turns_are_put_back_before_they_are_averaged() -> None:
    rgb = np.zeros((12, 20, 3), np.uint8)
    rgb[:5, 3:14] = 255
    asked = []

    def predictor(image: Image, *, probabilities: bool) -> SimpleNamespace:
        asked.append(image.pixels.shape)
        return SimpleNamespace(probabilities=image.with_pixels(image.pixels[:1] / np.float32(255)))

    np.testing.assert_array_equal(averaged(predictor, rgb), rgb[..., 0] > 0)
    assert sorted(asked) == [(3, 1, 12, 20)] * 4 + [(3, 1, 20, 12)] * 4
