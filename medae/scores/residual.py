"""How far the image is from its reconstruction."""

from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import PositiveFloat

from medae.scores.base import Evidence, MapScore, ObservedScore

SIGMA_AT_64 = 1.5
"""Of the SSIM window for images of 64 pixels; it grows with them."""


class Residual(MapScore):
    """|x - reconstruction| or its square, in the network's 0..1 range, as the mean over channels."""

    kind: Literal["residual"] = "residual"
    distance: Literal["l1", "l2"] = "l2"

    def default_name(self) -> str:
        return f"{self.distance}_{self.reducer.kind}"

    def evidence(self, channels: int) -> dict[str, int]:
        return {"reconstruction": channels}

    def map(self, evidence: Evidence, x: NDArray[Any]) -> NDArray[Any]:
        difference = x - evidence["reconstruction"]
        distance = np.abs(difference) if self.distance == "l1" else np.square(difference)
        mean: NDArray[Any] = distance.mean(axis=0, keepdims=True, dtype=np.float32)
        return mean


class SSIM(ObservedScore):
    """1 - structural similarity (Wang 2004) to the reconstruction, 0..2, within slices, of the mean over
    channels."""

    kind: Literal["ssim"] = "ssim"
    sigma: PositiveFloat | None = None
    """Of the Gaussian window, in voxels; null: 1.5 for patches of 64, in proportion for others."""

    @property
    def window(self) -> float:
        """The sigma in use."""
        return SIGMA_AT_64 if self.sigma is None else self.sigma

    @property
    def reach(self) -> int:
        """Half the width of the window, in voxels."""
        return max(1, round(3.5 * self.window))

    @property
    def radius(self) -> int:
        return self.reach
