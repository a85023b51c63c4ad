"""A linear dense autoencoder finds the principal components, a non-linear one goes beyond them (Baldi 1989)."""

from typing import Any

import numpy as np
import pytest
import torch
from scipy.linalg import subspace_angles
from sklearn.datasets import load_digits
from sklearn.decomposition import PCA
from torch import Tensor

from medae.networks import DenseAutoencoderSettings, StackedAutoencoder

CODE = 16


@pytest.fixture(scope="module")
def digits() -> tuple[Tensor, Tensor]:
    """(N, 1, 8, 8) in 0..1: to train, to test."""
    images = torch.from_numpy(load_digits().images / 16)[:, None]
    order = torch.from_numpy(np.random.default_rng(0).permutation(len(images)))
    return images[order[:1437]], images[order[1437:]]


@pytest.fixture(scope="module")
def pca(digits: tuple[Tensor, Tensor]) -> Any:
    return PCA(CODE).fit(digits[0].flatten(1).numpy())


def network(**settings: Any) -> StackedAutoencoder:
    torch.manual_seed(0)
    return DenseAutoencoderSettings(size=(8, 8), **settings).build(1, 1).double()


def error(net: StackedAutoencoder, images: Tensor) -> float:
    with torch.no_grad():
        return (net(images) - images).square().mean().item()


def error_of(pca: Any, images: Tensor) -> float:
    flat = images.flatten(1).numpy()
    return float(np.square(pca.inverse_transform(pca.transform(flat)) - flat).mean())


def test_a_linear_code_is_the_plane_of_the_components(digits: tuple[Tensor, Tensor], pca: Any) -> None:
    train, test = digits
    net = network(widths=(CODE,), activation="linear", tied=True)
    ends = {"tolerance_grad": 1e-9, "tolerance_change": 1e-13, "line_search_fn": "strong_wolfe"}
    optimiser = torch.optim.LBFGS(net.parameters(), max_iter=400, history_size=20, **ends)

    def loss() -> Tensor:
        optimiser.zero_grad()
        value = (net(train) - train).square().sum()
        value.backward()
        return value

    optimiser.step(loss)
    assert error(net, test) <= 1.01 * error_of(pca, test)
    with torch.no_grad():
        units = torch.eye(CODE, dtype=torch.float64).view(CODE, CODE, 1, 1)
        plane = (net.decoder(units) - net.decoder(0 * units)).flatten(1).numpy()
    assert np.degrees(subspace_angles(plane.T, pca.components_.T)).max() < 5


def test_a_non_linear_code_of_the_same_length_loses_less(digits: tuple[Tensor, Tensor], pca: Any) -> None:
    train, test = digits
    net = network(widths=(128, CODE))
    optimiser = torch.optim.Adam(net.parameters())
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 0.006, total_steps=400)
    chance = torch.Generator().manual_seed(0)
    for _ in range(400):
        x = train[torch.randint(len(train), (128,), generator=chance)]
        optimiser.zero_grad()
        (net(x) - x).square().mean().backward()
        optimiser.step()
        schedule.step()
    assert error(net, test) < error_of(pca, test)
