"""Objectives equal their definitions, refuse what they cannot judge, and keep their names apart."""

import numpy as np
import pytest
import torch
from pydantic import TypeAdapter, ValidationError
from torch.distributions import Normal, kl_divergence
from torch.nn import functional

from medae.errors import SettingsError
from medae.networks.base import Output
from medae.networks.latent import Code, Gaussian
from medae.objectives import (
    KL,
    L1,
    MSE,
    SSIM,
    BernoulliLikelihood,
    CategoricalLikelihood,
    CrossEntropy,
    Dice,
    DiceCE,
    Focal,
    GaussianLikelihood,
    Loss,
    ObjectiveConfig,
    Perceptual,
    SparseKL,
    SparseL1,
    SparseL2,
    Tversky,
)

REGIONS = [DiceCE(), Dice(), CrossEntropy(), Focal(), Tversky()]
FIDELITY = [MSE(), L1(), SSIM()]
LIKELIHOODS = [GaussianLikelihood(), BernoulliLikelihood(), CategoricalLikelihood()]
OF_THE_CODE = [KL(), SparseKL(), SparseL1(), SparseL2()]
RECONSTRUCTIONS = [*FIDELITY, Perceptual(), *LIKELIHOODS, *OF_THE_CODE]
SHAPES = [(2, 17, 13), (2, 5, 12, 11)]


def labels(shape, count=2):
    batch, *spatial = shape
    return torch.randint(0, count + 1, (batch, 1, *spatial), generator=torch.Generator().manual_seed(1))


def certain(target, count=2, confidence=30.0):
    """Logits that say the target."""
    return confidence * functional.one_hot(target[:, 0], count + 1).movedim(-1, 1).float()


def value(objective, prediction, target, latent=None, progress=1.0):
    return Loss([objective])(Output(prediction, latent), target, progress)[0].item()


@pytest.mark.parametrize("shape", SHAPES, ids=["2-D", "3-D"])
@pytest.mark.parametrize("objective", REGIONS, ids=lambda o: o.kind)
def test_the_truth_costs_nothing_and_a_lie_costs(objective, shape):
    target = labels(shape)
    assert value(objective, certain(target), target) == pytest.approx(0, abs=1e-4)
    assert value(objective, certain((target + 1) % 3), target) > 0.9


@pytest.mark.parametrize("batch", [True, False])
@pytest.mark.parametrize("background", [True, False])
def test_dice_is_dice(background, batch):
    target, logits = labels((3, 8, 9)), torch.randn(3, 3, 8, 9, generator=torch.Generator().manual_seed(2))
    p, y = logits.softmax(1), functional.one_hot(target[:, 0], 3).movedim(-1, 1)
    p, y = (values if background else values[:, 1:] for values in (p, y))
    axes = (0, 2, 3) if batch else (2, 3)
    dice = 1 - (2 * (p * y).sum(axes) / (p.sum(axes) + y.sum(axes))).mean()
    settings = {"background": background, "batch": batch}
    assert value(Dice(**settings), logits, target) == pytest.approx(dice.item(), abs=1e-5)
    cross_entropy = functional.cross_entropy(logits, target[:, 0]).item()
    both = DiceCE(dice=0.5, cross_entropy=2, **settings)
    assert value(both, logits, target) == pytest.approx(0.5 * dice.item() + 2 * cross_entropy, abs=1e-5)
    half = Tversky(false_positives=0.5, false_negatives=0.5, **settings)
    assert value(half, logits, target) == pytest.approx(dice.item(), abs=1e-5)


def test_tversky_prices_what_is_missed():
    target = torch.zeros(1, 1, 10, 10, dtype=torch.long)
    target[..., :5] = 1
    too_little, too_much = target.clone(), target.clone()
    too_little[..., 4], too_much[..., 5] = 0, 1
    missing, added = (value(Tversky(), certain(said, 1), target) for said in (too_little, too_much))
    assert missing > added


def test_cross_entropy_and_focal_by_hand():
    target, logits = labels((2, 6, 5)), torch.randn(2, 3, 6, 5, generator=torch.Generator().manual_seed(2))
    each = functional.cross_entropy(logits, target[:, 0], reduction="none")
    assert value(CrossEntropy(), logits, target) == pytest.approx(each.mean().item(), abs=1e-6)
    focal = ((1 - torch.exp(-each)) ** 2 * each).mean().item() / 3
    assert value(Focal(gamma=2), logits, target) == pytest.approx(focal, abs=1e-6)


