"""How long until medae says something?

Wall of `medae --help` beside an empty Python, whether `import medae.predictor` loads torch, and the time from starting
`medae serve` to a ready answer beside `import torch, monai` alone; the best of several, each in a fresh process.

    python -m benchmarks.startup --package demo/models/nuclei-unet/package
"""

import argparse
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import httpx

from benchmarks.models import table

MEDAE = (sys.executable, "-m", "medae")
HEAVY = ("torch", "monai", "bentoml", "sklearn", "skimage", "matplotlib", "nibabel", "pydicom", "highdicom")
START_SECONDS = 120


def fastest(commands: Sequence[Sequence[str]], repeats: int) -> list[float]:
    """Least wall of each command, interleaved."""
    seconds = [[_wall(command) for command in commands] for _ in range(repeats)]
    return [min(column) for column in zip(*seconds, strict=True)]


def _wall(command: Sequence[str]) -> float:
    started = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True)
    return time.perf_counter() - started


def loaded_by(statement: str) -> set[str]:
    """Which of the heavy packages it imports."""
    code = f"import sys; {statement}; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    return set(HEAVY) & set(done.stdout.split())


def seconds_to_ready(package: Path) -> float:
    """From starting `medae serve` with one worker to 200 of /readyz."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    started = time.perf_counter()
    command = [*MEDAE, "serve", str(package), "--port", str(port), "--workers", "1"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        while time.perf_counter() - started < START_SECONDS and process.poll() is None:
            try:
                if httpx.get(f"http://127.0.0.1:{port}/readyz").status_code == httpx.codes.OK:
                    return time.perf_counter() - started
            except httpx.TransportError:
                pass  # not listening yet
            time.sleep(0.02)
        raise SystemExit("the service did not become ready; start `medae serve` to see why")
    finally:
        process.terminate()
        process.wait(30)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--package", type=Path, required=True, help="what to serve")
    parser.add_argument("--repeats", type=int, default=10)
    arguments = parser.parse_args()
    python = [sys.executable, "-c", "pass"]
    stack = [sys.executable, "-c", "import torch, monai"]
    bare, shown = fastest([python, [*MEDAE, "--help"]], arguments.repeats)
    few = max(2, arguments.repeats // 3)
    ready, imports = [], []
    for _ in range(few):
        ready.append(seconds_to_ready(arguments.package))
        imports += fastest([stack], 1)
    rows = [
        ("`python -c pass`", bare),
        ("`medae --help`", shown),
        ("`python -c 'import torch, monai'`", min(imports)),
        ("`medae serve` to /readyz", min(ready)),
    ]
    print(table(("what", f"seconds, best of {arguments.repeats} ({few} for the last two)"), rows))
    print(f"\n/readyz / import of torch and monai: {min(ready) / min(imports):.2f}")
    for module in ("medae", "medae.cli", "medae.predictor"):
        print(
            f"import {module} loads of {', '.join(HEAVY)}: {', '.join(sorted(loaded_by(f'import {module}'))) or 'none'}"
        )


if __name__ == "__main__":
    main()
