"""Fidelity of a restored image (C, S, R, W) to its reference."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

SSIM_WINDOW = 11
"""Pixels along each side: a Gaussian of sigma 1.5, cut off at 3.5 sigma (Wang 2004)."""


def psnr(restored: NDArray[Any], reference: NDArray[Any], data_range: float) -> float:
    """Peak signal-to-noise ratio in dB, over all voxels and channels; infinite for equal images.

    `data_range` is the distance between the lowest and the highest possible value (255 for 8 bits). Numbers with
    different ranges cannot be compared.
    """
    if restored.shape != reference.shape:
        raise ValueError(f"shapes differ: {restored.shape} and {reference.shape}")
    error = float(np.mean(np.square(restored.astype(np.float64) - reference.astype(np.float64))))
    return float("inf") if error == 0 else float(10 * np.log10(data_range**2 / error))


def ssim(restored: NDArray[Any], reference: NDArray[Any], data_range: float) -> float:
    """Structural similarity (Wang 2004, Gaussian window), the mean over channels and slices; at most 1.

    Not a number for slices smaller than the window.
    """
    from skimage.metrics import structural_similarity

    if restored.shape != reference.shape:
        raise ValueError(f"shapes differ: {restored.shape} and {reference.shape}")
    if min(reference.shape[2:]) < SSIM_WINDOW:
        return float("nan")
    planes = [array.astype(np.float64).reshape(-1, *array.shape[2:]) for array in (restored, reference)]
    values = [
        structural_similarity(
            first, second, data_range=data_range, gaussian_weights=True, sigma=1.5, use_sample_covariance=False
        )
        for first, second in zip(*planes, strict=True)
    ]
    return float(np.mean(values))
