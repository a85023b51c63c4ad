"""The Ray engine on a real cluster of two nodes on this machine: the same answers, also when a node dies."""

import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from medae import io
from medae.batch.run import run
from medae.batch.settings import BatchSettings
from medae.batch.work import Outcome
from medae.errors import UsageError
from medae.image import Image
from tests.batch_parts import Seen, everything, segmenter, table

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::DeprecationWarning"),
]

COUNT = 200


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model and pictures, one of them damaged."""
    folder = tmp_path_factory.mktemp("inputs")
    segmenter().save(folder / "package")
    (folder / "in").mkdir()
    rng = np.random.default_rng(3)
    for number in range(COUNT):
        pixels = rng.integers(0, 255, (40, 50), np.uint8)
        io.write_image(Image.from_picture(pixels), folder / "in" / f"p{number:03d}.png")
    (folder / "in" / "p011.png").write_bytes(b"no picture")
    return folder


@pytest.fixture(scope="module")
def whole(inputs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the local engine answers."""
    out = tmp_path_factory.mktemp("whole")
    run(settings(inputs, out, engine="local", workers=0), Seen())
    return out


def settings(inputs: Path, out: Path, **given: Any) -> BatchSettings:
    fixed: dict[str, Any] = {"engine": "ray", "device": "cpu", "report": False}
    return BatchSettings(packages=(str(inputs / "package"),), inputs=(str(inputs / "in"),), out=out, **fixed | given)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """Two nodes of one core each; this process is no part of it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        # the nodes' workers inherit it
        patch.setenv("PYTHONPATH", os.pathsep.join(path for path in sys.path if path))
        made = started()
        yield made
        made.shutdown()


def started() -> Any:
    """On a machine with much to do a node may miss the time that Ray gives it to start: then all again."""
    from ray.cluster_utils import Cluster

    slow = {"health_check_timeout_ms": 60_000, "health_check_failure_threshold": 10}
    node = {"num_cpus": 1, "object_store_memory": 100 * 2**20, "include_dashboard": False, "include_log_monitor": False}
    for attempt in range(3):
        made = Cluster()
        try:
            made.add_node(**node, _system_config=slow)
            made.add_node(**node)
        except Exception:  # Ray raises no other for this
            made.shutdown()
            if attempt == 2:
                raise
        else:
            return made
    return None


def test_a_cluster_answers_as_one_process_does(inputs: Path, whole: Path, tmp_path: Path, cluster: Any) -> None:
    counts = run(settings(inputs, tmp_path, ray_address=cluster.address), seen := Seen())
    assert (counts.done, counts.failed, counts.left) == (COUNT - 1, 1, 0)
    assert sorted(seen.ids) == sorted(row["id"] for row in table(whole)), "each case once"
    assert everything(tmp_path) == everything(whole)
    assert not list((tmp_path / ".batch" / "staging").iterdir())


def test_a_node_may_die(inputs: Path, whole: Path, tmp_path: Path, cluster: Any) -> None:
    class Murderer(Seen):
        def see(self, outcomes: Sequence[Outcome]) -> None:
            super().see(outcomes)
            if len(self.ids) == 40:
                cluster.remove_node(cluster.list_all_nodes()[-1], allow_graceful=False)

    counts = run(settings(inputs, tmp_path, ray_address=cluster.address), Murderer())
    assert (counts.done, counts.failed, counts.left) == (COUNT - 1, 1, 0)
    assert everything(tmp_path) == everything(whole)


def test_without_an_address_ray_is_started_here(inputs: Path, whole: Path, tmp_path: Path) -> None:
    run(settings(inputs, tmp_path), Seen())
    assert everything(tmp_path) == everything(whole)


def test_a_cluster_that_is_not_there_is_named(inputs: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no Ray cluster"):
        run(settings(inputs, tmp_path, ray_address="127.0.0.1:1"), Seen())
