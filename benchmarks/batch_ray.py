"""The question `ray` of benchmarks.batch: what two machines of one core each do, against one worker."""

import os
import statistics
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.batch_parts import Book, Clock, package, tiles
from medae.batch.run import run
from medae.batch.settings import BatchSettings

SIDE = 256
FEATURES = (16, 32, 64, 128, 256)


def ray(folder: Path, scale: float, book: Book) -> None:
    """Rates between the first quarter of the cases and the last: all machines are at work then."""
    count = int(480 * scale)
    model, source = package(folder / "model", FEATURES), tiles(folder / "in", count, SIDE)
    ratios = []
    for number in range(2):
        rates = {}
        for engine in ("local", "ray"):
            out = folder / f"{engine}{number}"
            settings = BatchSettings(
                packages=(str(model),), inputs=(str(source),), out=out, device="cpu", report=False, workers=1
            )
            found = book.once(f"{engine} {number}", lambda engine=engine, settings=settings: _timed(engine, settings))  # type: ignore[misc]
            rates[engine] = found["rate"]
        ratios.append(rates["ray"] / rates["local"])
    print(f"two nodes over one worker: {', '.join(f'{ratio:.3f}' for ratio in ratios)}; {statistics.mean(ratios):.3f}")


def _timed(engine: str, settings: BatchSettings) -> dict[str, Any]:
    clock, start = Clock(), time.perf_counter()
    if engine == "local":
        run(settings, clock)
    else:
        cluster = _cluster()
        try:
            start = time.perf_counter()
            given = {"engine": "ray", "ray_address": cluster.address, "workers": None}
            run(settings.model_copy(update=given), clock)
        finally:
            cluster.shutdown()
    first, *_, last = clock.times[len(clock.times) // 4 :]
    rate = (len(clock.times) - len(clock.times) // 4 - 1) / (last - first)
    return {"rate": rate, "whole": time.perf_counter() - start}


def _cluster() -> Any:
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    os.environ["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
    from ray.cluster_utils import Cluster

    node = {"num_cpus": 1, "object_store_memory": 200 * 2**20, "include_dashboard": False, "include_log_monitor": False}
    made = Cluster(initialize_head=True, head_node_args=node)
    made.add_node(**node)
    return made
