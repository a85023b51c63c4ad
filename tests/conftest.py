"""What all tests share: the real data where it is present, and images that are tilted, permuted and odd-sized."""

from pathlib import Path

import numpy as np
import pytest

from medae.image import Geometry, Image


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data sets; tests that need it are skipped where it is absent."""
    folder = Path(__file__).resolve().parents[2] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("the shared data sets are not on this machine")
    return folder


def tilted_affine(spacing: tuple[float, float, float] = (2.5, 0.8, 1.1), seed: int = 0) -> np.ndarray:
    """Permuted (sagittal-like P-S-L axes), tilted and anisotropic: a straight affine lets axis swaps live."""
    rng = np.random.default_rng(seed)
    axes = np.array([[-1.0, 0, 0], [0, 0, -1.0], [0, -1.0, 0]]).T
    tilt, _ = np.linalg.qr(np.eye(3) + 0.15 * rng.standard_normal((3, 3)))
    tilt *= np.sign(np.diag(tilt))
    affine = np.eye(4)
    affine[:3, :3] = tilt @ axes * spacing
    affine[:3, 3] = (-31.5, 17.25, 40.0)
    return affine


@pytest.fixture
def tilted_volume() -> Image:
    """One channel, 7 x 9 x 11, every value different, int16, on a tilted permuted anisotropic grid."""
    pixels = np.arange(7 * 9 * 11, dtype=np.int16).reshape(1, 7, 9, 11) - 100
    return Image(pixels, Geometry((7, 9, 11), tilted_affine()))
