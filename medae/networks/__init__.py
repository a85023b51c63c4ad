"""The architectures, one a file. Their closed union is the `network:` of a configuration."""

from typing import Annotated, get_args

from pydantic import Field

from medae.networks.base import (
    Autoencoder,
    AutoencoderSettings,
    Emission,
    NetworkSettings,
    Output,
    StackedAutoencoder,
    StackedSettings,
    Stage,
    run,
)
from medae.networks.conv_autoencoder import ConvAutoencoderSettings
from medae.networks.dense_autoencoder import DenseAutoencoderSettings
from medae.networks.dncnn import DnCNNSettings
from medae.networks.latent import Code, Codes, Gaussian, Latent
from medae.networks.segnet import SegNetSettings
from medae.networks.unet import UNetSettings
from medae.networks.vae import VAESettings
from medae.networks.vqvae import VQVAESettings

NetworkConfig = Annotated[
    UNetSettings
    | SegNetSettings
    | ConvAutoencoderSettings
    | DenseAutoencoderSettings
    | DnCNNSettings
    | VAESettings
    | VQVAESettings,
    Field(discriminator="kind"),
]


def kinds_with(latents: frozenset[str]) -> list[str]:
    """The kinds of network that go through one of these latents, in alphabetical order."""
    union, _ = get_args(NetworkConfig)
    return sorted(each.model_fields["kind"].default for each in get_args(union) if each.latent in latents)


__all__ = [
    "Autoencoder",
    "AutoencoderSettings",
    "Code",
    "Codes",
    "ConvAutoencoderSettings",
    "DenseAutoencoderSettings",
    "DnCNNSettings",
    "Emission",
    "Gaussian",
    "Latent",
    "NetworkConfig",
    "NetworkSettings",
    "Output",
    "SegNetSettings",
    "StackedAutoencoder",
    "StackedSettings",
    "Stage",
    "UNetSettings",
    "VAESettings",
    "VQVAESettings",
    "kinds_with",
    "run",
]