@pytest.mark.parametrize("shape", [(2, 3, 17, 13), (2, 1, 12, 13, 11)], ids=["2-D", "3-D"])
@pytest.mark.parametrize("objective", FIDELITY, ids=lambda o: o.kind)
def test_an_image_is_like_itself(objective, shape):
    target = torch.rand(shape, generator=torch.Generator().manual_seed(1))
    assert value(objective, target.clone(), target) == pytest.approx(0, abs=1e-5)
    assert value(objective, 1 - target, target) > 0.05


def test_ssim_is_scikit_images():
    from skimage.metrics import structural_similarity

    rng = np.random.default_rng(0)
    target = rng.random((24, 31))
    made = (target + 0.1 * rng.standard_normal(target.shape)).astype(np.float32)
    _, every = structural_similarity(
        target, made, data_range=1, gaussian_weights=True, sigma=1.5, use_sample_covariance=False, full=True
    )
    tensors = (torch.tensor(values, dtype=torch.float32)[None, None] for values in (made, target))
    # where the window lies inside
    assert value(SSIM(), *tensors) == pytest.approx(1 - every[5:-5, 5:-5].mean(), abs=1e-5)


def test_ssim_says_when_the_patch_is_too_small():
    x = torch.rand(1, 1, 10, 40)
    with pytest.raises(SettingsError, match="window of 11"):
        value(SSIM(), x, x)
    assert value(SSIM(sigma=1.0), x, x) == pytest.approx(0, abs=1e-5)


