"""What all anomaly scores share: what they need from the back end, their map, and how it becomes one number."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from medae.scores.reducers import Mean, ReducerConfig
from medae.settings import Settings

Evidence = Mapping[str, NDArray[Any]]
"""What the back end says, by name, each (channels, *spatial): `reconstruction`, `log_variance`, `kl`, and by the key of
a score whose map the back end computes itself."""

Need = Literal["code", "distribution", "variance", "codes", "prior"]
"""Of the network: a latent code; one that is a distribution; a decoder that says its variance; entries of a code
book; and a prior over these."""


@dataclass(frozen=True, eq=False)
class Found:
    """What is known of one image when its scores are made, on the network's grid."""

    maps: Mapping[str, NDArray[Any]]
    """(1, *spatial) of the scores that have one, by key."""
    pixels: NDArray[np.float32]
    """(C, *spatial) as the network saw them."""
    inside: NDArray[np.bool_] | None
    """(*spatial): the foreground; None: everywhere."""
    fitted: Mapping[str, NDArray[Any]]
    """The package's weights, of which those under `scores.KEY.` are a score's own."""
    values: Mapping[str, float]
    """The scores before this one, by key."""
    two_sided: frozenset[str] = frozenset()
    """The keys of those that are unlike in either direction."""

    def parts(self, key: str) -> dict[str, NDArray[Any]]:
        """What was fitted for one score."""
        return parts_of(self.fitted, key)


class Score(Settings, ABC):
    """One way to say how anomalous an image is: higher is more so, or, where two-sided, farther from the usual."""

    needs: ClassVar[frozenset[Need]] = frozenset()
    fits: ClassVar[bool] = False
    """Whether it has parts that are fitted on training images once the network is trained."""

    kind: str
    name: str | None = Field(default=None, pattern=r"^[a-z0-9][a-z0-9_]*$", max_length=64)
    """In answers; null: made of the settings."""
    two_sided: bool = False
    """Whether the calibration calls unusually low scores anomalous too: a blurred image is reconstructed too well."""

    @property
    def requirements(self) -> frozenset[Need]:
        """Of the network."""
        return self.needs

    @property
    def of_light(self) -> bool:
        """Whether it takes values as light, 0 none and 1 all."""
        return False

    @property
    def after(self) -> tuple[str, ...]:
        """The scores that must be known before this one, by their names."""
        return ()

    @property
    def key(self) -> str:
        """Its name in answers, calibration and weights."""
        return self.name or self.default_name()

    @abstractmethod
    def default_name(self) -> str: ...

    @abstractmethod
    def value(self, found: Found) -> float:
        """The score of one image; not a number where there is none."""


class MapScore(Score, ABC):
    """A score with a map (1, *spatial), which is reduced to one number."""

    reducer: ReducerConfig = Mean()
    """How the map becomes the score."""

    @abstractmethod
    def evidence(self, channels: int) -> dict[str, int]:
        """What it needs from the back end -> of how many channels, where the image has `channels`."""

    @abstractmethod
    def map(self, evidence: Evidence, x: NDArray[Any]) -> NDArray[Any]:
        """Evidence and the image (C, *spatial) -> (1, *spatial) float32."""

    @property
    def radius(self) -> int:
        """How far a voxel of its map looks beyond what the network looks at."""
        return 0

    @property
    def step(self) -> int:
        """Tiles must start on a multiple of it."""
        return 1

    @property
    def whole(self) -> bool:
        """Whether it must see the image whole, so that there can be no tiles."""
        return False

    def default_name(self) -> str:
        return f"{self.kind}_{self.reducer.kind}"

    def value(self, found: Found) -> float:
        return self.reducer(found.maps[self.key], found.inside)


class ObservedScore(MapScore, ABC):
    """A score whose map the back end computes itself, beside the network."""

    def evidence(self, channels: int) -> dict[str, int]:
        return {self.key: 1}

    def map(self, evidence: Evidence, x: NDArray[Any]) -> NDArray[Any]:
        return evidence[self.key]


def parts_of(weights: Mapping[str, NDArray[Any]], key: str) -> dict[str, NDArray[Any]]:
    """A package's weights -> those fitted for one score, by their own names."""
    start = f"{PREFIX}{key}."
    return {name.removeprefix(start): values for name, values in weights.items() if name.startswith(start)}


PREFIX = "scores."
"""Of the names of fitted parts among a package's weights; the others are the network's."""
