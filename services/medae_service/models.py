"""The models of this process, and which of them answers a request."""

from dataclasses import dataclass
from typing import Any, Literal, Protocol

from medae.errors import UnknownModel, UsageError
from medae.image import Image
from medae.package import Card, ModelPackage
from medae.predictor import Prediction

Endpoint = Literal["segment", "restore", "score"]
ENDPOINTS: dict[str, Endpoint] = {"segmentation": "segment", "restoration": "restore", "anomaly": "score"}
"""The kind of a package's task -> the endpoint that asks it."""


class Predicts(Protocol):
    """A medae.Predictor, or what stands for one in a test."""

    def __call__(self, image: Image, *, threshold: float | None, probabilities: bool) -> Prediction: ...


@dataclass(frozen=True)
class Model:
    """A package and the predictor made of it."""

    package: ModelPackage
    predictor: Predicts

    @property
    def card(self) -> Card:
        return self.package.card

    @property
    def endpoint(self) -> Endpoint:
        return ENDPOINTS[self.card.task.kind]

    def describe(self) -> dict[str, Any]:
        """What /v1/models says about it."""
        card = self.card
        return {
            "name": card.name,
            "version": card.version,
            "digest": self.package.digest,
            "task": card.task.kind,
            "endpoint": f"/v1/{self.endpoint}",
            "channels": card.channels_in,
            "dims": card.receptive_field.dims,
            "calibrated": self.package.calibration is not None,
            "intended_use": card.intended_use,
            "limits": card.limits,
        }


class Models:
    """By name; each name once."""

    def __init__(self) -> None:
        self._models: dict[str, Model] = {}

    def add(self, package: ModelPackage, predictor: Predicts) -> None:
        self._models[package.card.name] = Model(package, predictor)

    def all(self) -> list[Model]:
        return list(self._models.values())

    def choose(self, endpoint: Endpoint, name: str | None) -> Model:
        """The named model, or the only one that fits.

        Raises UnknownModel (404) for a name or a task that is not served, UsageError (400) for a model of another
        task and where several fit.
        """
        fitting = [model.card.name for model in self.all() if model.endpoint == endpoint]
        listed = ", ".join(fitting) or "none"
        if name is None and len(fitting) == 1:
            return self._models[fitting[0]]
        if name is None and not fitting:
            raise UnknownModel(f"this service has no model for {endpoint}; GET /v1/models lists what it has")
        if name is None:
            raise UsageError(f"several models can {endpoint}: {listed}; choose one with ?model=NAME")
        if name not in self._models:
            raise UnknownModel(f"this service has no model of that name; for {endpoint}: {listed}")
        if name not in fitting:
            raise UsageError(
                f"the model {name} is for {self._models[name].endpoint}, not {endpoint}; for {endpoint}: {listed}"
            )
        return self._models[name]


def require_unique(packages: list[ModelPackage]) -> None:
    """Raises UsageError for two packages of one name: `?model=` could not tell them apart."""
    names = [package.card.name for package in packages]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise UsageError(f"two packages have the name {', '.join(twice)}; serve one of them, or rename one in training")
