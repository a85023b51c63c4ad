"""What an autoencoder's code holds and how well its likelihood predicts, collected image by image beside an
evaluation."""

import logging
from itertools import product
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import TypeAdapter
from torch import Tensor, nn

from medae.backends.torch import network_of
from medae.image import Image
from medae.metrics.book import Usage
from medae.metrics.posterior import Posterior, alarm
from medae.networks import Codes, Gaussian, Output, kinds_with, run
from medae.networks.vqvae import VQVAE
from medae.objectives import LikelihoodTerm, ObjectiveConfig
from medae.package import Card, ModelPackage

logger = logging.getLogger(__name__)

PATCHES = 16
"""Of each image at most, spread over it: means over many images need no more."""
AT_ONCE = 4
"""Patches in one forward: 3-D ones are large."""
SIDE = 64
"""Of the patches of a package that does not say what it was trained on."""


class CodeReport:
    """Sees images as the network saw them in training: prepared, in patches. The point of the latent answers."""

    @classmethod
    def of(cls, package: ModelPackage) -> Self | None:
        """Of a package, whose network is built again on the CPU; None where there is nothing to report."""
        return cls(network_of(package).eval(), package.card) if _says_more(package.card) else None

    def __init__(self, network: nn.Module, card: Card) -> None:
        self._network, self._card, self._idle = network, card, not _says_more(card)
        self._likelihood = _likelihood(card)
        self._posterior = Posterior()
        self._bits: list[tuple[float, int]] = []
        self._codes: list[NDArray[Any]] = []

    def see(self, image: Image) -> None:
        """Costs a forward of up to 16 patches; nothing where there is nothing to report. Raises UnfitImage."""
        if self._idle:
            return
        patches = self._patches(self._card.preparation.apply(image).image.pixels)
        device = next(self._network.parameters()).device
        x = torch.from_numpy(patches).to(device)
        was_training = self._network.training
        self._network.eval()
        with torch.inference_mode():
            for some in torch.split(x, AT_ONCE):
                self._note(run(self._network, some), some)
        self._network.train(was_training)

    def _note(self, output: Output, x: Tensor) -> None:
        if isinstance(output.latent, Gaussian):
            self._posterior.see(*(_numpy(each) for each in (output.latent.mean, output.latent.log_variance)))
        if isinstance(output.latent, Codes):
            self._codes.append(output.latent.indices.cpu().numpy())
        if self._likelihood is not None:
            self._bits.append((float(self._likelihood.bits_per_value(output, x)), len(x)))

    def summary(self) -> dict[str, Any]:
        """Plain data: `posterior`, as `Posterior.summary` says it, and `bits_per_value` of 8-bit values, given the
        point of the latent (without what the latent itself costs), `codes`, as `Usage.summary` says them; each where
        there is one. Warns of a collapsed code."""
        posterior = self._posterior.summary()
        warning = alarm(posterior)
        if warning is not None:
            logger.warning(warning)
        values, weights = zip(*self._bits, strict=True) if self._bits else ((), ())
        bits = {"bits_per_value": float(np.average(values, weights=weights))} if self._bits else {}
        return bits | ({"posterior": posterior} if posterior else {}) | self._book()

    def _book(self) -> dict[str, Any]:
        if not isinstance(self._network, VQVAE) or not self._codes:
            return {}
        return {"codes": Usage.of(self._codes, self._network.quantiser.codes).summary}

    def _patches(self, pixels_CSRW: NDArray[np.float32]) -> NDArray[np.float32]:
        """(N, C, *spatial), on a regular grid."""
        dims, sizes = self._card.receptive_field.dims, pixels_CSRW.shape[1:]
        window = self._card.experiment.get("training", {}).get("patch", [SIDE] * dims)
        shape = [min(size, side) for size, side in zip(sizes, [1] * (3 - dims) + list(window), strict=True)]
        grid = [range(0, size - side + 1, side) for size, side in zip(sizes, shape, strict=True)]
        starts = list(product(*grid))
        chosen = np.unique(np.linspace(0, len(starts) - 1, PATCHES).round().astype(int))
        ends = [[start + side for start, side in zip(starts[at], shape, strict=True)] for at in chosen]
        cut = [pixels_CSRW[(slice(None), *map(slice, starts[at], end))] for at, end in zip(chosen, ends, strict=True)]
        patches = np.stack(cut)
        return patches[:, :, 0] if dims == 2 else patches


def _says_more(card: Card) -> bool:
    kind = card.network.get("kind")
    return kind in kinds_with(frozenset({"gaussian", "codes"})) or _likelihood(card) is not None


def _likelihood(card: Card) -> LikelihoodTerm | None:
    """Of the objectives that made the model; None where none is one, where there are no grey levels, and where the code
    is one image's and the values are another's."""
    autoencodes = card.network.get("kind") in kinds_with(frozenset({"code", "gaussian", "codes"}))
    if not autoencodes or card.task.kind != "anomaly" or card.preparation.intensity.kind == "zscore":
        return None
    listed = TypeAdapter[Any](list[ObjectiveConfig]).validate_python(card.experiment.get("objectives", []))
    terms = (objective.build() for objective in listed if objective.kind != "perceptual")
    return next((term for term in terms if isinstance(term, LikelihoodTerm)), None)


def _numpy(values: Tensor) -> NDArray[Any]:
    found: NDArray[Any] = values.float().cpu().numpy()
    return found
