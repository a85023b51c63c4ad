"""What an image looks like, beyond its values: fixed features, their distance, and where two images differ in them.

Two kinds: the VGG16 that was trained on ImageNet, where its weights are at hand, and a bank of filters that needs none.
The perceptual objective makes the distance small; an anomaly map shows where it is large.
"""

from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from medae.features.distance import FeatureDistance
from medae.features.filters import FilterFeatures
from medae.features.vgg import VGG16Features, describe_weights


def feature_distance(weights: Path | None = None) -> FeatureDistance:
    """The distance by VGG16 with the weights of a file in torchvision's format, or without one by filters.

    Raises SettingsError for a file that is not there or holds something else.
    """
    return FeatureDistance(FilterFeatures() if weights is None else VGG16Features.from_file(weights))


def describe(weights: Path | None = None) -> str:
    """Which features these are, for the model card."""
    if weights is None:
        return "fixed filters (Gabor energy and blur at 3 scales; no VGG16 weights were given)"
    return f"VGG16 relu1_2, relu2_2, relu3_3, relu4_3 ({describe_weights(weights)})"


def distance_map(x: NDArray[Any], y: NDArray[Any], weights: Path | None = None) -> NDArray[np.float32]:
    """Where two images (C, *spatial) in the prepared range differ: (1, *spatial), 0 where they look alike.

    A volume is seen slice by slice. weights: as for `feature_distance`; read once for each file.
    """
    pair = [torch.from_numpy(np.ascontiguousarray(image, np.float32))[None] for image in (x, y)]
    with torch.inference_mode():
        found: NDArray[np.float32] = _kept(weights).map(*pair)[0].numpy()
    return found


@lru_cache(maxsize=2)
def _kept(weights: Path | None) -> FeatureDistance:
    return feature_distance(weights).eval()


__all__ = ["FeatureDistance", "FilterFeatures", "VGG16Features", "describe", "distance_map", "feature_distance"]
