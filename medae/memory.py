"""The memory that a run takes, said before it starts.

Two parts. What Python, the libraries, the weights and one tile of the network take is measured: a child process loads
the model and runs one empty tile of the shape that the run will use. What one image takes is counted: the arrays that
live at once while it is read, prepared, put together and written. Images are answered one after the other, so a run
takes the first part and the largest of the second.
"""

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from medae.backends import open_backend
from medae.errors import PackageError
from medae.image import Image
from medae.package import ModelPackage, load
from medae.predictor import prepare
from medae.tiles import plan_tiles

_FLOAT = 4
_SECONDS = 600
_HEAP = 1 << 26
"""What the heap holds beyond what is in use: keep_heap asks for 64 MiB ahead, and blocks do not fit without gaps."""
_WRITERS = {
    "dicom": ("medae.io.dicom", "medae.io.dicom_seg"),
    "nifti": ("medae.io.nifti", "nibabel.nifti1", "nibabel.nifti2"),
    "metaimage": ("medae.io.nifti", "nibabel.nifti1"),
    "nrrd": ("medae.io.nifti", "nibabel.nifti1"),
}


@dataclass(frozen=True)
class Footprint:
    """What one image asks of a run."""

    arrays: int
    """Bytes of the arrays that live at once."""
    tile: tuple[int, ...]
    """(channels, slices, rows, columns) of the tiles that the network will see."""
    format: str


def footprint(package: ModelPackage, image: Image, *, stored: int) -> Footprint:
    """Of an image that came as files of `stored` bytes. Raises UnfitImage where the model cannot take it."""
    card = package.card
    prepared = prepare(card, image.volume(0))
    plan = plan_tiles(prepared.image.geometry.shape, card.receptive_field)
    voxels = prod(image.geometry.shape)
    read = stored + 2 * image.pixels.nbytes  # the file, what it inflates to, and the values
    seen = 2 * prepared.image.pixels.nbytes  # before and after its intensities are scaled
    made = card.channels_out * prod(plan.padded) * _FLOAT
    # the answer in place, as it is stored, and as the file that it becomes
    answer = 3 * image.volumes * max(card.channels_out, image.channels) * voxels * _FLOAT
    return Footprint(read + seen + made + answer, (card.channels_in, *plan.shape), image.source.format)


def needed(package: str, footprints: Sequence[Footprint], device: str = "auto") -> list[int]:
    """Bytes of main memory that a run over each image takes at its peak, at most. Takes the time of one tile.

    package: a folder or a name. Raises PackageError where the model does not run here.
    """
    if not footprints:
        return []
    tile = max((each.tile for each in footprints), key=prod)
    order = json.dumps({"package": package, "tile": tile, "formats": sorted({each.format for each in footprints})})
    try:
        done = subprocess.run(
            [sys.executable, "-P", "-m", __name__, order, device],
            capture_output=True,
            text=True,
            check=True,
            timeout=_SECONDS,
        )
        resident = int(done.stdout)
    except (subprocess.SubprocessError, ValueError):
        raise PackageError("the model does not run one tile here; `medae doctor` says what this machine has") from None
    return [resident + _HEAP + each.arrays for each in footprints]


def _measure(order: dict[str, Any], device: str) -> int:
    """Bytes that this process, which does nothing else, has taken at its peak."""
    writers = [_WRITERS.get(kind, ("medae.io.raster", "tifffile")) for kind in order["formats"]]
    for name in ("medae.answers", "typer", "rich.progress", *(module for modules in writers for module in modules)):
        import_module(name)
    import_module("medae.backends.torch").keep_heap()
    package = load(order["package"])
    backend = open_backend(package, device)
    tile = np.zeros((backend.batch, *order["tile"]), np.float32)
    backend.run(tile[:, :, 0] if package.card.receptive_field.dims == 2 else tile)
    return peak()


def peak() -> int:
    """Bytes of main memory that this process has held at its peak."""
    status = Path("/proc/self/status")
    if status.is_file():  # getrusage also counts what the parent held before it became this process
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024
    import resource

    highest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return highest if sys.platform == "darwin" else highest * 1024


if __name__ == "__main__":
    sys.stdout.write(f"{_measure(json.loads(sys.argv[1]), sys.argv[2])}\n")
