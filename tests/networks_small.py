"""Small networks of every kind, for the laws that all of them keep."""

from typing import Any, get_args

import pytest
import torch
from torch import Tensor, nn

from medae.networks import (
    ConvAutoencoderSettings,
    DenseAutoencoderSettings,
    DnCNNSettings,
    NetworkConfig,
    NetworkSettings,
    SegNetSettings,
    UNetSettings,
    VAESettings,
    VQVAESettings,
)
from medae.networks.quantisers import EMASettings, FSQSettings

KINDS: tuple[type[NetworkSettings], ...] = get_args(get_args(NetworkConfig)[0])
SMALL: dict[str, dict[str, Any]] = {
    "unet": {"features": (4, 8, 8), "strides": (2, 2)},
    "segnet": {"features": (4, 6), "convolutions": (2, 1)},
    "conv_autoencoder": {"features": (4, 6), "bottleneck": 3},
    "dense_autoencoder": {"widths": (12, 5), "size": (8, 12)},
    "dncnn": {"depth": 3, "features": 6},
    "vae": {"features": (4, 6), "latent_channels": 3},
    "vqvae": {"features": (8,), "quantiser": {"kind": "ema", "codes": 64, "channels": 6}},
}
OTHERS: list[NetworkSettings] = [
    UNetSettings(features=(4, 6, 8), strides=(1, 2), residual_units=1),
    UNetSettings(features=(4, 8), strides=(2,), residual_units=0, norm="none"),
    UNetSettings(features=(4, 6, 6, 8), strides=(2, 1, 2), residual_units=3),
    SegNetSettings(features=(4, 6, 6), convolutions=(1, 1, 2), norm="none"),
    ConvAutoencoderSettings(features=(4,), convolutions=3, bottleneck=5, enlarge="transposed"),
    ConvAutoencoderSettings(features=(4, 5, 6), bottleneck=2, enlarge="transposed", norm="none"),
    ConvAutoencoderSettings(features=(4, 5), convolutions=2, bottleneck=7, residual=True, dropout=0.3, size=(8, 12)),
    ConvAutoencoderSettings(features=(4, 5), residual=True, code="sigmoid"),
    DenseAutoencoderSettings(widths=(9, 30), size=(7, 5), tied=True, activation="tanh", norm="batch"),
    DenseAutoencoderSettings(widths=(7,), size=(1, 6), code="relu"),
    SegNetSettings(features=(4, 6, 6), convolutions=(2, 1, 1), residual=True, dropout=0.5, bottleneck=2),
    SegNetSettings(features=(4, 6), convolutions=(1, 1), bottleneck=6, size=(8, 4)),
    UNetSettings(features=(4, 6, 8), strides=(1, 2), dropout=0.2),
    VAESettings(features=(4, 5), latent_channels=6, residual=True, dropout=0.2),
    VAESettings(features=(4, 5), latent_channels=6, size=(8, 12)),
    DnCNNSettings(depth=2, features=5, pixel_unshuffle=1),
    DnCNNSettings(depth=5, features=4, pixel_unshuffle=2, norm="none"),
    VAESettings(features=(4, 5, 6), latent_channels=2, norm="none"),
    VQVAESettings(features=(4, 5), residual_units=2, quantiser=EMASettings(codes=16, channels=2)),
    VQVAESettings(features=(6, 8, 8), residual_units=0, quantiser=FSQSettings(levels=(5, 4, 3))),
]


def small(kind: type[NetworkSettings], **more: Any) -> NetworkSettings:
    return kind(**SMALL[kind.model_fields["kind"].default] | more)


def name(settings: NetworkSettings) -> str:
    return f"{settings.kind}-{settings.dims}d-{settings.norm}"


def both(settings: list[NetworkSettings]) -> list[NetworkSettings]:
    """In 2-D and in 3-D."""
    volumes = [{"dims": 3} | ({} if s.window is None else {"size": (4, *s.window)}) for s in settings]
    return [
        type(s)(**s.model_dump() | more) for s, volume in zip(settings, volumes, strict=True) for more in ({}, volume)
    ]


def norms(kind: type[NetworkSettings]) -> tuple[str, ...]:
    found: tuple[str, ...] = get_args(kind.model_fields["norm"].annotation)
    return found


def sized(settings: NetworkSettings, *size: int) -> tuple[int, ...]:
    """This size of image, or the only one that it takes."""
    return settings.window or size[: settings.dims]


EACH = both([small(kind) for kind in KINDS])
EACH_NORM = both([small(kind, norm=norm) for kind in KINDS for norm in norms(kind)])
VARIED = EACH + both(OTHERS)
ANY_SIZE = [settings for settings in VARIED if settings.window is None]
ONE_SIZE = [settings for settings in VARIED if settings.window is not None]
AUTOENCODING = [settings for settings in VARIED if settings.autoencodes]
each = pytest.mark.parametrize("settings", EACH, ids=name)
kinds = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
each_norm = pytest.mark.parametrize("settings", EACH_NORM, ids=name)
varied = pytest.mark.parametrize("settings", VARIED, ids=name)
any_size = pytest.mark.parametrize("settings", ANY_SIZE, ids=name)
one_size = pytest.mark.parametrize("settings", ONE_SIZE, ids=name)


def built(settings: NetworkSettings, channels: int = 2, seed: int = 0) -> nn.Module:
    """At evaluation, with random weights and random running statistics: what training would leave."""
    torch.manual_seed(seed)
    network = settings.build(channels, channels).eval()
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d):
                assert module.running_mean is not None and module.running_var is not None
                for values in (module.running_mean, module.bias):
                    values.normal_(0, 0.3)
                for values in (module.running_var, module.weight):
                    values.uniform_(0.5, 1.5)
        if isinstance(settings, VQVAESettings):  # a book that has seen encodings
            network.train()(noise(4, channels, *[32 if settings.dims == 2 else 12] * settings.dims))
    return network.eval()


def noise(*shape: int, seed: int = 1) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))
