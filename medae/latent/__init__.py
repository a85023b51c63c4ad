"""Latent spaces of packages: look into them, draw from them."""

from medae.latent.embedding import Embedding, embed
from medae.latent.firing import units
from medae.latent.space import LatentSpace
from medae.latent.walks import decodings, interpolate, sample, traverse

__all__ = [
    "Embedding",
    "LatentSpace",
    "decodings",
    "embed",
    "interpolate",
    "sample",
    "traverse",
    "units",
]
