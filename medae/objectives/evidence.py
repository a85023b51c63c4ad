"""How likely a variational autoencoder finds an image: two lower bounds of its log evidence, from the same draws."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from medae.errors import SettingsError
from medae.networks.base import Autoencoder, Output, crop
from medae.networks.latent import Code, Gaussian
from medae.objectives.likelihoods import LikelihoodTerm


class Evidence(NamedTuple):
    """Nats, one number an image: log p(image) is at least `importance_weighted`, and that at least `elbo`."""

    elbo: Tensor
    """(B,): the evidence lower bound (Kingma 2014, https://arxiv.org/abs/1312.6114), the mean over the draws."""
    importance_weighted: Tensor
    """(B,): log of the mean weight (Burda 2016, https://arxiv.org/abs/1509.00519); with more draws, nearer."""


@torch.no_grad()
def evidence(network: Autoencoder, x: Tensor, likelihood: LikelihoodTerm, *, samples: int, seed: int = 0) -> Evidence:
    """Of images (B, C, *spatial), by `samples` draws from each posterior; the network is evaluated, not trained.

    Raises SettingsError where the latent is no distribution, and for a gaussian likelihood of optimal variance: the
    bound is one of a fixed model, so give it the number that the training data had.
    """
    if getattr(likelihood, "variance", None) == "optimal":
        raise SettingsError("the evidence is of a fixed model: give the gaussian likelihood its variance, a number")
    was_training = network.training
    network.eval()
    try:
        latent = network.encode(x)
        if not isinstance(latent, Gaussian):
            raise SettingsError("the evidence needs a network with a Gaussian latent: vae; this one has none")
        generator = torch.Generator(x.device).manual_seed(seed)
        weights = torch.stack([_log_weight(network, x, latent, likelihood, generator) for _ in range(samples)])
    finally:
        network.train(was_training)
    return Evidence(weights.mean(0), torch.logsumexp(weights, 0) - math.log(samples))


def _log_weight(
    network: Autoencoder, x: Tensor, latent: Gaussian, likelihood: LikelihoodTerm, generator: torch.Generator
) -> Tensor:
    """(B,): log p(x | z) + log p(z) - log q(z | x) of one draw."""
    noise = torch.randn(latent.mean.shape, generator=generator, device=x.device)
    z = latent.mean + torch.exp(0.5 * latent.log_variance) * noise
    said = network.emit(Code(z))
    cut = [None if values is None else crop(values, x) for values in (said.log_variance, said.logits)]
    output = Output(crop(said.prediction, x), latent, *cut)
    # the constants of both normal densities cancel
    prior, posterior = -0.5 * z.square(), -0.5 * (noise.square() + latent.log_variance)
    terms = (likelihood.log_prob(output, x), prior, -posterior)
    return torch.stack([term.double().flatten(1).sum(1) for term in terms]).sum(0)
