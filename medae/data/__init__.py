"""Data: which images a training sees, in which split, and what is done to them before the network does."""

from typing import Annotated

from pydantic import Field

from medae.data.augment import AugmentSettings
from medae.data.cases import SPLITS, Case, CaseList, Data, LoadedCase, Split, label_image
from medae.data.collections import Collection
from medae.data.folder import Folder
from medae.data.samples import Sample
from medae.data.seen import Seen

DataConfig = Annotated[CaseList | Folder | Collection | Sample | Seen, Field(discriminator="kind")]

__all__ = [
    "SPLITS",
    "AugmentSettings",
    "Case",
    "CaseList",
    "Collection",
    "Data",
    "DataConfig",
    "Folder",
    "LoadedCase",
    "Sample",
    "Seen",
    "Split",
    "label_image",
]
