"""Images that come with the dependencies, and the small data sets made of them: for demos and tests, without network.

    image                       from                                  licence
    stained_tissue, retina      scikit-image                          no known restriction; CC0
    ct_slice, mr_slice, series  pydicom's test files                  MIT
    oblique_volume              nibabel's test files, tilted by us    MIT

One picture of one specimen each: what is trained on them shows that medae works, not that the model would on yours.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from medae.data import artefacts
from medae.data.cases import Case, Data, LoadedCase, Split, with_labels
from medae.errors import SettingsError
from medae.image import Geometry, Image

TILE = 24
"""Pixels along a side of an anomaly tile."""

ABNORMAL = ("ink", "fold", "foreign", "blur", "bubble", "compressed", "stain")
"""Labels of the abnormal test tiles."""

LOCAL = ("ink", "fold", "foreign", "bubble")
"""Those that mark a part of the tile."""

CHANGED = 8
"""Levels by which a channel of a pixel differs where an artefact is."""

_SKIMAGE = "images of scikit-image (immunohistochemistry: no known copyright restriction; retina: CC0)"
_MEDICAL = "test images of pydicom and nibabel (MIT)"


def stained_tissue() -> Image:
    """Colonic glands, 512 x 512 RGB: FHL2 stained brown (DAB), nuclei counterstained blue (haematoxylin)."""
    from skimage import data

    return Image.from_picture(data.immunohistochemistry())


def retina() -> Image:
    """A healthy retina, 1411 x 1411 RGB."""
    from skimage import data

    return Image.from_picture(data.retina())


def ct_slice_file() -> Path:
    """A CT slice, 128 x 128, as a DICOM file."""
    return _pydicom_file("CT_small.dcm")


def mr_slice_file() -> Path:
    """An MR slice, 64 x 64, as a DICOM file."""
    return _pydicom_file("MR_small.dcm")


def ct_series_folder() -> Path:
    """Five CT slices of 16 x 16 as a folder of DICOM files."""
    return _pydicom_file("dicomdirtests/98892001/CT5N")


def mr_projection_files() -> list[Path]:
    """Seven MR angiography projections of 16 x 16, DICOM; each has its own direction, so they are no volume."""
    return sorted(_pydicom_file("dicomdirtests/98892003/MR700").iterdir())


def oblique_volume() -> Image:
    """A small anatomical MR volume, 25 x 41 x 33, turned by 17 and 11 degrees so that no axis is straight."""
    import nibabel

    from medae.io import read_image

    image = read_image(Path(nibabel.__file__).parent / "tests" / "data" / "anatomical.nii")
    affine = _turn(17, (1, 2)) @ _turn(-11, (0, 1)) @ image.geometry.affine
    return Image(image.pixels, Geometry(image.geometry.shape, affine))


def nuclei_labels(rgb: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """(R, W, 3) -> (R, W), 1 = nucleus: the demo's ground truth, made by rule and not by a pathologist.

    Colour deconvolution (Ruifrok and Johnston 2001), the haematoxylin smoothed, above both the picture's Otsu
    threshold and 1.1 x its neighbourhood (which parts crowded nuclei), then cleaned: opened, specks and holes removed.
    """
    from skimage.filters import threshold_local, threshold_otsu
    from skimage.morphology import disk, opening, remove_small_holes, remove_small_objects

    stain = haematoxylin(rgb)
    around = threshold_local(stain, 101, method="gaussian")
    nuclei = opening(stain > np.maximum(1.1 * around, threshold_otsu(stain)), disk(1.5))
    nuclei = remove_small_holes(remove_small_objects(nuclei, max_size=30), max_size=30)
    labels: NDArray[np.uint8] = nuclei.astype(np.uint8)
    return labels


def haematoxylin(rgb: NDArray[np.uint8]) -> NDArray[np.float64]:
    """(R, W, 3) -> (R, W) amount of the blue stain, smoothed by one pixel.

    Above a threshold tuned on the training part it is the demo's simple competitor.
    """
    from skimage.color import rgb2hed
    from skimage.filters import gaussian

    stain: NDArray[np.float64] = gaussian(rgb2hed(rgb)[..., 0], 1)
    return stain


def _pydicom_file(name: str) -> Path:
    return Path(str(files("pydicom"))) / "data" / "test_files" / name


def _turn(degrees: float, plane: tuple[int, int]) -> NDArray[np.float64]:
    a, b = plane
    turn = np.eye(4)
    turn[[a, b], [a, b]] = np.cos(np.radians(degrees))
    turn[b, a] = np.sin(np.radians(degrees))
    turn[a, b] = -turn[b, a]
    return turn


# Parts of one image along one axis. Eight rows of tissue and one slice of the volume belong to none, so that no nucleus
# and nearly no voxel is in two.
_TISSUE_ROWS: Mapping[Split, slice] = {
    "train": slice(0, 296),
    "validation": slice(304, 400),
    "test": slice(408, 512),
}
_VOLUME_SLICES: Mapping[Split, slice] = {"train": slice(0, 16), "validation": slice(17, 20), "test": slice(21, 25)}


def _part(image: Image, axis: int, along: slice) -> Image:
    """A stretch of the image along axis 0 slices, 1 rows, 2 columns, in its place."""
    start, stop, _ = along.indices(image.geometry.shape[axis])
    offset, shape = [0, 0, 0], list(image.geometry.shape)
    offset[axis], shape[axis] = start, stop - start
    box = tuple(slice(at, at + length) for at, length in zip(offset, shape, strict=True))
    return Image(image.pixels[(slice(None), *box)], image.geometry.moved(offset, shape))


def _nuclei() -> Iterator[LoadedCase]:
    tissue = stained_tissue()
    labels = tissue.with_pixels(nuclei_labels(_rgb(tissue))[None, None])
    for split, rows in _TISSUE_ROWS.items():
        yield LoadedCase(_case(f"tissue-{split}", split), _part(tissue, 1, rows), _part(labels, 1, rows))


def _clean_tissue() -> Iterator[LoadedCase]:
    return _divided("tissue", stained_tissue(), 1, _TISSUE_ROWS)


def _clean_grey() -> Iterator[LoadedCase]:
    """CT and MR slices by columns, the MR volume by slices; the CT series is too small to divide.

    The MR projections are left out: they are mostly noise, and what is not clean cannot teach what clean is.
    """
    from medae.io import read_image

    for name, file in (("ct", ct_slice_file()), ("mr", mr_slice_file())):
        image = read_image(file)
        eighth = image.geometry.shape[2] // 8
        columns: Mapping[Split, slice] = {
            "train": slice(0, 5 * eighth),
            "validation": slice(5 * eighth, 6 * eighth),
            "test": slice(6 * eighth, None),
        }
        yield from _divided(name, image, 2, columns)
    yield LoadedCase(_case("ct-series", "train"), read_image(ct_series_folder()), None)
    yield from _divided("mr-volume", oblique_volume(), 0, _VOLUME_SLICES)


def _divided(name: str, image: Image, axis: int, parts: Mapping[Split, slice]) -> Iterator[LoadedCase]:
    for split, along in parts.items():
        yield LoadedCase(_case(f"{name}-{split}", split), _part(image, axis, along), None)


def _anomaly_tiles() -> Iterator[LoadedCase]:
    """Disjoint tiles in a fixed random order: half train, a quarter validation, a quarter test.

    Each test tile is there normal and once with each artefact. Tiles that show mostly glass are left out: a fold of
    nothing is nothing.
    """
    rng = np.random.default_rng(20)
    tiles = _tissue_tiles(_rgb(stained_tissue()))
    other = _rgb(retina())[300:1100:3, 300:1100:3]  # inside the round field of view, vessels a few pixels wide
    for rank, number in enumerate(rng.permutation(len(tiles)).tolist()):
        name, tile = tiles[number]
        split: Split = "train" if 2 * rank < len(tiles) else "validation" if 4 * rank < 3 * len(tiles) else "test"
        yield _tile(name, tile, split, "normal")
        if split == "test":
            for label, damaged in _damaged(tile, other, rng).items():
                yield _tile(name, damaged, split, label, of=tile)


def _damaged(
    tile: NDArray[np.uint8], other: NDArray[np.uint8], rng: np.random.Generator
) -> dict[str, NDArray[np.uint8]]:
    """A tile with each artefact, by its label."""
    made = (
        artefacts.ink(tile, rng),
        artefacts.fold(tile, rng),
        artefacts.foreign(tile, other, rng),
        artefacts.blur(tile, rng),
        artefacts.bubble(tile, rng),
        artefacts.compressed(tile, rng),
        artefacts.stain_shift(tile, rng),
    )
    return dict(zip(ABNORMAL, made, strict=True))


def _tissue_tiles(rgb: NDArray[np.uint8]) -> list[tuple[str, NDArray[np.uint8]]]:
    rows, columns = (length // TILE for length in rgb.shape[:2])
    cut = {
        f"tile-{row:02d}-{column:02d}": rgb[row * TILE : (row + 1) * TILE, column * TILE : (column + 1) * TILE]
        for row in range(rows)
        for column in range(columns)
    }
    # glass lets all light through; half of the tile must hold some back
    return [(name, tile) for name, tile in cut.items() if np.median(tile.min(axis=2)) < 222]


def _tile(
    name: str, tile: NDArray[np.uint8], split: Split, label: str, of: NDArray[np.uint8] | None = None
) -> LoadedCase:
    """of: the same tile without its artefact; where one marks a part, the target says which."""
    target = None
    if of is not None and label in LOCAL:
        changed = np.abs(tile.astype(int) - of.astype(int)).max(axis=2) > CHANGED
        target = Image.from_picture(changed.astype(np.uint8))
    return LoadedCase(_case(f"{name}-{label}", split, label), Image.from_picture(tile), target)


def _case(name: str, split: Split, label: str | None = None) -> Case:
    return Case(id=name, image=None, split=split, label=label)


def _rgb(image: Image) -> NDArray[np.uint8]:
    """A colour picture as (R, W, 3)."""
    picture: NDArray[Any] = np.moveaxis(image.pixels[:, 0], 0, 2)
    return np.ascontiguousarray(picture)


@dataclass(frozen=True)
class SampleSet:
    """A named data set made of embedded images."""

    make: Callable[[], Iterator[LoadedCase]]
    licence: str
    """Of its images."""


SampleName = Literal["nuclei", "denoise-tissue", "denoise-grey", "anomaly-tiles"]

SAMPLES: Mapping[SampleName, SampleSet] = {
    "nuclei": SampleSet(_nuclei, f"{_SKIMAGE}; labels made by colour deconvolution, not by a pathologist"),
    "denoise-tissue": SampleSet(_clean_tissue, _SKIMAGE),
    "denoise-grey": SampleSet(_clean_grey, _MEDICAL),
    "anomaly-tiles": SampleSet(_anomaly_tiles, f"{_SKIMAGE}; artefacts drawn by medae"),
}


class Sample(Data):
    """Images embedded in medae's dependencies; training, validation and test parts are disjoint in space.

    nuclei: stained tissue, label 1 = nucleus. denoise-tissue, denoise-grey: clean images without target.
    anomaly-tiles: 24-pixel tiles; only the test split holds abnormal ones, and `label` says which.
    """

    kind: Literal["sample"] = "sample"
    name: SampleName

    @property
    def licence(self) -> str:
        """Of the images; goes into the model card."""
        return SAMPLES[self.name].licence

    def all_cases(self) -> list[Case]:
        return [loaded.case for loaded in _loaded(self.name).values()]

    def read(self, case: Case, *, labels: int | None = None) -> LoadedCase:
        loaded = _loaded(self.name).get(case.id)
        if loaded is None:
            raise SettingsError(f"the sample {self.name} has no case {case.id}")
        return with_labels(loaded, labels)


@cache
def _loaded(name: SampleName) -> dict[str, LoadedCase]:
    return {loaded.case.id: loaded for loaded in SAMPLES[name].make()}
