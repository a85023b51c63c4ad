"""What the back end computes beside the network, by itself."""

from typing import Any

import numpy as np
import pytest
import torch

from medae.backends.feature_maps import FeatureMap, MahalanobisDistance, NeighbourDistance, features_of
from medae.backends.observer import FeatureDifference, SSIMMap
from medae.features.filters import BLUR, smooth
from medae.networks import Output
from medae.scores import SSIM, Mahalanobis, Neighbours, Texture

TEXTURE = Texture(cell=4, scales=1)


def feature_map(kind: str, features: int) -> FeatureMap:
    rng = np.random.default_rng(1)
    fitted: dict[str, Any] = {
        "mean": rng.standard_normal(features),
        "deviation": np.full(features, 0.1),
        "bank": 5 * rng.standard_normal((30, features)),
        "whitening": 40 * rng.standard_normal((features, features)),
    }
    if kind == "mahalanobis":
        return FeatureMap(MahalanobisDistance(fitted), features_of(Mahalanobis(features=TEXTURE), 4))
    return FeatureMap(NeighbourDistance(fitted, 3), features_of(Neighbours(features=TEXTURE), 4))


@pytest.mark.parametrize("shape", [(2, 3, 21, 26), (1, 1, 3, 19, 22)], ids=["picture", "volume"])
@pytest.mark.parametrize("name", ["ssim", "perceptual", "mahalanobis", "neighbours"])
def test_maps_are_of_single_precision_whatever_the_network_computes_in(name: str, shape: tuple[int, ...]) -> None:
    """As on CUDA, where the network runs in bfloat16: small differences of squares would drown in it."""
    parts = {"ssim": SSIMMap(SSIM()), "perceptual": FeatureDifference()}
    part = parts.get(name) or feature_map(name, 3 * shape[1])
    x = torch.from_numpy(np.random.default_rng(0).random(shape, np.float32))
    said = Output((0.9 * x + 0.02).bfloat16(), None)
    with torch.inference_mode():
        expected = part(x, said)
        with torch.autocast("cpu", torch.bfloat16):
            found = part(x, said)
    assert found.dtype == torch.float32 and found.shape == (shape[0], 1, *shape[2:])
    torch.testing.assert_close(found, expected)


def test_smoothing_is_the_convolution_by_the_outer_product_and_has_its_gradient() -> None:
    values = torch.from_numpy(np.random.default_rng(0).standard_normal((2, 3, 9, 12))).requires_grad_()
    weights = torch.tensor(BLUR, dtype=torch.float64)
    padded = torch.nn.functional.pad(values, [2] * 4, mode="replicate")
    kernel = torch.outer(weights, weights)[None, None].expand(3, 1, 5, 5)
    expected = torch.nn.functional.conv2d(padded, kernel, groups=3)
    found = smooth(values, BLUR)
    torch.testing.assert_close(found, expected)
    gradients = [torch.autograd.grad(each.square().sum(), values, retain_graph=True)[0] for each in (found, expected)]
    torch.testing.assert_close(*gradients)


def test_no_map_changes_what_it_is_given() -> None:
    x = torch.from_numpy(np.random.default_rng(0).random((1, 1, 16, 16), np.float32))
    said = Output(0.9 * x, None)
    kept = x.clone(), said.prediction.clone()
    for part in (SSIMMap(SSIM()), FeatureDifference()):
        part(x, said)
        assert torch.equal(x, kept[0]) and torch.equal(said.prediction, kept[1])
