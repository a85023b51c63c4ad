"""A label at a point of the patient is found at that point by others: nibabel, highdicom and SimpleITK.

SimpleITK says where a voxel of the source lies and what is there; medae answers; each answer is opened by another
library, and its label must lie at the same point. Our own readers judge nothing.
"""

import gzip
import tempfile
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

import highdicom as hd
import nibabel
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pydicom import dcmread

from medae.image import Image
from medae.io import read_image
from medae.io.answer import AnswerFile
from medae.io.dicom import encode_restored
from medae.io.dicom_map import encode_parametric
from medae.io.dicom_options import DicomAnswers
from medae.io.dicom_seg import encode_labels, encode_map
from medae.io.nifti import encode_plain_labels
from tests.dicom_made import ALGORITHM, LESION, as_files, ct_series, written

WHO = {"stem": "scan", "algorithm": ALGORITHM}
TOLERANCE_MM = 2e-3
SHAPE = (5, 9, 7)
PERMUTED = [
    [[a, 0, 0], [0, b, 0]]
    for a in (1, -1)
    for b in (1, -1)  # axial: also rows and columns against the patient's axes
] + [
    *([[0, 1, 0], [0, 0, -1]], [[0, -1, 0], [0, 0, 1]], [[1, 0, 0], [0, 0, -1]], [[-1, 0, 0], [0, 0, 1]]),
    *([[0, 1, 0], [1, 0, 0]], [[0, 0, 1], [0, 1, 0]]),
]
NEGATED_COLUMN = [[1.0, 0, 0], [0, -1.0, 0]]
"""Of an axial series, as in TotalSegmentator 2.18's turned masks."""


@st.composite
def directions(draw: st.DrawFn) -> list[list[float]]:
    """Any axes, tilted by up to 40 degrees about each of the patient's."""
    axes = np.array(draw(st.sampled_from(PERMUTED)), float)
    angles = [draw(st.floats(-0.7, 0.7)) for _ in range(3)]
    for at, angle in enumerate(angles):
        turn = np.eye(3)
        one, other = (at + 1) % 3, (at + 2) % 3
        turn[[one, one, other, other], [one, other, one, other]] = (
            *(np.cos(angle), -np.sin(angle)),
            *(np.sin(angle), np.cos(angle)),
        )
        axes = axes @ turn.T
    return [[round(float(value), 10) for value in axis] for axis in axes]


def read_by_sitk(folder: Path) -> sitk.Image:
    reader = sitk.ImageSeriesReader()
    (series,) = reader.GetGDCMSeriesIDs(str(folder))
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(folder), series))
    return reader.Execute()


def in_dicom(answer: list[AnswerFile], kind: type) -> Iterator[np.ndarray]:
    """LPS points that highdicom says are marked."""
    (file,) = answer
    volume = kind.from_dataset(dcmread(BytesIO(file.data))).get_volume()
    array = np.asarray(volume.array).reshape(volume.spatial_shape)
    for at in np.argwhere(array > array.max() / 2):
        yield (volume.affine @ [*at, 1])[:3]


def in_nifti(answer: list[AnswerFile]) -> Iterator[np.ndarray]:
    (file,) = answer
    image = nibabel.Nifti1Image.from_bytes(gzip.decompress(file.data))
    for at in np.argwhere(np.asarray(image.dataobj)):
        yield np.array([-1, -1, 1]) * (image.affine @ [*at, 1])[:3]  # RAS to LPS


def in_series(answer: list[AnswerFile], source: sitk.Image, folder: Path) -> Iterator[np.ndarray]:
    """Where a derived series differs from its source."""
    written([file.data for file in answer], folder)
    derived = read_by_sitk(folder)
    difference = sitk.GetArrayFromImage(derived) != sitk.GetArrayFromImage(source)
    for at in np.argwhere(difference):
        yield np.array(derived.TransformIndexToPhysicalPoint([int(number) for number in at[::-1]]))


