"""Features without any weights: blur and Gabor energy at three scales.

What a simple model of the first visual cortex sees (Adelson and Bergen 1985, doi:10.1364/JOSAA.2.000284). The energy of
an even and an odd Gabor filter says how much of a texture there is, whatever its phase. That is the point of it: the
mean squared difference of *linear* features is smallest for the mean of all likely images, as it is for voxels, so that
only something that is not linear makes a reconstruction sharper.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from medae.features.distance import Features

SCALES = 3
ORIENTATIONS = 4
WAVELENGTH = 4.0
"""Pixels of each scale, so 4, 8 and 16 of the image."""
WIDTH = 2.0
"""Standard deviation of the Gabor filter's window, in pixels of each scale."""
RADIUS = 4
SOFT = 1e-2
"""Rounds the energy off where it vanishes, and its square root would have no slope."""
UNIT = 0.07
"""Of the range: values are seen in it. About the contrast of texture in tissue, so that features are as large as
VGG16's and its weight in the perceptual objective suits these too."""
BLUR = (1 / 16, 4 / 16, 6 / 16, 4 / 16, 1 / 16)
"""Along each axis."""


class FilterFeatures(Features):
    """Of each scale and channel: the blurred value, and the energy in four orientations.

    Values are in units of .07 of the range. A sinusoid of the filters' wavelength and of amplitude 1 (of those units)
    has the energy 1 in its orientation.
    """

    def __init__(self, scales: int = SCALES) -> None:
        super().__init__()
        self.scales = scales
        self.register_buffer("gabor", gabor_bank()[:, None], persistent=False)

    def layers(self, x: Tensor) -> Iterator[Tensor]:
        batch, channels = x.shape[:2]
        plane = x.reshape(batch * channels, 1, *x.shape[2:]) / UNIT
        for scale in range(self.scales):
            low = smooth(plane, BLUR)
            even, odd = _filtered(plane, self.get_buffer("gabor")).chunk(2, dim=1)
            energy = torch.addcmul(even * even, odd, odd).add_(SOFT**2).sqrt() - SOFT
            yield torch.cat([low, energy], dim=1).reshape(batch, -1, *plane.shape[2:])
            if scale + 1 < self.scales:
                plane = low[..., ::2, ::2]


def gabor_bank() -> Tensor:
    """(2 x orientations, side, side): the even filters, then the odd ones; without a mean."""
    at = torch.arange(-RADIUS, RADIUS + 1, dtype=torch.float64)
    rows, columns = torch.meshgrid(at, at, indexing="ij")
    window = torch.exp(-(rows.square() + columns.square()) / (2 * WIDTH**2))
    even, odd = [], []
    for number in range(ORIENTATIONS):
        angle = torch.tensor(torch.pi * number / ORIENTATIONS, dtype=torch.float64)
        along = 2 * torch.pi / WAVELENGTH * (rows * torch.sin(angle) + columns * torch.cos(angle))
        cosine, sine = torch.cos(along), torch.sin(along)
        flat = cosine - (window * cosine).sum() / window.sum()
        even.append(window * flat / (window * flat * cosine).sum())
        odd.append(window * sine / (window * sine * sine).sum())
    return torch.stack([*even, *odd]).float()


def smooth(values: Tensor, weights: Sequence[float]) -> Tensor:
    """(B, C, rows, columns) by the same symmetric weights along both axes; beyond the border lies the last pixel.

    One channel at a time stays in the processor's cache.
    """
    padded = functional.pad(values, [len(weights) // 2] * 4, mode="replicate")
    return torch.cat(
        [_along(_along(plane, weights, 2), weights, 3) for plane in padded.chunk(padded.shape[1], dim=1)], dim=1
    )


def _along(padded: Tensor, weights: Sequence[float], axis: int) -> Tensor:
    """By sums in place, which cost less than a convolution of single channels."""
    reach = len(weights) // 2
    length = padded.shape[axis] - 2 * reach
    total = padded.narrow(axis, reach, length) * weights[reach]
    for start, weight in enumerate(weights[:reach]):
        total.add_(padded.narrow(axis, start, length), alpha=weight)
        total.add_(padded.narrow(axis, 2 * reach - start, length), alpha=weight)
    return total


def _filtered(plane: Tensor, kernels: Tensor) -> Tensor:
    """The size of `plane`; beyond the border lies the last pixel."""
    radius = kernels.shape[-1] // 2
    return functional.conv2d(functional.pad(plane, [radius] * 4, mode="replicate"), kernels.to(plane.dtype))
