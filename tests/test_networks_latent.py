"""The latent codes of networks that autoencode, and what their decoders say."""

import pytest
import torch
from torch import nn

from medae.networks import (
    Autoencoder,
    AutoencoderSettings,
    Code,
    Codes,
    ConvAutoencoderSettings,
    Emission,
    Gaussian,
    NetworkSettings,
    VAESettings,
    run,
)
from medae.networks.base import LOG_VARIANCE as VOXEL_LOG_VARIANCE
from medae.networks.base import crop
from medae.networks.vae import LOG_VARIANCE
from tests.networks_small import AUTOENCODING, EACH, KINDS, SMALL, both, built, name, noise, sized, small


@pytest.mark.parametrize("settings", AUTOENCODING, ids=name)
def test_encoding_then_decoding_is_what_the_network_does(settings: NetworkSettings) -> None:
    network = built(settings)
    assert isinstance(network, Autoencoder)
    x = noise(2, 2, *sized(settings, 21, 13, 9))
    stride = settings.receptive_field().stride
    with torch.no_grad():
        latent = network.encode(x)
        decoded = network.decode(latent)
        prediction, same, *_ = run(network, x)
    code = latent.point()
    assert decoded.shape[2:] == (settings.window or tuple(stride * n for n in code.z.shape[2:]))
    assert torch.equal(crop(decoded, x), network(x).detach())
    assert torch.equal(prediction, network(x).detach())
    assert same is not None and torch.equal(same.point().z, code.z)


@pytest.mark.parametrize("settings", [s for s in EACH if not s.autoencodes], ids=name)
def test_the_others_have_no_latent(settings: NetworkSettings) -> None:
    network = built(settings)
    x = noise(1, 2, *[8] * settings.dims)
    prediction, latent, *_ = run(network, x)
    assert latent is None
    assert torch.equal(prediction, network(x))


def test_a_vae_draws_in_training_and_answers_by_its_mean() -> None:
    network = VAESettings(**SMALL["vae"]).build(1, 1).train()
    x = noise(2, 1, 8, 8)
    assert not torch.equal(network(x), network(x))
    network.eval()
    latent = network.encode(x)
    assert isinstance(latent, Gaussian)
    assert torch.equal(network(x), network.decode(Code(latent.mean)))


def test_a_gaussian_draws_what_it_says_and_lets_gradients_through() -> None:
    torch.manual_seed(5)
    mean, log_variance = torch.tensor(3.0), torch.tensor(0.5)
    mean, log_variance = (value.expand(200_000).clone().requires_grad_() for value in (mean, log_variance))
    latent = Gaussian(mean, log_variance)
    drawn = latent.draw().z
    assert abs(drawn.mean().item() - 3.0) < 0.02
    assert abs(drawn.var().item() / torch.tensor(0.5).exp().item() - 1) < 0.02
    for gradient in torch.autograd.grad(drawn.square().sum(), [mean, log_variance]):
        assert gradient.abs().max() > 0
    assert latent.point().z is mean


def test_codes_and_a_code_are_their_own_draw() -> None:
    codes = Codes(torch.zeros(1, 2, 2, dtype=torch.int64), noise(1, 3, 2, 2))
    assert codes.draw().z is codes.vectors and codes.point().z is codes.vectors
    code = Code(noise(1, 3, 2, 2))
    assert code.draw() is code and code.point() is code


def test_log_variances_stay_within_sense() -> None:
    network = VAESettings(**SMALL["vae"]).build(1, 1)
    network.log_variance.bias = nn.Parameter(torch.tensor([1e9, -1e9, 0.0]))
    latent = network.encode(noise(1, 1, 8, 8))
    assert isinstance(latent, Gaussian)
    low, high = LOG_VARIANCE
    assert latent.log_variance[:, 0].eq(high).all()
    assert latent.log_variance[:, 1].eq(low).all()
    assert latent.draw().z.isfinite().all()


@pytest.mark.parametrize(("code", "low", "high"), [("linear", -9, 9), ("sigmoid", 0, 1), ("relu", 0, 9)])
def test_the_code_is_what_its_activation_leaves(code: str, low: float, high: float) -> None:
    network = ConvAutoencoderSettings(**SMALL["conv_autoencoder"], code=code).build(1, 1).eval()
    with torch.no_grad():
        z = network.encode(30 * noise(2, 1, 8, 8)).z
    assert low <= z.min() < z.max() <= high
    assert (z.min() < 0) == (code == "linear")


# ---- what decoders say

DECODERS = ("point", "gaussian", "bernoulli", "categorical")
SAYING = both([small(kind, decoder=decoder, levels=7) for kind in KINDS for decoder in DECODERS if kind.autoencodes])
saying = pytest.mark.parametrize("settings", SAYING, ids=lambda s: f"{name(s)}-{s.decoder}")


@saying
def test_what_a_decoder_says_has_the_size_of_the_input(settings: AutoencoderSettings) -> None:
    network = built(settings)
    size = sized(settings, 13, 6, 9)
    x = noise(2, 2, *size)
    said = run(network, x)
    assert torch.equal(said.prediction, network(x))
    assert said.prediction.shape == x.shape
    assert (said.log_variance is not None) == (settings.decoder == "gaussian")
    assert (said.logits is not None) == (settings.decoder in ("bernoulli", "categorical"))
    if said.log_variance is not None:
        assert said.log_variance.shape == x.shape
    if said.logits is not None:
        levels = (7,) if settings.decoder == "categorical" else ()
        assert said.logits.shape == (2, 2, *levels, *size)
        assert said.prediction.min() >= 0 and said.prediction.max() <= 1


@saying
def test_all_that_a_decoder_says_can_be_learned(settings: AutoencoderSettings) -> None:
    torch.manual_seed(0)
    network = settings.build(1, 1)
    said = run(network, noise(2, 1, *sized(settings, 8, 8, 8)))
    if settings.decoder == "categorical":  # the same added to all levels says nothing else
        said.logits[:, :, 0].sum().backward()
    elif settings.decoder == "gaussian":
        (said.prediction + said.log_variance.square()).sum().backward()
    else:
        said.prediction.square().sum().backward()
    first, *_, last = network.parameters()
    assert first.grad.abs().max() > 0 and last.grad.abs().max() > 0


def test_the_prediction_is_the_mean_of_what_is_said() -> None:
    raw = noise(2, 2 * 5, 3, 4, seed=2) * 8 - 4
    categorical = Emission("categorical", 5).output(raw)
    assert categorical.logits is not None
    grey = torch.distributions.Categorical(logits=categorical.logits.movedim(2, -1))
    torch.testing.assert_close(categorical.prediction, (grey.probs * torch.linspace(0, 1, 5)).sum(-1))
    bernoulli = Emission("bernoulli").output(raw)
    torch.testing.assert_close(bernoulli.prediction, torch.distributions.Bernoulli(logits=raw).mean)
    gaussian = Emission("gaussian").output(100 * raw)
    assert torch.equal(gaussian.prediction, 100 * raw[:, :5])
    assert gaussian.log_variance is not None
    assert (gaussian.log_variance.min(), gaussian.log_variance.max()) == VOXEL_LOG_VARIANCE


def test_a_categorical_mean_keeps_its_levels_in_half_precision() -> None:
    said = torch.full((1, 256, 2, 2), -40.0)
    said[:, 201] = 40.0
    with torch.autocast("cpu", torch.bfloat16):
        prediction = Emission("categorical").output(said).prediction
    torch.testing.assert_close(prediction, torch.full((1, 1, 2, 2), 201 / 255))
