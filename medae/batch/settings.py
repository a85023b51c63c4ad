"""What a batch is asked: one YAML file, or the arguments of `medae batch run`."""

import hashlib
import json
import re
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, Self

from pydantic import BeforeValidator, Field, NonNegativeInt, PositiveInt, model_validator

from medae import package as packages
from medae.errors import UsageError
from medae.io.dicom_options import DEFAULT_DICOM, DicomAnswers
from medae.package import ModelPackage
from medae.settings import Settings
from medae.verdict import GateLimits

_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
_BYTES = re.compile(r"^\s*(\d+(?:\.\d+)?)\s*([KMGT]?)i?B?\s*$", re.IGNORECASE)


def parse_bytes(value: Any) -> Any:
    """8G, 512MB, 1.5 GiB or a number of bytes; K is 1024."""
    if not isinstance(value, str):
        return value
    found = _BYTES.match(value)
    if found is None:
        raise ValueError(f"expected bytes, such as 8G or 512M, got {value!r}")
    return int(float(found[1]) * _UNITS[found[2].upper()])


Bytes = Annotated[PositiveInt, BeforeValidator(parse_bytes)]


class Shard(NamedTuple):
    """One of `parts` parts of the cases."""

    number: int
    """From 0."""
    parts: int


WHOLE = Shard(0, 1)


class BatchSettings(Settings):
    """One batch, or one that recurs."""

    packages: tuple[str, ...] = ()
    """Folders of model packages, or names from `medae models`; each case is decoded once for all of them."""
    embed: tuple[str, ...] = ()
    """Packages of autoencoders, of which the table gets each case's vector: the mean of its latent over all places."""
    inputs: tuple[str, ...] = Field(min_length=1)
    """Images, folders of them, DICOM series, patterns, archives (.zip, .tar, .tar.gz), lists of cases (.csv,
    .parquet), URLs."""
    out: Path
    """Folder of the results."""
    output: Literal["default", "probabilities", "labels-nifti", "summary", "overlay", "table"] = "default"
    """What to write for each image; `table`: nothing but its row in the table of results."""
    summaries: bool = False
    """A summary JSON for each case as well; the table of results has the same numbers."""
    threshold: float | None = None
    """Segmentation: a probability. Score: a target false-positive rate."""
    gate: GateLimits = GateLimits()
    """When the models' gates warn."""
    dicom: DicomAnswers = DEFAULT_DICOM
    """How answers to DICOM are written."""
    series: str | None = None
    """Of the DICOM series in files and folders one, and one of each archive: by its number in the list that a wrong
    number gives, or by its SeriesInstanceUID. By default, or `all`: each."""
    regular_grid: bool = False
    """Make unevenly spaced slices even, where at most one is missing in a row, and do not refuse them; and those of a
    tilted gantry upright. Their answers are NIfTI."""
    id_key: Path | None = None
    """A file with the secret key of the site (`openssl rand -hex 32`): ids of cases and patients in names of answers,
    tables and logs are then keyed hashes, and answers can be de-identified."""
    device: str = "auto"
    """auto (all CUDA devices, else the CPU), cpu, cuda or cuda:N."""
    workers: NonNegativeInt | None = None
    """Processes that read, decode and write, and on the CPU infer, with one thread each; by default one a core. 0: all
    in one process, which a fault or a lack of memory then ends."""
    batch: PositiveInt = 256
    """Cases that are in work or not yet committed, at most: what a power cut can cost."""
    max_ram: Bytes | None = None
    """Of all processes together, such as 8G; what would not fit is refused, with the numbers."""
    max_vram: Bytes | None = None
    """Of each CUDA device, such as 10G."""
    shard: str | None = Field(default=None, pattern=r"^\d+/\d+$")
    """i/n: only the i-th (from 0) of n parts of the cases; a case's part follows from its id alone."""
    engine: Literal["local", "ray"] = "local"
    ray_address: str | None = None
    """Of a Ray cluster; without one, Ray is started on this machine."""
    allow: tuple[str, ...] = ()
    """Beginnings of the URLs that may be read, such as s3://bucket/study/; none by default."""
    verify: bool = False
    """Compare the digests of all inputs that are done with what was read then, instead of their sizes and times."""
    rescore: bool = False
    """Score again what was done with another model, another setting or another input; without it, that is refused."""
    report: bool = True
    """report.html; it shows the most and the least remarkable images."""

    @model_validator(mode="after")
    def _part_of_whole(self) -> Self:
        if self.shard is not None and not self.part.number < self.part.parts:
            raise ValueError(f"shard i/n counts from 0 to n-1, got {self.shard}")
        return self

    @model_validator(mode="after")
    def _kept_by_the_engine(self) -> Self:
        promised = [name for name in ("max_ram", "max_vram") if getattr(self, name) is not None]
        if promised and (self.engine == "ray" or self.workers == 0):
            raise ValueError(
                f"{promised[0]} is kept by the worker processes of the local engine; leave it out with "
                f"{'engine: ray' if self.engine == 'ray' else 'workers: 0'}"
            )
        if self.ray_address is not None and self.engine != "ray":
            raise ValueError("ray_address is of a Ray cluster; give engine: ray too")
        return self

    @model_validator(mode="after")
    def _some_model(self) -> Self:
        if not self.packages and not self.embed:
            raise ValueError("give at least 1 package, in packages or in embed")
        return self

    @property
    def part(self) -> Shard:
        number, parts = (self.shard or "0/1").split("/")
        return Shard(int(number), int(parts))


class Model(NamedTuple):
    """A package of a batch."""

    name: str
    """What the batch calls it: in the table, and as a folder where there are several."""
    folder: Path
    package: ModelPackage
    key: str
    """Digest of all that decides its answers: package, calibrations, output, threshold, the gate's limits."""
    embeds: bool = False
    """Whether its answer is a vector."""


def load_models(settings: BatchSettings) -> list[Model]:
    """The packages of a batch under names that differ. Raises UnknownModel, PackageError, UsageError."""
    models: list[Model] = []
    asked = [*((place, False) for place in settings.packages), *((place, True) for place in settings.embed)]
    for place, embeds in asked:
        package = packages.load(place)
        folder = packages.shipped().get(place, Path(place)) if not Path(place).is_dir() else Path(place)
        card = package.card
        taken = {model.name for model in models}
        digest = package.digest.removeprefix("sha256:")[:8]
        names = (card.name, f"{card.name}-{card.version}", f"{card.name}-{digest}")
        suffix = "-embedding" if embeds else ""
        name = next((name for name in (_plain(name + suffix) for name in names) if name not in taken), None)
        if name is None:
            raise UsageError(f"{place}: this package is given twice")
        models.append(Model(name, folder.resolve(), package, _key(package, settings, embeds), embeds))
    return models


def _key(package: ModelPackage, settings: BatchSettings, embeds: bool) -> str:
    if embeds:
        return hashlib.sha256(f"{package.digest} embedding".encode()).hexdigest()[:32]
    parts = [part for part in (package, package.gate, package.shape) if part is not None]
    calibrations = [part.calibration for part in parts]
    decides = {
        "package": package.digest,
        "calibration": [found and found.model_dump(mode="json") for found in calibrations],
        "gate": settings.gate.model_dump(),
        "output": settings.output,
        "summaries": settings.summaries,
        "threshold": settings.threshold,
        "dicom": settings.dicom.texts(),
        "regular_grid": settings.regular_grid,
    }
    return hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()[:32]


def _plain(name: str) -> str:
    """As a folder's name anywhere."""
    return re.sub(r"[^A-Za-z0-9._-]", "_", name).strip(".") or "model"
