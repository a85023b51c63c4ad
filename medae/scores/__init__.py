"""Anomaly scores: a closed union by `kind`. In numpy; what needs torch is computed by the back end's observer."""

from typing import Annotated

from pydantic import Field

from medae.scores.appearance import Appearance
from medae.scores.base import PREFIX, Evidence, Found, MapScore, ObservedScore, Score, parts_of
from medae.scores.ensemble import RankAverage
from medae.scores.features import CodeFeatures, Mahalanobis, Neighbours, Texture
from medae.scores.likelihood import ELBO, KL, NLL, CodeLikelihood, Variance, VarianceHead
from medae.scores.observed import PerceptualMap, Restoration
from medae.scores.residual import SSIM, Residual
from medae.scores.statistics import Profile, Statistics, StatisticScore
from medae.scores.tissue import Haematoxylin, Patterns, Stain

ScoreConfig = Annotated[
    Residual
    | SSIM
    | PerceptualMap
    | NLL
    | KL
    | ELBO
    | Variance
    | VarianceHead
    | CodeLikelihood
    | Mahalanobis
    | Neighbours
    | Restoration
    | Statistics
    | Profile
    | Appearance
    | Stain
    | Haematoxylin
    | Patterns
    | RankAverage,
    Field(discriminator="kind"),
]

__all__ = [
    "ELBO",
    "KL",
    "NLL",
    "PREFIX",
    "SSIM",
    "Appearance",
    "CodeFeatures",
    "CodeLikelihood",
    "Evidence",
    "Found",
    "Haematoxylin",
    "Mahalanobis",
    "MapScore",
    "Neighbours",
    "ObservedScore",
    "Patterns",
    "PerceptualMap",
    "Profile",
    "RankAverage",
    "Residual",
    "Restoration",
    "Score",
    "ScoreConfig",
    "Stain",
    "StatisticScore",
    "Statistics",
    "Texture",
    "Variance",
    "VarianceHead",
    "parts_of",
]
