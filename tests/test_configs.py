"""Every shipped configuration trains: one step of two patches, a validation, a package that answers."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from medae.data.cases import Data
from medae.experiment import Experiment
from medae.image import Geometry, Image
from medae.io import write_image
from medae.package import ModelPackage
from medae.predictor import Predictor
from medae.settings import load_settings
from medae.shipped import configs_folder
from medae.training import train
from tests.conftest import tilted_affine

SHIPPED = sorted(configs_folder().rglob("*.yaml"))
TINY = [
    f"training.{name}={value}"
    for name, value in {"steps": 1, "validate_every": 1, "batch_size": 2, "pictures": 0, "device": "cpu"}.items()
]


def stand_in(experiment: Experiment, root: Path) -> dict[str, str]:
    """In place of data that are not embedded: four small images of the kind that the configuration takes."""
    rng = np.random.default_rng(0)
    for folder in ("images", "labels"):
        (root / folder).mkdir(parents=True)
    size = experiment.network.window or experiment.training.patch
    shape = (*(1,) * (3 - len(size)), *size)
    flat = experiment.network.dims == 2 and experiment.preparation.spacing_mm is None
    geometry = Geometry.picture(*size) if flat else Geometry(shape, tilted_affine())
    ending = "png" if flat else "nii.gz"
    for number in range(4):
        labels = rng.integers(0, 3, (1, *shape)).astype(np.uint8)
        channels = np.concatenate([labels * value for value in (40, 60, 80)[: experiment.preparation.channels]])
        write_image(Image(channels, geometry), root / "images" / f"v{number}.{ending}")
        write_image(Image(labels, geometry), root / "labels" / f"v{number}.{ending}")
    targets = {"targets": f"labels/*.{ending}"} if experiment.task.kind == "segmentation" else {}
    return {"kind": "folder", "root": str(root), "images": f"images/*.{ending}", **targets}


def named(path: Path) -> str:
    return path.relative_to(configs_folder()).with_suffix("").as_posix()


def parts() -> list[Any]:
    """Those of the autoencoders by default; larger networks and images are slow."""
    marks = {path: () if path.parent.name == "autoencoders" else (pytest.mark.slow,) for path in SHIPPED}
    return [pytest.param(path, id=named(path), marks=mark) for path, mark in marks.items()]


@pytest.mark.parametrize("path", parts())
def test_a_shipped_configuration_trains(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    experiment = load_settings(path, Experiment, TINY)
    if experiment.data.kind != "sample":
        data = stand_in(experiment, tmp_path / "data")
        experiment = Experiment.model_validate(experiment.resolved | {"data": data})
    every = Data.cases
    monkeypatch.setattr(Data, "cases", lambda self, split=None: every(self, split)[:2])
    package = train(experiment, tmp_path / "out")
    kept = ModelPackage.load(tmp_path / "out" / "package")
    assert kept.digest == package.digest
    case = experiment.data.cases("validation")[0]
    image = experiment.data.read(case).image
    answers = [Predictor(each, device="cpu")(image).image.pixels for each in (package, kept)]
    assert answers[0].shape[1:] == image.pixels.shape[1:]
    np.testing.assert_array_equal(*answers)
