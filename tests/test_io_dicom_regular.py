"""Series on a regular grid, when asked: uneven slices made even, those of a tilted gantry upright."""

import nibabel
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medae.errors import LimitExceeded, SeriesError
from medae.image import Image
from medae.io import Limits, encode_image, read_image
from medae.io.dicom import read_dicom
from tests.dicom_made import DIRECTIONS, as_files, ct_series

VOLUME = np.random.default_rng(5).permutation(6 * 7 * 5).reshape(6, 7, 5).astype(np.int16)


def ramp(places, directions=DIRECTIONS["oblique"]):
    """Slices at these places (mm along the normal), whose values grow with the place."""
    normal = np.cross(*directions)

    def move(dataset, index):
        position = (-31.5, 17.25, 40.0) + places[index] * normal
        dataset.ImagePositionPatient = [round(float(value), 6) for value in position]
        dataset.RescaleSlope, dataset.RescaleIntercept = 1, 0

    values = np.round(np.array(places) * 100).astype(np.int16)
    return as_files(ct_series(values[:, None, None] + VOLUME[0], directions, change=move))


@pytest.mark.parametrize("places", [[0, 2, 4, 8, 10], [0, 2, 4.3, 5.8, 8], [0, 2, 2, 4, 6], [8, 2, 0, 4]])
def test_uneven_slices_are_made_even_when_asked(places):
    files = ramp(places)
    with pytest.raises(SeriesError):
        read_image(files)
    image = read_image(files, regular_grid=True)
    count = image.geometry.shape[0]
    assert image.geometry.spacing[0] == pytest.approx(max(places) / (count - 1))
    expected = np.linspace(0, max(places), count)[:, None, None] * 100 + VOLUME[0]
    np.testing.assert_allclose(image.pixels[0], expected, atol=0.01)
    ends = read_image([files[places.index(0)]]).geometry, read_image([files[places.index(max(places))]]).geometry
    np.testing.assert_allclose(image.geometry.world((0, 3, 2)), ends[0].world((0, 3, 2)), atol=1e-4)
    np.testing.assert_allclose(image.geometry.world((count - 1, 3, 2)), ends[1].world((0, 3, 2)), atol=1e-4)
    assert image.source.format == "array"


def test_even_slices_are_left_alone_when_asked():
    files = as_files(ct_series(VOLUME))
    image = read_image(files, regular_grid=True)
    assert image.source.format == "dicom"
    np.testing.assert_array_equal(image.pixels, read_image(files).pixels)


def test_what_was_not_measured_is_not_made_up():
    with pytest.raises(SeriesError, match="more than one slice is missing"):
        read_image(ramp([0, 2, 4, 10]), regular_grid=True)
    files = ramp([0, 2, 4])
    with pytest.raises(SeriesError, match="different pixels"):
        read_image([*files, as_files(ct_series(VOLUME[1:2], DIRECTIONS["oblique"]))[0]], regular_grid=True)


# -- of a tilted gantry ------------------------------------------------------------------------------------------------


def tilted(volume, directions, shift, *, step=2.5):
    """Slices each shifted by (mm along rows, mm along columns) from the one below."""

    def move(dataset, index):
        position = np.array(dataset.ImagePositionPatient, float) + index * (shift @ np.array(directions, float))
        dataset.ImagePositionPatient = [round(float(value), 6) for value in position]
        dataset.RescaleSlope, dataset.RescaleIntercept = 1, 0

    return as_files(ct_series(volume, directions, step=step, change=move))


SHIFTS = st.tuples(st.floats(-3, 3), st.floats(-3, 3)).filter(lambda shift: np.abs(shift).max() > 0.1)


@settings(deadline=None, max_examples=25)
@given(SHIFTS, st.sampled_from(sorted(DIRECTIONS)))
def test_a_point_keeps_its_place_when_a_tilted_series_is_made_upright(shift, name):
    """Values that grow with the place are found at that place again; linear interpolation is exact for them."""
    files = tilted(np.zeros((5, 12, 14), np.int16), DIRECTIONS[name], np.array(shift))
    sheared = read_dicom(files)
    slope = np.array([3.0, -2.0, 5.0])
    values = (sheared.geometry.world(np.moveaxis(np.indices(sheared.geometry.shape), 0, -1)) @ slope)[None]
    image = upright_of(sheared.with_pixels(values.astype(np.float32)))
    s, r, w = image.geometry.affine[:3, :3].T
    assert abs(s @ r) < 1e-6 and abs(s @ w) < 1e-6  # a box again
    there = image.geometry.world(np.moveaxis(np.indices(image.geometry.shape), 0, -1))
    at = sheared.geometry.index(there)
    end = np.array(sheared.geometry.shape) - 1
    within = ((at >= -1e-6) & (at <= end + 1e-6)).all(-1)
    assert within.sum() >= 5 * 11 * 13
    np.testing.assert_allclose(image.pixels[0][within], (there @ slope)[within], atol=1e-2)
    # nothing of the volume is left outside
    corners = np.array(np.meshgrid(*[(0, length - 1) for length in sheared.geometry.shape])).reshape(3, -1).T
    inside = image.geometry.index(sheared.geometry.world(corners))
    assert (inside > -1e-6).all() and (inside < np.array(image.geometry.shape) - 1 + 1e-6).all()


def upright_of(sheared: Image) -> Image:
    from medae.io.dicom_even import upright

    return upright(sheared)


@pytest.mark.parametrize("name", DIRECTIONS)
def test_a_mark_is_found_at_its_place_by_nibabel(name):
    volume = np.zeros((4, 9, 8), np.int16)
    volume[2, 4, 3] = 100
    files = tilted(volume, DIRECTIONS[name], np.array([1.1 * 2, 0.7 * -1]))  # whole pixels: moved, not interpolated
    image = read_image(files[::-1], regular_grid=True)
    assert image.source.format == "array"
    peer = nibabel.Nifti1Image.from_bytes(encode_image(image))
    (at,) = np.argwhere(np.asarray(peer.dataobj) == 100)
    marked = read_image(files).geometry.world((2, 4, 3))
    np.testing.assert_allclose(nibabel.affines.apply_affine(peer.affine, at), marked, atol=1e-4)
    assert (image.pixels == 100).sum() == 1 and image.pixels.min() == 0


def test_uneven_and_tilted_at_once():
    files = tilted(np.full((6, 9, 8), 7, np.int16), DIRECTIONS["oblique"], np.array([1.1, 0.7]))
    del files[2]
    with pytest.raises(SeriesError, match="gap"):
        read_image(files)
    image = read_image(files, regular_grid=True)
    assert image.geometry.shape == (6, 14, 13)
    s, r, w = image.geometry.affine[:3, :3].T
    assert abs(s @ r) < 1e-6 and abs(s @ w) < 1e-6 and image.geometry.spacing[0] == pytest.approx(2.5)


def test_a_tilted_series_stays_as_it_is_unless_asked():
    files = tilted(VOLUME, DIRECTIONS["oblique"], np.array([1.1, 0.0]))
    image = read_image(files)
    assert image.source.format == "dicom" and image.geometry.shape == VOLUME.shape


def test_an_upright_grid_that_is_too_large_is_refused():
    files = tilted(VOLUME, DIRECTIONS["axial"], np.array([0.0, 1000.0]))
    with pytest.raises(LimitExceeded, match="pixels a slice"):
        read_image(files, regular_grid=True, limits=Limits(pixels=10_000))
