"""What all networks share: their settings, the protocol of those that autoencode, and how to run one.

Networks map (B, C, *spatial) to (B, C', *spatial) of the same size, any size: 2-D ones (rows, columns), 3-D ones
(slices, rows, columns). They end without activation: logits, or raw values.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from math import prod
from typing import ClassVar, Literal, NamedTuple, Self

import torch
from pydantic import Field, PositiveInt, model_validator
from torch import Tensor, nn
from torch.nn.functional import pad as pad_ends

from medae.errors import UnfitImage
from medae.networks.latent import Code, Latent
from medae.networks.reach import Window, radius_of, stride_of
from medae.settings import Settings
from medae.tiles import ReceptiveField

Norm = Literal["batch", "instance", "group", "none"]
Size = tuple[PositiveInt, PositiveInt] | tuple[PositiveInt, PositiveInt, PositiveInt]
Decoder = Literal["point", "gaussian", "bernoulli", "categorical"]

LOG_VARIANCE = (-12.0, 6.0)
"""Of a voxel, in the prepared range: standard deviations of .0025, half a level of 8 bits, to 20. A voxel that is
always right would otherwise drive its density, and the loss, beyond all bounds."""


class NetworkSettings(Settings, ABC):
    """One architecture; `build` makes it, untrained."""

    autoencodes: ClassVar[bool] = False
    """Whether it goes through a latent code, so that `build` gives an `Autoencoder`."""
    latent: ClassVar[Literal["code", "gaussian", "codes"] | None] = None
    """What that code is: one point, a normal distribution, entries of a code book."""

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

    @property
    def window(self) -> Size | None:
        """The only size of image that it takes; None: any."""
        return None

    def receptive_field(self) -> ReceptiveField:
        """What an output voxel depends on: exact for starts on a multiple of the stride."""
        layers, window = self.layers(), self.window
        return ReceptiveField(
            dims=self.dims,
            stride=stride_of(layers),
            # of one size only: every voxel may see every other
            radius=radius_of(layers) if window is None else max(window) - 1,
            tileable=self.norm in ("batch", "none") and window is None,
            window=window,
        )


class Output(NamedTuple):
    """What a network says in training."""

    prediction: Tensor
    """(B, C, *spatial): labels' logits, or values; of a decoder that says a distribution, its mean."""
    latent: Latent | None
    """None for a network that does not autoencode."""
    log_variance: Tensor | None = None
    """(B, C, *spatial), natural logarithm, of a `gaussian` decoder."""
    logits: Tensor | None = None
    """Of a `bernoulli` decoder (B, C, *spatial), of a `categorical` one (B, C, levels, *spatial)."""


class Emission(NamedTuple):
    """What a decoder says of each voxel: a value, or a distribution of values in 0..1."""

    decoder: Decoder = "point"
    levels: int = 256

    def numbers(self, channels: int) -> int:
        """How many channels the last layer needs to say it of so many."""
        return channels * {"point": 1, "gaussian": 2, "bernoulli": 1, "categorical": self.levels}[self.decoder]

    def output(self, raw: Tensor, latent: Latent | None = None) -> Output:
        """What the last layer gave, (B, numbers, *spatial), in words."""
        if self.decoder == "gaussian":
            mean, log_variance = raw.chunk(2, dim=1)
            return Output(mean, latent, log_variance=log_variance.clamp(*LOG_VARIANCE))
        if self.decoder == "bernoulli":
            return Output(raw.sigmoid(), latent, logits=raw)
        if self.decoder == "categorical":
            logits = raw.reshape(raw.shape[0], -1, self.levels, *raw.shape[2:])
            values = torch.linspace(0, 1, self.levels, device=raw.device).view(-1, *[1] * (raw.ndim - 2))
            # not a matrix product, which half precision would round to fewer levels than there are
            return Output((logits.softmax(2) * values).sum(2), latent, logits=logits)
        return Output(raw, latent)


