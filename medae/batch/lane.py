"""One worker of the local engine: a child process that answers case after case, and ends with its parent.

It is started with the descriptor of its end of a socket pair. The parent sends an Order, gets back Ready, sends a Grant
and then Items, and closes its end at last; it gets back lists of outcomes as they come, or a MedaeError that concerns
the whole batch. What is sent is pickled: both ends are ours, and nobody else can reach the pair.
"""

import sys
import time
from collections.abc import Sequence
from multiprocessing.connection import Connection
from queue import SimpleQueue
from threading import Thread

from medae.batch.confinement import confine
from medae.batch.item import Item
from medae.batch.memory import Grant, enforce, resident_bytes
from medae.batch.orders import Order, Ready
from medae.batch.work import Hand, Outcome, decode
from medae.errors import MedaeError
from medae.pseudonyms import Pseudonyms

_FLUSH_SECONDS = 0.05
_FLUSH_CASES = 16


def main() -> None:
    """Works until the parent closes its end."""
    channel = Connection(int(sys.argv[1]))
    order: Order = channel.recv()
    confine(order.parent)
    try:
        hand = make_hand(order)
    except MedaeError as error:
        channel.send(error)
        return
    try:
        channel.send(Ready(resident_bytes()))
        grant: Grant = channel.recv()
        enforce(grant)
        _work(channel, hand, grant, order.allow)
    except MedaeError as error:
        channel.send(error)
    except (EOFError, BrokenPipeError, ConnectionResetError):  # the parent is gone
        return


def _work(channel: Connection, hand: Hand, grant: Grant, allow: Sequence[str]) -> None:
    # a thread of its own takes what comes, so that the parent never waits for a slow case to hand out the next
    waiting: SimpleQueue[Item | None] = SimpleQueue()
    Thread(target=_receive, args=(channel, waiting), daemon=True).start()
    made: list[tuple[Outcome, ...]] = []
    since = time.monotonic()
    while (item := waiting.get()) is not None:
        made.append(hand.answer(item, decode(item, grant.limits, allow)))
        if len(made) >= _FLUSH_CASES or time.monotonic() - since > _FLUSH_SECONDS or waiting.empty():
            channel.send(made)
            made, since = [], time.monotonic()


def _receive(channel: Connection, waiting: "SimpleQueue[Item | None]") -> None:
    try:
        while True:
            waiting.put(channel.recv())
    except (EOFError, OSError):
        waiting.put(None)


def make_hand(order: Order) -> Hand:
    """Loads the models. Raises UnknownModel, PackageError, UsageError."""
    from medae.package import load
    from medae.predictor import Predictor

    predictors, embedders = {}, {}
    device = None if order.shared is None else Connection(order.shared)
    if device is None:
        from medae.backends.torch import keep_heap

        keep_heap()
    for name, folder in order.packages.items():
        package = load(folder)
        if name in order.embeds:
            from medae.latent import LatentSpace

            # where workers share a device, an encoder stays with the worker, as a gate does
            embedders[name] = LatentSpace(package, order.device if device is None else "cpu")
        elif device is None:
            predictors[name] = Predictor(package, device=order.device, limits=order.gate)
        else:
            from medae.batch.device import RemoteBackend

            # a gate is small: it stays with the worker, and the device with what is large
            predictors[name] = Predictor(
                package, backend=RemoteBackend.join(device, name), device="cpu", limits=order.gate
            )
    return Hand(
        predictors,
        order.put,
        embedders=embedders,
        output=order.output,
        threshold=order.threshold,
        dicom=order.dicom,
        pseudonyms=None if order.id_key is None else Pseudonyms.from_file(order.id_key),
        summaries=order.summaries,
    )
