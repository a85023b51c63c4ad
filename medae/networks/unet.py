"""U-Net (Ronneberger 2015, https://arxiv.org/abs/1505.04597): MONAI's, with skips that fit at any size.

The state dict of `UNet.core` is that of `monai.networks.nets.UNet` with the same arguments.
"""

from collections.abc import Sequence
from math import prod
from typing import Any, Literal, Self

from pydantic import Field, NonNegativeInt, PositiveInt, model_validator
from torch import Tensor, nn

from medae.networks.base import NetworkSettings, Norm, crop, pad
from medae.networks.blocks import groups_for
from medae.networks.reach import CONVOLUTION, Window


class UNet(nn.Module):
    """(B, channels_in, *spatial) -> (B, channels_out, *spatial)."""

    def __init__(self, settings: "UNetSettings", channels_in: int, channels_out: int) -> None:
        # importing MONAI takes seconds: only who builds a U-Net pays them
        from monai.networks.layers.simplelayers import SkipConnection
        from monai.networks.nets.unet import UNet as MonaiUNet

        super().__init__()
        self.core: nn.Module = MonaiUNet(
            spatial_dims=settings.dims,
            in_channels=channels_in,
            out_channels=channels_out,
            channels=settings.features,
            strides=settings.strides,
            num_res_units=settings.residual_units,
            norm=_norm(settings.norm, [*settings.features, channels_out]),
            dropout=settings.dropout,
        )
        for module in self.core.modules():
            if isinstance(module, SkipConnection):
                # 7 voxels become 4 by a stride of 2, and 8 on the way back: the eighth is cut before both are joined
                module.submodule.register_forward_hook(_crop_to_input)
        # a norm that sees the window has nothing to compare in one voxel, so the deepest map gets two
        self.least = 2 * prod(settings.strides) if settings.norm in ("instance", "group") else 1

    def forward(self, x: Tensor) -> Tensor:
        return crop(self.core(pad(x, 1, self.least)), x)


def _crop_to_input(module: nn.Module, args: tuple[Tensor], output: Tensor) -> Tensor:
    return crop(output, args[0])


def _norm(norm: Norm, widths: Sequence[int]) -> str | tuple[str, dict[str, Any]] | None:
    """In MONAI's terms."""
    if norm == "group":
        return "group", {"num_groups": groups_for(*widths)}
    return {"batch": "batch", "instance": ("instance", {"affine": True}), "none": None}[norm]


class UNetSettings(NetworkSettings):
    """U-Net: sees far and keeps the detail through skips; for segmentation and restoration."""

    kind: Literal["unet"] = "unet"
    features: tuple[PositiveInt, ...] = Field(default=(16, 32, 64, 128), min_length=2, max_length=8)
    """Width of each level, shallow to deep; the last is the bottleneck, which the skips go around."""
    strides: tuple[Literal[1, 2], ...] = (2, 2, 2)
    """Down-sampling into each level but the last, which keeps the size; 1 first keeps skips at full size."""
    residual_units: NonNegativeInt = 2
    """Convolutions with a short-cut in each level; 0: one plain convolution."""
    dropout: float = Field(default=0, ge=0, lt=1)
    """Probability, after every convolution."""

    @model_validator(mode="after")
    def _one_stride_a_level(self) -> Self:
        needed = len(self.features) - 1
        if len(self.strides) != needed:
            raise ValueError(f"{needed + 1} levels (features) need {needed} strides, got {len(self.strides)}")
        return self

    def build(self, channels_in: int, channels_out: int) -> UNet:
        return UNet(self, channels_in, channels_out)

    def layers(self) -> list[Window]:
        # short-cuts and skips see less than the convolutions beside them
        convolutions = max(self.residual_units, 1)
        more = [CONVOLUTION] * (convolutions - 1)
        last = [CONVOLUTION] if self.residual_units else []
        down = [layer for stride in self.strides for layer in [Window(3, stride, 1), *more]]
        up = [layer for stride in reversed(self.strides) for layer in [Window(3, stride, 1, up=True), *last]]
        return [*down, *[CONVOLUTION] * convolutions, *up]
