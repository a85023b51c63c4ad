"""Do our DICOM answers have errors that their sources did not have?

dciodvfy's error lines (dicom3tools) of embedded files and series, and those new in each answer: derived images, labels,
an anomaly map and probabilities as segmentation objects.

    python -m benchmarks.dciodvfy
"""

import argparse
import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path

import numpy as np

from benchmarks.models import table
from medae.io import encode_labels, encode_map, encode_probabilities, encode_restored, read_image
from medae.io.answer import Algorithm, AnswerFile, CodedTerm, Label, write_files

ALGORITHM = Algorithm("benchmark", "1.0.0", "sha256:" + 64 * "0")
LABELS = (
    Label(
        name="nucleus",
        colour=(255, 210, 0),
        category=CodedTerm(value="91723000", scheme="SCT", meaning="Anatomical Structure"),
        term=CodedTerm(value="84640000", scheme="SCT", meaning="Nucleus"),
    ),
    Label(name="organ", colour=(0, 128, 255)),
)


def sources() -> dict[str, list[Path]]:
    """Slices, colour, palettes, byte orders, compressed ones and series that come with pydicom."""
    folder = Path(str(files("pydicom"))) / "data" / "test_files"
    names = "CT_small MR_small MR_small_bigendian MR_small_implicit MR_small_RLE SC_rgb_rle_16bit SC_rgb_jpeg_dcmtk"
    names += " SC_rgb_small_odd examples_palette examples_overlay 693_J2KI"
    found = {name: [folder / f"{name}.dcm"] for name in names.split()}
    for series in ("98892001/CT5N", "77654033/CR1"):
        found[series] = sorted((folder / "dicomdirtests" / series).iterdir())
    return found


def errors(paths: Sequence[Path]) -> set[str]:
    """The lines that dciodvfy calls an error."""
    lines: set[str] = set()
    for path in paths:
        done = subprocess.run(["dciodvfy", str(path)], capture_output=True, text=True, errors="replace", timeout=120)
        lines |= {line for line in (done.stdout + done.stderr).splitlines() if line.startswith(("Error", "Abort"))}
    return lines


def answers(paths: Sequence[Path]) -> Mapping[str, list[AnswerFile]]:
    """One of each kind."""
    image = read_image(paths)
    labels = np.zeros((1, *image.geometry.shape), np.uint8)
    labels[:, :, 1:7, 1:5], labels[:, 0, :2, :2] = 1, 2
    fractions = np.random.default_rng(0).random((2, *image.geometry.shape), np.float32)
    restored = image.with_pixels(image.pixels.astype(np.float32))
    soft = image.with_pixels(fractions)
    return {
        "derived": encode_restored(restored, stem="a", algorithm=ALGORITHM, description="denoised"),
        "labels": encode_labels(image.with_pixels(labels), stem="a", labels_info=LABELS, algorithm=ALGORITHM),
        "map": encode_map(image.with_pixels(fractions[:1]), stem="a", maximum=0.5, algorithm=ALGORITHM),
        "probabilities": encode_probabilities(soft, stem="a", labels_info=LABELS, algorithm=ALGORITHM),
    }


def new_errors(paths: Sequence[Path]) -> tuple[int, dict[str, int]]:
    """(error lines of the source, lines of each answer that the source did not have)."""
    known = errors(paths)
    with tempfile.TemporaryDirectory() as folder:
        made = {kind: write_files(given, Path(folder) / kind) for kind, given in answers(paths).items()}
        return len(known), {kind: len(errors(written) - known) for kind, written in made.items()}


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    if shutil.which("dciodvfy") is None:
        raise SystemExit("dciodvfy is missing: install the package dicom3tools")
    rows = []
    for name, paths in sources().items():
        known, new = new_errors(paths)
        rows.append((name, len(paths), known, *new.values()))
    print(table(("source", "files", "its errors", "new: derived", "labels", "map", "probabilities"), rows))


if __name__ == "__main__":
    main()
