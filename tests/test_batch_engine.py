"""The processes of a batch: as one process, whatever dies; memory that is promised; devices that are shared."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from numpy.typing import NDArray

from medae import io
from medae.batch import crew, device, local
from medae.batch.device import Asked, RemoteBackend, answers
from medae.batch.memory import CASE_BYTES, OWN_BYTES, Grant, shared_out
from medae.batch.run import run
from medae.batch.settings import BatchSettings
from medae.batch.work import Outcome
from medae.errors import InputError, LimitExceeded, MedaeError, UsageError
from medae.image import Image
from tests.batch_parts import Seen, everything, segmenter, table

COUNT = 40


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("package") / "segmenter"
    segmenter().save(folder)
    return folder


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One of them is damaged."""
    folder = tmp_path_factory.mktemp("in")
    rng = np.random.default_rng(7)
    for number in range(COUNT):
        io.write_image(Image.from_picture(rng.integers(0, 255, (40, 50), np.uint8)), folder / f"p{number:02d}.png")
    (folder / "p11.png").write_bytes((folder / "p12.png").read_bytes()[:-30])
    return folder


@pytest.fixture(scope="module")
def whole(package: Path, pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What one process answers."""
    out = tmp_path_factory.mktemp("whole")
    run(settings(package, pictures, out, workers=0), Seen())
    return out


def settings(package: Path, pictures: Path, out: Path, **given: Any) -> BatchSettings:
    return BatchSettings(packages=(str(package),), inputs=(str(pictures),), out=out, device="cpu", **given)


def test_workers_answer_as_one_process_does_and_one_that_is_killed_is_replaced(
    package: Path, pictures: Path, whole: Path, tmp_path: Path
) -> None:
    """Two are killed in the middle of their work; the batch goes on by itself."""

    class Murderer(Seen):
        def see(self, outcomes: Sequence[Outcome]) -> None:
            super().see(outcomes)
            if len(self.ids) in (5, 20):
                os.kill(running("medae.batch.lane")[-1], signal.SIGKILL)

    run(settings(package, pictures, tmp_path, workers=2), seen := Murderer())
    assert sorted(seen.ids) == sorted(row["id"] for row in table(whole)), "each case once"
    assert everything(tmp_path) == everything(whole)
    assert not running("medae.batch.lane")


@pytest.mark.parametrize("times", [2, crew.CHANCES])
def test_a_worker_that_is_killed_while_it_starts_is_started_again(
    package: Path, pictures: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, times: int
) -> None:
    popen, begun = subprocess.Popen, []

    def started(*given: Any, **named: Any) -> Any:
        begun.append(popen(*given, **named))
        if len(begun) <= times:
            begun[-1].kill()
        return begun[-1]

    monkeypatch.setattr(subprocess, "Popen", started)
    if times == crew.CHANCES:
        with pytest.raises(MedaeError, match="ended while it started, 3 times"):
            run(settings(package, pictures, tmp_path, workers=1), Seen())
    else:
        run(settings(package, pictures, tmp_path, workers=1), Seen())
        assert everything(tmp_path) == everything(whole)


def test_a_case_that_breaks_its_process_is_given_up_and_the_others_are_not(
    package: Path, pictures: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a file does that makes a decoder write where it must not."""
    sick = (
        "import os, signal; from medae.batch import lane; read = lane.decode\n"
        "def decode(item, *given):\n"
        "    return os.kill(os.getpid(), signal.SIGSEGV) if item.id == 'p03' else read(item, *given)\n"
        "lane.decode = decode; lane.main()"
    )
    popen = subprocess.Popen

    def started(command: list[str], **given: Any) -> Any:
        return popen([command[0], "-c", sick, *command[3:]] if "lane" in command[2] else command, **given)

    monkeypatch.setattr(subprocess, "Popen", started)
    counts = run(settings(package, pictures, tmp_path, workers=1), Seen())
    assert (counts.done, counts.failed, counts.fault) == (COUNT - 2, 1, 1)
    rows, clean = table(tmp_path), table(whole)
    assert rows[3]["status"] == "fault" and "the process that worked on it ended" in rows[3]["reason"]
    assert rows[:3] + rows[4:] == clean[:3] + clean[4:]


def test_the_parent_may_be_killed(package: Path, pictures: Path, whole: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "medae", "batch", "run", str(package), str(pictures), "--out", str(tmp_path)]
    batch = subprocess.Popen([*command, "--workers", "1", "--device", "cpu"], stderr=subprocess.DEVNULL)
    staging = tmp_path / ".batch" / "staging"  # one file in it is there from the start
    deadline = time.monotonic() + 120
    while len(list(staging.glob("*/*"))) < 2 and time.monotonic() < deadline:
        time.sleep(0.01)
    workers = psutil.Process(batch.pid).children()
    batch.kill()
    batch.wait()
    assert workers and not psutil.wait_procs(workers, timeout=30)[1], "its workers end with it"
    run(settings(package, pictures, tmp_path, workers=0), Seen())
    assert everything(tmp_path) == everything(whole)


def test_memory_is_shared_out_before_work_starts() -> None:
    mib = 1 << 20
    count, grant = shared_out(4096 * mib, 300 * mib, 500 * mib, wanted=16)
    share = (4096 - 300) * mib - OWN_BYTES
    assert count == share // (500 * mib + CASE_BYTES) and grant.bytes == share // count - 500 * mib
    assert grant.limits.voxels < Grant().limits.voxels
    with pytest.raises(UsageError, match="--max-ram is 512 MiB, and one worker with this model needs 1120 MiB"):
        shared_out(512 * mib, 300 * mib, 500 * mib, wanted=2)


def test_a_case_that_does_not_fit_its_share_is_refused_with_the_numbers(
    package: Path, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "in").mkdir()
    for name, side in (("small", 64), ("large", 3000)):
        io.write_image(Image.from_picture(np.zeros((side, side), np.uint8)), tmp_path / "in" / f"{name}.png")
    given = settings(package, tmp_path / "in", tmp_path / "out", workers=2, max_ram="64M")
    with pytest.raises(UsageError, match="--max-ram is 64 MiB"):
        run(given, Seen())
    share = iter([(1, Grant(Grant().limits.model_copy(update={"pixels": 10**6}), 1 << 30))])
    monkeypatch.setattr(local, "shared_out", lambda *numbers: next(share))
    run(given, Seen())
    rows = {row["id"]: row for row in table(tmp_path / "out")}
    assert rows["small"]["status"] == "done"
    assert rows["large"]["code"] == "limit-exceeded" and "9000000 pixels a slice" in rows["large"]["reason"]


class Doubling:
    """A back end that notes how its forward passes were filled."""

    name, device, threads, batch = "doubling", "nowhere", 1, 4

    def __init__(self) -> None:
        self.calls: list[int] = []

    def run(self, tiles: NDArray[Any]) -> NDArray[Any]:
        self.calls.append(len(tiles))
        if tiles.max() > 99:
            raise LimitExceeded("too much")
        return 2 * tiles


@pytest.fixture
def shared() -> Iterator[tuple[Doubling, socket.socket]]:
    """A device process, here a thread, and the parent's end."""
    ours, theirs = socket.socketpair()
    backend = Doubling()
    thread = threading.Thread(target=device.serve, args=(theirs, {"a": backend}))
    thread.start()
    yield backend, ours
    ours.close()
    thread.join(30)
    theirs.close()


def joined(control: socket.socket) -> RemoteBackend:
    mine, its = socket.socketpair()
    socket.send_fds(control, [b"+"], [its.fileno()])
    its.close()
    return RemoteBackend.join(Connection(mine.detach()), "a")


def test_workers_that_share_a_device_get_their_own_answers(shared: tuple[Doubling, socket.socket]) -> None:
    _, control = shared
    remotes = [joined(control) for _ in range(3)]
    assert remotes[0].batch == 4 and remotes[0].name == "doubling"
    for number in range(1, 20):
        tiles = np.full((1 + number % 3, 1, 4, 5 + number % 2), number, np.float32)
        np.testing.assert_array_equal(remotes[number % 3].run(tiles), 2 * tiles)
    with pytest.raises(InputError, match="too much"):
        remotes[0].run(np.full((1, 1, 2, 2), 100, np.float32))
    np.testing.assert_array_equal(remotes[0].run(np.ones((1, 1, 2, 2), np.float32)), 2 * np.ones((1, 1, 2, 2)))


def test_tiles_of_those_who_wait_share_forward_passes_and_failures_do_not() -> None:
    backend = Doubling()
    clients: list[Any] = ["one", "two", "three", "four"]
    values = (1, 2, 100, 3)
    asked = [Asked(c, "a", np.full((2, 1, 3, 3), v, np.float32)) for c, v in zip(clients, values, strict=True)]
    asked[3] = Asked(clients[3], "a", np.full((1, 1, 5, 5), 3, np.float32))
    said = dict(answers(asked, {"a": backend}))
    assert isinstance(said["three"], LimitExceeded)  # type: ignore[index]
    for number in (0, 1, 3):
        np.testing.assert_array_equal(said[clients[number]], 2 * asked[number].tiles)
    assert backend.calls == [6, 2, 2, 2, 1], "together first, alone where that failed; another shape by itself"


def test_a_batch_whose_workers_share_a_device_answers_the_same(
    package: Path, pictures: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The processes are real, the device is the CPU; it is killed once, and started again with its workers."""
    monkeypatch.setattr("medae.batch.run.gpus", lambda device: ["cpu"])

    class Murderer(Seen):
        def see(self, outcomes: Sequence[Outcome]) -> None:
            super().see(outcomes)
            if len(self.ids) == 6:
                os.kill(pid_of("medae.batch.device"), signal.SIGKILL)

    run(settings(package, pictures, tmp_path, workers=2), Murderer())
    assert everything(tmp_path) == everything(whole)


def pid_of(module: str) -> int:
    return running(module)[0]


def running(module: str) -> list[int]:
    """The children that run a module; one that has just ended has no command line any more."""
    found = []
    for child in psutil.Process().children():
        with contextlib.suppress(psutil.NoSuchProcess):  # zombies are of that kind
            if module in " ".join(child.cmdline()):
                found.append(child.pid)
    return found
