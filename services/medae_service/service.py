"""The BentoML service: one instance a worker process. `bentoml serve medae_service.service:medae_service`.

The supervisor imports this module too, to read the configuration, so models and torch are loaded by the instance only.
"""

import ctypes
import gc
import importlib
import os
import signal
from functools import partial

import bentoml
from starlette.types import ASGIApp

from medae_service import logs, metrics
from medae_service.app import create_app, paths
from medae_service.beside import Beside, Deadline
from medae_service.decoding import Decoders
from medae_service.engine import Engine
from medae_service.listening import Board, Listener
from medae_service.models import Models, Shelf, serve_package
from medae_service.native import SCOPES as NATIVE_PATHS
from medae_service.native import NativeEndpoints, NativeGuard
from medae_service.security import door
from medae_service.settings import worker_settings

PR_SET_PDEATHSIG = 1  # linux/prctl.h
COLLECT_AFTER = (20_000, 20, 20)
"""gc.set_threshold: a request leaves some dozens of objects in cycles."""
READERS = ("imagecodecs", "tifffile", "nibabel", "medae.io.dicom", "medae.io.dicom_seg")
"""Imported before the first request, which would wait for them: seconds for highdicom."""

settings = worker_settings()
models = Models()
engine = Engine(
    batch_tiles=settings.batch_tiles,
    batch_seconds=settings.batch_milliseconds / 1000,
    waiting_tiles=settings.waiting_tiles,
    stuck_seconds=settings.compute_seconds,
)
decoders = Decoders(settings)  # starts nothing by itself
app = create_app(settings, models, decoders.read)
BENTOML_PATHS = logs.HEALTH | {"/metrics", "/docs.json", "/schema.json"}


class _Behind(bentoml.Service):  # type: ignore[misc]  # BentoML is not typed
    """A service behind our door. Added middleware would run only after BentoML's metrics and timeouts."""

    def to_asgi(self, is_main: bool = True) -> ASGIApp:
        ours = Deadline(app, settings.request_seconds)
        both = Beside(ours, paths(app), NativeGuard(super().to_asgi(is_main), settings))
        outer = door(both, settings, [*paths(app), *BENTOML_PATHS, *NATIVE_PATHS])
        return Listener(outer, Board(settings.board, (bentoml.server_context.worker_index or 1) - 1))


class Medae(NativeEndpoints):
    """Segments, restores and scores medical images."""

    app = app

    def __init__(self) -> None:
        _die_with_parent()
        metrics.forget_the_dead()
        decoders.start()
        _load_models()
        for reader in READERS:
            importlib.import_module(reader)
        logs.configure()
        _collect_rarely()

    @bentoml.on_shutdown  # type: ignore[untyped-decorator]  # BentoML is not typed
    def close(self) -> None:
        """After the last answer."""
        decoders.close()

    async def __is_ready__(self) -> bool:
        """BentoML asks for /readyz: a tiny forward, now; never again true after the device has failed."""
        return await engine.ready()

    async def __is_alive__(self) -> bool:
        """BentoML asks for /livez: false only where nothing but another process helps."""
        return not engine.broken


medae_service = bentoml.service(
    name="medae",
    service_class=_Behind,
    workers=settings.workers or 1,
    traffic={"timeout": settings.request_seconds},
    # the journal writes about requests: BentoML's access log would keep the paths that clients choose
    logging={"access": {"enabled": False}},
)(Medae)


def _die_with_parent() -> None:
    """SIGTERM when the supervisor dies, however it dies: no orphan that keeps the port. Linux only."""
    if settings.launcher is None:
        return
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != settings.launcher:  # it died before the call above
        raise SystemExit("the supervisor is gone")


def _collect_rarely() -> None:
    """The half million objects of torch and the readers are never looked at again: a full collection of them holds
    all threads up for a quarter of a second, and came several times a minute."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(*COLLECT_AFTER)


def _load_models() -> None:
    """Every package is read and checked; the weights of as many as fit stay in memory, and are run once."""
    from medae.backends.torch import keep_heap
    from medae.package import load

    keep_heap()
    shelf = Shelf(settings.model_memory_bytes)
    for name in settings.packages:
        package = load(name)
        served = serve_package(package, partial(load, name), _device(), engine, shelf)
        models.add(package, served)
        del package  # its weights are read once more for the device, and never held twice for longer
        served.warm_up()


def _device() -> str:
    """With several GPUs, each worker takes its own."""
    if settings.device != "auto":
        return settings.device
    import torch

    count = torch.cuda.device_count()
    return f"cuda:{(bentoml.server_context.worker_index or 0) % count}" if count else "cpu"