def marked(image: Image, lps: np.ndarray) -> tuple[np.ndarray, Image]:
    """A label and a brighter voxel at a point."""
    index = image.geometry.index(lps * [-1, -1, 1])
    s, r, w = np.rint(index).astype(int)
    labels = np.zeros((1, *image.geometry.shape), np.uint8)
    labels[0, s, r, w] = 1
    return labels, image.with_pixels(image.pixels + 500 * labels.astype(np.float32))


@settings(deadline=None, max_examples=25)
@given(
    axes=directions(),
    spacing=st.tuples(st.floats(0.3, 3), st.floats(0.3, 3)),
    step=st.floats(0.5, 6),
    at=st.tuples(*(st.integers(0, length - 1) for length in SHAPE)),
    seed=st.integers(0, 99),
)
@example(axes=NEGATED_COLUMN, spacing=(0.7, 1.1), step=2.5, at=(1, 7, 2), seed=0)
@example(axes=PERMUTED[5], spacing=(2.0, 0.5), step=1.0, at=(4, 0, 6), seed=1)
def test_a_label_is_where_it_was_drawn(axes, spacing, step, at, seed):
    pixels = np.random.default_rng(seed).integers(-500, 500, SHAPE).astype(np.int16)
    spacing = tuple(round(value, 6) for value in spacing)
    with tempfile.TemporaryDirectory() as place:
        source_folder, derived_folder = Path(place) / "source", Path(place) / "derived"
        source_folder.mkdir()
        derived_folder.mkdir()
        # in any order of files
        files = as_files(ct_series(pixels, axes, step=round(step, 6), spacing=spacing))
        order = np.random.default_rng(seed).permutation(len(files))
        written([files[number] for number in order], source_folder)
        source = read_by_sitk(source_folder)
        point = np.array(source.TransformIndexToPhysicalPoint(at[::-1]))
        image = read_image(source_folder)
        labels, brighter = marked(image, point)
        drawn, asked = image.with_pixels(labels), {"labels_info": [LESION], **WHO}
        as_map = image.with_pixels(labels.astype(np.float32))
        found = {
            "NIfTI": in_nifti(encode_plain_labels(drawn, stem="scan")),
            "SEG": in_dicom(encode_labels(drawn, **asked), hd.seg.Segmentation),
            "all frames": in_dicom(
                encode_labels(drawn, dicom=DicomAnswers(empty_frames=True), **asked), hd.seg.Segmentation
            ),
            "label map": in_dicom(
                encode_labels(drawn, dicom=DicomAnswers(seg="labelmap"), **asked), hd.seg.Segmentation
            ),
            "map": in_dicom(encode_map(as_map, maximum=1, **WHO), hd.seg.Segmentation),
            "parametric map": in_dicom(encode_parametric(as_map, maximum=1, **WHO), hd.pm.ParametricMap),
            "derived": in_series(encode_restored(brighter, description="d", **WHO), source, derived_folder),
        }
        for kind, points in found.items():
            (only,) = points
            np.testing.assert_allclose(only, point, atol=TOLERANCE_MM, err_msg=kind)


@pytest.mark.parametrize("axes", PERMUTED)
def test_a_label_elsewhere_is_found_elsewhere(axes, tmp_path):
    """The law above can fail: a label one column off is one column off in every answer."""
    source_folder = tmp_path / "source"
    source_folder.mkdir()
    written(as_files(ct_series(np.zeros(SHAPE, np.int16), axes)), source_folder)
    source = read_by_sitk(source_folder)
    image = read_image(source_folder)
    point = np.array(source.TransformIndexToPhysicalPoint((3, 4, 2)))
    labels, _ = marked(image, point)
    moved = image.with_pixels(np.roll(labels, 1, axis=3))
    answers = (
        in_nifti(encode_plain_labels(moved, stem="scan")),
        in_dicom(encode_labels(moved, labels_info=[LESION], **WHO), hd.seg.Segmentation),
    )
    for (only,) in answers:
        assert np.linalg.norm(only - point) == pytest.approx(1.1, abs=TOLERANCE_MM)
