"""What the tests of the service share: small images, small untrained packages by name, and clients."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO, StringIO
from typing import Any

import httpx
import numpy as np
from PIL import Image as Picture

from medae.io.answer import Label
from medae.package import ModelPackage
from medae.preparation import Percentile, Preparation
from medae.tasks import Anomaly, Restoration, Segmentation
from medae_service.app import create_app, paths
from medae_service.engine import Engine
from medae_service.logs import JsonLines
from medae_service.models import Models, Served, Shelf, serve_package
from medae_service.security import door
from medae_service.settings import WorkerSettings
from tests.conftest import SEGNET, untrained_package

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # it asks for httpx's successor, which is not in the lock
    from starlette.testclient import TestClient

CANARY = "CANARYDOE"

DNCNN = {"kind": "dncnn", "depth": 3, "features": 4}
AUTOENCODER = {"kind": "conv_autoencoder", "features": [4, 6]}
OWN_RANGE = Preparation(intensity=Percentile())
"""Pictures and CT alike."""
LABELS = (Label(name="nucleus", colour=(255, 0, 0)),)


def named(package: ModelPackage, name: str) -> ModelPackage:
    return ModelPackage.seal(package.card.model_copy(update={"name": name}), package.weights)


def segmenter(name: str = "segmenter") -> ModelPackage:
    return named(untrained_package(Segmentation(labels=LABELS), SEGNET, OWN_RANGE), name)


def denoiser(name: str = "denoiser") -> ModelPackage:
    return named(untrained_package(Restoration(), DNCNN, OWN_RANGE), name)


def scorer(name: str = "scorer") -> ModelPackage:
    return named(untrained_package(Anomaly(), AUTOENCODER, OWN_RANGE), name)


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


PNG = {"file": ("x.png", png(), "image/png")}
FORM = {"Content-Type": "multipart/form-data; boundary=b"}


class Broken:
    """Stands for a predictor; fails as it is told to."""

    def __init__(self, error: Exception) -> None:
        self.error = error

    def __call__(self, image: Any, **options: Any) -> Any:
        raise self.error


def served(package: ModelPackage, engine: Engine | None = None, shelf: Shelf | None = None) -> Served:
    """A package as a worker serves it, on the CPU."""
    return serve_package(package, lambda: package, "cpu", engine or Engine(), shelf or Shelf())


def client_of(*packages: ModelPackage, predictor: Any = None, raise_errors: bool = True, **settings: Any) -> TestClient:
    """The app behind its door, as a worker runs it, without BentoML."""
    chosen = WorkerSettings(**settings)
    models, engine = Models(), Engine()
    for package in packages:
        models.add(package, predictor or served(package, engine))
    app = create_app(chosen, models)
    return TestClient(
        door(app, chosen, paths(app)), base_url="http://localhost:3000", raise_server_exceptions=raise_errors
    )


def problem(response: httpx.Response, status: int, code: str) -> str:
    """Checks a refusal; returns its detail."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    body = response.json()
    assert (body["status"], body["code"]) == (status, code)
    assert body["type"] == f"urn:medae:problem:{code}"
    assert body["instance"] == f"urn:uuid:{response.headers['x-request-id']}"
    return str(body.get("detail", ""))


@contextmanager
def recorded_log() -> Iterator[StringIO]:
    """What the service would log, as a worker formats it."""
    stream = StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JsonLines())
    root = logging.getLogger()
    level = logging.getLogger("medae_service").level
    root.addHandler(handler)
    logging.getLogger("medae_service").setLevel(logging.INFO)
    try:
        yield stream
    finally:
        root.removeHandler(handler)
        logging.getLogger("medae_service").setLevel(level)
