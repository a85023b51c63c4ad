"""The models of this process, which of them answers a request, and whose weights are in memory."""

import math
from collections import Counter, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from threading import Condition
from typing import Any, Literal, Protocol

from medae.backends import Backend, open_backend
from medae.errors import UnknownModel, UsageError
from medae.gate import Gate, doubt_of
from medae.image import Image
from medae.metrics.doubt import Doubt
from medae.package import Card, ModelPackage
from medae.predictor import USUAL, Prediction, Predictor
from medae.scores import PREFIX, MapScore, parts_of
from medae.tasks import Anomaly
from medae.verdict import GateLimits
from medae_service.engine import LOOK_SECONDS, Engine, Network, SharedBackend, Ticket
from medae_service.problems import Refusal

Endpoint = Literal["segment", "restore", "score"]
ENDPOINTS: dict[str, Endpoint] = {"segmentation": "segment", "restoration": "restore", "anomaly": "score"}
"""The kind of a package's task -> the endpoint that asks it."""


class Predicts(Protocol):
    """A Served, or what stands for one in a test."""

    def __call__(
        self,
        image: Image,
        *,
        threshold: float | None,
        probabilities: bool,
        gate: GateLimits = USUAL,
        ticket: Ticket | None,
    ) -> Prediction: ...


@dataclass(frozen=True)
class Model:
    """A package and the predictor made of it."""

    package: ModelPackage
    """Without the network's weights: they are where the back end wants them."""
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
            "gate": self.package.gate is not None,
            "intended_use": card.intended_use,
            "limits": card.limits,
        }


class Models:
    """By name; each name once."""

    def __init__(self) -> None:
        self._models: dict[str, Model] = {}

    def add(self, package: ModelPackage, predictor: Predicts) -> None:
        self._models[package.card.name] = Model(without_weights(package), predictor)

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


@dataclass(frozen=True, eq=False)
class Stored:
    """Where a model's network comes from when it is needed again."""

    digest: str
    bytes: int
    """Of its weights."""
    load: Callable[[], ModelPackage]
    device: str = "auto"
    open: Callable[[ModelPackage, str], Backend] = open_backend

    def network(self) -> Network:
        """Its weights, on the device. Raises Refusal (503) when the package is not there any more as it was."""
        try:
            package = self.load()
        except UsageError:
            package = None
        if package is None or package.digest != self.digest:
            raise Refusal(503, "not-ready", "the package of this model was changed; the service must be restarted")
        return Network.of(self.open(package, self.device), package.card)


class Shelf:
    """The networks in memory, their weights within a budget: what was asked least lately is put away first.

    A network stays while a request uses it. Those who need one that does not fit wait in line, and whoever comes later
    waits behind them, so that a model in demand does not shut out another.
    """

    def __init__(self, memory_bytes: int | None = None) -> None:
        self._memory = math.inf if memory_bytes is None else memory_bytes
        self._changed = Condition()
        self._networks: dict[Stored, Network] = {}  # least lately used first
        self._users: Counter[Stored] = Counter()
        self._line: deque[object] = deque()

    def loaded(self, stored: Stored) -> bool:
        return stored in self._networks

    def has_room(self, stored: Stored) -> bool:
        """Without putting another one away."""
        return sum(other.bytes for other in self._networks) + stored.bytes <= self._memory

    @contextmanager
    def use(self, stored: Stored, ticket: Ticket) -> Iterator[Network]:
        """Its network, loaded if need be. Raises Abandoned and Refusal (503)."""
        network = self._take(stored, ticket)
        try:
            yield network
        finally:
            with self._changed:
                self._users[stored] -= 1
                self._changed.notify_all()

    def _take(self, stored: Stored, ticket: Ticket) -> Network:
        place = object()
        with self._changed:
            self._line.append(place)
            try:
                while self._line[0] is not place or not self._make_room(stored):
                    ticket.check()
                    self._changed.wait(LOOK_SECONDS)
                network = self._networks.pop(stored, None) or stored.network()
                self._networks[stored] = network
                self._users[stored] += 1
                return network
            finally:
                self._line.remove(place)
                self._changed.notify_all()

    def _make_room(self, stored: Stored) -> bool:
        """Whether it is there or fits by now; puts away what nobody uses."""
        if stored in self._networks:
            return True
        for other in list(self._networks):
            if self.has_room(stored):
                break
            if not self._users[other]:
                del self._networks[other]
        return self.has_room(stored)


