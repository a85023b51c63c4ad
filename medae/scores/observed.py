"""Scores that the back end computes whole: what differs to the eye, and what a restoration takes away."""

from typing import ClassVar, Literal

from pydantic import NonNegativeFloat, PositiveFloat, PositiveInt

from medae.scores.base import Need, ObservedScore


class PerceptualMap(ObservedScore):
    """Where image and reconstruction differ in features that need no weights: blur and Gabor energy, of the mean over
    channels at a half and a fourth of the resolution.

    For networks that were trained with the objective `perceptual`, whose residuals mean little.
    """

    kind: Literal["perceptual"] = "perceptual"

    @property
    def radius(self) -> int:
        return 32  # filters of 9 at a fourth of the resolution, after two blurs, enlarged

    @property
    def step(self) -> int:
        return 4


class Restoration(ObservedScore):
    """What must be changed for the network to reproduce the image: |x - restored|, the mean over channels.

    Descends from x on the squared reconstruction error (and the KL of a variational network) plus the total variation
    of the change (Chen 2020, https://arxiv.org/abs/2005.00031). It costs three forward passes a step, so that 20 steps
    take 60 times as long as the network alone, and it must see the image whole.
    """

    needs: ClassVar[frozenset[Need]] = frozenset({"code"})

    kind: Literal["restoration"] = "restoration"
    steps: PositiveInt = 20
    rate: PositiveFloat = 0.02
    """How far a voxel moves in a step at most, in the network's 0..1 range."""
    variation: NonNegativeFloat = 0.5
    """Weight of the total variation: the higher, the larger and flatter the changes."""
    divergence: NonNegativeFloat = 0.001
    """Weight of the KL, in nats per voxel, where the code is a distribution."""

    @property
    def whole(self) -> bool:
        return True
