"""What a batch and its child processes say to each other first."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from medae.batch.work import Put
from medae.io.dicom_options import DicomAnswers
from medae.verdict import GateLimits


@dataclass(frozen=True)
class Order:
    """All that a worker must know."""

    packages: Mapping[str, Path]
    """The models by what the batch calls them."""
    embeds: tuple[str, ...]
    """Those of whose latent a vector is the answer."""
    put: Put
    output: str
    threshold: float | None
    summaries: bool
    dicom: DicomAnswers
    id_key: Path | None
    device: str
    gate: GateLimits
    allow: tuple[str, ...] = ()
    parent: int = 0
    shared: int | None = None
    """The descriptor of a channel to the process that has the device; None: infer here."""


class Ready(NamedTuple):
    """A worker that has its models."""

    bytes: int
    """What it holds before its first case."""