def gaussian(shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return Gaussian(torch.randn(shape, generator=generator), torch.randn(shape, generator=generator))


@pytest.mark.parametrize("latent_shape", [(4, 7), (4, 7, 2, 3)])
def test_kl_is_that_of_torch_distributions(latent_shape):
    latent, x = gaussian(latent_shape), torch.rand(4, 3, 8, 8)
    exact = kl_divergence(Normal(latent.mean, torch.exp(0.5 * latent.log_variance)), Normal(0.0, 1.0))
    per_value = exact.sum() / 4 / (3 * 8 * 8)
    _, terms = Loss([KL()])(Output(x, latent), x, 1.0)
    assert terms["kl"].item() == pytest.approx(per_value.item(), rel=1e-6)


def test_beta_means_the_same_for_any_batch_and_patch():
    # the same samples twice; four times the patch with four times the latent
    latent, x = gaussian((2, 6, 4, 4)), torch.rand(2, 1, 16, 16)
    twice = Gaussian(latent.mean.repeat(2, 1, 1, 1), latent.log_variance.repeat(2, 1, 1, 1))
    large = Gaussian(latent.mean.repeat(1, 1, 2, 2), latent.log_variance.repeat(1, 1, 2, 2))
    one = value(KL(), x, x, latent)
    assert value(KL(), x.repeat(2, 1, 1, 1), x.repeat(2, 1, 1, 1), twice) == pytest.approx(one, rel=1e-6)
    assert value(KL(), x.repeat(1, 1, 2, 2), x.repeat(1, 1, 2, 2), large) == pytest.approx(one, rel=1e-6)


def test_mse_and_kl_are_the_evidence_bound():
    """-log N(x; prediction, beta / 2) + KL, per image value, without its constant, is (mse + beta kl) / beta."""
    beta, latent = 0.3, gaussian((1, 5))
    x, prediction = torch.rand(1, 1, 6, 6), torch.rand(1, 1, 6, 6)
    decoder = Normal(prediction, (beta / 2) ** 0.5)
    surprise = (decoder.log_prob(prediction) - decoder.log_prob(x)).sum()
    kl = kl_divergence(Normal(latent.mean, torch.exp(0.5 * latent.log_variance)), Normal(0.0, 1.0)).sum()
    total, _ = Loss([MSE(), KL(beta=beta)])(Output(prediction, latent), x, 1.0)
    assert total.item() / beta == pytest.approx((surprise + kl).item() / 36, rel=1e-5)


def test_warm_up_is_linear_and_the_report_is_not_weighted():
    x, latent = torch.rand(2, 1, 8, 8), gaussian((2, 5))
    loss = Loss([KL(beta=0.5, warm_up=0.2, weight=2)])
    totals, reports = zip(*[loss(Output(x, latent), x, at) for at in (0, 0.1, 0.2, 1)], strict=True)
    kl = reports[0]["kl"].item()
    assert kl > 0
    assert all(report["kl"].item() == kl for report in reports)
    assert [total.item() / kl for total in totals] == pytest.approx([0, 0.5, 1, 1])
    at_once = Loss([KL(beta=0.5, warm_up=0)])(Output(x, latent), x, 0.0)[0].item()
    assert at_once == pytest.approx(0.5 * kl)


def test_cycles_start_again_and_end_at_beta():
    kl = KL(beta=2, warm_up=0.5, cycles=4)
    at = [0, 0.0625, 0.125, 0.2, 0.25, 0.375, 0.76, 0.9, 1]
    assert [kl.factor(progress) for progress in at] == pytest.approx([0, 1, 2, 2, 0, 2, 0.16, 2, 2])
    assert {KL(beta=2, warm_up=0).factor(progress) for progress in at} == {2}


@pytest.mark.parametrize("places", [(), (1, 1), (3, 5), (2, 3, 2)])
def test_free_bits_are_a_floor_that_has_no_slope(places):
    """Of three dimensions, two hold less than is free: they cost the floor, and only the third is pressed."""
    mean = torch.zeros(4, 3, *places)
    mean[:, 1] = 0.1
    mean[:, 2] = torch.tensor([1.0, -1.0, 2.0, -2.0]).view(-1, *[1] * len(places))
    mean.requires_grad_()
    latent, x = Gaussian(mean, torch.zeros(4, 3, *places)), torch.rand(4, 1, 8, 8)
    total, terms = Loss([KL(free_bits=0.2, beta=1)])(Output(x, latent), x, 1.0)
    count = int(np.prod(places))
    assert terms["kl"].item() == pytest.approx((0.2 + 0.2 + 1.25) * count / 64, rel=1e-5)
    total.backward()
    assert mean.grad[:, :2].abs().max() == 0
    assert mean.grad[:, 2].abs().min() > 0
    assert value(KL(free_bits=0.2, beta=1), x, x, latent) > value(KL(beta=1), x, x, latent)


def test_the_card_says_what_was_made_small():
    assert [one.described for one in (MSE(weight=2), KL(beta=0.5, weight=3))] == ["2 x mse", "1.5 x kl"]
    assert GaussianLikelihood(variance="learned").described == "1 x gaussian (variance learned)"


@pytest.mark.parametrize("latent", [None, Code(torch.zeros(2, 5))], ids=["none", "code"])
def test_kl_needs_a_distribution(latent):
    x = torch.rand(2, 1, 8, 8)
    with pytest.raises(SettingsError, match="vae"):
        value(KL(), x, x, latent)


def test_total_is_the_weighted_sum_of_named_terms_and_gradients_flow():
    x = torch.rand(2, 1, 16, 16)
    prediction = torch.rand(2, 1, 16, 16, requires_grad=True)
    total, terms = Loss([MSE(weight=2), L1(weight=0.5), SSIM(weight=0.25)])(Output(prediction, None), x, 0.5)
    assert set(terms) == {"mse", "l1", "ssim"}
    expected = 2 * terms["mse"] + 0.5 * terms["l1"] + 0.25 * terms["ssim"]
    assert total.item() == pytest.approx(expected.item(), rel=1e-6)
    assert not any(term.requires_grad for term in terms.values())
    total.backward()
    assert prediction.grad is not None
    assert prediction.grad.abs().sum() > 0


def test_a_kind_comes_once():
    with pytest.raises(SettingsError, match="mse, mse"):
        Loss([MSE(), MSE(weight=2)])


def test_half_precision_predictions_are_judged_in_full():
    target = labels((2, 64, 64))
    logits = torch.randn(2, 3, 64, 64).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        total, terms = Loss([DiceCE()])(Output(logits, None), target, 0.0)
    assert total.dtype == terms["dice_ce"].dtype == torch.float32
    assert total.item() == pytest.approx(value(DiceCE(), logits.float(), target), rel=1e-6)


def test_each_objective_says_which_tasks_it_fits():
    for objective in REGIONS:
        assert objective.applies_to == {"segmentation"}
    for objective in RECONSTRUCTIONS:
        assert objective.applies_to == {"restoration", "anomaly"}


@pytest.mark.parametrize("objective", [*REGIONS, *RECONSTRUCTIONS], ids=lambda o: o.kind)
def test_the_union_is_chosen_by_kind(objective):
    assert TypeAdapter(ObjectiveConfig).validate_python(objective.model_dump(mode="json")) == objective


@pytest.mark.parametrize(
    "bad",
    [
        {"kind": "dice_ce", "dice": 0, "cross_entropy": 0},
        {"kind": "mse", "weight": 0},
        {"kind": "kl", "warm_up": 2},
        {"kind": "kl", "cycles": 0},
        {"kind": "kl", "free_bits": -1},
        {"kind": "gaussian", "variance": 0},
        {"kind": "gaussian", "variance": "guessed"},
        {"kind": "hinge"},
        {"kind": "l1", "beta": 1},
    ],
)
def test_settings_that_do_not_hold(bad):
    with pytest.raises(ValidationError):
        TypeAdapter(ObjectiveConfig).validate_python(bad)
