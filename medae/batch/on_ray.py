"""The Ray engine of a batch: Ray Data decodes in tasks on any core of a cluster, and actors with the models answer.

The work on a case is that of every engine, so the answers are the same to the byte. Workers write them into the staging
folder, which all machines must share; only the process that drives Ray commits. What dies with a machine, Ray does
again elsewhere; what Ray gives up (a case that ends its process each time) is done by the local engine, one at a time.
"""

import logging
import os
import pickle
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import pyarrow as pa

from medae.batch.item import Item
from medae.batch.lane import make_hand
from medae.batch.local import LocalEngine
from medae.batch.orders import Order
from medae.batch.work import Outcome, decode
from medae.errors import MedaeError, UsageError
from medae.io import DEFAULT_LIMITS

BLOCK = 16
"""Cases of one task."""

DECODING, ANSWERING = 0.25, 0.75
"""Of a core, where there is no GPU: a core then has one actor and one task that decodes for it."""

CONNECT_SECONDS = 10.0

Rows = dict[str, list[bytes]]


class RayEngine:
    """A cluster at an address, or Ray started on this machine for as long as the batch takes."""

    def __init__(self, order: Order, address: str | None, workers: int | None = None) -> None:
        """workers: actors at most; by default one for each GPU of the cluster or, without any, one a core."""
        self._order = order
        self._address = address
        self._workers = workers

    def run(self, items: Iterator[Item], room: Callable[[], int]) -> Iterator[tuple[Outcome, ...]]:
        """The outcomes of each case as they come. `room` is not asked: Ray has bounds of its own.

        Raises what concerns the whole batch; UsageError where Ray is not installed or not to be reached.
        """
        ray = _ray()
        _connect(ray, self._address)
        try:
            waiting = {item.id: pickle.dumps(item) for item in items}
            for said in self._answers(ray, list(waiting.values())):
                if isinstance(said, MedaeError):
                    raise said
                if waiting.pop(said[0].item.id, None) is not None:  # what a dead machine had done may come twice
                    yield said
        finally:
            ray.shutdown()
        if waiting:
            left = (pickle.loads(item) for item in waiting.values())
            yield from LocalEngine(self._order, 1).run(left, room)

    def _answers(self, ray: Any, items: Sequence[bytes]) -> Iterator[Any]:
        from ray.data import ActorPoolStrategy

        resources = ray.cluster_resources()
        gpus = int(resources.get("GPU", 0)) if self._order.device != "cpu" else 0
        most = self._workers or gpus or max(1, int(resources.get("CPU", 1)))
        blocks = [pa.table({"case": items[at : at + BLOCK]}) for at in range(0, len(items), BLOCK)]
        answered = (
            ray.data.from_arrow(blocks)
            .map_batches(
                Decoder(self._order.allow),
                batch_size=BLOCK,
                batch_format="numpy",
                num_cpus=1 if gpus else DECODING,
            )
            .map_batches(
                Answerer,
                fn_constructor_args=(replace(self._order, device="cuda:0" if gpus else self._order.device),),
                batch_size=BLOCK,
                batch_format="numpy",
                compute=ActorPoolStrategy(min_size=1, max_size=most),
                num_cpus=1 if gpus else ANSWERING,
                num_gpus=1 if gpus else 0,
            )
        )
        for batch in answered.iter_batches(batch_size=None, batch_format="numpy", prefetch_batches=0):
            yield from (pickle.loads(said) for said in batch["said"])


class Decoder:
    """A task: cases to images."""

    def __init__(self, allow: Sequence[str]) -> None:
        self._allow = tuple(allow)

    def __call__(self, rows: Mapping[str, Any]) -> Rows:
        items = [pickle.loads(case) for case in rows["case"]]
        return {"case": [pickle.dumps((item, decode(item, DEFAULT_LIMITS, self._allow))) for item in items]}


class Answerer:
    """An actor: has the models, and turns images into answers."""

    def __init__(self, order: Order) -> None:
        self._hand = make_hand(order)

    def __call__(self, rows: Mapping[str, Any]) -> Rows:
        return {"said": [pickle.dumps(self._answer(case)) for case in rows["case"]]}

    def _answer(self, case: bytes) -> tuple[Outcome, ...] | MedaeError:
        try:
            return self._hand.answer(*pickle.loads(case))
        except MedaeError as error:  # of the whole batch: a full disk. Ray would try again and again
            return error


def _ray() -> Any:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nobody is told
    try:
        import ray
        import ray.data
    except ImportError:
        raise UsageError("--engine ray needs one more package: pip install medae[ray]") from None
    return ray


def _require_listening(address: str) -> None:
    """Ray itself tries for minutes. Raises OSError where nobody listens, ValueError for what is no address."""
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if colon:
        socket.create_connection((host, int(port)), CONNECT_SECONDS).close()


def _connect(ray: Any, address: str | None) -> None:
    """Raises UsageError where there is no cluster at the address."""
    quiet = {"log_to_driver": False, "logging_level": "ERROR"}
    try:
        if address is None:
            ray.init(address="local", include_dashboard=False, **quiet)
        else:
            _require_listening(address)
            ray.init(address=address, **quiet)
    except (OSError, ValueError, RuntimeError) as error:
        raise UsageError(f"there is no Ray cluster at --ray-address {address} ({type(error).__name__})") from None
    logging.getLogger("ray").setLevel(logging.ERROR)  # of every operator it has plans, to the console
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.enable_operator_progress_bars = False
    context.max_errored_blocks = -1  # one case must not take the others with it: the local engine does what is left
    context.actor_task_retry_on_errors = False
