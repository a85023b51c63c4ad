"""What do reading and writing a series cost, beside the network?

A CT series of 200 slices of 512 x 512, in several transfer syntaxes, and the same volume as .nii.gz: read, and written
back as the restored answer, beside the forward pass of the demo's denoiser (configs/demo/denoise-grey.yaml, one thread)
over all slices. Processor time of this process and of its decoder, so that other work on the machine hardly counts;
best of several, interleaved; the pass is timed on some slices and scaled.

    python -m benchmarks.series_io
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import imagecodecs
import numpy as np
import psutil
from numpy.typing import NDArray
from pydicom import dcmread
from pydicom.data import get_testdata_file
from pydicom.dataset import FileDataset
from pydicom.encaps import encapsulate
from pydicom.uid import UID

from benchmarks.models import table, untrained
from medae.backends import open_backend
from medae.experiment import Experiment
from medae.image import Image
from medae.io import encode_restored, read_image, write_files
from medae.io.answer import Algorithm
from medae.settings import load_settings
from medae.shipped import find_config

SLICES, SIDE = 200, 512
ALGORITHM = Algorithm("demo-denoiser", "1", "sha256:" + "0" * 64)
MOST = 0.15
"""Of the network's time, that reading and writing together may cost."""

ENCODERS: dict[str, tuple[str, Callable[[NDArray[np.int16]], bytes] | None]] = {
    "uncompressed": ("1.2.840.10008.1.2.1", None),
    "JPEG-LS": ("1.2.840.10008.1.2.4.80", lambda pixels: imagecodecs.jpegls_encode(pixels.view(np.uint16))),
    "HTJ2K": ("1.2.840.10008.1.2.4.201", lambda pixels: imagecodecs.htj2k_encode(pixels, reversible=True)),
    "JPEG 2000": (
        "1.2.840.10008.1.2.4.90",
        lambda pixels: imagecodecs.jpeg2k_encode(pixels, level=0, reversible=True, codecformat="j2k"),
    ),
}


def scan(seed: int = 0) -> NDArray[np.int16]:
    """(slices, rows, columns): tissue in air, with a scanner's noise."""
    rng = np.random.default_rng(seed)
    s, r, w = np.ogrid[:SLICES, :SIDE, :SIDE]
    inside = ((r - 256) / 200) ** 2 + ((w - 256) / (150 + s % 60)) ** 2 < 1
    waves = 60 * np.sin(r / 23.0) * np.cos(w / 17.0 + s / 9.0)
    return np.where(inside, waves + rng.normal(0, 15, inside.shape), -1000).astype(np.int16)


def write_series(volume: NDArray[np.int16], folder: Path, syntax: str, encode: Callable[..., bytes] | None) -> None:
    """One file a slice."""
    source = get_testdata_file("CT_small.dcm", download=False)
    template = dcmread(str(source))
    assert isinstance(template, FileDataset)
    folder.mkdir()
    template.Rows = template.Columns = SIDE
    template.RescaleIntercept, template.BitsStored, template.HighBit = 0, 16, 15
    template.file_meta.TransferSyntaxUID = UID(syntax)
    for index, pixels in enumerate(volume):
        template.SOPInstanceUID = template.file_meta.MediaStorageSOPInstanceUID = UID(f"1.2.3.{index + 1}")
        template.ImagePositionPatient = [0.0, 0.0, 1.5 * index]
        template.InstanceNumber = index + 1
        template.PixelData = pixels.tobytes() if encode is None else encapsulate([encode(pixels)])
        template["PixelData"].VR = "OW" if encode is None else "OB"
        template["PixelData"].is_undefined_length = encode is not None
        template.save_as(folder / f"{index:04}.dcm")


def seconds(work: Callable[[], object]) -> float:
    """Processor time of one call, here and in the child that decodes."""
    begin = _used()
    work()
    return _used() - begin


def _used() -> float:
    children = psutil.Process().children()
    return time.process_time() + sum(sum(child.cpu_times()[:2]) for child in children)


def forward_seconds(slices: int) -> float:
    """Of the demo's denoiser over the whole series, from `slices` of it."""
    experiment = load_settings(find_config("demo/denoise-grey"), Experiment)
    backend = open_backend(untrained(experiment.task, experiment.network, 1), "cpu")
    tile = np.random.default_rng(0).random((1, 1, SIDE, SIDE)).astype(np.float32)
    backend.run(tile)
    return seconds(lambda: [backend.run(tile) for _ in range(slices)]) * SLICES / slices


def measure(repeats: int, slices: int) -> tuple[dict[str, tuple[float, float]], float]:
    """(read, write) seconds of each format, and those of the network."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        volume = scan()
        for kind, (syntax, encode) in ENCODERS.items():
            write_series(volume, folder / kind, syntax, encode)
        nifti = Image(volume[None], read_image(folder / "uncompressed").geometry)
        (file,) = encode_restored(nifti, stem="scan", algorithm=ALGORITHM, description="restored")
        write_files([file], folder)
        sources = {kind: folder / kind for kind in ENCODERS} | {".nii.gz": folder / file.name}
        times: dict[str, list[tuple[float, float]]] = {kind: [] for kind in sources}
        network = []
        for _ in range(repeats):
            network.append(forward_seconds(slices))
            for kind, source in sources.items():
                times[kind].append(_both(source, folder / "out"))
    return {kind: tuple(np.min(each, axis=0)) for kind, each in times.items()}, min(network)


def _both(source: Path, out: Path) -> tuple[float, float]:
    images: list[Image] = []
    read = seconds(lambda: images.append(read_image(source)))

    def write() -> None:
        made = encode_restored(images[0], stem="scan", algorithm=ALGORITHM, description="restored")
        write_files(made, out)

    return read, seconds(write)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--slices", type=int, default=10, help="that the network really sees in each repeat")
    options = parser.parse_args()
    times, network = measure(options.repeats, options.slices)
    print(f"network: {network:.1f} s over {SLICES} slices of {SIDE} x {SIDE}, one thread\n")
    rows = [
        [kind, f"{read:.2f}", f"{write:.2f}", f"{(read + write) / network:.1%}"]
        for kind, (read, write) in times.items()
    ]
    print(table(["input", "read s", "write s", "of the network's time"], rows))


if __name__ == "__main__":
    main()
