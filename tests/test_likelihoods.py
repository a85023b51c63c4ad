"""Likelihoods are torch.distributions', their bits are probabilities of grey levels, and the bounds are bounds."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.distributions import Bernoulli, Categorical, Normal

from medae.errors import SettingsError
from medae.networks.base import Output
from medae.objectives import (
    KL,
    BernoulliLikelihood,
    CategoricalLikelihood,
    GaussianLikelihood,
    Loss,
)

SHAPES = st.sampled_from([(2, 3, 5, 7), (1, 1, 4, 9), (2, 2, 3, 5, 4), (3, 1, 1, 1)])
SEEDS = st.integers(0, 2**31 - 1)
EXACT = {"rtol": 1e-6, "atol": 1e-6}
quick = settings(max_examples=20, deadline=None)


def draws(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def grey(shape, seed: int, levels: int = 256) -> torch.Tensor:
    """Images at whole grey levels."""
    return torch.randint(0, levels, shape, generator=draws(seed)).float() / (levels - 1)


def value(objective, output, target):
    return Loss([objective])(output, target, 1.0)[1][objective.kind].item()


@quick
@given(SHAPES, SEEDS, st.floats(1e-4, 10))
def test_a_fixed_gaussian_is_torchs(shape, seed, variance):
    mean, target = torch.randn(shape, generator=draws(seed)), grey(shape, seed)
    exact = Normal(mean.double(), math.sqrt(variance)).log_prob(target.double())
    term = GaussianLikelihood(variance=variance).build()
    torch.testing.assert_close(term.log_prob(Output(mean.double(), None), target.double()), exact, **EXACT)
    assert value(GaussianLikelihood(variance=variance), Output(mean, None), target) == pytest.approx(
        -exact.mean().item(), rel=1e-6, abs=1e-6
    )


@quick
@given(SHAPES, SEEDS)
def test_a_learned_gaussian_is_torchs(shape, seed):
    mean, target = torch.rand(shape, generator=draws(seed)), grey(shape, seed)
    log_variance = torch.randn(shape, generator=draws(seed + 1))
    exact = Normal(mean.double(), torch.exp(0.5 * log_variance.double())).log_prob(target.double())
    output = Output(mean, None, log_variance=log_variance)
    term = GaussianLikelihood(variance="learned").build()
    torch.testing.assert_close(term.log_prob(output, target).double(), exact, **EXACT)
    assert value(GaussianLikelihood(variance="learned"), output, target) == pytest.approx(
        -exact.mean().item(), rel=1e-6, abs=1e-6
    )


@quick
@given(SHAPES, SEEDS)
def test_the_optimal_variance_is_the_one_that_no_other_beats(shape, seed):
    mean, target = torch.rand(shape, generator=draws(seed)), grey(shape, seed)
    output = Output(mean, None)
    best = value(GaussianLikelihood(variance="optimal"), output, target)
    squared = (mean - target).square().mean().item()
    assert best == pytest.approx(value(GaussianLikelihood(variance=squared), output, target), rel=1e-5, abs=1e-6)
    for factor in (0.5, 0.9, 1.1, 2.0):
        assert value(GaussianLikelihood(variance=squared * factor), output, target) > best


def test_the_optimal_variance_ends_at_the_rounding():
    x = grey((1, 1, 4, 4), 0)
    exact = Normal(x, 1 / 255 / math.sqrt(12)).log_prob(x).mean().item()
    assert value(GaussianLikelihood(), Output(x, None), x) == pytest.approx(-exact, rel=1e-6)


@quick
@given(SHAPES, SEEDS)
def test_bernoulli_is_torchs(shape, seed):
    logits, target = 3 * torch.randn(shape, generator=draws(seed)), grey(shape, seed)
    exact = Bernoulli(logits=logits.double(), validate_args=False).log_prob(target.double())
    output = Output(logits.sigmoid(), None, logits=logits)
    torch.testing.assert_close(BernoulliLikelihood().build().log_prob(output, target).double(), exact, **EXACT)


@quick
@given(SHAPES, SEEDS, st.sampled_from([2, 16, 256]))
def test_categorical_is_torchs(shape, seed, levels):
    batch, channels, *spatial = shape
    target = grey(shape, seed, levels)
    logits = 3 * torch.randn(batch, channels, levels, *spatial, generator=draws(seed))
    exact = Categorical(logits=logits.double().movedim(2, -1)).log_prob((target * (levels - 1)).round())
    output = Output(target, None, logits=logits)
    torch.testing.assert_close(CategoricalLikelihood().build().log_prob(output, target).double(), exact, **EXACT)


@quick
@given(st.floats(-0.5, 1.5), st.floats(1e-4, 3.0))
def test_the_levels_of_a_gaussian_add_up_to_one(mean, deviation):
    """bits_per_value is -log2 of a probability: over all levels, they are one."""
    target = torch.arange(256).view(256, 1, 1, 1) / 255
    term = GaussianLikelihood(variance=deviation**2).build()
    each = [2 ** -term.bits_per_value(Output(torch.full((1, 1, 1, 1), mean), None), one[None]) for one in target]
    assert sum(each).item() == pytest.approx(1, abs=1e-9)


def test_bits_of_a_wide_gaussian_are_density_times_level():
    mean, target = 0.5 + 0.01 * torch.randn(1, 1, 9, 7, generator=draws(0)), grey((1, 1, 9, 7), 1)
    term, output = GaussianLikelihood(variance=0.04).build(), Output(mean, None)
    inside = (target > 0) & (target < 1)
    mean, target = mean[inside].view(1, 1, -1, 1), target[inside].view(1, 1, -1, 1)
    output = Output(mean, None)
    by_density = -term.log_prob(output, target).mean().item() / math.log(2) + math.log2(255)
    assert term.bits_per_value(output, target).item() == pytest.approx(by_density, abs=1e-3)


def test_bits_far_in_the_tail_are_finite():
    target = torch.tensor([0.0, 0.5, 1.0]).view(1, 1, 3, 1)
    for mean in (-3.0, 0.25, 4.0):
        bits = (
            GaussianLikelihood(variance=1e-4)
            .build()
            .bits_per_value(Output(torch.full_like(target, mean), None), target)
        )
        assert math.isfinite(bits.item()) and bits >= 0


@pytest.mark.parametrize("levels", [256, 16, 2])
def test_knowing_nothing_costs_eight_bits(levels):
    target = grey((2, 1, 5, 5), 3)
    output = Output(target, None, logits=torch.zeros(2, 1, levels, 5, 5))
    assert CategoricalLikelihood().build().bits_per_value(output, target).item() == pytest.approx(8, abs=1e-5)


def test_no_gaussian_beats_the_categorical_of_a_real_picture():
    """Without a network: the best distribution of one grey value, of each family, on an 8-bit photograph of tissue."""
    from medae.data.samples import Sample

    pixels = next(iter(Sample(name="denoise-tissue").load("train"))).image.pixels[:1, :, ::4, ::4]
    target = torch.from_numpy(pixels.astype(np.float32) / 255)
    counts = torch.bincount(torch.from_numpy(pixels.astype(np.int64)).ravel(), minlength=256)
    logits = counts.clamp(min=1e-9).log().view(1, 1, 256, 1, 1).expand(1, 1, 256, *target.shape[2:])
    categorical = CategoricalLikelihood().build().bits_per_value(Output(target, None, logits=logits), target)
    mean = torch.full_like(target, target.mean().item())
    gaussians = [
        GaussianLikelihood(variance=target.var().item() * factor).build().bits_per_value(Output(mean, None), target)
        for factor in (0.5, 0.8, 1.0, 1.25, 2.0)
    ]
    assert categorical < min(gaussians)
    assert categorical < 8


@pytest.mark.parametrize(
    ("objective", "decoder"),
    [
        (GaussianLikelihood(variance="learned"), "gaussian"),
        (BernoulliLikelihood(), "bernoulli"),
        (CategoricalLikelihood(), "categorical"),
    ],
)
def test_a_likelihood_names_the_decoder_that_it_needs(objective, decoder):
    assert objective.needs == {"decoder": {decoder}}
    x = grey((1, 1, 4, 4), 0)
    with pytest.raises(SettingsError, match=f"decoder: {decoder}"):
        value(objective, Output(x, None), x)


def test_values_beyond_the_range_count_as_the_end():
    logits = torch.randn(1, 1, 256, 2, 2, generator=draws(0))
    beyond, ends = torch.tensor([[-0.5, 1.5], [0.0, 1.0]]), torch.tensor([[0.0, 1.0], [0.0, 1.0]])
    for objective, given_logits in ((CategoricalLikelihood(), logits), (BernoulliLikelihood(), logits[:, :, 0])):
        term, output = objective.build(), Output(torch.zeros(1, 1, 2, 2), None, logits=given_logits)
        assert torch.equal(term.log_prob(output, beyond[None, None]), term.log_prob(output, ends[None, None]))


def test_half_precision_says_are_judged_in_full():
    target, logits = grey((1, 1, 4, 4), 0), torch.randn(1, 1, 256, 4, 4, generator=draws(0)).bfloat16()
    mean = torch.rand(1, 1, 4, 4, generator=draws(1)).bfloat16()
    for objective in (CategoricalLikelihood(), BernoulliLikelihood(), GaussianLikelihood(variance="learned")):
        chosen = logits if objective.kind == "categorical" else logits[:, :, 0]
        said = Output(mean, None, log_variance=logits[:, :, 0], logits=chosen)
        exact = Output(mean.float(), None, log_variance=logits[:, :, 0].float(), logits=chosen.float())
        low, high = (Loss([objective])(output, target, 1.0)[0] for output in (said, exact))
        assert low.dtype == torch.float32
        assert torch.equal(low, high)


def test_a_likelihood_and_kl_are_the_evidence_bound():
    """With beta 1, the total is the negative bound in nats per image value, exactly."""
    from torch.distributions import kl_divergence

    from medae.networks.latent import Gaussian

    latent = Gaussian(torch.randn(2, 5, generator=draws(0)), torch.randn(2, 5, generator=draws(1)))
    target, mean = grey((2, 1, 6, 6), 2), torch.rand(2, 1, 6, 6, generator=draws(3))
    likely = Normal(mean, 0.2).log_prob(target).sum((1, 2, 3))
    kl = kl_divergence(Normal(latent.mean, torch.exp(0.5 * latent.log_variance)), Normal(0.0, 1.0)).sum(1)
    total, _ = Loss([GaussianLikelihood(variance=0.04), KL(beta=1)])(Output(mean, latent), target, 1.0)
    assert total.item() == pytest.approx(-(likely - kl).mean().item() / 36, rel=1e-6)
