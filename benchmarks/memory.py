"""Does a run keep the memory that `medae check` says it takes?

Models with random weights and made images of several formats and sizes: what `medae check --package` says, beside the
most that `medae predict` really held (VmHWM, asked for while it runs). Linux only.

    python -m benchmarks.memory
"""

import argparse
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import imagecodecs
import nibabel
import numpy as np

from benchmarks.models import table, untrained
from benchmarks.series_io import write_series
from medae.io.answer import Label
from medae.networks import DnCNNSettings, UNetSettings
from medae.tasks import Restoration, Segmentation

MEDAE = (sys.executable, "-m", "medae")
TARGETS = Segmentation(labels=[Label(name="organ", colour=(0, 255, 0)), Label(name="lesion", colour=(255, 0, 0))])
MODELS = {
    "denoiser 2-D": (Restoration(), DnCNNSettings(depth=6, features=32)),
    "U-Net 2-D": (TARGETS, UNetSettings()),
    "U-Net 3-D": (TARGETS, UNetSettings(dims=3)),
}


def make_inputs(folder: Path) -> Iterator[tuple[str, Path, bool]]:
    """(name, path, whether it is a volume)."""
    rng = np.random.default_rng(0)
    for side in (512, 3000):
        path = folder / f"{side}.png"
        path.write_bytes(imagecodecs.png_encode(rng.integers(0, 255, (side, side)).astype(np.uint8)))
        yield f"PNG {side} x {side}", path, False
    for shape in ((128, 128, 40), (256, 256, 60)):
        path = folder / f"{shape[0]}.nii.gz"
        nibabel.save(nibabel.Nifti1Image(rng.integers(0, 2000, shape).astype(np.int16), np.diag([1, 1, 3, 1.0])), path)
        yield f"NIfTI {shape[2]} x {shape[1]} x {shape[0]}", path, True
    write_series(rng.integers(-1000, 1000, (60, 512, 512)).astype(np.int16), folder / "ct", "1.2.840.10008.1.2.1", None)
    yield "DICOM 60 x 512 x 512", folder / "ct", True


def said(package: Path, source: Path) -> int:
    """MiB that `medae check` says."""
    done = subprocess.run([*MEDAE, "check", source, "--package", package], capture_output=True, text=True, check=True)
    found = re.search(r"at most (\d+) MiB", done.stdout)
    assert found is not None, done.stdout
    return int(found[1])


def taken(package: Path, source: Path, out: Path) -> int:
    """MiB that `medae predict` held at its peak."""
    command = [*MEDAE, "predict", package, source, "--out", out]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    highest = 0
    while process.poll() is None:
        status = Path(f"/proc/{process.pid}/status").read_text()
        if found := re.search(r"VmHWM:\s+(\d+) kB", status):
            highest = max(highest, int(found[1]))
        time.sleep(0.002)
    assert process.returncode == 0
    return highest >> 10


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="models whose name begins so")
    only = parser.parse_args().only
    rows = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        inputs = list(make_inputs(folder))
        for number, (model, (task, network)) in enumerate(MODELS.items()):
            package = folder / f"model{number}"
            untrained(task, network, 1, intensity={"kind": "percentile"}).save(package)
            for what, source, is_volume in inputs:
                if model.startswith(only) and (is_volume or "2-D" in model):
                    promise, peak = said(package, source), taken(package, source, folder / f"out{number}" / source.name)
                    rows.append(
                        [model, what, promise, peak, f"{promise / peak:.2f}", "yes" if peak <= promise else "NO"]
                    )
                    print(rows[-1], file=sys.stderr, flush=True)
    print(table(["model", "input", "said MiB", "taken MiB", "said / taken", "kept"], rows))


if __name__ == "__main__":
    main()
