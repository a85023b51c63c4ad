"""Latent spaces of packages: look into them, draw from them."""

from medae.latent.space import LatentSpace
from medae.latent.usage import Usage

__all__ = ["LatentSpace", "Usage"]
