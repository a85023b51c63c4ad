"""What the tests of the service share: small images, and small untrained packages by name."""

from io import BytesIO
from typing import Any

import numpy as np
from PIL import Image as Picture

from medae.io.answer import Label
from medae.package import ModelPackage
from medae.tasks import Anomaly, Restoration, Segmentation
from tests.conftest import untrained_package

SEGNET = {"kind": "segnet", "features": [4, 6], "convolutions": [1, 1]}
DNCNN = {"kind": "dncnn", "depth": 3, "features": 4}
AUTOENCODER = {"kind": "conv_autoencoder", "features": [4, 6]}
LABELS = (Label(name="nucleus", colour=(255, 0, 0)),)


def named(package: ModelPackage, name: str) -> ModelPackage:
    return ModelPackage.seal(package.card.model_copy(update={"name": name}), package.weights)


def segmenter(name: str = "segmenter") -> ModelPackage:
    return named(untrained_package(Segmentation(labels=LABELS), SEGNET), name)


def denoiser(name: str = "denoiser") -> ModelPackage:
    return named(untrained_package(Restoration(), DNCNN), name)


def scorer(name: str = "scorer") -> ModelPackage:
    return named(untrained_package(Anomaly(), AUTOENCODER), name)


def png(rows: int = 37, columns: int = 51, seed: int = 0) -> bytes:
    """A grey picture of noise."""
    pixels = np.random.default_rng(seed).integers(0, 256, (rows, columns), np.uint8)
    target = BytesIO()
    Picture.fromarray(pixels).save(target, "PNG")
    return target.getvalue()


def dicom_slice(patient: str) -> bytes:
    """pydicom's small CT with another patient's name in several tags."""
    from pydicom import dcmread
    from pydicom.data import get_testdata_file

    dataset: Any = dcmread(get_testdata_file("CT_small.dcm"))
    dataset.PatientName = patient
    dataset.PatientID = patient
    dataset.StudyDescription = patient
    target = BytesIO()
    dataset.save_as(target)
    return target.getvalue()