class AutoencoderSettings(NetworkSettings, ABC):
    """An architecture that goes through a latent code."""

    autoencodes: ClassVar[bool] = True
    latent: ClassVar[Literal["code", "gaussian", "codes"] | None] = "code"

    decoder: Decoder = "point"
    """What the decoder says of each voxel: a value (`point`), or a distribution with that mean: `gaussian` (its
    variance is learned voxel by voxel), `bernoulli`, `categorical` (over `levels` grey values in 0..1)."""
    levels: int = Field(default=256, ge=2, le=256)
    """Grey values that a `categorical` decoder knows."""
    size: Size | None = None
    """(rows, columns), in 3-D (slices, rows, columns), a multiple of the network's stride. Given: a flat code, of the
    whole image, which then has to have this size; null: a code with places, of images of any size."""

    @model_validator(mode="after")
    def _size_fits(self) -> Self:
        if self.size is None:
            return self
        if len(self.size) != self.dims:
            axes = {2: "(rows, columns)", 3: "(slices, rows, columns)"}[self.dims]
            raise ValueError(f"the network is {self.dims}-D, so size is {axes}; got {list(self.size)}")
        stride = stride_of(self.layers())
        if any(length % stride for length in self.size):
            raise ValueError(f"size must be a multiple of the stride, {stride}, along each axis; got {list(self.size)}")
        return self

    @property
    def window(self) -> Size | None:
        return self.size

    def code_and_image(self, channels: int) -> tuple[int, int] | None:
        """How many numbers the code has, and the part of the image that it stands for; None for entries of a book."""
        return None

    def seen_by_code(self, channels: int) -> int:
        """Values of the image that the code, or one of its places, stands for."""
        return channels * prod((stride_of(self.layers()),) * self.dims if self.size is None else self.size)

    def code_size(self, stride: int) -> tuple[int, ...]:
        """Of the deepest map, where the image has one size."""
        assert self.size is not None
        return tuple(length // stride for length in self.size)

    @property
    def emission(self) -> Emission:
        return Emission(self.decoder, self.levels)


class Autoencoder(nn.Module, ABC):
    """Through a latent code and back; subclasses say how, at sizes that are multiples of the stride.

    The last layer of a subclass gives `emission.numbers(channels_out)` channels.
    """

    def __init__(self, stride: int, emission: Emission, size: Sequence[int] | None = None) -> None:
        super().__init__()
        self.stride, self.emission, self.size = stride, emission, size

    @abstractmethod
    def _encode(self, x: Tensor) -> Latent: ...

    @abstractmethod
    def _decode(self, z: Tensor, context: tuple[Tensor, ...]) -> Tensor: ...

    def encode(self, x: Tensor) -> Latent:
        """(B, C, *spatial) of any size, continued to the next multiple of the stride by its last voxels.

        Raises UnfitImage for another size than the only one, where there is one.
        """
        if self.size is not None and tuple(x.shape[2:]) != tuple(self.size):
            has, takes = (" x ".join(map(str, size)) for size in (x.shape[2:], self.size))
            raise UnfitImage(f"this network takes images of {takes}, and this one is {has}")
        return self._encode(pad(x, self.stride))

    def decode(self, latent: Latent) -> Tensor:
        """(B, C', *spatial) at the stride times the size of the code; of a distribution, its point."""
        return self.emit(latent).prediction

    def emit(self, latent: Latent) -> Output:
        """All that the decoder says of a latent's point, at the size of `decode`."""
        code = latent.point()
        return self.emission.output(self._decode(code.z, code.context), latent)

    def autoencode(self, x: Tensor) -> Output:
        """Decodes a draw in training, the point at evaluation; cut to the size of x."""
        latent = self.encode(x)
        said = self.emit(latent.draw() if self.training else latent.point())
        prediction, _, *more = said
        cut = [None if values is None else crop(values, x) for values in more]
        return Output(crop(prediction, x), latent, *cut)

    def forward(self, x: Tensor) -> Tensor:
        return self.autoencode(x).prediction


class Stage(NamedTuple):
    """A part of an autoencoder that is one itself."""

    encoder: nn.Module
    decoder: nn.Module


class StackedSettings(AutoencoderSettings, ABC):
    """An architecture whose `build` gives a `StackedAutoencoder`."""


class StackedAutoencoder(Autoencoder):
    """Stages within each other; each reconstructs what the stages before it made of the image.

    `encoder` and `decoder` are modules of their own: from the image to the code, and back.
    """

    def __init__(
        self, stages: Sequence[Stage], stride: int, emission: Emission, size: Sequence[int] | None = None
    ) -> None:
        super().__init__(stride, emission, size)
        self.encoder = nn.Sequential(*(stage.encoder for stage in stages))
        self.decoder = nn.Sequential(*(stage.decoder for stage in reversed(stages)))

    @property
    def stages(self) -> list[Stage]:
        """From the outermost to the one with the code."""
        return [Stage(*pair) for pair in zip(self.encoder, reversed(self.decoder), strict=True)]

    def _encode(self, x: Tensor) -> Code:
        return Code(self.encoder(x))

    def _decode(self, z: Tensor, context: tuple[Tensor, ...]) -> Tensor:
        raw: Tensor = self.decoder(z)
        return raw


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
    for axis, size in enumerate(reversed(like.shape[2:]), start=1):
        y = y.narrow(-axis, 0, size)
    return y
