"""The question `kills` of benchmarks.batch: random processes of a batch end at random moments.

Each round is one batch that is started again until it has ended by itself. What it leaves must be, to the byte, what a
run leaves that nobody disturbed; and what a kill costs is counted: answers that were made and not recorded.
"""

import hashlib
import random
import subprocess
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil
import pyarrow.compute as pc

from benchmarks.batch_parts import BATCH, SEED, Book, package, tiles
from medae.batch import journal, results
from medae.batch.folder import Folder
from medae.batch.run import RESERVE
from medae.batch.settings import BatchSettings

CASES = 1000


def kills(folder: Path, scale: float, book: Book) -> None:
    wanted = int(50 * scale)
    model, source = package(folder / "model", (4, 8, 16)), tiles(folder / "in", CASES)
    (source / "t000007.png").write_bytes(b"no picture")
    command = [*BATCH, str(model), str(source), "--workers", "2", "--output", "default"]
    whole = book.once("whole", lambda: _whole(command, folder / "whole"))
    total: Counter[str] = Counter()
    lost: list[int] = []
    number = 0
    while sum(total[name] for name in ("parent", "worker")) < wanted:
        number += 1
        out = folder / f"killed{number}"
        found = book.once(
            f"round {number}", lambda out=out, n=number: _round(command, out, n, whole["seconds"], wanted)
        )  # type: ignore[misc]
        if not found["same"]:
            raise SystemExit("results differ")
        total.update({name: found[name] for name in ("parent", "worker")})
        lost += found["lost"]
    most = BatchSettings(packages=("",), inputs=("",), out=folder).batch
    print(f"{dict(total)} in {number} batches of {CASES} cases; all as undisturbed")
    print(f"answers lost by a kill: {max(lost)} at most, {sum(lost) / len(lost):.1f} on average; {most} are allowed")


def _whole(command: Sequence[str], out: Path) -> dict[str, Any]:
    process = psutil.Popen([*command, "--out", str(out)], stderr=subprocess.DEVNULL)
    _await_work(process, Folder(out))
    start = time.perf_counter()
    return {"ended": process.wait(), "seconds": time.perf_counter() - start}


def _await_work(process: psutil.Popen, folder: Folder) -> None:
    while process.poll() is None and not _made(folder):
        time.sleep(0.02)


def _round(command: Sequence[str], out: Path, number: int, seconds: float, wanted: int) -> dict[str, Any]:
    """One batch, hit at random moments of its work, a few times at most: it is to end within the round."""
    rng = random.Random(SEED + number)
    hits: Counter[str] = Counter(parent=0, worker=0)
    lost: list[int] = []
    ended = None
    while ended is None:
        ended = _disturbed([*command, "--out", str(out)], Folder(out), rng, hits, lost, seconds)
    same = everything(out) == everything(out.parent / "whole")
    return {**hits, "lost": lost, "ended": ended, "same": same}


def _disturbed(
    command: Sequence[str], folder: Folder, rng: random.Random, hits: Counter[str], lost: list[int], seconds: float
) -> int | None:
    """One run, hit at random moments of its work; its exit status, or None where the parent was hit."""
    process = psutil.Popen(command, stderr=subprocess.DEVNULL)
    while sum(hits.values()) < 8:
        if rng.random() < 0.8:  # the others may be hit while they start
            _await_work(process, folder)
        ends = time.monotonic() + rng.uniform(0, seconds)
        while process.poll() is None and time.monotonic() < ends:
            time.sleep(0.02)
        if process.poll() is not None:
            break
        children = process.children()
        victim = rng.choice([process, *children])
        try:
            victim.kill()
        except psutil.NoSuchProcess:
            continue
        if victim.pid != process.pid:
            hits["worker"] += 1
            continue
        hits["parent"] += 1
        process.wait()
        psutil.wait_procs(children, timeout=60)
        lost.append(_made(folder))
        _whole_outputs(folder)
        return None
    return process.wait()


def _made(folder: Folder) -> int:
    """Answers that wait for their record."""
    return sum(path.name != RESERVE for path in folder.staging.glob("*/*"))


def _whole_outputs(folder: Folder) -> None:
    """Nothing that is recorded as done is missing or cut short, at this very moment."""
    rows = journal.read(journal.segments(folder), ["id", "status", "outputs"])
    for row in rows.filter(pc.equal(rows["status"], "done")).to_pylist():
        for output in row["outputs"]:
            if hashlib.sha256((folder.out / output["name"]).read_bytes()).hexdigest() != output["sha256"]:
                raise SystemExit("an output that is recorded is not whole")


def everything(out: Path) -> tuple[Any, dict[str, bytes]]:
    rows = results.read(Folder(out)).to_table().to_pylist()
    rows = [{name: value for name, value in row.items() if not name.startswith("seconds_")} for row in rows]
    return rows, {path.name: path.read_bytes() for path in sorted((out / "answers").rglob("*.png"))}
