"""Every file of pydicom's test set and of the shared zoos: an image whose values another reader gives, or one of our
errors; no other exception, no hang, no process that dies. `pytest -s -m "slow or not slow"` prints the table."""

import time
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import nibabel
import numpy as np
import pytest
from pydicom import dcmread
from pydicom.pixels.utils import pixel_array

from medae.errors import InputError
from medae.image import Image
from medae.io import read_image
from tests.dicom_made import sample

SECONDS = 20
PYDICOM = sample("CT_small.dcm").parent
_NO_DATA = (".py", ".pyc", ".md", ".csv", ".txt")


def files_below(folder: Path) -> Iterator[Path]:
    yield from (path for path in sorted(folder.rglob("*")) if path.is_file() and path.suffix not in _NO_DATA)


def census(folder: Path) -> Counter[str]:
    """What became of each file, printed; the values of those that were read are compared."""
    outcomes: Counter[str] = Counter()
    for path in files_below(folder):
        begin = time.monotonic()
        try:
            image = read_image(path)
            outcome, said = "read", f"{image.source.format} {image.pixels.shape} {image.pixels.dtype}"
            compare(path, image)
        except InputError as error:
            outcome, said = error.code, str(error)
        print(f"{path.relative_to(folder)!s:60} {outcome:18} {said[:100]}")
        assert time.monotonic() - begin < SECONDS, path
        outcomes[outcome] += 1
    print(dict(outcomes))
    return outcomes


def compare(path: Path, image: Image) -> None:
    """With what pydicom or nibabel reads, where one of them can say."""
    if image.source.format == "nifti":
        peer = nibabel.load(path)
        values = np.asarray(peer.dataobj)
        if values.dtype.names is None and values.ndim == 3:
            np.testing.assert_allclose(image.pixels[0].T, values, rtol=1e-5)
            np.testing.assert_allclose(image.geometry.affine[:, [2, 1, 0, 3]], peer.affine, rtol=1e-6, atol=1e-9)
    elif image.source.format == "dicom" and image.channels == 1 and image.geometry.shape[0] == 1:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            dataset = dcmread(path, force=True)
            if "ModalityLUTSequence" in dataset or "TransferSyntaxUID" not in dataset.file_meta:
                return
            try:
                stored = pixel_array(path)
            except (AttributeError, RuntimeError, NotImplementedError):
                return  # pydicom's own decoders do not read it, ours do
        slope, intercept = (float(dataset.get(f"Rescale{name}") or default) for name, default in DEFAULTS)
        np.testing.assert_allclose(image.pixels[0, 0], stored * slope + intercept, rtol=1e-6)


DEFAULTS = (("Slope", 1), ("Intercept", 0))


def test_pydicom_s_own_files() -> None:
    outcomes = census(PYDICOM)
    assert set(outcomes) <= {"read", "unsupported-image", "unreadable-image", "bad-series", "bad-geometry"}
    assert outcomes["read"] > 60


@pytest.mark.slow
def test_the_shared_zoos(shared_data: Path) -> None:
    assert census(shared_data / "dicom_zoo")["read"] > 90
    assert census(shared_data / "nifti_zoo")["read"] > 10
