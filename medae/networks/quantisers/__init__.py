"""Quantisers: each vector of an encoding becomes an entry of a finite book; a closed union by `kind`, one a file."""

from typing import Annotated

from pydantic import Field

from medae.networks.quantisers.base import Quantiser, QuantiserSettings
from medae.networks.quantisers.ema import EMAQuantiser, EMASettings
from medae.networks.quantisers.fsq import FSQSettings, ScalarQuantiser

QuantiserConfig = Annotated[EMASettings | FSQSettings, Field(discriminator="kind")]

__all__ = [
    "EMAQuantiser",
    "EMASettings",
    "FSQSettings",
    "Quantiser",
    "QuantiserConfig",
    "QuantiserSettings",
    "ScalarQuantiser",
]
