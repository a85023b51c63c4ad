"""Greedy layer-wise pre-training: the stages of a network one after the other, from the outermost inwards.

Each learns to reconstruct the codes that the stages before it, finished and frozen, make of the images; then all are
trained together (Hinton 2006, doi:10.1126/science.1127647; Bengio 2006, NIPS 19, with autoencoders as here).
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from medae.networks import StackedAutoencoder
from medae.networks.base import crop, pad


class Phase(NamedTuple):
    """Where a training is."""

    stage: int | None
    """0 the outermost; None: all together."""
    progress: float
    """0..1 of this phase."""


def phase_at(progress: float, share: float, stages: int) -> Phase:
    """`share` of the training is divided evenly among the stages; the rest belongs to all."""
    if progress >= share:
        return Phase(None, (progress - share) / (1 - share))
    stage = min(int(progress / share * stages), stages - 1)
    return Phase(stage, progress / share * stages - stage)


def stage_loss(network: StackedAutoencoder, stage: int, x: Tensor, target: Tensor) -> Tensor:
    """Mean squared error of one stage's reconstruction: of the target by the outermost, else of the codes it was given.

    The stages before it are set to evaluation, which the caller's next `train()` ends.
    """
    stages = network.stages
    code = pad(x, network.stride)
    with torch.no_grad():
        for before in stages[:stage]:
            code = before.encoder.eval()(code)
    encoder, decoder = stages[stage]
    rebuilt = decoder(encoder(code))
    if stage == 0:
        code, rebuilt = target, crop(network.emission.output(rebuilt).prediction, target)
    return functional.mse_loss(rebuilt.float(), code.float())
