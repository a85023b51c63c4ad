"""Penalties on the code are their formulas, mean the same for any size, and ask for what they cannot do without."""

import math

import pytest
import torch
from torch.distributions import Bernoulli, kl_divergence

from benchmarks.codes import RHO, digits, sparse
from medae.errors import SettingsError
from medae.networks.base import Output
from medae.networks.latent import Code, Codes, Gaussian
from medae.objectives import Loss, SparseKL, SparseL1, SparseL2

PENALTIES = [SparseKL(), SparseL1(), SparseL2()]
each = pytest.mark.parametrize("objective", PENALTIES, ids=lambda objective: objective.kind)
X = torch.zeros(4, 1, 8, 8)


def activations(shape, seed=0) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def value(objective, latent) -> float:
    return Loss([objective])(Output(X, latent), X, 1.0)[1][objective.kind].item()


@pytest.mark.parametrize("shape", [(4, 7), (4, 7, 3, 5), (4, 7, 2, 3, 5)])
def test_they_are_their_formulas(shape):
    z = activations(shape)
    mean = z.transpose(0, 1).flatten(1).mean(1)
    exact = kl_divergence(Bernoulli(torch.full((7,), 0.1)), Bernoulli(mean)).mean().item()
    assert value(SparseKL(rho=0.1), Code(z)) == pytest.approx(exact, rel=1e-5)
    assert value(SparseL1(), Code(-z)) == pytest.approx(z.abs().mean().item(), rel=1e-6)
    assert value(SparseL2(), Code(-z)) == pytest.approx(z.square().mean().item(), rel=1e-6)


def test_nothing_is_asked_of_units_that_are_on_as_often_as_they_should():
    rarely = torch.zeros(20, 3)
    for unit in range(3):
        rarely[unit, unit] = 1.0  # one of twenty, each for another input
    assert value(SparseKL(rho=0.05), Code(rarely)) == pytest.approx(0, abs=1e-6)
    assert value(SparseKL(rho=0.05), Code(rarely.flip(0))) == pytest.approx(0, abs=1e-6)


@each
def test_a_weight_means_the_same_for_any_width_batch_and_size(objective):
    z = activations((4, 6, 3, 3))
    alike = [z.repeat(2, 1, 1, 1), z.repeat(1, 2, 1, 1), z.repeat(1, 1, 2, 3)]
    for more in alike:
        assert value(objective, Code(more)) == pytest.approx(value(objective, Code(z)), rel=1e-5)


@each
def test_a_silent_or_mad_code_has_a_gradient_that_is_a_number(objective):
    for level in (0.0, 1.0):
        z = torch.full((4, 5), level, requires_grad=True)
        Loss([objective])(Output(X, Code(z)), X, 1.0)[0].backward()
        assert z.grad is not None and torch.isfinite(z.grad).all()


@each
def test_the_mean_of_a_posterior_is_a_code_too(objective):
    z = activations((4, 5))
    if objective.kind != "sparse_kl":
        assert value(objective, Gaussian(z, torch.zeros(4, 5))) == value(objective, Code(z))


@each
def test_there_must_be_a_continuous_code(objective):
    for latent in (None, Codes(torch.zeros(4, 2, 2, dtype=torch.int64), torch.zeros(4, 3, 2, 2))):
        with pytest.raises(SettingsError, match="continuous code"):
            value(objective, latent)


@pytest.mark.parametrize("bad", [-0.1, 1.1])
def test_the_divergence_is_of_probabilities(bad):
    with pytest.raises(SettingsError, match="code: sigmoid"):
        value(SparseKL(), Code(torch.full((4, 5), bad)))
    assert SparseKL().needs["code"] == {"sigmoid"}


def test_rho_is_a_probability():
    for rho in (0, 1, math.nan):
        with pytest.raises(ValueError, match="rho"):
            SparseKL(rho=rho)


def test_units_are_as_active_as_they_are_asked():
    """An overcomplete code of digits: 128 sigmoids for 64 pixels."""
    found = sparse([SparseKL(rho=RHO, weight=2.0)], "sigmoid", steps=600, seed=0)
    assert found["mean activation"] == pytest.approx(RHO, rel=0.2)
    assert found["units within 3 rho"] > 0.95
    assert found["mse"] < 0.9 * digits()[1].var().item(), "and it still says something"


def test_a_higher_price_silences_more():
    silent = [
        sparse([SparseL1(weight=weight)] if weight else [], "relu", steps=300, seed=0)["silent"]
        for weight in (0.0, 0.03, 0.1, 0.3)
    ]
    assert silent == sorted(silent)
    assert silent[-1] > silent[0] + 0.2
