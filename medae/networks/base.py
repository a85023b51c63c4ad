"""What all networks share: their settings, the protocol of those that autoencode, and how to run one.

Networks map (B, C, *spatial) to (B, C', *spatial) of the same size, any size: 2-D ones (rows, columns), 3-D ones
(slices, rows, columns). They end without activation: logits, or raw values.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar, Literal, NamedTuple

from torch import Tensor, nn
from torch.nn.functional import pad as pad_ends

from medae.networks.latent import Latent
from medae.networks.reach import Window, radius_of, stride_of
from medae.settings import Settings
from medae.tiles import ReceptiveField

Norm = Literal["batch", "instance", "group", "none"]


class NetworkSettings(Settings, ABC):
    """One architecture; `build` makes it, untrained."""

    autoencodes: ClassVar[bool] = False
    """Whether it goes through a latent code, so that `build` gives an `Autoencoder`."""

    kind: str
    dims: Literal[2, 3] = 2
    """2: slice by slice; 3: whole volumes."""
    norm: Norm = "batch"
    """`instance` and `group` see the whole window, so that only `batch` and `none` can be computed in tiles."""

    @abstractmethod
    def build(self, channels_in: int, channels_out: int) -> nn.Module:
        """A fresh, untrained network. Raises SettingsError where it cannot have these channels."""

    @abstractmethod
    def layers(self) -> Sequence[Window]:
        """The layers on the longest way from input to output, along one axis."""

    def receptive_field(self) -> ReceptiveField:
        """What an output voxel depends on: exact for starts on a multiple of the stride."""
        layers = self.layers()
        return ReceptiveField(
            dims=self.dims,
            stride=stride_of(layers),
            radius=radius_of(layers),
            tileable=self.norm in ("batch", "none"),
        )


class Output(NamedTuple):
    """What a network says in training."""

    prediction: Tensor
    latent: Latent | None
    """None for a network that does not autoencode."""


class Autoencoder(nn.Module, ABC):
    """Through a latent code and back; subclasses say how, at sizes that are multiples of the stride."""

    def __init__(self, stride: int) -> None:
        super().__init__()
        self.stride = stride

    @abstractmethod
    def _encode(self, x: Tensor) -> Latent: ...

    @abstractmethod
    def _decode(self, z: Tensor, context: tuple[Tensor, ...]) -> Tensor: ...

    def encode(self, x: Tensor) -> Latent:
        """(B, C, *spatial) of any size, continued to the next multiple of the stride by its last voxels."""
        return self._encode(pad(x, self.stride))

    def decode(self, latent: Latent) -> Tensor:
        """(B, C', *spatial) at the stride times the size of the code; of a distribution, its point."""
        code = latent.point()
        return self._decode(code.z, code.context)

    def autoencode(self, x: Tensor) -> Output:
        """Decodes a draw in training, the point at evaluation; cut to the size of x."""
        latent = self.encode(x)
        code = latent.draw() if self.training else latent.point()
        return Output(crop(self.decode(code), x), latent)

    def forward(self, x: Tensor) -> Tensor:
        return self.autoencode(x).prediction


def run(network: nn.Module, x: Tensor) -> Output:
    """The prediction, and the latent where there is one.

    By the method and not by the type, for a network that Fabric wraps is of Fabric's type. Such a one must have been
    told `mark_forward_method("autoencode")`, or its precision is not applied.
    """
    autoencode = getattr(network, "autoencode", None)
    return Output(network(x), None) if autoencode is None else autoencode(x)


def pad(x: Tensor, multiple: int, least: int = 1) -> Tensor:
    """Spatial sizes up to the next multiple and to `least`, at the far ends, by the last voxel.

    Only the far ends, so that a tile that starts on a multiple keeps its phase; by the last voxel, because a mirror
    needs more voxels than a tiny image has.
    """
    missing = [max(-(-size // multiple) * multiple, least) - size for size in x.shape[2:]]
    if not any(missing):
        return x
    return pad_ends(x, [amount for size in reversed(missing) for amount in (0, size)], mode="replicate")


def crop(y: Tensor, like: Tensor) -> Tensor:
    """The near part of y at the spatial size of `like`."""
    near = [slice(size) for size in like.shape[2:]]
    return y[(slice(None), slice(None), *near)]
