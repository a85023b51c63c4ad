"""What the code of a VAE holds is counted right, a collapse is noticed, and the bounds are in their order."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.distributions import MultivariateNormal, Normal, kl_divergence

from benchmarks.codes import vae
from medae.errors import SettingsError
from medae.metrics.posterior import Posterior, alarm
from medae.networks import Autoencoder, Code, Emission, Gaussian
from medae.objectives import GaussianLikelihood
from medae.objectives.evidence import evidence


def posteriors(shape, seed=0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.standard_normal(shape), rng.standard_normal(shape) - 1


@pytest.mark.parametrize("places", [(), (1, 1), (3, 5), (2, 3, 2)])
def test_nats_are_torchs_and_however_they_come(places):
    mean, log_variance = posteriors((12, 4, *places))
    mean[:, 2] *= 0.05  # hardly moves
    whole, parts = Posterior(), Posterior()
    whole.see(mean, log_variance)
    for at in range(0, 12, 5):
        parts.see(mean[at : at + 5].astype(np.float64), log_variance[at : at + 5])
    exact = kl_divergence(
        Normal(torch.from_numpy(mean), torch.exp(0.5 * torch.from_numpy(log_variance))), Normal(0.0, 1.0)
    )
    per_dimension = exact.reshape(12, 4, -1).sum((0, 2)) / 12
    found = whole.summary()
    for name, value in parts.summary().items():
        assert found[name] == pytest.approx(value), name
    assert found["kl_per_dimension"] == pytest.approx(per_dimension.tolist(), abs=1e-5)
    assert found["kl_nats"] == pytest.approx(per_dimension.sum().item())
    assert (found["dimensions"], found["active_units"], found["collapsed"]) == (4, 3, False)
    assert alarm(found) is None


def test_a_unit_is_active_by_what_differs_between_images():
    mean = np.full((50, 2, 1, 1), 3.0)  # far from 0, but the same for all
    mean[::2, 1] += 0.21  # a variance of .011
    seen = Posterior()
    seen.see(mean, np.zeros_like(mean))
    assert seen.summary()["active_units"] == 1


@pytest.mark.parametrize(
    ("spread", "active", "why"),
    [(0.0, 0, "no unit"), (0.3, 1, "1 of 20"), (0.3, 20, "used"), (0.05, 20, "too few nats")],
)
def test_collapse(spread, active, why):
    mean = np.zeros((200, 20))
    mean[:, :active] = spread * np.random.default_rng(0).standard_normal((200, active))
    seen = Posterior()
    seen.see(mean, np.zeros_like(mean))
    found = seen.summary()
    assert found["collapsed"] == (why != "used")
    message = alarm(found)
    assert (message is None) == (why == "used")
    assert message is None or ("of 20 dimensions" in message and "free_bits" in message)


def test_nothing_seen_is_nothing_said():
    assert Posterior().summary() == {}
    assert alarm({}) is None


class Linear(Autoencoder):
    """x = W z + noise, whose evidence is known: N(0, W W' + variance). The posterior is exact, or off by `error`."""

    def __init__(self, weights: Tensor, variance: float, error: float) -> None:
        super().__init__(1, Emission())
        precision = torch.eye(weights.shape[1]) + weights.T @ weights / variance
        self.covariance = torch.linalg.inv(precision)
        self.weights, self.pull = weights, self.covariance @ weights.T / variance
        self.error = error

    def _encode(self, x: Tensor) -> Gaussian:
        mean = x.flatten(1) @ self.pull.T + self.error
        return Gaussian(mean, self.covariance.diagonal().log().expand_as(mean) + self.error)

    def _decode(self, z: Tensor, context: tuple[Tensor, ...]) -> Tensor:
        return (z @ self.weights.T).reshape(-1, 1, 2, 3)


def linear(error: float) -> tuple[Linear, Tensor, Tensor]:
    """A network, images of its own model, and their log evidence. Orthogonal weights make the posterior diagonal."""
    generator = torch.Generator().manual_seed(0)
    weights = torch.linalg.qr(torch.randn(6, 2, generator=generator)).Q * torch.tensor([1.5, 0.7])
    variance = 0.2
    z, noise = torch.randn(9, 2, generator=generator), torch.randn(9, 6, generator=generator)
    x = z @ weights.T + math.sqrt(variance) * noise
    exact = MultivariateNormal(torch.zeros(6), weights @ weights.T + variance * torch.eye(6)).log_prob(x)
    return Linear(weights, variance, error), x.reshape(-1, 1, 2, 3), exact.double()


def test_with_the_true_posterior_both_bounds_are_the_evidence():
    network, x, exact = linear(error=0.0)
    found = evidence(network, x, GaussianLikelihood(variance=0.2).build(), samples=3)
    torch.testing.assert_close(found.elbo, exact, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found.importance_weighted, exact, rtol=1e-5, atol=1e-5)


def test_bounds_are_in_their_order_and_draws_close_the_gap():
    network, x, exact = linear(error=0.5)
    term = GaussianLikelihood(variance=0.2).build()
    few, many = (evidence(network, x, term, samples=samples) for samples in (5, 4000))
    for found in (few, many):
        assert (found.importance_weighted >= found.elbo).all()
    assert (exact - many.elbo > 0.1).all()
    assert (exact - many.importance_weighted).abs().max() < 0.1
    assert (many.importance_weighted - few.importance_weighted).mean() > 0
    again = evidence(network.train(), x, term, samples=5)
    assert torch.equal(again.elbo, few.elbo) and network.training


def test_the_evidence_is_of_a_fixed_model_with_a_distribution():
    network, x, _ = linear(0.0)
    with pytest.raises(SettingsError, match="a number"):
        evidence(network, x, GaussianLikelihood(variance="optimal").build(), samples=2)

    class Point(Linear):
        def _encode(self, x: Tensor) -> Code:
            return Code(super()._encode(x).mean)

    point = Point(network.weights, 0.2, 0.0)
    with pytest.raises(SettingsError, match="Gaussian latent"):
        evidence(point, x, GaussianLikelihood(variance=0.2).build(), samples=2)


def test_too_high_a_price_empties_the_code_and_free_bits_keep_it():
    """The literature's beta, by the gaussian likelihood: 1 is the evidence bound. The numbers after a longer training
    are in benchmarks/codes.py."""
    _, fair = vae(1.0, steps=150, seed=0)
    _, dear = vae(100.0, steps=150, seed=0)
    _, kept = vae(100.0, steps=150, seed=0, free_bits=0.2)
    assert not fair["collapsed"] and fair["active_units"] >= 4
    assert dear["collapsed"] and dear["active_units"] == 0
    assert dear["mse"] > 1.5 * fair["mse"]
    assert not kept["collapsed"] and kept["active_units"] >= 4
    assert kept["kl_nats"] > 100 * dear["kl_nats"]