class Served:
    """A model as all requests share it: stands for its Predictor, with the engine for a back end."""

    def __init__(
        self, package: ModelPackage, stored: Stored, engine: Engine, shelf: Shelf, gate: "ServedGate | None" = None
    ) -> None:
        self._package = without_weights(package)
        self._stored = stored
        self._engine = engine
        self._shelf = shelf
        self._gate = gate

    def __call__(
        self,
        image: Image,
        *,
        threshold: float | None = None,
        probabilities: bool = False,
        gate: GateLimits = USUAL,
        ticket: Ticket | None = None,
    ) -> Prediction:
        """As Predictor's. Runs on the caller's thread, but for the tiles. Raises Abandoned and Refusal (503), too.

        The gate looks before and after, never during: a request holds one network at a time, or two requests could
        each wait for the room that the other one's network takes.
        """
        ticket = ticket or Ticket()
        witness = self._gate.of(self._package, ticket) if self._gate is not None else None
        seen = witness.look(image) if witness is not None else None
        prediction = self._answer(image, threshold, probabilities, ticket)
        if witness is None or seen is None:
            return prediction
        return prediction.judged(witness.judge(seen, prediction.image, gate), witness.doubts(seen, prediction.scores))

    def _answer(self, image: Image, threshold: float | None, probabilities: bool, ticket: Ticket) -> Prediction:
        ticket.check()
        with self._shelf.use(self._stored, ticket) as network, self._engine.at_work():
            backend = SharedBackend(self._engine, network, ticket)
            doubted = self._gate is not None and self._gate.doubt is not None
            predictor = Predictor(self._package, backend=backend, gated=False, soft_dice=doubted)
            return predictor(image, threshold=threshold, probabilities=probabilities)

    def warm_up(self) -> None:
        """Load the weights, if there is room, and run the network once: the first request is as fast as the others."""
        if self._shelf.loaded(self._stored) or self._shelf.has_room(self._stored):
            with self._shelf.use(self._stored, Ticket()) as network:
                self._engine.test(network)
        for part in (self._gate.image, self._gate.shape) if self._gate is not None else ():
            if part is not None:
                part.warm_up()


@dataclass(frozen=True)
class ServedGate:
    """The models inside a model, each on the shelf by itself."""

    image: Served
    shape: Served | None
    doubt: Doubt | None

    def of(self, package: ModelPackage, ticket: Ticket) -> Gate:
        """The gate for one request, which stops when the request does."""
        shape = partial(self.shape, ticket=ticket) if self.shape is not None else None
        return Gate(package, partial(self.image, ticket=ticket), shape, self.doubt)


def serve_package(
    package: ModelPackage, load: Callable[[], ModelPackage], device: str, engine: Engine, shelf: Shelf
) -> Served:
    """A package and its gate, ready to be asked. load: reads it again when its weights are needed."""

    def stored(part: ModelPackage, load: Callable[[], ModelPackage]) -> Stored:
        return Stored(part.digest, weights_bytes(part), load, device)

    gate = None
    if package.gate is not None:
        image = Served(package.gate, stored(package.gate, partial(_part, load, "gate")), engine, shelf)
        shape = None
        if package.shape is not None:
            shape = Served(package.shape, stored(package.shape, partial(_part, load, "shape")), engine, shelf)
        gate = ServedGate(image, shape, doubt_of(package))
    return Served(package, stored(package, load), engine, shelf, gate)


def _part(load: Callable[[], ModelPackage], name: str) -> ModelPackage:
    """A model inside a package. Raises UsageError where it is not there any more."""
    part: ModelPackage | None = getattr(load(), name)
    if part is None:
        raise UsageError(f"the package has no {name} any more")
    return part


def without_weights(package: ModelPackage) -> ModelPackage:
    """The same package, and those inside it, with no weights but those that scores read beside the back end."""
    task = package.card.task
    beside = (
        [score.key for score in task.scores if not isinstance(score, MapScore)] if isinstance(task, Anomaly) else []
    )
    kept = {f"{PREFIX}{key}.{name}": part for key in beside for name, part in parts_of(package.weights, key).items()}
    gate, shape = (part and without_weights(part) for part in (package.gate, package.shape))
    return replace(package, weights=kept, gate=gate, shape=shape)


def weights_bytes(package: ModelPackage) -> int:
    """What its weights take in memory."""
    return sum(weight.nbytes for weight in package.weights.values())


def require_memory(packages: list[ModelPackage], memory_bytes: int | None) -> None:
    """Raises UsageError for a package that is larger than the budget for all of them."""
    for package in packages:
        if memory_bytes is not None and weights_bytes(package) > memory_bytes:
            raise UsageError(
                f"the weights of {package.card.name} take {weights_bytes(package)} bytes, and model_memory_bytes is "
                f"{memory_bytes}; allow more"
            )


def require_unique(packages: list[ModelPackage]) -> None:
    """Raises UsageError for two packages of one name: `?model=` could not tell them apart."""
    names = [package.card.name for package in packages]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise UsageError(f"two packages have the name {', '.join(twice)}; serve one of them, or rename one in training")
