"""How far features of the image are from those of normal images: a Gaussian or the nearest of a bank.

Mahalanobis by position: PaDiM (Defard 2020, https://arxiv.org/abs/2011.08785). Nearest neighbours in a bank: PatchCore
(Roth 2021, https://arxiv.org/abs/2106.08265), with features of the network itself or of the texture and without weights
from elsewhere. Both see what is unlike in either direction: too smooth is as far away as too rough.
"""

from typing import Annotated, ClassVar, Literal

from pydantic import Field, PositiveInt

from medae.scores.base import Need, ObservedScore
from medae.settings import Settings


class Texture(Settings):
    """Per cell and channel: the mean, and at each scale the logarithms of the Laplacian and of the gradient."""

    kind: Literal["texture"] = "texture"
    cell: Literal[2, 4, 8, 16] = 8
    """Voxels along a side of a cell."""
    scales: int = Field(default=2, ge=1, le=4)
    """Each scale halves the resolution; the coarsest still has a voxel in each cell."""
    standardise: bool = False
    """Each image first to mean 0 and standard deviation 1, over all of it: contrast no longer counts."""
    intensity: bool = True
    """Whether the mean of each cell counts."""

    @property
    def radius(self) -> int:
        """How far a voxel's features look."""
        return self.cell + int(2**self.scales)


class CodeFeatures(Settings):
    """The network's latent code, place by place."""

    kind: Literal["code"] = "code"


FeaturesConfig = Annotated[Texture | CodeFeatures, Field(discriminator="kind")]


class FeatureScore(ObservedScore):
    """What Mahalanobis and neighbours share."""

    fits: ClassVar[bool] = True

    features: FeaturesConfig = CodeFeatures()
    positions: Literal["shared", "own"] = "shared"
    """`shared`: normal is the same everywhere. `own`: each place has its own normal, for images that are aligned and
    all of one size; there are no tiles then."""

    def default_name(self) -> str:
        return f"{self.kind}_{self.features.kind}_{self.reducer.kind}"

    @property
    def radius(self) -> int:
        return self.features.radius if isinstance(self.features, Texture) else 0

    @property
    def step(self) -> int:
        return self.features.cell if isinstance(self.features, Texture) else 1

    @property
    def whole(self) -> bool:
        return self.positions == "own" or (isinstance(self.features, Texture) and self.features.standardise)

    @property
    def requirements(self) -> frozenset[Need]:
        return frozenset({"code"}) if isinstance(self.features, CodeFeatures) else frozenset()


class Mahalanobis(FeatureScore):
    """Squared Mahalanobis distance to the normal images' Gaussian, by the number of features: 1 is usual."""

    kind: Literal["mahalanobis"] = "mahalanobis"
    shrinkage: float = Field(default=0.01, ge=0, le=1)
    """Of the covariance, towards one with equal variances."""


class Neighbours(FeatureScore):
    """Mean squared distance to the nearest normal features, each in units of its standard deviation."""

    kind: Literal["neighbours"] = "neighbours"
    count: PositiveInt = 5
    """How many neighbours."""
    bank: PositiveInt = 512
    """Normal features that are kept, drawn at random: places where positions are shared, whole images where not."""
